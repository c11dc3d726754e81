"""Several sequences that llama.cpp continues side by side, each with the same bits as if it were alone.

With a residual tap there are two contexts of one model: prompts are run one by one in the first, which the tap watches,
and go on in the second, which nothing watches: a callback for each node of the graph would cost a small model as much
as the step itself. That takes the memory of both; llama.cpp moves a sequence only between contexts of equal shape.
Kernels of llama.cpp round differently for one column and for many, some also for full tiles of columns and for the
rest; which batch widths agree to the bit on this file and machine is measured, and only those are used. Knows tokens
and logits, no text and no threads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from aird_mlx.gguf_export.runtime import LlamaRuntime

# Rows of the residual stream kept of a prompt: more than any probe looks back.
LAST_ROWS = 16
# The measurement of widths: longest prompt, and how many activations (rows x hidden x blocks) are computed at least:
# kernels that differ only in how they quantize activations agree on all but one row in hundreds of a small model.
MEASURED_PROMPT, MEASURED_ACTIVATIONS, LEAST_STEPS = 4, 500_000, 3


class Sequences:
    """Room for ``parallel`` sequences of ``length`` tokens; `close` frees it, not the runtime.

    Args:
        runtime: an opened file; with a tap if residuals are wanted.
        parallel: most sequences side by side.
        length: most tokens of one, prompt and continuation.

    Attributes:
        parallel: how many sequences may be open, numbered from 0; fewer than asked for where wider batches round
            differently.
        least: narrower batches round differently, so a step is filled up to this width.

    Raises:
        ParityError: there is no memory for so much.
    """

    def __init__(self, runtime: LlamaRuntime, parallel: int, length: int) -> None:
        self.length = length
        self._runtime = runtime
        self._writer = runtime.new_context(tapped=False)
        self._writer.open(parallel, length)
        self._reader = self._writer
        if runtime.tap is not None:
            self._reader = runtime.new_context()
            self._reader.open(parallel, length)
        self._lengths: dict[int, int] = {}
        # Of the last prompt. Below the time after which Python takes its lock from a thread, a prompt keeps it.
        self._token_seconds = 1.0
        self.least, self.parallel = 1, parallel
        self.least, self.parallel = self._measure_widths()

    def close(self) -> None:
        """Free both contexts; safe to call twice."""
        self._reader.free()
        self._writer.free()

    def open(self, sequence: int, ids: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Run a prompt that a sequence can then be continued from.

        Args:
            sequence: below ``parallel``, not open.
            ids: 1 to ``length`` token ids.

        Returns:
            Logits ``[vocab]`` after the last token, and by tapped layer the residual stream ``[token, hidden]`` of the
            last `LAST_ROWS` tokens, float32.

        Raises:
            ParityError: llama.cpp fails.
        """
        tap, logits = self._runtime.tap, np.zeros((0,), dtype=np.float32)
        rows: dict[int, np.ndarray] = {}
        self._reader.forget(sequence)
        for start in range(0, len(ids), self._runtime.n_batch):
            chunk = ids[start : start + self._runtime.n_batch]
            if tap is not None:
                tap.clear()
            last = len(ids) - 1 - start
            batch = [(int(token), start + at, sequence, at == last) for at, token in enumerate(chunk)]
            started = time.perf_counter()
            is_short = self._token_seconds * len(batch) < sys.getswitchinterval()
            found = self._reader.decode(batch, keep_lock=tap is not None and is_short)
            self._token_seconds = (time.perf_counter() - started) / len(batch)
            logits = found[0] if len(found) else logits
            if tap is not None:
                for layer, new in tap.rows(self._runtime.hidden).items():
                    joined = np.concatenate([rows[layer], new]) if layer in rows else new
                    rows[layer] = joined[-LAST_ROWS:].copy()
        if self._reader is not self._writer:
            self._reader.copy_sequence(sequence, self._writer)
            self._reader.forget(sequence)
        self._lengths[sequence] = len(ids)
        return logits, rows

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Append a token to each open sequence: by sequence the logits ``[vocab]`` after it.

        Raises:
            ParityError: llama.cpp fails.
        """
        # llama.cpp computes sequences together only if their numbers follow each other: gaps are filled by idle ones,
        # which then forget what they were given, and so is what is missing to the least width.
        last = min(max(max(tokens), min(tokens) + self.least - 1), self.parallel - 1)
        numbers = range(min(min(tokens), last - self.least + 1), last + 1)
        fillers = [number for number in numbers if number not in tokens]
        assert not self._lengths.keys() & set(fillers), "every open sequence is given a token"
        logits = self._writer.decode(
            [(int(tokens.get(number, 0)), self._lengths.get(number, 0), number, True) for number in numbers]
        )
        for number in fillers:
            self._writer.forget(number)
        for number in tokens:
            self._lengths[number] += 1
        return {number: row for number, row in zip(numbers, logits, strict=True) if number in tokens}

    def forget(self, sequence: int) -> None:
        """Close a sequence; its number is free."""
        self._writer.forget(sequence)
        self._lengths.pop(sequence, None)

    def _measure_widths(self) -> tuple[int, int]:
        """The narrowest and the widest batch between which all give a sequence the same bits, wherever it stands."""
        for widest in range(self.parallel, 1, -1):
            full = self._run_together(widest)
            if not _agree(full, self._run_together(widest, backward=True)):
                continue  # the last columns are computed otherwise
            if not all(_agree(full, self._run_together(width)) for width in {2, widest - 1} - {1}):
                return widest, widest
            return (1 if _agree(full, self._run_together(1)) else 2), widest
        return 1, 1

    def _run_together(self, width: int, *, backward: bool = False) -> np.ndarray:
        """Logits ``[step, sequence, vocab]`` of random sequences continued at once, first to last or last to first."""
        runtime, random = self._runtime, np.random.default_rng(0)
        wanted = MEASURED_ACTIVATIONS // (runtime.hidden * runtime.blocks * self.parallel) + 1
        steps = max(LEAST_STEPS, min(wanted, self.length - MEASURED_PROMPT))
        tokens = random.integers(0, runtime.vocab_size, size=(self.parallel, MEASURED_PROMPT + steps))
        numbers = list(range(width))[:: -1 if backward else 1]
        for sequence, number in enumerate(numbers):
            self.open(number, tokens[sequence, : 1 + sequence % MEASURED_PROMPT].tolist())
        found = []
        for step in range(steps):
            following = {numbers[sequence]: tokens[sequence, MEASURED_PROMPT + step] for sequence in range(width)}
            after = self.step(following)
            found.append(np.stack([after[number] for number in numbers]))
        for number in numbers:
            self.forget(number)
        return np.stack(found)


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    """To the bit, on the sequences that both have."""
    both = min(one.shape[1], other.shape[1])
    return bool(np.array_equal(one[:, :both], other[:, :both]))
