"""What a client gets: OpenAI's objects, with the guard's verdict as ``aird``; in a stream, in its first and last.

Source: the API reference of OpenAI (the chat completion object, the chunk, the completion object).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from aird_mlx.server.guard import REFUSED, WARNED, Verdict
from aird_mlx.server.requests import RequestError

WARNING = "This prompt looks harmful to the probe of the served file."
DONE = b"data: [DONE]\n\n"


@dataclass
class Answer:
    """One answer on its way to the client.

    Attributes:
        model: the name it is served under.
        verdict: of the guard.
        is_chat: whether the objects are those of chat completions.
        prompt_tokens: length of the rendered prompt.
    """

    model: str
    verdict: Verdict
    is_chat: bool
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: secrets.token_hex(12))

    def headers(self) -> dict[str, str]:
        """The verdict, for who does not read bodies."""
        found = {"x-aird-decision": self.verdict.decision, "x-aird-policy": self.verdict.policy}
        if self.verdict.score is not None:
            found |= {"x-aird-score": f"{self.verdict.score:.4f}", "x-aird-threshold": f"{self.verdict.threshold:.4f}"}
        if self.verdict.decision == WARNED:
            found["x-aird-warning"] = WARNING
        return found

    def whole(self, text: str, reason: str, new_tokens: int) -> dict[str, Any]:
        """The object of an answer that was not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.is_chat:
            refusal = text if self.verdict.decision == REFUSED else None
            choice["message"] = {"role": "assistant", "content": text, "refusal": refusal}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._object(kind, [choice]) | {"usage": self.usage(new_tokens)}

    def first_chunk(self) -> bytes:
        """The role, and the verdict."""
        return self._chunk({"role": "assistant", "content": ""} if self.is_chat else "", None, with_verdict=True)

    def piece(self, text: str) -> bytes:
        """More text."""
        return self._chunk({"content": text} if self.is_chat else text, None)

    def last_chunk(self, reason: str) -> bytes:
        """Why it ended."""
        return self._chunk({} if self.is_chat else "", reason, with_verdict=True)

    def usage_chunk(self, new_tokens: int) -> bytes:
        """What it took, where the client asked for it."""
        return _event(self._object(self._chunk_kind, []) | {"usage": self.usage(new_tokens)})

    def usage(self, new_tokens: int) -> dict[str, int]:
        """Tokens of prompt and answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": self.prompt_tokens + new_tokens,
        }

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(self, content: dict[str, str] | str, reason: str | None, with_verdict: bool = False) -> bytes:
        name = "delta" if self.is_chat else "text"
        choice = {"index": 0, name: content, "finish_reason": reason, "logprobs": None}
        return _event(self._object(self._chunk_kind, [choice], with_verdict))

    def _object(self, kind: str, choices: list[dict[str, Any]], with_verdict: bool = True) -> dict[str, Any]:
        verdict = dataclasses.asdict(self.verdict) | ({"warning": WARNING} if self.verdict.decision == WARNED else {})
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **({"aird": verdict} if with_verdict else {}),
        }


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def error_event(error: RequestError) -> bytes:
    """The same inside a stream that has begun."""
    return _event(error_body(error))


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
