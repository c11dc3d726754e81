"""A model's shape and arithmetic, as its config says and as GGUF keys say it.

Reads ``config.json`` into `Hyperparameters`; what it leaves open is what mlx-lm computes with, else what
``transformers`` puts there. Writes the keys that every family shares; a family's own are in `families`. Knows nothing
about tokenizers or weights. Source: ``conversion/base.py`` of llama.cpp.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from aird_mlx.errors import ExportError, ModelError

GATINGS = {
    "softmax": gguf.ExpertGatingFuncType.SOFTMAX,
    "sigmoid": gguf.ExpertGatingFuncType.SIGMOID,
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
THETAS = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
LOCAL_THETAS = ("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq")
LONGEST = "max_position_embeddings"
NO_TOKENS = dict.fromkeys(
    ("bos_token_id", "eos_token_id", "pad_token_id")
)  # the usual ones may be beyond the vocabulary


@dataclass(frozen=True)
class Key:
    """One GGUF key of an architecture.

    Attributes:
        name: without the architecture, ``attention.head_count``.
        kind: int (32 bit without sign), float (32 bit), bool, str, or list.
        read: its value; None leaves the key out.
    """

    name: str
    kind: type
    read: Callable[[Hyperparameters], Any]


def key(name: str, kind: type, *sources: str | Callable[[Hyperparameters], Any]) -> Key:
    """A key whose value is the first of these config entries, or what a function of the hyperparameters says."""
    if callable(sources[0]):
        return Key(name, kind, sources[0])
    names = tuple(str(source) for source in sources)
    return Key(name, kind, lambda hyperparameters: hyperparameters.get(*names))


@dataclass(frozen=True)
class Hyperparameters:
    """What a config says, with the language model's part of a larger one on top.

    Attributes:
        config: every entry, defaults filled in.
        given: the entries that the file itself has.
        model_type: as in ``config.json``.
        architecture: llama.cpp's word for it.
    """

    config: Mapping[str, Any]
    given: Mapping[str, Any]
    model_type: str
    architecture: str

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these entries that is there and not null."""
        return next((self.config[name] for name in names if self.config.get(name) is not None), default)

    def need(self, *names: str) -> Any:
        """As `get`.

        Raises:
            ModelError: there is none.
        """
        found = self.get(*names)
        if found is None:
            raise ModelError(f"model: config.json has no {names[0]}; the export needs it. Use a complete model folder.")
        return found

    @functools.cached_property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self.need("num_hidden_layers", "n_layers", "n_layer", "num_layers"))

    @functools.cached_property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.need("hidden_size", "n_embd", "d_model", "dim"))

    @functools.cached_property
    def context_length(self) -> int:
        """Longest text in tokens; 2048 where the config does not say."""
        names = ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length")
        return int(self.get(*names, default=2048))

    @functools.cached_property
    def heads(self) -> int:
        """Query heads."""
        return int(self.need("num_attention_heads", "n_head", "n_heads"))

    @functools.cached_property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.get("num_key_value_heads", "n_kv_heads", default=self.heads))

    @functools.cached_property
    def head_dim(self) -> int:
        """Of one attention head; not always ``hidden / heads``."""
        return int(self.get("head_dim", default=0) or self.hidden // self.heads)

    @functools.cached_property
    def tied(self) -> bool | None:
        """Whether the output matrix is the embedding; None where nobody says."""
        return self.get("tie_word_embeddings", "weight_tying")

    @functools.cached_property
    def rope(self) -> dict[str, Any]:
        """Base, scaling and partial rotation in one place, wherever the config keeps them."""
        rope = dict(self.given.get("rope_parameters") or self.given.get("rope_scaling") or {})
        if rope.keys() & {"full_attention", "sliding_attention"}:
            return rope
        usual = self.get("rope_parameters", default={})  # of a library: its base, but no scaling that nobody asked for
        if self.get(*LOCAL_THETAS) is not None:
            rope["sliding_attention"] = {"rope_theta": self.get(*LOCAL_THETAS)}
        found = {
            "rope_theta": rope.get("rope_theta") or self.get(*THETAS) or usual.get("rope_theta"),
            "rope_type": rope.get("rope_type") or rope.get("type"),
            "partial_rotary_factor": rope.get("partial_rotary_factor")
            or self.get("partial_rotary_factor", "rope_pct", "rotary_pct")
            or usual.get("partial_rotary_factor"),
            "original_max_position_embeddings": rope.get("original_max_position_embeddings")
            or self.get("original_max_position_embeddings"),
        }
        return {**rope, **{name: value for name, value in found.items() if value is not None}}

    @functools.cached_property
    def global_rope(self) -> dict[str, Any]:
        """The same of the layers that attend to everything."""
        return dict(self.rope.get("full_attention", self.rope))

    @functools.cached_property
    def scaling(self) -> str:
        """The kind of rope scaling: default, linear, llama3, yarn, ..."""
        return str(self.global_rope.get("rope_type") or "default").lower()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or ``{}`` if there is no such file.

    Raises:
        ModelError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"model: {path} cannot be read ({error}); JSON is needed. Copy the file again.") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"model: {path} holds a {type(content).__name__}; a JSON object is needed. Copy the file again."
        )
    return content


def merge_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All entries with defaults, and those of the file; a ``text_config`` counts as the file's own.

    Raises:
        ModelError: ``text_config`` is no object.
    """
    text = config.get("text_config") or {}
    if not isinstance(text, Mapping):
        raise ModelError(
            f"model: text_config of config.json is a {type(text).__name__}; an object is needed. Copy the file again."
        )
    given = {**config, **text}
    present = {name: value for name, value in given.items() if value is not None}
    theirs = _defaults_of_transformers(text or config)
    ours = _defaults_of_mlx({**text, **_filled_text(config)} or config)
    if LONGEST in theirs:  # mlx-lm's is that of one size of a family
        ours.pop(LONGEST, None)
    return {**theirs, **ours, **present}, given


def write_keys(writer: gguf.GGUFWriter, keys: tuple[Key, ...], hyperparameters: Hyperparameters) -> None:
    """Write keys; of two with one name the later stands.

    Raises:
        ModelError: a value is not of its key's kind.
    """
    kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, bool: gguf.GGUFValueType.BOOL}
    for name, (kind, value) in read_keys(keys, hyperparameters).items():
        full = f"{hyperparameters.architecture}.{name}"
        if kind is list:
            writer.add_array(full, value)
        elif kind is str:
            writer.add_string(full, value)
        else:
            writer.add_key_value(full, value, kinds[kind])


def read_keys(keys: tuple[Key, ...], hyperparameters: Hyperparameters) -> dict[str, tuple[type, Any]]:
    """Name to kind and value, without those that have no value.

    Raises:
        ModelError: a value is not of its key's kind.
    """
    found: dict[str, tuple[type, Any]] = {}
    for one in keys:
        value = one.read(hyperparameters)
        if value is None:
            continue
        if one.kind is int and isinstance(value, (list, tuple)):  # a number for each block
            found[one.name] = (list, [int(number) for number in value])
        else:
            found[one.name] = (one.kind, one.kind(value))
        if found[one.name][0] is list and len(found[one.name][1]) != hyperparameters.blocks:
            raise ModelError(
                f"model: config.json says {len(found[one.name][1])} values for {one.name}; {hyperparameters.blocks} "
                "are needed, one for each block. Use the config of these weights."
            )
        if one.kind is int and not all(0 <= number < 2**32 for number in np.atleast_1d(found[one.name][1])):
            raise ModelError(
                f"model: config.json says {value} for {one.name}; a whole number from 0 to 4294967295 is needed. "
                "Use the config of these weights."
            )
    return found


def require(condition: object, seen: str, needed: str) -> None:
    """Refuse a model that llama.cpp has no equal for.

    Raises:
        ExportError: the condition does not hold.
    """
    if not condition:
        raise ExportError(f"gguf: {seen}; {needed}. Use llama.cpp's convert_hf_to_gguf.py for this model.")


def _defaults_of_mlx(config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm fills in; nothing where it cannot read the config."""
    arguments = _arguments_of_mlx(config)
    values = asdict(arguments) if is_dataclass(arguments) and not isinstance(arguments, type) else {}
    return {name: value for name, value in values.items() if value is not None}


def _filled_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``text_config`` as mlx-lm's class of the larger model completes it, before that of the text model does."""
    filled = getattr(_arguments_of_mlx(config), "text_config", None) if config.get("text_config") else None
    return dict(filled) if isinstance(filled, Mapping) else {}


def _arguments_of_mlx(config: Mapping[str, Any]) -> Any:
    """mlx-lm's ``ModelArgs``; None where it cannot read the config."""
    from mlx_lm.utils import _get_classes

    own = copy.deepcopy(dict(config))  # some classes write into what they are given
    try:
        return _get_classes(own)[1].from_dict(own)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, SystemExit):
        return None  # mlx-lm leaves the program where a package is missing that its olmo needs


def _defaults_of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the class of this model type fills in; nothing where there is none or it refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return {}
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what it does not know, which is not its business here
    try:
        values = dict(CONFIG_MAPPING[model_type](**{**NO_TOKENS, **config}).to_dict())
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, StrictDataclassError):
        return {}
    finally:
        logger.setLevel(level)
    values.pop("tie_word_embeddings", None)  # MLX ties what it finds no output matrix for
    return values
