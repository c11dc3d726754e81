"""The plan of a GGUF file: which rows of the folder's tensors go where, and how they are stored.

Made from the files' headers alone (names, shapes, types), so everything that can be refused is refused before a
weight is read. A family's operations (`pieces`) bring the folder's tensors, in whichever layout, to Hugging Face's
names; PyPI's ``gguf`` knows what llama.cpp calls those. Source: ``conversion/base.py`` of llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export.completeness import EMBEDDING, OUTPUT, check_complete, check_looked_for, check_shapes, refuse
from aird_mlx.gguf_export.families import Family
from aird_mlx.gguf_export.hyperparameters import Hyperparameters
from aird_mlx.gguf_export.outtypes import EXACT, NATIVE_KINDS, Kind, block_length, scheme_of
from aird_mlx.gguf_export.pieces import Draft, Drafts, Piece, Values, drop, rename, take_all
from aird_mlx.gguf_export.quantized import bare_names, plain_shape, quantization_of_tensor
from aird_mlx.gguf_export.stored import ARRAYS, StoredTensor

# From GGUF name, shape, header and MLX quantization of a matrix to the type it is written in.
Choose = Callable[[str, tuple[int, ...], StoredTensor, Mapping[str, Any] | None], Kind]

# Of matrices too, llama.cpp wants these as they are: routers, convolutions, positions, small recurrent ones.
ALWAYS_F32 = re.compile(
    r"_norm\.weight$|(?<!\.weight)$|(^|\.)(ffn_gate_inp|ffn_gate_inp_shexp|position_embd|token_types|ssm_conv1d"
    r"|shortconv\.conv|time_mix_first|time_mix_w1|time_mix_w2|time_mix_decay_w1|time_mix_decay_w2|time_mix_lerp_fused"
    r")\.weight$"
)
# What every layout may have: the language model inside a larger one, names without their prefix, rope tables.
EVERYWHERE = (
    drop(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision)\."),
    rename(r"^(model\.language_model\.|language_model\.model\.)", "model."),
    rename(r"^language_model\.", ""),
    rename(r"^(?=embed_tokens\.|layers\.|norm\.)", "model."),
    drop(r"(rotary_emb|attention\.rope|rope)\.inv_freq$"),
)


_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file to be.

    Attributes:
        name: in the GGUF file.
        shape: ``[out, in]``, ``[expert, out, in]``, or ``[out]``.
        type: how it is written.
        pieces: the stored rows it is made of, in order.
        change: function of each piece's float32 values, None to take them as they are.
        quantization: keyword arguments of ``mx.dequantize``, None for plain weights.
    """

    name: str
    shape: tuple[int, ...]
    type: Kind
    pieces: tuple[Piece, ...]
    change: Values | None = field(default=None, compare=False)
    quantization: dict[str, Any] | None = None

    @property
    def source(self) -> str:
        """The stored tensor it begins with."""
        return self.pieces[0].source

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_exact(self) -> bool:
        """Whether it takes over the codes and scales of an MLX-quantized weight."""
        return (
            self.quantization is not None
            and self.change is None
            and EXACT.get(scheme_of(self.quantization)) == self.type
            and self.shape[-1] % block_length(self.type) == 0
        )

    @property
    def is_block_linear(self) -> bool:
        """Whether it is the matrix of a linear inside a block: what pruning prunes."""
        return is_block_linear(self.name, self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in the file, without padding."""
        return self.bytes_as(self.type)

    def bytes_as(self, kind: Kind) -> int:
        """How many bytes it would take in another type."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return int(self.parameters // block * size)


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a GGUF tensor is the matrix of a linear inside a block, or those of its experts.

    >>> is_block_linear("blk.0.ffn_up_exps.weight", (4, 64, 32)), is_block_linear("blk.0.ffn_gate_inp.weight", (4, 32))
    (True, False)
    """
    return name.startswith("blk.") and len(shape) > 1 and not ALWAYS_F32.search(name)


def common_type(plan: list[PlannedTensor]) -> str:
    """The name of the type that most weights of a plan have."""
    counts: Counter[Kind] = Counter()
    for planned in plan:
        counts[planned.type] += planned.parameters
    return NATIVE_KINDS[counts.most_common(1)[0][0]]


def plan_tensors(
    stored: Mapping[str, StoredTensor],
    family: Family,
    hyperparameters: Hyperparameters,
    choose: Choose,
    quantization: Mapping[str, Any] | None = None,
) -> list[PlannedTensor]:
    """Decide every tensor of the GGUF file: its name, shape, type, and the stored rows it is made of.

    Args:
        stored: headers of the model folder.
        family: the folder's.
        hyperparameters: of the same folder.
        choose: the type of a matrix; one-dimensional tensors are always f32.
        quantization: the ``quantization`` entry of an MLX config, None for plain weights.

    Returns:
        In file order: embedding, blocks, output norm, output.

    Raises:
        ExportError: a tensor in the folder has no place in the architecture, or is stored in a type that is no number.
        ModelError: a tensor is missing or has another shape than the config says.
    """
    settings = {name: quantization_of_tensor(name, stored, quantization) for name in bare_names(stored)}
    drafts: Drafts = [take_all(name, plain_shape(name, stored, found)) for name, found in settings.items()]
    for operation in (*EVERYWHERE, *family.tensors):
        drafts = operation(drafts, hyperparameters)
    named = _name_drafts(drafts, hyperparameters)
    if hyperparameters.tied and OUTPUT in named and named[OUTPUT].change is None:
        del named[OUTPUT]  # a copy of the embedding that some folders still carry; not one that was computed
    order = {name: number for number, name in enumerate(_names_of(hyperparameters.architecture))}
    named = {name: named[name] for name in sorted(named, key=lambda name: _place_of(name, order))}
    check_looked_for(named, family, hyperparameters)
    check_complete(named, family, hyperparameters)
    check_shapes(named, family, hyperparameters)
    plan = [_plan_tensor(name, draft, settings, stored, choose) for name, draft in named.items()]
    rows = [tensor.shape[0] for tensor in plan if tensor.name in (EMBEDDING, OUTPUT)]
    if len(set(rows)) > 1:
        raise ModelError(f"model: embedding and output have {rows} rows; they must agree. Use a consistent folder.")
    return plan


def _name_drafts(drafts: Drafts, hyperparameters: Hyperparameters) -> dict[str, Draft]:
    """GGUF name to draft."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[hyperparameters.architecture], hyperparameters.blocks)
    named: dict[str, Draft] = {}
    left_over = []
    for draft in drafts:
        name = draft.name if draft.name.startswith("blk.") else names.get_name(draft.name, (".weight", ".bias"))
        if name is None or name in named:
            left_over.append(draft.source)
        else:
            named[name] = draft
    refuse(left_over, hyperparameters)
    return named


def _names_of(architecture: str) -> list[str]:
    """All tensors of an architecture in gguf's order, ``blk.{bid}.attn_norm``."""
    return [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[_ARCHITECTURES[architecture]]]


def _place_of(name: str, order: Mapping[str, int]) -> tuple[int, int, int, str]:
    """File order: embedding and positions, blocks by number, what comes after them."""
    general = re.sub(r"^blk\.\d+\.", "blk.{bid}.", name)
    number = order.get(re.sub(r"\.(weight|bias)$", "", general), len(order))
    if name.startswith("blk."):
        return 1, int(name.split(".", 2)[1]), number, name
    return (0 if name.startswith(("token_embd.", "position_embd.")) else 2), 0, number, name


def _plan_tensor(
    name: str,
    draft: Draft,
    settings: Mapping[str, dict[str, Any] | None],
    stored: Mapping[str, StoredTensor],
    choose: Choose,
) -> PlannedTensor:
    """Choose the type of a draft, and check that its parts are stored alike."""
    source, quantization = draft.source, settings[draft.source]
    for piece in draft.pieces:
        if settings[piece.source] != quantization:
            raise ExportError(
                f"gguf: {piece.source} and {source} are quantized differently; {name} holds both and has one type. "
                "Quantize all experts alike."
            )
        if settings[piece.source] is None and (
            stored[piece.source].dtype not in ARRAYS or stored[piece.source].dtype[0] == "U"
        ):
            raise ExportError(
                f"gguf: {piece.source} is stored as {stored[piece.source].dtype}; F32, F16, BF16, or MLX-quantized "
                "weights are needed. Convert the model with `mlx_lm.convert` first."
            )
    always = len(draft.shape) < 2 or ALWAYS_F32.search(name)
    kind = Kind.F32 if always else choose(name, draft.shape, stored[source], quantization)
    return PlannedTensor(name, draft.shape, kind, draft.pieces, draft.change, quantization)
