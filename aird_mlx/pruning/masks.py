"""Which weights a pruning method removes: arrays in, masks out.

True = remove. Ties are broken by index (the lower index goes first), so the same input gives the same mask on
every run. Patterns: ``unstructured`` removes the same number per row, or the lowest of the matrix; ``N:M`` removes N of
each M consecutive inputs.
"""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx

from aird_mlx.errors import ShapeError, UsageError

# Among which weights the lowest are looked for.
SCOPES = ("row", "matrix")
# Groups up to this size are ranked by comparing their members pair by pair, larger ones by partition.
MOST_COMPARED = 16


def removal_mask(
    scores: mx.array, sparsity: float, *, groups: tuple[int, int] | None = None, scope: str = "row"
) -> mx.array:
    """`lowest_mask`, or with ``groups`` `n_of_m_mask`; of fused experts ``[expert, out, in]`` each for itself.

    >>> removal_mask(mx.array([[[1.0, 2.0]], [[4.0, 3.0]]]), 0.5).tolist()
    [[[True, False]], [[False, True]]]
    """
    width = scores.shape[-1]
    if scores.ndim == 3 and scope == "matrix" and not groups:
        competing = scores.reshape(scores.shape[0], -1)
        return lowest_mask(competing, sparsity).reshape(scores.shape)
    rows = scores.reshape(-1, width)
    mask = n_of_m_mask(rows, *groups) if groups else lowest_mask(rows, sparsity, scope=scope)
    return mask.reshape(scores.shape)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """``"2:4"`` -> (2, 4); ``"unstructured"`` -> None.

    Raises:
        UsageError: anything else, or N not below M.

    >>> parse_pattern("2:4")
    (2, 4)
    """
    if pattern == "unstructured":
        return None
    first, colon, second = pattern.partition(":")
    if colon and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
        removed, group = int(first), int(second)
        if 0 < removed < group:
            return removed, group
    raise UsageError(
        f"prune: pattern is {pattern!r}; `unstructured` or N:M with 0 < N < M is needed. Use for example 2:4 or 4:8."
    )


def check_word(what: str, word: str, known: Collection[str]) -> None:
    """Refuse a word that is none of the known ones.

    Raises:
        UsageError: it is another.
    """
    if word not in known:
        raise UsageError(f"prune: {what} is {word!r}; one of {', '.join(known)} is needed. Choose one of them.")


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity that leaves nothing, or is none.

    Raises:
        UsageError: it is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(
            f"prune: sparsity is {sparsity}; a fraction with 0 <= sparsity < 1 is needed. Use for example 0.5."
        )


def magnitude_scores(weight: mx.array) -> mx.array:
    """``|weight|``, float32, ``[out, in]``."""
    return mx.abs(weight.astype(mx.float32))


def wanda_scores(weight: mx.array, input_norm: mx.array) -> mx.array:
    """``|weight| * input_norm``: how much each weight contributes over the calibration tokens.

    Args:
        weight: ``[out, in]`` or ``[expert, out, in]``, floating.
        input_norm: ``[in]`` or ``[expert, in]`` float32, L2 norm of each input feature over the calibration tokens.

    Raises:
        ShapeError: ``input_norm`` does not fit ``weight``.

    Source:
        Sun et al. 2023, arXiv:2306.11695, eq. 1.
    """
    wanted = (*weight.shape[:-2], weight.shape[-1])
    if input_norm.shape != wanted:
        raise ShapeError(
            f"wanda: input_norm has shape {input_norm.shape}; weight {weight.shape} needs {wanted}. "
            "Collect the norms from this layer's inputs, not its outputs."
        )
    return magnitude_scores(weight) * input_norm[..., None, :]


def random_scores(weight: mx.array, key: mx.array) -> mx.array:
    """Scores that know nothing of the weight, float32 ``[out, in]`` in [0, 1): the control of every method."""
    return mx.random.uniform(shape=weight.shape, key=key)


def lowest_mask(scores: mx.array, sparsity: float, *, scope: str = "row") -> mx.array:
    """Mark the lowest scores of each row, or of the whole matrix, lower index first among equals.

    Args:
        scores: ``[out, in]`` float32, not negative.
        sparsity: fraction to remove, ``0 <= sparsity < 1``.
        scope: ``row``: ``floor(in * sparsity)`` of each row; ``matrix``: ``floor(out * in * sparsity)`` of all, counted
            row after row.

    Returns:
        ``[out, in]`` bool, True = remove.

    Raises:
        UsageError: sparsity outside [0, 1), or another scope.

    >>> lowest_mask(mx.array([[1.0, 2.0, 3.0, 1.0]]), 0.5).tolist()
    [[True, False, False, True]]
    >>> lowest_mask(mx.array([[1.0, 2.0], [4.0, 3.0]]), 0.5, scope="matrix").tolist()
    [[True, True], [False, False]]
    """
    check_sparsity(sparsity)
    check_word("scope", scope, SCOPES)
    competing = scores if scope == "row" else scores.reshape(1, -1)
    removed = int(competing.shape[1] * sparsity + 1e-9)
    if removed == 0:
        return mx.zeros(scores.shape, dtype=mx.bool_)
    threshold = mx.partition(competing, removed - 1, axis=-1)[:, removed - 1 : removed]
    mask = competing <= threshold
    if mask.sum().item() > removed * competing.shape[0]:  # several at a threshold: the first of them
        below = competing < threshold
        level = mask & ~below
        room = removed - below.sum(axis=-1, keepdims=True)
        mask = below | (level & (mx.cumsum(level.astype(mx.int32), axis=-1) <= room))
    return mask.reshape(scores.shape)


def check_pattern_width(width: int, removed: int, group: int, of: str = "a linear") -> None:
    """Refuse a pattern whose groups do not divide the ``width`` inputs of a linear, which ``of`` names.

    Raises:
        UsageError: they do not.
    """
    if width % group:
        raise UsageError(
            f"prune: pattern {removed}:{group} does not divide the {width} inputs of {of}; a width divisible by "
            f"{group} is needed. Use another pattern, or unstructured."
        )


def n_of_m_mask(scores: mx.array, removed: int, group: int) -> mx.array:
    """Mark the ``removed`` lowest of each ``group`` consecutive scores of a row, lower index first among equals.

    Raises:
        UsageError: ``group`` does not divide the number of inputs.

    >>> n_of_m_mask(mx.array([[4.0, 1.0, 3.0, 2.0]]), 2, 4).tolist()
    [[False, True, False, True]]
    """
    rows, width = scores.shape
    check_pattern_width(width, removed, group)
    grouped = scores.reshape(-1, group)
    if group > MOST_COMPARED:
        return lowest_mask(grouped, removed / group).reshape(rows, width)
    members = [mx.contiguous(grouped[:, index]) for index in range(group)]
    ranks = [mx.zeros(members[0].shape, dtype=mx.uint8) for _ in members]
    for one in range(group):
        for other in range(one + 1, group):
            is_first = members[one] <= members[other]  # the lower index goes first among equals
            ranks[one] = ranks[one] + ~is_first
            ranks[other] = ranks[other] + is_first
    return mx.stack([rank < removed for rank in ranks], axis=-1).reshape(rows, width)
