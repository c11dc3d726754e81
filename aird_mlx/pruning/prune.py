"""Walk the blocks and prune their linears in place: the driver around the masks.

Each block is scored with the inputs it gets from the blocks already pruned before it. Embeddings, norms, biases
and the output head are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk
from aird_mlx.model import ChatModel, ShardFolder
from aird_mlx.pruning.allocation import Allocation
from aird_mlx.pruning.checks import CALIBRATED, check_calibration, check_pruning
from aird_mlx.pruning.masks import magnitude_scores, parse_pattern, random_scores, removal_mask, wanda_scores
from aird_mlx.pruning.moments import InputStatistics, input_squares, second_moments
from aird_mlx.pruning.notes import notes_on_calibration, notes_on_damping, notes_on_unseen, notes_on_zeros
from aird_mlx.pruning.reap import (
    check_experts,
    expert_worth,
    groups_of,
    least_experts,
    mixture_of,
    remove_experts,
)
from aird_mlx.pruning.sparsegpt import sparsify_weight
from aird_mlx.report import PruningReport, TensorSparsity, zeros_among


def prune_model(
    model: ChatModel,
    calibration: Sequence[TokenBatch],
    *,
    method: str = "wanda",
    sparsity: float = 0.5,
    pattern: str = "unstructured",
    scope: str = "row",
    allocation: Allocation | None = None,
    seed: int = 0,
    shards: ShardFolder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruningReport:
    """Prune every linear of every block in place.

    Args:
        model: changed in place. A streamed one needs ``shards``.
        calibration: token batches; the inputs they give weigh the weights (Wanda, SparseGPT). Else ignored.
        method: ``wanda``, ``sparsegpt`` (which also changes the weights that stay), ``magnitude``, ``random``, or
            ``reap``, which removes whole experts.
        sparsity: fraction to remove, of ``reap`` of the experts; with an ``N:M`` pattern N/M rules instead.
        pattern: ``unstructured`` or ``N:M``.
        scope: ``row``: every row loses that fraction; ``matrix``: every linear. SparseGPT's weights compete in blocks
            of 128 columns.
        allocation: what each linear is to lose, see `allocate_sparsity`; default: all the same.
        seed: of ``random``.
        shards: the folder of this model that each block is written to when it is done; blocks that are there are taken
            as they are, and the result is the same.
        progress: called with (blocks done, blocks).

    Raises:
        UsageError: settings that do not fit this model.
        PromptError: no calibration for a method that needs some.

    Source:
        Wanda: Sun et al. 2023, arXiv:2306.11695. The order of blocks is theirs. SparseGPT: arXiv:2301.00774.
    """
    kind = allocation.kind if allocation else "uniform"
    check_pruning(model, method, sparsity, pattern, scope, kind)
    groups = parse_pattern(pattern)
    asked = groups[0] / groups[1] if groups else sparsity
    walk, notes = None, []
    if method in CALIBRATED:
        tokens = int(sum(batch.counted.sum().item() for batch in calibration))
        widest = max(linear.weight.shape[-1] for _, _, linear in model.linears())
        check_calibration(method, tokens, widest)
        walk, notes = Walk(model, calibration), notes_on_calibration(method, tokens, widest)
    if method == "reap":
        assert walk is not None
        return _prune_experts(model, walk, sparsity, notes, progress)
    places = [(block, name) for block in range(len(model.blocks)) for name in model.layout(block).linear_names]
    keys = dict(zip(places, mx.random.split(mx.random.key(seed), len(places)), strict=True))
    sparsities = allocation.sparsities if allocation else dict.fromkeys(places, asked)
    pruner = _Pruner(model, walk, method, groups, scope, sparsities, keys)
    tensors: list[TensorSparsity] = []
    for block in range(len(model.blocks)):
        known = shards.take(block) if shards else None
        if known is None:
            own = pruner.prune_block(block)
            if shards:
                shards.write(block, [asdict(one) for one in own])
        else:
            own = [TensorSparsity(**one) for one in known]
        tensors += own
        if walk:
            walk.advance()
        else:
            model.release(block)
        progress(block + 1, len(model.blocks))
    notes = [*notes_on_zeros(tensors), *notes, *notes_on_unseen(tensors, method), *notes_on_damping(tensors)]
    return PruningReport(
        method=method,
        pattern=pattern,
        scope=scope,
        allocation=kind,
        asked=asked,
        sparsity=zeros_among(tensors),
        tensors=tensors,
        notes=notes,
    )


@dataclass(frozen=True)
class _Pruner:
    """How the linears of a model are pruned, one block after the other.

    Attributes:
        model: changed in place.
        walk: at the block that is pruned next; None where inputs do not count.
        method, scope: see `prune_model`.
        groups: N and M of a pattern.
        sparsities, keys: of each linear; keys are for ``random``.
    """

    model: ChatModel
    walk: Walk | None
    method: str
    groups: tuple[int, int] | None
    scope: str
    sparsities: Mapping[tuple[int, str], float]
    keys: Mapping[tuple[int, str], mx.array]

    def prune_block(self, block: int) -> list[TensorSparsity]:
        names = self.model.layout(block).linear_names
        inputs = _inputs(self.walk, names, self.method)
        return [self._prune_linear(block, name, inputs) for name in names]

    def _prune_linear(self, block: int, name: str, inputs: InputStatistics) -> TensorSparsity:
        linear, asked = self.model.linear(block, name), self.sparsities[block, name]
        squares, seen = inputs.values.get(name), inputs.seen(name)
        damping, before = None, _share_of_zeros(linear.weight)
        if self.method == "sparsegpt":
            assert squares is not None
            linear.weight, damping = _sparsify(linear.weight, squares, seen, asked, self.groups)
        else:
            scores = _scores(self.method, linear.weight, squares, seen, self.keys[block, name])
            mask = removal_mask(scores, asked, groups=self.groups, scope=self.scope)
            linear.weight = mx.where(mask, mx.zeros_like(linear.weight), linear.weight)
        return TensorSparsity(
            block=block,
            name=name,
            weights=linear.weight.size,
            asked=asked,
            sparsity=_share_of_zeros(linear.weight),
            damping=damping,
            before=before,
            bits=8 * linear.weight.dtype.size,
            unseen=[] if seen is None else [expert for expert, is_seen in enumerate(seen.tolist()) if not is_seen],
        )


def _share_of_zeros(weight: mx.array) -> float:
    return float((weight == 0).sum().item() / weight.size)


def _prune_experts(
    model: ChatModel, walk: Walk, sparsity: float, notes: Sequence[str], progress: Callable[[int, int], None]
) -> PruningReport:
    """Block by block remove the experts that are worth least, given the experts removed before."""
    removed = check_experts(model, sparsity)
    before = model.parameters
    gone: dict[str, list[int]] = {}
    count = removed
    for block in range(len(model.blocks)):
        part = mixture_of(model, block)
        if part is not None:
            worth = expert_worth(walk, part)
            count = worth.size
            gone[str(block)] = least_experts(worth, removed, groups_of(model, part))
            remove_experts(model, {block: gone[str(block)]})
        walk.advance()
        progress(block + 1, len(model.blocks))
    smaller = f"{before:,} parameters became {model.parameters:,}; every token still passes as many experts as before"
    return PruningReport(
        method="reap",
        pattern="unstructured",
        scope="row",
        allocation="uniform",
        asked=removed / count,
        sparsity=model.sparsity(),
        tensors=[],
        notes=[*notes, smaller],
        removed_experts=gone,
    )


def _inputs(walk: Walk | None, names: Sequence[str], method: str) -> InputStatistics:
    if walk is None:
        return InputStatistics({})
    return input_squares(walk, names) if method == "wanda" else second_moments(walk, names)


def _scores(method: str, weight: mx.array, squares: mx.array | None, seen: mx.array | None, key: mx.array) -> mx.array:
    """What each weight is worth to a method that removes those of least worth."""
    if method == "wanda":
        assert squares is not None
        return wanda_scores(weight, _norms(squares, seen))
    return magnitude_scores(weight) if method == "magnitude" else random_scores(weight, key)


def _norms(squares: mx.array, seen: mx.array | None) -> mx.array:
    """Norms of inputs; of experts that saw too few tokens all 1, which leaves the size of their weights."""
    norms = mx.sqrt(squares)
    return norms if seen is None else mx.where(seen[:, None], norms, 1.0)


def _sparsify(
    weight: mx.array, moment: mx.array, seen: mx.array | None, sparsity: float, groups: tuple[int, int] | None
) -> tuple[mx.array, float]:
    """`sparsify_weight`, of fused experts each for itself; those that saw too few tokens are pruned by magnitude."""
    if seen is None:
        done = sparsify_weight(weight, moment, sparsity=sparsity, groups=groups)
        return done.weight, done.damping
    experts, damping = [], 0.0
    for expert, is_seen in enumerate(seen.tolist()):
        own = weight[expert]
        if is_seen:
            done = sparsify_weight(own, moment[expert], sparsity=sparsity, groups=groups)
            own, damping = done.weight, max(damping, done.damping)
        else:
            own = mx.where(removal_mask(magnitude_scores(own), sparsity, groups=groups), mx.zeros_like(own), own)
        experts.append(own)
        mx.eval(own)
    return mx.stack(experts), damping
