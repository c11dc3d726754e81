"""What a GGUF file says about where a model comes from: the keys under ``general.``.

Name, size, licence, parents, tags and recommended sampling come from the model card, ``generation_config.json`` and
the name, by the rules of llama.cpp's converter, which are those of `gguf.Metadata`. Knows no weights and no tokenizer.
Source: llama.cpp's ``gguf-py/gguf/metadata.py`` and ``ModelBase.prepare_metadata`` of its converter.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gguf
from gguf.metadata import Metadata, yaml  # type: ignore[attr-defined]

from aird_mlx.gguf_export.hyperparameters import read_json

QUANTIZATION_VERSION = gguf.GGML_QUANT_VERSION
QUANTIZED_BY = "aird-mlx"
_UNQUANTIZED = (gguf.LlamaFileType.ALL_F32, gguf.LlamaFileType.MOSTLY_F16, gguf.LlamaFileType.MOSTLY_BF16)
_WHOLE = ("sampling_top_k", "sampling_penalty_last_n", "sampling_mirostat")


@dataclasses.dataclass(frozen=True)
class Card:
    """The front matter of a model card.

    Attributes:
        values: by key; empty without a card.
        notes: why it could not be read, in one sentence; empty otherwise.
    """

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_card(folder: Path) -> Card:
    """The front matter of ``README.md``, if the folder has one; what cannot be read is noted, not fatal."""
    try:
        return Card(Metadata.load_model_card(folder))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        note = f"the model card {folder / 'README.md'} cannot be read ({reason:.100}): licence and origin are left out"
        return Card({}, (note,))


def read_licence(folder: Path) -> str | None:
    """The ``license:`` of the model card's front matter, if the folder has one."""
    licence = read_card(folder).values.get("license")
    return None if licence is None else str(licence)


def hub_id(folder: Path) -> str | None:
    """The id of a model in the hub's cache, as in ``models--org--name/snapshots/<commit>``.

    >>> hub_id(Path("/cache/models--org--name/snapshots/0123"))
    'org/name'
    """
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1)


def read_general(folder: Path, parameters: int, name: str | None = None) -> Metadata:
    """What the files of a model and its name say about it.

    Args:
        folder: the model's.
        parameters: how many weights it has, which tells a size in its name from a version.
        name: of the model; by default the card's, or made from the folder's or the hub's.

    Returns:
        Every value of the type that GGUF wants; ``name`` is never None.
    """
    identifier = name or hub_id(folder.resolve()) or folder.resolve().name
    general = Metadata.apply_metadata_heuristic(
        Metadata(), read_card(folder).values, read_json(folder / "config.json"), Path(identifier), parameters
    )
    generation = read_json(folder / "generation_config.json")
    keys = ("top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "penalty_last_n", "mirostat",
            "mirostat_tau", "mirostat_eta")  # fmt: skip
    for key in keys:
        setattr(general, f"sampling_{key}", generation.get(key))
    general.sampling_temp = generation.get("temperature")
    general.sampling_penalty_repeat = generation.get("penalty_repeat", generation.get("repetition_penalty"))
    general.name = name or general.name or identifier
    return _typed(general)


def add_general(
    writer: gguf.GGUFWriter,
    folder: Path,
    name: str | None,
    file_type: gguf.LlamaFileType,
    *,
    strips_as_phi_3: bool,
) -> None:
    """Write these keys; the tensors must have been described before, since they are counted.

    Args:
        writer: of the file.
        folder: the model's.
        name: as for `read_general`.
        file_type: of the weights.
        strips_as_phi_3: see `Vocabulary`; it decides whether llama.cpp is to take the model for a Phi-3.
    """
    parameters, shared, expert, experts = writer.get_total_parameter_count()
    general = read_general(folder, parameters, name)
    general.size_label = general.size_label or gguf.size_label(parameters, shared, expert, experts)
    if file_type not in _UNQUANTIZED:
        general.quantized_by = general.quantized_by or QUANTIZED_BY
    general.name = _name_for_llama(str(general.name), strips_as_phi_3)
    writer.add_type("model")
    general.set_gguf_meta_model(writer)
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(QUANTIZATION_VERSION)


def _name_for_llama(name: str, strips_as_phi_3: bool) -> str:
    """A name that holds ``phi-3`` just if the tokenizer is one of those: llama.cpp strips spaces by it.

    >>> _name_for_llama("Phi 3.5 Mini", True), _name_for_llama("Phi-3 Clone", False), _name_for_llama("Mine", True)
    ('Phi-3.5 Mini', 'Phi 3 Clone', 'Mine (Phi-3)')
    """
    if not strips_as_phi_3:
        return re.sub(r"(?i)(phi)-?3", r"\1 3", name)
    if re.search(r"(?i)phi[ _-]?3", name):
        return re.sub(r"(?i)(phi)[ _]3", r"\1-3", name)
    return f"{name} (Phi-3)"


def _typed(general: Metadata) -> Metadata:
    """Cards are written by hand: numbers and dates where GGUF wants text become text, and the other way they go."""
    for entry in dataclasses.fields(general):
        value = getattr(general, entry.name)
        if value is None:
            continue
        if entry.name.startswith("sampling_") and entry.name != "sampling_sequence":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            value = (int if entry.name in _WHOLE else float)(value) if number and value >= 0 else None
        elif entry.name in ("base_models", "datasets"):
            value = [{key: str(item) for key, item in one.items() if item is not None} for one in value]
        elif entry.name in ("tags", "languages"):
            value = [str(item) for item in value] or None
        else:
            value = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        setattr(general, entry.name, value)
    return general
