"""An answer on its way to a client: whole or streamed, counted and logged, stopped when nobody waits for it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aird_mlx.errors import AirdError
from aird_mlx.server.engine import Finished, Piece
from aird_mlx.server.guard import Verdict
from aird_mlx.server.responses import DONE, Answer, error_event
from aird_mlx.server.service import Service

Result = TypeVar("Result")
Stream = AsyncGenerator[Verdict | Piece | Finished, None]


class GoneError(Exception):
    """The client left before it had its answer."""


class Record:
    """What is counted and logged of one answer: a context manager around its delivery.

    An answer that was streamed has status 200 whatever became of it: that was sent before its first word. Otherwise
    the status is the client's: 499 if it left, the error's if the answer failed.
    """

    def __init__(
        self, service: Service, request: Request, answer: Answer, messages: list[dict[str, str]], is_streamed: bool
    ) -> None:
        self.service, self.request, self.answer, self.messages = service, request, answer, messages
        self.is_streamed = is_streamed
        self.text: list[str] = []
        self.end: Finished | None = None

    def note(self, event: Verdict | Piece | Finished) -> None:
        """Keep an event."""
        if isinstance(event, Piece):
            self.text.append(event.text)
        elif isinstance(event, Finished):
            self.end = event

    def whole(self) -> dict[str, Any]:
        """The object of a finished answer."""
        assert self.end is not None
        return self.answer.whole("".join(self.text), self.end.reason, self.end.new_tokens)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        metrics, verdict = self.service.metrics, self.answer.verdict
        values: dict[str, Any] = dataclasses.asdict(verdict) | {
            "prompt_tokens": self.answer.prompt_tokens,
            "answer_tokens": 0 if self.end is None else self.end.new_tokens,
        }
        metrics.decisions.labels(verdict.decision).inc()
        metrics.tokens.labels("prompt").inc(self.answer.prompt_tokens)
        metrics.tokens.labels("answer").inc(values["answer_tokens"])
        status = 200
        if self.end is not None:
            seconds = time.monotonic() - self.request.state.started
            metrics.seconds.observe(seconds)
            self.service.note_seconds(seconds)
            values["finish_reason"] = self.end.reason
        elif isinstance(error, Exception):
            metrics.failed.inc()
            status = self.service.as_request_error(error).status if isinstance(error, AirdError) else 500
            values |= {"finish_reason": "failed", "error": str(error)}
        else:  # its task was cancelled, or its generator closed
            metrics.cancelled.inc()
            status = 499
            values["finish_reason"] = "cancelled"
        if self.service.settings.log_prompts:
            values |= {"messages": self.messages, "answer": "".join(self.text)}
        endpoint = "chat" if self.answer.is_chat else "completions"
        self.service.log_request(self.request, endpoint, 200 if self.is_streamed else status, **values)


class EventStream(StreamingResponse):
    """Server-sent events; ends its generator whenever the response ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(chunks, headers=headers | {"cache-control": "no-store"})
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()


async def collect(record: Record, stream: Stream) -> None:
    """Take an answer to its end."""
    with record:
        async with aclosing(stream):
            async for event in stream:
                record.note(event)


async def send_chunks(record: Record, stream: Stream, with_usage: bool) -> AsyncGenerator[bytes, None]:
    """An answer as events, each as soon as there is text."""
    answer = record.answer
    try:
        with record:
            async with aclosing(stream):
                yield answer.first_chunk()
                async for event in stream:
                    record.note(event)
                    if isinstance(event, Piece):
                        yield answer.piece(event.text)
            assert record.end is not None
            yield answer.last_chunk(record.end.reason)
            if with_usage:
                yield answer.usage_chunk(record.end.new_tokens)
            yield DONE
    except AirdError as error:
        yield error_event(record.service.as_request_error(error))


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled when the client leaves.

    Raises:
        GoneError: it left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)
    return task.result()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
