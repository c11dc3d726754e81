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
    lowest_mask,
    magnitude_scores,
    n_of_m_mask,
    parse_pattern,
    random_scores,
    wanda_scores,
)
from aird_mlx.pruning.moments import input_squares, second_moments
from aird_mlx.pruning.sparsegpt import DAMPING, sparsify_weight
from aird_mlx.report import PruningReport, TensorSparsity, zeros_among

METHODS = ("wanda", "sparsegpt", "magnitude", "random")
# Those that look at the inputs of the linears.
CALIBRATED = ("wanda", "sparsegpt")


def check_pruning(
    model: ChatModel, method: str, sparsity: float, pattern: str, scope: str = "row", allocation: str = "uniform"
) -> None:
    """Refuse settings that cannot work on this model before anything is computed.

    Raises:
        UsageError: see `check_words`, or a pattern that does not divide a linear's width.
    """
    check_words(method, sparsity, pattern, scope, allocation)
    groups = parse_pattern(pattern)
    if groups:
        for block, name, linear in model.linears():
            check_pattern_width(linear.weight.shape[1], *groups, of=f"{name} in block {block}")


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
        method: ``wanda``, ``sparsegpt`` (which also changes the weights that stay), ``magnitude`` or ``random``.
        sparsity: fraction to remove; with an ``N:M`` pattern N/M rules instead.
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
    notes = _notes(model, calibration, method)
    walk = Walk(model, calibration) if method in CALIBRATED else None
    names = model.architecture.linear_names
    keys = mx.random.split(mx.random.key(seed), len(model.blocks) * len(names))

    def prune_block(block: int) -> list[TensorSparsity]:
        squares = input_squares(walk, names) if walk and method == "wanda" else {}
        moments = second_moments(walk, names) if walk and method == "sparsegpt" else {}
        tensors = []
        for index, name in enumerate(names):
            linear = model.linear(block, name)
            own = allocation.sparsities[block, name] if allocation else asked
            damping = None
            before = _share_of_zeros(linear.weight)
            if method == "sparsegpt":
                done = sparsify_weight(linear.weight, moments[name], sparsity=own, groups=groups)
                linear.weight, damping = done.weight, done.damping
            else:
                if method == "wanda":
                    scores = wanda_scores(linear.weight, mx.sqrt(squares[name]))
                elif method == "magnitude":
                    scores = magnitude_scores(linear.weight)
                else:
                    scores = random_scores(linear.weight, keys[block * len(names) + index])
                mask = n_of_m_mask(scores, *groups) if groups else lowest_mask(scores, own, scope=scope)
                linear.weight = mx.where(mask, mx.zeros_like(linear.weight), linear.weight)
            zeros = _share_of_zeros(linear.weight)
            bits = 8 * linear.weight.dtype.size
            tensors.append(TensorSparsity(block, name, linear.weight.size, own, zeros, damping, before, bits))
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
    notes = [*_notes_before(tensors), *notes, *_damping_notes(tensors)]
    return PruningReport(method, pattern, scope, kind, asked, zeros_among(tensors), tensors, notes)


def _share_of_zeros(weight: mx.array) -> float:
    return float((weight == 0).sum().item() / weight.size)


def _notes_before(tensors: Sequence[TensorSparsity]) -> list[str]:
    before = zeros_among([replace(one, sparsity=one.before) for one in tensors])
    if before <= 0.01:
        return []
    return [f"{before:.1%} of the pruned linears' weights were zero already; they are removed again first"]


def _notes(model: ChatModel, calibration: Sequence[TokenBatch], method: str) -> list[str]:
    """What should be known beforehand: a calibration that is short."""
    notes: list[str] = []
    if method not in CALIBRATED:
        return notes
    tokens = int(sum(batch.counted.sum().item() for batch in calibration))
    widest = max(linear.weight.shape[1] for _, _, linear in model.linears())
    if tokens == 0:
        raise PromptError(
            f"calibration: 0 tokens; {method} needs some, best {widest} or more, the most inputs a linear has. Give "
            "texts or dialogues to calibrate on."
        )
    if method == "sparsegpt" and tokens < widest:
        notes.append(
            f"sparsegpt: {tokens} calibration tokens are fewer than the {widest} inputs of the widest linear, so its "
            f"Hessian is singular but for the damping; {widest} or more are needed for a sound one"
        )
    return notes


def _damping_notes(tensors: Sequence[TensorSparsity]) -> list[str]:
    return [
        f"sparsegpt: the Hessian of {one.name} in block {one.block} is singular; it was damped by {one.damping:g} of "
        f"its mean diagonal instead of {DAMPING:g}"
        for one in tensors
        if one.damping is not None and one.damping > DAMPING
    ]
