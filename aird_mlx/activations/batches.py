"""Sequences of token ids, padded on the right into batches; knows no model.

Causal attention never looks to the right, so padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded on the right to one length.

    Attributes:
        ids: ``[batch, token]`` int32, padded with 0.
        lengths: real tokens per sequence.
        order: which of the given sequences each row is.
        counted: ``[batch, token]`` float32, 1 where the token is real and counts, 0 elsewhere.
        opens: per sequence, the token that the first one of its answer is predicted from; -1 where there is no answer.
    """

    ids: mx.array
    lengths: tuple[int, ...]
    order: tuple[int, ...]
    counted: mx.array
    opens: tuple[int, ...]


def batch_sequences(
    sequences: Sequence[Sequence[int]],
    *,
    first_counted: Sequence[int] | None = None,
    first_answered: Sequence[int] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[TokenBatch]:
    """Sort sequences by length and pad them into batches of at most ``tokens_per_batch`` tokens.

    Args:
        sequences: token ids, each at least one.
        first_counted: per sequence the first token that counts; earlier ones get ``counted`` 0. Default: all count.
        first_answered: per sequence the first token of an answer, 0 where there is none. Default: none.

    >>> [batch.ids.tolist() for batch in batch_sequences([[1, 2, 3], [4]])]
    [[[4, 0, 0], [1, 2, 3]]]
    """
    order = sorted(range(len(sequences)), key=lambda index: (len(sequences[index]), index))
    groups: list[list[int]] = []
    for index in order:
        if not groups or (len(groups[-1]) + 1) * len(sequences[index]) > tokens_per_batch:
            groups.append([])
        groups[-1].append(index)
    batches = []
    for group in groups:
        width = max(len(sequences[index]) for index in group)
        starts = [first_counted[index] if first_counted else 0 for index in group]
        lengths = tuple(len(sequences[index]) for index in group)
        ids = [list(sequences[index]) + [0] * (width - len(sequences[index])) for index in group]
        counted = [
            [float(start <= token < length) for token in range(width)]
            for start, length in zip(starts, lengths, strict=True)
        ]
        opens = tuple(first_answered[index] - 1 if first_answered else -1 for index in group)
        batches.append(TokenBatch(mx.array(ids, dtype=mx.int32), lengths, tuple(group), mx.array(counted), opens))
    return batches


def spread_rows(batches: Sequence[TokenBatch], tokens: int) -> list[tuple[int, list[int]]]:
    """Evenly spread sequences of about ``tokens`` counted tokens, as (batch, rows of it); all when there are no more.

    >>> spread_rows(batch_sequences([[1, 2]] * 6), 6)
    [(0, [1, 3, 5])]
    """
    total = sum(batch.counted.sum().item() for batch in batches)
    share, taken = min(1.0, tokens / max(total, 1.0)), 0.0
    chosen: list[tuple[int, list[int]]] = []
    for index, batch in enumerate(batches):
        rows = []
        for row in range(len(batch.lengths)):
            taken += share
            if taken >= 1 - 1e-9:
                taken -= 1
                rows.append(row)
        if rows:
            chosen.append((index, rows))
    return chosen


def thin_batches(batches: Sequence[TokenBatch], tokens: int) -> list[TokenBatch]:
    """The sequences `spread_rows` takes, as batches.

    >>> [batch.ids.shape for batch in thin_batches(batch_sequences([[1, 2]] * 10), 8)]
    [(4, 2)]
    """
    return [
        TokenBatch(
            batches[index].ids[mx.array(rows)],
            tuple(batches[index].lengths[row] for row in rows),
            tuple(batches[index].order[row] for row in rows),
            batches[index].counted[mx.array(rows)],
            tuple(batches[index].opens[row] for row in rows),
        )
        for index, rows in spread_rows(batches, tokens)
    ]


def shared_length(sequences: Sequence[Sequence[int]], least: int) -> int:
    """Tokens that all sequences start with, leaving at least one of each; 0 where there are fewer than ``least``.

    >>> shared_length([[1] * 9 + [2], [1] * 9 + [3, 4]], 8), shared_length([[1, 2], [1, 3]], 8)
    (9, 0)
    >>> shared_length([[1] * 20], 8)
    19
    """
    length, most = 0, min((len(ids) for ids in sequences), default=1) - 1
    while length < most and len({ids[length] for ids in sequences}) == 1:
        length += 1
    return length if length >= least else 0


def take_positions(hidden: mx.array, lengths: Sequence[int], positions: Sequence[int]) -> mx.array:
    """``[batch, position, hidden]``: the states at negative ``positions`` counted from each sequence's end."""
    index = mx.array([[length + position for position in positions] for length in lengths])
    return mx.take_along_axis(hidden, index[:, :, None], axis=1)


def flatten_counted(values: mx.array, counted: mx.array) -> mx.array:
    """``[batch, token, in]`` -> ``[batch * token, in]`` float32 with the tokens that do not count set to zero."""
    return (values.astype(mx.float32) * counted[..., None]).reshape(-1, values.shape[-1])
