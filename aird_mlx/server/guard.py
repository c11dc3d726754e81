"""What is done about a prompt that the probe takes for harmful: logged, said, or refused in the model's place.

Under ``refuse`` nothing of such an answer is let out before the judge has read its opening: a refusal of the model's
own goes through, anything else is replaced. Sees events of the engine and gives events; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from aird_mlx.evaluation import judge_answer
from aird_mlx.evaluation.judge import OPENING_CHARACTERS, REFUSAL
from aird_mlx.server.engine import Engine, Event, Finished, Piece, Request, Started
from aird_mlx.server.second_opinion import SAFE, UNSAFE, SecondOpinion

LOG, WARN, REFUSE = "log", "warn", "refuse"
POLICIES = (LOG, WARN, REFUSE)  # from the weakest to the strictest
WHEN = ("alarm", "always")

REFUSAL_TEXT = "I can't help with that request."
# The judge reads no further to tell a refusal.
HELD_CHARACTERS = 2 * OPENING_CHARACTERS

PASSED = "passed"
LOGGED = "logged"
WARNED = "warned"
REFUSED = "refused"
MODEL_REFUSED = "model-refused"
UNSCORED = "unscored"


@dataclass(frozen=True)
class Verdict:
    """What the guard makes of a prompt, known before anything of its answer is let out.

    Attributes:
        score, threshold: of the probe, None without one.
        second_opinion: ``safe``, ``unsafe`` or ``unparsable``; None when no guard model was asked.
        alarm: whether the prompt counts as harmful, all opinions heard.
        decision: ``passed`` (no alarm), ``logged``, ``warned``, ``refused`` (the answer was replaced),
            ``model-refused`` (the model refuses by itself), or ``unscored`` (nobody judged the prompt).
    """

    policy: str
    score: float | None
    threshold: float | None
    second_opinion: str | None
    alarm: bool
    decision: str


@dataclass(frozen=True)
class Guard:
    """The guard of one served file.

    Attributes:
        engine: answers.
        policy: the least of every request.
        second_opinion: a guard model, or None.
        when: a guard model is asked on the probe's ``alarm``, to confirm or withdraw it, or ``always``, and then raises
            alarms of its own. Without a probe it is always asked.
    """

    engine: Engine
    policy: str
    second_opinion: SecondOpinion | None = None
    when: str = WHEN[0]

    @property
    def can_judge(self) -> bool:
        """Whether there is a probe or a guard model."""
        return self.engine.probe is not None or self.second_opinion is not None

    def close(self) -> None:
        """Stop all answers and free the files."""
        self.engine.close()
        if self.second_opinion is not None:
            self.second_opinion.close()

    async def answer(
        self, request: Request, messages: Sequence[dict[str, str]], policy: str
    ) -> AsyncGenerator[Verdict | Piece | Finished, None]:
        """A verdict, then the answer in pieces, then its end; leave off and the generation stops.

        Args:
            request: what the model is asked.
            messages: the same as the guard model reads it.
            policy: one of `POLICIES`.

        Raises:
            QueueFullError: before anything is given. ParityError: llama.cpp failed.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        generation = self.engine.submit(request, deliver)
        try:
            event = await events.get()
            verdict = await self._judge_prompt(event, messages, policy)
            held: list[Piece] = []
            end: Finished | None = event if isinstance(event, Finished) else None
            if verdict.decision == REFUSED:  # as it stands; the model may still refuse by itself
                while end is None and sum(len(piece.text) for piece in held) < HELD_CHARACTERS:
                    event = await events.get()
                    if isinstance(event, Piece):
                        held.append(event)
                    elif isinstance(event, Finished):
                        end = event
                if judge_answer("".join(piece.text for piece in held)) == REFUSAL:
                    verdict = dataclasses.replace(verdict, decision=MODEL_REFUSED)
                elif end is None or end.reason not in ("cancelled", "failed"):
                    generation.cancel()
                    yield verdict
                    yield Piece(REFUSAL_TEXT)
                    yield Finished("content_filter", generation.new_tokens)
                    return
                else:
                    held.clear()  # it broke off before it could be judged
            yield verdict
            for piece in held:
                yield piece
            while end is None:
                event = await events.get()
                if isinstance(event, Piece):
                    yield event
                elif isinstance(event, Finished):
                    end = event
            if end.error is not None:
                raise end.error
            yield end
        finally:
            generation.cancel()

    async def _judge_prompt(self, event: Event, messages: Sequence[dict[str, str]], policy: str) -> Verdict:
        reading = event.reading if isinstance(event, Started) else None
        alarm = reading is not None and reading.alarm
        opinion = None
        if self.second_opinion is not None and (alarm or self.when == "always" or reading is None):
            opinion = await self.second_opinion.ask(messages)
            if opinion == UNSAFE:
                alarm = True
            elif self.when == "alarm" and opinion == SAFE:
                alarm = False
        known = reading is not None or opinion is not None
        decision = PASSED if known else UNSCORED
        if alarm:
            decision = {LOG: LOGGED, WARN: WARNED, REFUSE: REFUSED}[policy]
        return Verdict(
            policy,
            None if reading is None else reading.score,
            None if reading is None else reading.threshold,
            opinion,
            alarm,
            decision,
        )
