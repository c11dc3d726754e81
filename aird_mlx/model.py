"""A chat model as this project sees it: blocks, linears, residual writers, and taps on them.

Loading and running are mlx-lm's; nothing here re-implements a forward pass. A *tap* stands in for a block or a
linear while a ``with`` statement lasts, sees what passes, and is gone afterwards even when the body raises.
This module knows nothing about refusals, pruning or prompts.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import compute_bits_per_weight, dequantize_model, load_model, load_tokenizer, save_config, save_model

from aird_mlx.architectures import Architecture, architecture_of
from aird_mlx.errors import ModelError, OutputError

DEMO_FOLDER = Path(__file__).parent / "demo" / "model"

# What a tokenizer or a chat app reads beside the weights; copied byte for byte, since a re-serialized tokenizer
# is a different tokenizer until proven otherwise.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
DOWNLOAD_PATTERNS = ["*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "*.py"]

# What libraries raise when a file of a model holds other values than they expect.
BAD_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)

Call = Callable[..., mx.array]


class Tap:
    """Stands in for a module and hands each call to ``call``; every other attribute is the module's own."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._module = module
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@dataclass
class ChatModel:
    """A loaded model with its tokenizer.

    Attributes:
        network: mlx-lm's model. Changed in place only by verbs (`prune_model`, `fold`).
        tokenizer: mlx-lm's wrapper around the Hugging Face tokenizer; has a chat template.
        config: the model's config.json, without ``quantization`` when the weights were dequantized.
        name: what the user called it.
        folder: where its files lie.
        architecture: its row in the table.
        notes: what loading did that the user should know.
    """

    network: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    name: str
    folder: Path
    architecture: Architecture
    notes: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order (the network's own list: replacing an element changes the model)."""
        blocks = _submodule(self.network, self.architecture.blocks)
        assert isinstance(blocks, list)
        return blocks

    def linear(self, block: int, name: str) -> nn.Linear:
        """The linear ``name`` (e.g. ``mlp.down_proj``) of block ``block``."""
        linear = _submodule(self.blocks[block], name)
        assert isinstance(linear, nn.Linear)
        return linear

    def linears(self) -> Iterator[tuple[int, str, nn.Linear]]:
        """Every prunable linear as (block, name, linear), in data order."""
        for block in range(len(self.blocks)):
            for name in self.architecture.linear_names:
                yield block, name, self.linear(block, name)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config["hidden_size"])

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together, None if the config names no limit."""
        return context_length(self.config)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(array.size for _, array in tree_flatten(self.network.parameters()))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, as mlx-lm counts them."""
        return float(compute_bits_per_weight(self.network))

    @contextmanager
    def block_taps(self, call: Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], mx.array]) -> Iterator[None]:
        """Replace every block by ``call(block index, block, args, kwargs)`` while the context lasts."""
        blocks = self.blocks
        originals = list(blocks)
        try:
            for index, block in enumerate(originals):
                blocks[index] = Tap(block, _bind(call, index, block))
            yield
        finally:
            blocks[:] = originals

    @contextmanager
    def linear_taps(self, block: int, calls: Mapping[str, Callable[[nn.Module, mx.array], mx.array]]) -> Iterator[None]:
        """Replace linears of one block by ``call(linear, input) -> output`` while the context lasts."""
        originals: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            for name, call in calls.items():
                owner_name, _, attribute = name.rpartition(".")
                owner = _submodule(self.blocks[block], owner_name) if owner_name else self.blocks[block]
                linear = getattr(owner, attribute)
                originals.append((owner, attribute, linear))
                owner[attribute] = Tap(linear, _bind(call, linear))
            yield
        finally:
            for owner, attribute, linear in reversed(originals):
                owner[attribute] = linear

    def sparsity(self) -> float:
        """Share of exact zeros among the prunable linears' weights, counted."""
        zeros, total = 0, 0
        for _, _, linear in self.linears():
            zeros += int((linear.weight == 0).sum().item())
            total += linear.weight.size
        return zeros / total


def load(model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> ChatModel:
    """Load a chat model through mlx-lm: ``demo``, a local folder, or a hub id.

    A quantized model is dequantized (repair needs to see and keep exact zeros) and says so in ``notes``.

    Args:
        model: ``"demo"``, a folder, or a Hugging Face id such as ``mlx-community/Llama-3.2-3B-Instruct``.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model, its tokenizer's included.

    Raises:
        ModelError: no such folder or id, files missing or corrupt, an unsupported model type, code that may not run, no
            chat template.
    """
    name = str(model)
    folder = find_folder(name, revision=revision)
    config = read_config(folder)
    architecture = architecture_of(config["model_type"])
    network, tokenizer, config = read_network(folder, config, trust_remote_code=trust_remote_code)
    loaded = ChatModel(network, tokenizer, config, name, folder, architecture)
    _dequantize(loaded)
    return loaded


def read_network(
    folder: Path, config: Mapping[str, Any], *, trust_remote_code: bool = False
) -> tuple[nn.Module, TokenizerWrapper, dict[str, Any]]:
    """Network (quantized if its files are), tokenizer and config of any chat model that mlx-lm runs.

    Args:
        folder: where config.json, the weights and the tokenizer lie.
        config: what `read_config` gave.
        trust_remote_code: run Python code that comes with the model, its tokenizer's included.

    Raises:
        ModelError: files missing or corrupt, a model type mlx-lm does not know, code that may not run, no template.
    """
    if not any(folder.glob("model*.safetensors")):
        raise ModelError(
            f"model: {folder} has no weights; files named model*.safetensors are needed. "
            "Download the complete model, or convert it with `mlx_lm.convert`."
        )
    if config.get("model_file") is not None and not trust_remote_code:
        raise ModelError(
            f"model: {folder} comes with code of its own ({config['model_file']!r:.60}), which was not run; permission "
            "is needed. Read the code, and if you trust it, add --trust-remote-code."
        )
    try:
        network, complete = load_model(folder, model_config=_rope(config), trust_remote_code=trust_remote_code)
    except (*BAD_VALUES, RuntimeError, FileNotFoundError, ImportError, SyntaxError) as error:
        if _is_about_weights(error):
            raise ModelError(
                f"model: the weights in {folder} cannot be read ({_reason(error)}); complete, intact safetensors "
                "that match config.json are needed. Download the model again."
            ) from error
        raise _unusable(folder / "config.json", error) from error
    return network, _load_tokenizer(folder, complete, trust_remote_code), complete


def _is_about_weights(error: BaseException) -> bool:
    """Whether loading failed on the safetensors, not on building the network that config.json describes."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError):
        return "parameter" in str(error)  # missing, unknown or of another shape
    return isinstance(error, (RuntimeError, UnicodeDecodeError, FileNotFoundError))


def _unusable(config: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"model: {config} cannot be used ({type(error).__name__}: {_reason(error)}); every setting of its model type, "
        "with a value of the right kind, is needed. Download it again."
    )


def context_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of prompt and answer together, None if the config names no limit; some nest it in ``text_config``."""
    found = config.get("max_position_embeddings", (config.get("text_config") or {}).get("max_position_embeddings"))
    return found if isinstance(found, int) else None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings that newer configs nest under ``rope_parameters``, where mlx-lm's llama and qwen2 do not look."""
    nested = config.get("rope_parameters") or {}
    if not isinstance(nested, Mapping):
        raise ModelError(
            f"model: rope_parameters in config.json is {nested!r:.60}; an object with rope_theta and rope_type is "
            "needed. Download config.json again."
        )
    found: dict[str, Any] = {}
    if "rope_theta" in nested and "rope_theta" not in config:
        found["rope_theta"] = nested["rope_theta"]
    if nested.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        found["rope_scaling"] = {key: value for key, value in nested.items() if key != "rope_theta"}
    return found


def find_folder(model: str, *, revision: str | None = None) -> Path:
    """The local folder of ``demo``, of a path, or of a hub id (downloaded when it is not in the cache).

    Raises:
        ModelError: nothing is there.
    """
    if model == "demo":
        return DEMO_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model: {model} is a file; a folder with config.json and weights is needed. Give its folder.")
    if folder.is_symlink():
        raise ModelError(
            f"model: {model} is a link to {folder.readlink()}, where nothing is; a folder is needed. Mend the link."
        )
    if _looks_like_a_path(model):
        raise ModelError(
            f"model: there is no folder {model}; a local folder, a hub id or `demo` is needed. Check the spelling."
        )
    return _download(model, revision)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") != 1 or "\\" in model


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=DOWNLOAD_PATTERNS))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"model: {hub_id} is neither a local folder nor found on the hub ({type(error).__name__}); an existing "
            "id and revision are needed (a private model needs `hf auth login`). Check the spelling."
        ) from error
    except (HfHubHTTPError, OSError, network_error()) as error:
        raise ModelError(
            f"model: {hub_id} is no local folder, and the hub cannot be reached ({type(error).__name__}); a local "
            "folder, a cached model or a connection is needed. Check the spelling, or go online."
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"model: {hub_id!r} is neither a local folder nor a valid hub id; something like `org/name` is needed. "
            "Check the spelling."
        ) from error


def network_error() -> type[Exception]:
    """What the hub's HTTP client raises when a connection breaks; which client it is depends on the hub's version."""
    client = "httpx2" if find_spec("httpx2") else "httpx"
    error: type[Exception] = import_module(client).HTTPError
    return error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of ``folder``. Raises ModelError when it is missing, malformed, or names no model type."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"model: {folder} has no config.json; a Hugging Face or MLX model folder is needed. Check the path."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"model: {path} is not JSON ({error}); an intact one is needed. Download it again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"model: {path} names no model_type; a model's config is needed. Download it again.")
    return config


def _load_tokenizer(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> TokenizerWrapper:
    from huggingface_hub.errors import StrictDataclassError

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(
            f"model: {folder} has no tokenizer; tokenizer.json or tokenizer.model is needed. Download it as well."
        )
    try:
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": trust_remote_code}, eos_token_ids=config.get("eos_token_id")
        )
    except StrictDataclassError as error:
        raise _unusable(folder / "config.json", error) from error
    except (*BAD_VALUES, OSError, ImportError, RecursionError) as error:
        raise ModelError(
            f"model: the tokenizer in {folder} cannot be read ({_reason(error)}); an intact one is needed. "
            "Download it again."
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"model: {folder} has no chat template, so it cannot be asked as a chat model; a chat or instruct model "
            "is needed (tokenizer_config.json or chat_template.jinja). Use the instruct version."
        )
    return tokenizer


def _dequantize(loaded: ChatModel) -> None:
    quantization = loaded.config.pop("quantization", None)
    loaded.config.pop("quantization_config", None)
    if quantization is None:
        return
    if not any(isinstance(module, nn.QuantizedLinear) for module in loaded.network.modules()):
        loaded.notes.append(
            "config.json says the model is quantized, but its weights are not; it is written without quantization"
        )
        return
    dequantize_model(loaded.network)
    mx.eval(loaded.network.parameters())
    loaded.notes.append(
        f"the model was quantized ({quantization.get('bits')} bits, group {quantization.get('group_size')}); it was "
        "dequantized, and is written without quantization"
    )


def save(model: ChatModel, folder: Path, *, card: str = "") -> None:
    """Write an MLX folder that ``mlx_lm.load`` reads: weights, config, tokenizer, template, generation config, card.

    Written under a temporary name beside ``folder`` and renamed when complete.

    Raises:
        OutputError: ``folder`` exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"save: {folder} exists already; a new folder is needed. Choose another, or remove it.")
    partial = folder.with_name(folder.name + ".writing")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_model(partial, model.network)
        save_config(dict(model.config), partial / "config.json")
        for name in COMPANION_FILES:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, partial / name)
        for code in model.folder.glob("*.py"):
            shutil.copyfile(code, partial / code.name)
        if card:
            (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"save: {folder} cannot be written ({_reason(error)}); a writable place with "
            f"{_size(model.parameters * model.bits_per_weight / 8)} free is needed. Free space, or choose another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """What an error says, on one line; mlx-lm names the parameters that are missing on the second."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def _submodule(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _bind(call: Callable[..., mx.array], *leading: Any) -> Call:
    if len(leading) == 2:
        index, block = leading
        return lambda *args, **kwargs: call(index, block, args, kwargs)
    return lambda value: call(leading[0], value)
