"""Walk the blocks and prune their linears in place: the driver around the masks.

Each block is scored with the inputs it gets from the blocks already pruned before it. Embeddings, norms, biases
and the output head are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk
from aird_mlx.errors import PromptError, UsageError
from aird_mlx.model import ChatModel, ShardFolder
from aird_mlx.pruning.allocation import ALLOCATIONS, Allocation
from aird_mlx.pruning.masks import (
    SCOPES,
    check_pattern_width,
    check_sparsity,
    check_word,
    magnitude_scores,
    parse_pattern,
    random_scores,
    removal_mask,
    wanda_scores,
)
from aird_mlx.pruning.moments import LEAST_TOKENS, InputStatistics, input_squares, second_moments
from aird_mlx.pruning.reap import (
    check_experts,
    expert_worth,
    groups_of,
    least_experts,
    mixture_of,
    remove_experts,
)
from aird_mlx.pruning.sparsegpt import DAMPING, sparsify_weight
from aird_mlx.report import PruningReport, TensorSparsity, zeros_among

METHODS = ("wanda", "sparsegpt", "magnitude", "random", "reap")
# Those that look at what the model computes.
CALIBRATED = ("wanda", "sparsegpt", "reap")


def check_pruning(
    model: ChatModel, method: str, sparsity: float, pattern: str, scope: str = "row", allocation: str = "uniform"
) -> None:
    """Refuse settings that cannot work on this model before anything is computed.

    Raises:
        UsageError: see `check_words`, a pattern that does not divide a linear's width, or ``reap`` on a streamed model.
    """
    check_words(method, sparsity, pattern, scope, allocation)
    groups = parse_pattern(pattern)
    if method == "reap":
        check_experts(model, sparsity)
        if model.stream is not None:
            raise UsageError(
                "prune: method reap with --streaming; it cuts experts out of a model that is in memory. Use another "
                "method, or a machine that holds the model."
            )
    if groups:
        for block, name, linear in model.linears():
            check_pattern_width(linear.weight.shape[-1], *groups, of=f"{name} in block {block}")


def check_words(method: str, sparsity: float, pattern: str, scope: str, allocation: str) -> None:
    """Refuse settings that no model could be pruned with.

    Raises:
        UsageError: unknown method, pattern, scope or allocation, sparsity outside [0, 1), or words that exclude
            each other.
    """
    check_word("method", method, METHODS)
    check_word("scope", scope, SCOPES)
    check_word("allocation", allocation, ALLOCATIONS)
    check_sparsity(sparsity)
    if parse_pattern(pattern) is not None and (scope != "row" or allocation != "uniform"):
        other = f"scope {scope}" if scope != "row" else f"allocation {allocation}"
        raise UsageError(
            f"prune: pattern {pattern} with {other}; each M consecutive inputs of every row lose N, so scope row and "
            "allocation uniform are needed. Leave one of the two out."
        )
    if method == "reap" and (pattern != "unstructured" or scope != "row" or allocation != "uniform"):
        raise UsageError(
            f"prune: method reap with pattern {pattern}, scope {scope}, allocation {allocation}; it removes whole "
            "experts, so none of these can be chosen. Leave them out."
        )
    if method == "sparsegpt" and scope != "row":
        raise UsageError(
            "prune: scope matrix with sparsegpt, whose weights compete in blocks of 128 columns, all rows together; "
            "magnitude, wanda or random is needed for it. Leave --scope out."
        )


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
        _check_calibration(method, tokens, widest)
        walk, notes = Walk(model, calibration), _notes_on_calibration(method, tokens, widest)
    if method == "reap":
        assert walk is not None
        return _prune_experts(model, walk, sparsity, notes, progress)
    places = [(block, name) for block in range(len(model.blocks)) for name in model.layout(block).linear_names]
    keys = dict(zip(places, mx.random.split(mx.random.key(seed), len(places)), strict=True))

    def prune_block(block: int) -> list[TensorSparsity]:
        names = model.layout(block).linear_names
        inputs = _inputs(walk, names, method)
        tensors = []
        for name in names:
            linear = model.linear(block, name)
            own = allocation.sparsities[block, name] if allocation else asked
            damping, before = None, _share_of_zeros(linear.weight)
            squares, seen = inputs.values.get(name), inputs.seen(name)
            if method == "sparsegpt":
                assert squares is not None
                linear.weight, damping = _sparsify(linear.weight, squares, seen, own, groups)
            else:
                scores = _scores(method, linear.weight, squares, seen, keys[block, name])
                mask = removal_mask(scores, own, groups=groups, scope=scope)
                linear.weight = mx.where(mask, mx.zeros_like(linear.weight), linear.weight)
            unseen = [] if seen is None else [expert for expert, is_seen in enumerate(seen.tolist()) if not is_seen]
            tensors.append(
                TensorSparsity(
                    block=block,
                    name=name,
                    weights=linear.weight.size,
                    asked=own,
                    sparsity=_share_of_zeros(linear.weight),
                    damping=damping,
                    before=before,
                    bits=8 * linear.weight.dtype.size,
                    unseen=unseen,
                )
            )
        return tensors

    tensors: list[TensorSparsity] = []
    for block in range(len(model.blocks)):
        known = shards.take(block) if shards else None
        if known is None:
            own = prune_block(block)
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
    notes = [*_notes_before(tensors), *notes, *_unseen_notes(tensors, method), *_damping_notes(tensors)]
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


def _share_of_zeros(weight: mx.array) -> float:
    return float((weight == 0).sum().item() / weight.size)


def _notes_before(tensors: Sequence[TensorSparsity]) -> list[str]:
    before = zeros_among([replace(one, sparsity=one.before) for one in tensors])
    if before <= 0.01:
        return []
    return [f"{before:.1%} of the pruned linears' weights were zero already; they are removed again first"]


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


def _unseen_notes(tensors: Sequence[TensorSparsity], method: str) -> list[str]:
    unseen = list(dict.fromkeys(f"{expert} of block {one.block}" for one in tensors for expert in one.unseen))
    if not unseen:
        return []
    more = f" and {len(unseen) - 8} more" if len(unseen) > 8 else ""
    return [
        f"{method}: fewer than {LEAST_TOKENS} calibration tokens are routed to expert {', '.join(unseen[:8])}{more}; "
        "pruned by the size of their weights alone. More calibration text reaches more experts"
    ]


def _check_calibration(method: str, tokens: int, widest: int) -> None:
    if tokens == 0:
        raise PromptError(
            f"calibration: 0 tokens; {method} needs some, best {widest} or more, the most inputs a linear has. Give "
            "texts or dialogues to calibrate on."
        )


def _notes_on_calibration(method: str, tokens: int, widest: int) -> list[str]:
    if method != "sparsegpt" or tokens >= widest:
        return []
    return [
        f"sparsegpt: {tokens} calibration tokens are fewer than the {widest} inputs of the widest linear, so its "
        f"Hessian is singular but for the damping; {widest} or more are needed for a sound one"
    ]


def _damping_notes(tensors: Sequence[TensorSparsity]) -> list[str]:
    return [
        f"sparsegpt: the Hessian of {one.name} in block {one.block} is singular; it was damped by {one.damping:g} of "
        f"its mean diagonal instead of {DAMPING:g}"
        for one in tensors
        if one.damping is not None and one.damping > DAMPING
    ]
