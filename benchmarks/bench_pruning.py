"""Is choosing what to remove cheap beside the textbook way, and beside the calibration it rides on?

One random block of a llama in one process: seconds per block of each method, of the textbook way in numpy (a full
stable sort of every row for magnitude and Wanda, of every group for N:M; the published column loop for SparseGPT) and
of numpy's own partition. Then Wanda's scores, thresholds and masks as a share of the calibration pass over 128 x 2,048
tokens, extrapolated from a shorter one. The fastest of ``--repeat`` runs counts; ratios above 1 mean ours is faster.

    python benchmarks/bench_pruning.py --hidden 1024 --intermediate 2816
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.models.base import create_attention_mask  # noqa: E402
from mlx_lm.models.llama import ModelArgs, TransformerBlock  # noqa: E402

from aird_mlx.pruning import lowest_mask, magnitude_scores, n_of_m_mask, sparsify_weight, wanda_scores  # noqa: E402

SEQUENCES, TOKENS = 128, 2048
COLUMNS, DAMPING = 128, 0.01


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=2816)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--sequences", type=int, default=4, help="sequences of the measured calibration pass")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    hidden, inner, sparsity = options.hidden, options.intermediate, options.sparsity
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    inputs = {width: generator.normal(size=(2 * width, width)).astype(np.float32) for width in (hidden, inner)}
    moments = {width: rows.T @ rows / len(rows) for width, rows in inputs.items()}
    norms = {width: np.sqrt(np.diag(moment)) for width, moment in moments.items()}
    on_device = [mx.array(weight) for weight in weights]
    moments_mx = {width: mx.array(moment) for width, moment in moments.items()}
    norms_mx = {width: mx.array(norm) for width, norm in norms.items()}
    mx.eval(on_device, moments_mx, norms_mx)

    def best(work: Callable[[], object], repeat: int = options.repeat) -> float:
        seconds = []
        for _ in range(repeat):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def each(kernel: Callable[[mx.array], mx.array]) -> Callable[[], None]:
        return lambda: mx.eval([kernel(weight) for weight in on_device])

    def scored(weight: mx.array) -> mx.array:
        return wanda_scores(weight, norms_mx[weight.shape[1]])

    def numpy_each(mark: Callable[[np.ndarray], object], use_norms: bool) -> Callable[[], None]:
        def work() -> None:
            for weight in weights:
                mark(np.abs(weight) * norms[weight.shape[1]] if use_norms else np.abs(weight))

        return work

    rows: list[tuple[str, Callable[[], object], Callable[[], object], Callable[[], object] | None]] = [
        (
            "magnitude",
            each(lambda weight: lowest_mask(magnitude_scores(weight), sparsity)),
            numpy_each(lambda scores: _sorted_mask(scores, sparsity), False),
            numpy_each(lambda scores: _partitioned_mask(scores, sparsity), False),
        ),
        (
            "wanda",
            each(lambda weight: lowest_mask(scored(weight), sparsity)),
            numpy_each(lambda scores: _sorted_mask(scores, sparsity), True),
            numpy_each(lambda scores: _partitioned_mask(scores, sparsity), True),
        ),
        (
            "wanda, per matrix",
            each(lambda weight: lowest_mask(scored(weight), sparsity, scope="matrix")),
            numpy_each(lambda scores: _sorted_mask(scores.reshape(1, -1), sparsity), True),
            numpy_each(lambda scores: _partitioned_mask(scores.reshape(1, -1), sparsity), True),
        ),
        (
            "wanda, 2:4",
            each(lambda weight: n_of_m_mask(scored(weight), 2, 4)),
            numpy_each(lambda scores: _sorted_mask(scores.reshape(-1, 4), 0.5), True),
            numpy_each(lambda scores: _partitioned_mask(scores.reshape(-1, 4), 0.5), True),
        ),
    ]
    for name, groups in (("sparsegpt", None), ("sparsegpt, 2:4", (2, 4))):
        rows.append(
            (
                name,
                each(lambda one, groups=groups: sparsify_weight(
                    one, moments_mx[one.shape[1]], sparsity=sparsity, groups=groups
                ).weight),
                lambda groups=groups: [
                    _column_loop(weight, moments[weight.shape[1]], sparsity, groups) for weight in weights
                ],
                None,
            )
        )  # fmt: skip
    print(f"one block, hidden {hidden}, intermediate {inner}, sparsity {sparsity}, {mx.default_device()}")
    print(f"{'method':20s} {'ours s':>8s} {'textbook s':>11s} {'ratio':>7s} {'partition s':>12s} {'ratio':>7s}")
    measured = {}
    for name, ours, textbook, partition in rows:
        measured[name] = best(ours)
        slow = best(textbook, 1 if partition is None else options.repeat)
        line = f"{name:20s} {measured[name]:8.3f} {slow:11.3f} {slow / measured[name]:7.1f}"
        if partition is not None:
            quick = best(partition)
            line += f" {quick:12.3f} {quick / measured[name]:7.1f}"
        print(line, flush=True)
    seconds = best(_calibration_pass(hidden, inner, options.sequences), 1) * SEQUENCES / options.sequences
    print(
        f"\ncalibration pass of {SEQUENCES} x {TOKENS:,} tokens through the block: {seconds:.1f} s, extrapolated from "
        f"{options.sequences}; Wanda's scores, thresholds and masks are {measured['wanda'] / seconds:.2%} of it"
    )


def _sorted_mask(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The authors' way: a stable sort of every row, and the lowest of it."""
    mask = np.zeros(scores.shape, dtype=bool)
    order = np.argsort(scores, axis=1, kind="stable")[:, : int(scores.shape[1] * sparsity)]
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def _partitioned_mask(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The lowest by partition; which of several equal ones is left to chance."""
    mask = np.zeros(scores.shape, dtype=bool)
    removed = int(scores.shape[1] * sparsity)
    order = np.argpartition(scores, removed - 1, axis=1)[:, :removed]
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def _column_loop(weight: np.ndarray, moment: np.ndarray, sparsity: float, groups: tuple[int, int] | None) -> np.ndarray:
    """SparseGPT as published: invert, factor, walk column by column; float32."""
    weight = weight.copy()
    damped = moment + DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment), dtype=np.float32)
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
    for start in range(0, weight.shape[1], COLUMNS):
        stop = min(start + COLUMNS, weight.shape[1])
        part, own = weight[:, start:stop].copy(), factor[start:stop, start:stop]
        errors, scale = np.zeros_like(part), np.square(np.diag(own))
        mask = np.zeros(part.shape, dtype=bool)
        if groups is None:
            scores = np.square(part) / scale
            mask = scores <= np.sort(scores, axis=None)[int(scores.size * sparsity)]
        for column in range(stop - start):
            if groups and column % groups[1] == 0:
                now = slice(column, column + groups[1])
                mask[:, now] = _sorted_mask(np.square(part[:, now]) / scale[now], groups[0] / groups[1])
            removed = np.where(mask[:, column], part[:, column], 0.0)
            error = removed / own[column, column]
            part[:, column:] -= np.outer(error, own[column, column:])
            errors[:, column] = error
        weight[:, start:stop] = np.where(mask, 0.0, part)
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight


def _calibration_pass(hidden: int, inner: int, sequences: int) -> Callable[[], None]:
    heads = max(1, hidden // 64)
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=1,
        intermediate_size=inner,
        num_attention_heads=heads,
        rms_norm_eps=1e-5,
        vocab_size=32,
    )
    block = TransformerBlock(arguments)
    tokens = mx.random.normal((1, TOKENS, hidden))
    mx.eval(block.parameters(), tokens)

    def work() -> None:
        for _ in range(sequences):
            mx.eval(block(tokens, create_attention_mask(tokens, None)))

    return work


if __name__ == "__main__":
    main()
