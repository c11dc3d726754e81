"""A GGUF file that answers several requests side by side, in one thread of its own.

Requests wait in a bounded queue for one of ``parallel`` places; each prompt is run alone, then all answers grow by one
token a step. The probe is read from the evaluation of the prompt. Knows tokens and text, nothing of policies or HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aird_mlx.errors import AirdError, ParityError
from aird_mlx.gguf_export.chat import GgufChat
from aird_mlx.gguf_export.sequences import Sequences
from aird_mlx.guard.manifest import Probe
from aird_mlx.guard.probe import Reading, read_probe
from aird_mlx.server.sampling import choose_token
from aird_mlx.server.text import TextStream


class QueueFullError(AirdError):
    """More requests wait than the queue has places; ask again later."""


@dataclass(frozen=True)
class Request:
    """What is to be answered.

    Attributes:
        ids: token ids of the rendered prompt.
        max_new_tokens: length of an answer that nothing else ends.
        temperature, top_p, seed: see `choose_token`; ``seed`` None draws another answer every time.
        stop: texts that end the answer.
        probe_ids: where the probe reads, if not in the prompt itself: another prompt, run before it.
    """

    ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    probe_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class Started:
    """The prompt has been read; ``reading`` is None without a probe."""

    reading: Reading | None


@dataclass(frozen=True)
class Piece:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The answer's end: ``stop``, ``length``, ``cancelled`` or ``failed``; with how many tokens it took."""

    reason: str
    new_tokens: int
    error: AirdError | None = None


Event = Started | Piece | Finished


@dataclass
class Generation:
    """One request on its way; `cancel` it when nobody waits for the answer any more."""

    request: Request
    deliver: Callable[[Event], None]
    text: TextStream
    random: np.random.Generator
    cancelled: threading.Event = field(default_factory=threading.Event)
    new_tokens: int = 0

    def cancel(self) -> None:
        """Stop before the next token; safe to call at any time."""
        self.cancelled.set()

    def end(self, reason: str, error: AirdError | None = None) -> None:
        self.deliver(Finished(reason, self.new_tokens, error))


class Engine:
    """A file opened for answering; `close` ends its thread and frees it.

    Args:
        path: the GGUF file.
        probe: read on every prompt, None for none.
        context_length: most tokens of a prompt and its answer; at most the file's own.
        parallel: most answers at once.
        queue: most requests waiting for a place.
        gpu_layers: blocks computed on the GPU, -1 for all.

    Attributes:
        chat: template and tokenizer of the file; may be used from other threads.
        written: tokens chosen so far, of all answers.
        parallel: places there are; fewer than asked for where wider batches would change answers.

    Raises:
        AirdError: as for `GgufChat`, or there is no memory for so many places.
    """

    def __init__(
        self, path: Path, probe: Probe | None, *, context_length: int, parallel: int, queue: int, gpu_layers: int = 0
    ) -> None:
        self.probe = probe
        layers = () if probe is None else probe.layers
        self.chat = GgufChat(path, parallel=parallel, layers=layers, gpu_layers=gpu_layers)
        try:
            self.context_length = min(context_length, self.chat.context_length or context_length)
            self._sequences = Sequences(self.chat.runtime, parallel, self.context_length)
        except AirdError:
            self.chat.close()
            raise
        self.parallel = self._sequences.parallel
        self._end_tokens = frozenset(self.chat.runtime.end_tokens)
        self.written = 0
        self._queue = queue
        self._waiting: deque[Generation] = deque()
        self._active: dict[int, Generation] = {}
        self._next: dict[int, int] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llama.cpp", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Answers being written, and requests waiting."""
        return len(self._active), len(self._waiting)

    @property
    def is_running(self) -> bool:
        """False once it was closed."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Generation:
        """Queue a request.

        Args:
            request: prompt and answer fit in ``context_length``.
            deliver: called from the engine's thread with each event, `Finished` last; must not block.

        Raises:
            QueueFullError: too many requests wait, or the engine was closed.
        """
        text = TextStream(self.chat.runtime.detokenize, request.stop)
        generation = Generation(request, deliver, text, np.random.default_rng(request.seed))
        with self._wake:
            if not self.is_running:
                raise QueueFullError("serve: the server is stopping; a running one is needed. Ask again later.")
            self._drop_cancelled()
            if len(self._waiting) + len(self._active) >= self.parallel + self._queue:
                raise QueueFullError(
                    f"serve: {self.parallel} answers are being written and {len(self._waiting)} requests wait; at most "
                    f"{self._queue} may wait. Ask again later."
                )
            self._waiting.append(generation)
            self._wake.notify()
        return generation

    def close(self) -> None:
        """Cancel everything, end the thread and free the file; safe to call twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._sequences.close()
        self.chat.close()

    def _drop_cancelled(self) -> None:
        """Take cancelled requests out of the queue; the lock is held."""
        for generation in [one for one in self._waiting if one.cancelled.is_set()]:
            self._waiting.remove(generation)
            generation.end("cancelled")

    def _run(self) -> None:
        """The thread: start at most one waiting request, then write one token of each answer."""
        try:
            while True:
                with self._wake:
                    while not (self._waiting or self._active or self._closing):
                        self._wake.wait()
                    if self._closing:
                        return
                    self._drop_cancelled()
                    place = next(number for number in range(self.parallel + 1) if number not in self._active)
                    generation = None
                    if place < self.parallel and self._waiting:
                        generation = self._active[place] = self._waiting.popleft()
                if generation is not None:
                    self._start(place, generation)
                self._step()
        finally:
            with self._wake:
                self._closing = True
                left = [*self._active.values(), *self._waiting]
                self._waiting.clear()
                self._active.clear()
            for generation in left:
                generation.end("cancelled")

    def _start(self, place: int, generation: Generation) -> None:
        request = generation.request
        try:
            reading = None
            if self.probe is not None and request.probe_ids is not None:
                reading = read_probe(self.probe, self._sequences.open(place, request.probe_ids)[1])
                self._sequences.forget(place)
            logits, residuals = self._sequences.open(place, request.ids)
            if self.probe is not None and request.probe_ids is None:
                reading = read_probe(self.probe, residuals)
        except AirdError as error:
            self._finish(place, "failed", error)
            return
        generation.deliver(Started(reading))
        self._take(place, logits)

    def _step(self) -> None:
        for place, generation in list(self._active.items()):
            if generation.cancelled.is_set():
                self._finish(place, "cancelled")
        if not self._next:
            return
        try:
            found = self._sequences.step(self._next)
        except ParityError as error:
            for place in list(self._active):
                self._finish(place, "failed", error)
            return
        for place, logits in found.items():
            self._take(place, logits)

    def _take(self, place: int, logits: np.ndarray) -> None:
        """Choose an answer's next token; it is said, or it ends the answer."""
        generation = self._active[place]
        request = generation.request
        token = choose_token(logits, request.temperature, request.top_p, generation.random)
        if token in self._end_tokens:
            self._finish(place, "stop")
            return
        generation.new_tokens += 1
        self.written += 1
        text = generation.text.push(token)
        if text:
            generation.deliver(Piece(text))
        self._next[place] = token
        if generation.text.stopped:
            self._finish(place, "stop")
        elif generation.new_tokens >= request.max_new_tokens:
            self._finish(place, "length")

    def _finish(self, place: int, reason: str, error: AirdError | None = None) -> None:
        generation = self._active.pop(place)
        self._next.pop(place, None)
        self._sequences.forget(place)
        rest = generation.text.finish()
        if rest:
            generation.deliver(Piece(rest))
        generation.end(reason, error)
