"""Load and save a model's files: through mlx-lm, with one line for whatever is wrong with them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer, save_config, save_model

from aird_mlx.architectures import REFUSED, Architecture, architecture_of
from aird_mlx.errors import ModelError, OutputError
from aird_mlx.model.chat_model import QUANTIZED, ChatModel
from aird_mlx.model.discovery import discover
from aird_mlx.model.find import find_folder, read_config
from aird_mlx.model.stream import BlockStream
from aird_mlx.model.writers import check_writers, first_of_each_kind
from aird_mlx.workspace import whole_folder, writing_to

RWKV_VOCABULARY = "rwkv_vocab_v20230424.txt"  # read by the tokenizer's own code
TOKENIZERS = ("tokenizer.json", "tokenizer.model", RWKV_VOCABULARY)

# What a tokenizer or a chat app reads beside the weights; copied byte for byte, since a re-serialized tokenizer
# is a different tokenizer until proven otherwise.
COMPANION_FILES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)

TEMPLATES = "additional_chat_templates"  # a folder of them

# What libraries raise when a file of a model holds other values than they expect.
BAD_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    streaming: bool = False,
    chat: bool = True,
) -> ChatModel:
    """Load a chat model through mlx-lm: ``demo``, a local folder, or a hub id.

    A quantized model is dequantized (repair needs to see and keep exact zeros) and says so in ``notes``.

    Args:
        model: ``"demo"``, a folder, or a Hugging Face id such as ``mlx-community/Llama-3.2-3B-Instruct``.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model, its tokenizer's included.
        streaming: read blocks when they run and let go of them afterwards, see `BlockStream`.
        chat: it will be asked, and needs a chat template.

    Raises:
        ModelError: no such folder or id, files missing or corrupt, an unsupported model type, code that may not run, no
            chat template.
    """
    name = str(model)
    folder = find_folder(name, revision=revision)
    config = read_config(folder)
    check_model_type(config)
    network, tokenizer, complete = read_network(
        folder, config, trust_remote_code=trust_remote_code, lazy=streaming, chat=chat
    )
    row = architecture_of(complete)
    loaded = ChatModel(network, tokenizer, complete, name, folder, row or Architecture("", "", ()))
    _dequantize(loaded)
    _widen_experts(loaded)
    if not streaming:
        mx.eval(network.parameters())
    if row is None:
        loaded.architecture = discover(network, complete)
        loaded.notes.append(f"model type {complete['model_type']} has no row in the table; its writers were discovered")
    if streaming:
        _stream(loaded, lambda: _read_weights(folder, config, trust_remote_code, lazy=True)[0])
    check_writers(loaded)
    return loaded


def check_model_type(config: Mapping[str, Any]) -> None:
    """Refuse a model type that is known not to work, before its weights are read.

    Raises:
        ModelError: it is one; the message says why.
    """
    inner = config.get("text_config")
    for model_type in (config["model_type"], inner.get("model_type") if isinstance(inner, Mapping) else None):
        if model_type in REFUSED:
            raise ModelError(
                f"model: model type {model_type!r} cannot be measured or repaired here ({REFUSED[model_type]}); blocks "
                "that add to one residual stream are needed. Choose a family of docs/families.md."
            )


def read_network(
    folder: Path,
    config: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
    lazy: bool = False,
    chat: bool = True,
) -> tuple[nn.Module, TokenizerWrapper, dict[str, Any]]:
    """Network (quantized if its files are), tokenizer and config of any chat model that mlx-lm runs.

    Args:
        folder: where config.json, the weights and the tokenizer lie.
        config: what `read_config` gave.
        trust_remote_code: run Python code that comes with the model, its tokenizer's included.
        lazy: read weights when they are used.
        chat: it will be asked, and needs a chat template.

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
    network, complete = _read_weights(folder, config, trust_remote_code, lazy)
    return network, _load_tokenizer(folder, complete, trust_remote_code, chat), complete


def _read_weights(
    folder: Path, config: Mapping[str, Any], trust_remote_code: bool, lazy: bool
) -> tuple[nn.Module, dict[str, Any]]:
    try:
        network, complete = load_model(
            folder, lazy=lazy, model_config=_rope(config), trust_remote_code=trust_remote_code
        )
    except SystemExit as error:  # what mlx-lm's file of a model type does where a package it wants is missing
        raise ModelError(
            f"model: mlx-lm ends when it is to run model type {config['model_type']!r}; a package of that model is "
            "needed. `python -c 'import mlx_lm.models."
            f"{config['model_type']}'` names it; install that."
        ) from error
    except (*BAD_VALUES, RuntimeError, FileNotFoundError, ImportError, SyntaxError) as error:
        if str(error).startswith("Model type") and "not supported" in str(error):
            raise ModelError(
                f"model: model type {config['model_type']!r} is none that mlx-lm {version('mlx-lm')} runs; one of its "
                "types is needed (docs/families.md lists those this project knows). Choose another model, or update "
                "mlx-lm."
            ) from error
        if _is_about_weights(error):
            raise ModelError(
                f"model: the weights in {folder} cannot be read ({_reason(error)}); complete, intact safetensors "
                "that match config.json are needed. Download the model again."
            ) from error
        raise _unusable(folder / "config.json", error) from error
    return network, complete


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


def _load_tokenizer(folder: Path, config: Mapping[str, Any], trust_remote_code: bool, chat: bool) -> TokenizerWrapper:
    from huggingface_hub.errors import StrictDataclassError

    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"model: {folder} has no tokenizer; {' or '.join(TOKENIZERS)} is needed. Download it as well.")
    try:
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": trust_remote_code}, eos_token_ids=config.get("eos_token_id")
        )
    except StrictDataclassError as error:
        raise _unusable(folder / "config.json", error) from error
    except (*BAD_VALUES, OSError, ImportError, RecursionError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ModelError(
                f"model: the tokenizer in {folder} is code of its own, which was not run; permission to run it is "
                "needed. Read the code, and if you trust it, add --trust-remote-code."
            ) from error
        raise ModelError(
            f"model: the tokenizer in {folder} cannot be read ({_reason(error)}); an intact one is needed. "
            "Download it again."
        ) from error
    if chat and not tokenizer.chat_template:
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
    if not any(isinstance(module, QUANTIZED) for module in loaded.network.modules()):
        loaded.notes.append(
            "config.json says the model is quantized, but its weights are not; it is written without quantization"
        )
        return
    dequantize_model(loaded.network)
    loaded.notes.append(
        f"the model was quantized ({quantization.get('bits')} bits, group {quantization.get('group_size')}); it was "
        "dequantized, and is written without quantization unless that is asked for"
    )


def _stream(loaded: ChatModel, read_again: Callable[[], nn.Module]) -> None:
    """Have the blocks of a model that was read lazily in memory only as they run."""

    def reopen() -> ChatModel:
        again = dataclasses.replace(loaded, network=dequantize_model(read_again()), notes=[])
        _widen_experts(again)
        return again

    loaded.stream = BlockStream(loaded, reopen)
    if loaded.architecture.origin == "discovered":  # by running the first of each kind
        for block in first_of_each_kind(loaded):
            loaded.release(block)


def _widen_experts(loaded: ChatModel) -> None:
    """MLX multiplies fused experts on the CPU in float32 only: there, such a model is turned into float32."""
    fused = [module for module in loaded.network.modules() if isinstance(module, SwitchLinear)]
    kinds = {str(module.weight.dtype).removeprefix("mlx.core.") for module in fused} - {"float32"}
    if kinds and mx.default_device() == mx.Device(mx.cpu):
        loaded.network.set_dtype(mx.float32)
        loaded.notes.append(
            f"the weights are {', '.join(sorted(kinds))}; MLX runs fused experts on the CPU in float32 only, so the "
            "model was turned into that"
        )


def save(model: ChatModel, folder: Path, *, card: str = "") -> None:
    """Write an MLX folder that ``mlx_lm.load`` reads: weights, config, tokenizer, template, generation config, card.

    The folder is whole or not there.

    Raises:
        OutputError: ``folder`` exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"save: {folder} exists already; a new folder is needed. Choose another, or remove it.")
    with writing_to(folder, "folder"), whole_folder(folder) as partial:
        save_model(partial, model.network)
        save_config(dict(model.config), partial / "config.json")
        copy_companions(model.folder, partial)
        if card:
            (partial / "README.md").write_text(card, encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, template, generation config and code of a model folder, byte for byte."""
    for path in (*(source / name for name in COMPANION_FILES), *source.glob("*.py")):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES, dirs_exist_ok=True)


def _reason(error: BaseException) -> str:
    """What an error says, on one line; mlx-lm names the parameters that are missing on the second."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
