"""Independent work side by side on a CPU.

There MLX computes all that is asked of one stream on one core, but for matrix products, and in a small model those are
the smaller part. So each core gets a stream of its own, a lane. A GPU fills itself, and has one lane. This module knows
no model.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import mlx.core as mx

from aird_mlx.blas import one_blas_thread


def lane_count() -> int:
    """How many pieces of work MLX's default device computes side by side."""
    if mx.default_device() != mx.Device(mx.cpu):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(pieces: Sequence[Iterator[mx.array]]) -> list[mx.array]:
    """The last array of each piece of work.

    Args:
        pieces: each gives arrays, and goes on once the one it gave is being computed.

    >>> [array.item() for array in side_by_side([iter([mx.array(1), mx.array(2)]), iter([mx.array(3)])])]
    [2, 3]
    """
    count = lane_count()
    lanes = _streams(count) if count > 1 else (mx.default_stream(mx.default_device()),)
    given: dict[int, mx.array] = {}
    waiting = deque(enumerate(pieces))
    running = deque((lane, *waiting.popleft()) for lane in lanes[: len(waiting)])
    with one_blas_thread() if count > 1 else nullcontext():
        while running:
            lane, number, piece = running.popleft()
            with mx.stream(lane):
                array = next(piece, None)
            if array is not None:
                mx.async_eval(array)
                given[number] = array
                running.append((lane, number, piece))
            elif waiting:
                running.append((lane, *waiting.popleft()))
    return [given[number] for number in range(len(pieces))]


@functools.cache
def _streams(count: int) -> tuple[mx.Stream, ...]:
    """Made once: each has a thread that lives as long as the process."""
    return tuple(mx.new_stream(mx.Device(mx.cpu)) for _ in range(count))
