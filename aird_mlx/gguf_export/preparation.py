"""What can be known of a GGUF file before a weight is written: its plan, its vocabulary, and what must be refused.

Reads headers, config and tokenizer of the folder, and of the weights at most a sample. Knows nothing about writing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from aird_mlx.architectures import quantization_of
from aird_mlx.errors import ModelError, PromptError
from aird_mlx.gguf_export import general, tensors, tokenizer
from aird_mlx.gguf_export.chat import compile_template, statements_unknown_to_llama
from aird_mlx.gguf_export.choice import TypeChoice
from aird_mlx.gguf_export.families import Family, read_hyperparameters
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, read_json, read_keys
from aird_mlx.gguf_export.llama_quantizer import check_quantizer
from aird_mlx.gguf_export.notes import notes_on_plan
from aird_mlx.gguf_export.outtypes import AUTO, OutType, find_outtype
from aird_mlx.gguf_export.quantized import as_mlx_quantizes
from aird_mlx.gguf_export.stored import StoredTensor, read_stored_tensors


@dataclass(frozen=True)
class Prepared:
    """Everything about a file but its weights.

    Attributes:
        folder: the model's.
        family: its row of the table.
        hyperparameters: from its config.
        stored: headers of its weights.
        choice: the types as asked for, and what was said about each matrix's.
        plan: the tensors of the file.
        wanted: the type of the file, never ``auto``.
        extra: what goes before the planned tensors: name to float32 array; for rope scalings.
        limits: what of the family llama.cpp computes only in part, in sentences.
    """

    folder: Path
    family: Family
    hyperparameters: Hyperparameters
    stored: dict[str, StoredTensor]
    choice: TypeChoice
    plan: list[tensors.PlannedTensor]
    wanted: OutType
    extra: dict[str, np.ndarray]
    limits: list[str]

    @functools.cached_property
    def vocabulary(self) -> tokenizer.Vocabulary:
        """From the folder's tokenizer, which takes seconds to read, and is when somebody asks.

        Raises:
            ModelError, ExportError, DependencyError: see `tokenizer.read_vocabulary`.
        """
        return tokenizer.read_vocabulary(self.folder, self.plan[0].shape[0])

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Where llama.cpp will differ from MLX, one sentence each.

        Raises:
            ModelError, ExportError, DependencyError: as `vocabulary`.
        """
        return (
            *self.limits,
            *self.vocabulary.notes,
            *notes_on_plan(self.plan, self.choice, self.wanted),
            *_notes_on_template(self.vocabulary.chat_templates.get("default")),
            *general.read_card(self.folder).notes,
        )

    @property
    def parameters(self) -> int:
        """How many weights the planned tensors hold."""
        return sum(planned.parameters for planned in self.plan)

    @property
    def size_bytes(self) -> int:
        """Of the tensors, padding included."""
        sizes = [*(array.nbytes for array in self.extra.values()), *(planned.size_bytes for planned in self.plan)]
        return sum(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT) for size in sizes)


def prepare(folder: Path, outtype: str, embedding_type: str | None = None, output_type: str | None = None) -> Prepared:
    """Read headers and config, and plan the file; of the weights at most a sample is read, of the tokenizer nothing.

    Args:
        folder, outtype, embedding_type, output_type: as for `writer.export_gguf`.

    Raises:
        UsageError: ``embedding_type`` or ``output_type`` cannot be written in such a file.
        ModelError, ExportError, DependencyError: as `writer.export_gguf` would, but for what only the tokenizer, or the
            weights, show.
    """
    if not folder.is_dir():
        raise ModelError(f"model: {folder} is not a folder; a local model folder is needed. Check the path.")
    config = read_json(folder / "config.json")
    if not config and (folder / "config.json").exists():
        raise ModelError(f"model: {folder}/config.json is empty; the config of these weights is needed. Copy it again.")
    if not config:
        raise ModelError(f"model: {folder} has no config.json; a model folder is needed. Check the path.")
    try:
        family, hyperparameters = read_hyperparameters(config)
        stored, quantization = as_mlx_quantizes(read_stored_tensors(folder), quantization_of(config))
        choice = TypeChoice(outtype, stored, embedding_type, output_type)
        plan = tensors.plan_tensors(stored, family, hyperparameters, choice.choose, quantization)
        extra, limits = family.extra(hyperparameters), family.limits(hyperparameters)
        read_keys(family.keys, hyperparameters)
    except (ValueError, TypeError, AttributeError, ArithmeticError, IndexError, KeyError) as error:
        raise ModelError(
            f"model: config.json has a value that is not what its key means ({error}); numbers, and objects for the "
            "rope settings, are needed. Use the config of these weights."
        ) from error
    wanted = find_outtype(tensors.common_type(plan) if outtype == AUTO else outtype)
    if not wanted.native:
        check_quantizer(wanted)
    return Prepared(folder, family, hyperparameters, stored, choice, plan, wanted, extra, limits)


def _notes_on_template(template: str | None) -> list[str]:
    """What chat programs will make of the chat template, in a sentence; empty if they can use it."""
    if not template:
        return ["the folder has no chat template, so neither has the file: chat programs will guess one"]
    try:
        compile_template(template, "the folder")
    except PromptError as error:
        return [f"{error.seen}: llama.cpp will not render it"]
    unknown = [f"`{word}` (line {line})" for word, line in statements_unknown_to_llama(template).items()]
    if unknown:
        named = " and ".join(unknown)
        return [f"the chat template has {named}, which llama.cpp's jinja does not know: it will not render it"]
    return []


def check_exportable(folder: Path, outtype: str) -> tuple[str, ...]:
    """Find out before a long run whether `export_gguf` could write this model; of the weights at most a sample is read.

    Returns:
        In sentences, where llama.cpp will differ from MLX.

    Raises:
        ModelError, ExportError, DependencyError: as `export_gguf` would, but for what only the weights show.
    """
    return prepare(folder, outtype).notes


def resolve_outtype(folder: Path, outtype: str, **types: str | None) -> str:
    """The type that ``auto`` means for this folder; any other name stays itself.

    Args:
        folder, outtype, types: as for `prepare`.

    Raises:
        UsageError, ModelError, ExportError, DependencyError: as `prepare`.
    """
    return prepare(folder, outtype, **types).wanted.name
