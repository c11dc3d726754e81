"""Patch: what a repair changes in a compressed model, kept apart from what is done with it.

Each part changes one linear: low-rank (``weight + left @ right``), or confined to surviving weights (``delta``,
zero wherever the compressed weight is zero). Folding is the same code for every rule. This module does not know how
a patch was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.errors import AirdError, ShapeError
from aird_mlx.model import ChatModel


@dataclass(frozen=True)
class LinearPatch:
    """The change of one linear's weight ``[out, in]``; either ``left`` and ``right``, or ``delta``.

    Of fused experts all arrays have a first axis more, ``[expert, ...]``.

    Attributes:
        block: index of the block.
        name: the linear within it, e.g. ``mlp.down_proj``.
        left: ``[out, k]`` float32.
        right: ``[k, in]`` float32.
        delta: ``[out, in]`` float32.
    """

    block: int
    name: str
    left: mx.array | None = None
    right: mx.array | None = None
    delta: mx.array | None = None

    def change(self) -> mx.array:
        """The change as one ``[out, in]`` float32 matrix."""
        if self.delta is not None:
            return self.delta
        assert self.left is not None and self.right is not None
        return self.left @ self.right


@dataclass(frozen=True)
class Patch:
    """A repair: its parts and how they were found.

    Attributes:
        rule: one of `aird_mlx.repair.RULES`.
        strength: alpha of ``paper``; for the others 1 is the change they solved for.
        ridge: regularization relative to the mean diagonal; 0 for rules that solve no least squares.
        parts: one per changed linear, in data order.
        beta: extra weight of the error along the direction, where it was solved with one.
    """

    rule: str
    strength: float
    ridge: float
    parts: tuple[LinearPatch, ...]
    beta: float = 0.0

    @property
    def layers(self) -> list[int]:
        """The blocks it changes."""
        return sorted({part.block for part in self.parts})

    @property
    def rank(self) -> int | None:
        """Largest rank over its parts; None when a part is not low-rank."""
        ranks = [None if part.left is None else part.left.shape[-1] for part in self.parts]
        known = [rank for rank in ranks if rank is not None]
        return max(known, default=0) if len(known) == len(ranks) else None


def factor_change(part: LinearPatch, rank: int | None = None) -> tuple[mx.array, mx.array]:
    """Two factors of a change: exact where ``rank`` is None or suffices, else the nearest product of that rank.

    Args:
        part: the change of one linear.
        rank: at most; None: as much as it takes.

    Returns:
        ``left [out, k]``, ``right [k, in]``, float32; of fused experts with an axis more before. A change that is not
        low-rank comes back beside a unit matrix.

    Source:
        Eckart and Young 1936: a matrix in the span of its leading singular vectors.

    >>> left, right = factor_change(LinearPatch(0, "o_proj", delta=mx.array([[3.0, 0.0], [0.0, 4.0]])), 1)
    >>> (left @ right).tolist()
    [[0.0, 0.0], [0.0, 4.0]]
    """
    if part.left is not None and part.right is not None and (rank is None or part.left.shape[-1] <= rank):
        return part.left.astype(mx.float32), part.right.astype(mx.float32)
    change = part.change().astype(mx.float32)
    *experts, out, width = change.shape
    if rank is None or rank >= min(out, width):
        unit = mx.broadcast_to(mx.eye(min(out, width)), (*experts, min(out, width), min(out, width)))
        return (unit, change) if out <= width else (change, unit)
    turned = change.swapaxes(-1, -2)
    if out > width:  # the smaller of both Gram matrices
        vectors = mx.linalg.eigh(turned @ change, stream=mx.cpu)[1][..., -rank:]
        return change @ vectors, vectors.swapaxes(-1, -2)
    vectors = mx.linalg.eigh(change @ turned, stream=mx.cpu)[1][..., -rank:]
    return vectors, vectors.swapaxes(-1, -2) @ change


def scaled(patch: Patch, strength: float) -> Patch:
    """The same change made ``strength`` times, whatever its strength was; zeros stay zeros.

    >>> part = LinearPatch(0, "o_proj", left=mx.array([[2.0]]), right=mx.array([[3.0]]))
    >>> scaled(Patch("paper", 1.0, 0.0, (part,)), 4.0).parts[0].change().item()
    24.0
    """
    factor = strength / patch.strength

    def times(part: LinearPatch) -> LinearPatch:
        if part.delta is not None:
            return replace(part, delta=(part.delta * factor).astype(part.delta.dtype))
        assert part.right is not None
        return replace(part, right=part.right * factor)

    if factor == 1:
        return patch
    return replace(patch, strength=strength, parts=tuple(times(part) for part in patch.parts))


@dataclass(frozen=True)
class FoldResult:
    """Sparsity of the prunable linears before and after folding, counted.

    ``sparsity_lost`` is the share of weights that were pruned and are not zero any more; 0 inside the mask. Rounding
    can make and unmake other zeros.
    """

    sparsity_before: float
    sparsity_after: float
    sparsity_lost: float


def fold(model: ChatModel, patch: Patch) -> FoldResult:
    """Add ``patch`` to the weights of ``model`` in place, keeping their dtype.

    Raises:
        ShapeError: a part does not fit its linear; nothing is changed then.
    """
    for part in patch.parts:
        if not (part.block < len(model.blocks) and part.name in model.layout(part.block).linear_names):
            raise ShapeError(
                f"fold: the patch changes {part.name} in block {part.block}; one of the model's {len(model.blocks)} "
                f"blocks and one of its linears is needed. Use the patch with the model "
                "it was made for."
            )
        shape = model.linear(part.block, part.name).weight.shape
        if part.change().shape != shape:
            raise ShapeError(
                f"fold: the patch of {part.name} in block {part.block} has shape {part.change().shape}; the weight "
                f"needs {shape}. Use the patch with the model it was made for."
            )
    before = model.sparsity()
    lost = sparsity_lost(model, patch)
    for part in patch.parts:
        path, linear = model.path(part.block, part.name), model.linear(part.block, part.name)
        if path in model.stored:
            model.stored[path] = model.stored[path].holding(plain_weight(model, part.block, part.name) + part.change())
            linear.weight = model.stored[path].values().astype(linear.weight.dtype)
        else:
            linear.weight = changed_weight(model, part)
        mx.eval(linear.weight)
    return FoldResult(before, model.sparsity(), lost)


def plain_weight(model: ChatModel, block: int, name: str) -> mx.array:
    """What a change is added to, in float32: a linear's weight, or what was rounded to it.

    Most changes are smaller than half a step between codes: added to the code itself, they would vanish. Added to what
    was rounded to it, they turn as many weights to the next code as it takes for their sum.
    """
    stored = model.stored.get(model.path(block, name))
    weight: mx.array = model.linear(block, name).weight if stored is None else stored.origin
    return weight.astype(mx.float32)


def changed_weight(model: ChatModel, part: LinearPatch) -> mx.array:
    """A linear's weight with ``part`` added in float32, as it can be stored, rounded once to its dtype."""
    stored = model.stored.get(model.path(part.block, part.name))
    weight = plain_weight(model, part.block, part.name) + part.change()
    if stored is not None:
        weight = stored.nearest(weight)
    return weight.astype(model.linear(part.block, part.name).weight.dtype)


def sparsity_lost(model: ChatModel, patch: Patch) -> float:
    """Share of all prunable weights that were pruned and would not be zero with ``patch`` folded in."""
    return _share_back(model, ((part.block, part.name, changed_weight(model, part)) for part in patch.parts))


def pruned_weights_back(model: ChatModel) -> float:
    """Share of all prunable weights that were pruned and are not zero, of a model that has them set aside."""
    return _share_back(model, ((block, name, linear.weight) for block, name, linear in model.linears()))


def _share_back(model: ChatModel, weights: Iterable[tuple[int, str, mx.array]]) -> float:
    back = sum(int((~model.kept(block, name) & (weight != 0)).sum().item()) for block, name, weight in weights)
    return back / model.prunable_weights


@contextmanager
def patched(model: ChatModel, patch: Patch) -> Iterator[None]:
    """Have ``model`` run with ``patch`` folded in; its weights are put back afterwards."""
    originals: list[tuple[nn.Linear, mx.array]] = []
    try:
        for part in patch.parts:
            linear = model.linear(part.block, part.name)
            originals.append((linear, linear.weight))
            linear.weight = changed_weight(model, part)
        yield
    finally:
        for linear, weight in reversed(originals):
            linear.weight = weight


def save_patch(patch: Patch, path: Path) -> None:
    """Write ``patch.safetensors``: the arrays, with rule, strength and ridge as metadata."""
    arrays: dict[str, mx.array] = {}
    for part in patch.parts:
        for field in ("left", "right", "delta"):
            value = getattr(part, field)
            if value is not None:
                arrays[f"{part.block}.{part.name}.{field}"] = value
    settings = {"rule": patch.rule, "strength": patch.strength, "ridge": patch.ridge, "beta": patch.beta}
    mx.save_safetensors(str(path), arrays or {"empty": mx.zeros(1)}, metadata={"aird.patch": json.dumps(settings)})


def load_patch(path: Path) -> Patch:
    """Read what `save_patch` wrote.

    Raises:
        AirdError: the file is not a patch.
    """
    parts: dict[tuple[int, str], LinearPatch] = {}
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        settings = json.loads(metadata["aird.patch"])
        for key, value in arrays.items():
            if key == "empty":
                continue
            block, _, rest = key.partition(".")
            name, _, field = rest.rpartition(".")
            part = parts.get((int(block), name), LinearPatch(int(block), name))
            parts[int(block), name] = replace(part, **{field: value})
        rule, strength, ridge = (settings[key] for key in ("rule", "strength", "ridge"))
        return Patch(rule, strength, ridge, tuple(parts.values()), settings.get("beta", 0.0))
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise AirdError(
            f"patch: {path} is not a patch of this project ({' '.join(str(error).split())}); patch.safetensors is "
            "needed. Give what `aird-mlx repair` wrote."
        ) from error
