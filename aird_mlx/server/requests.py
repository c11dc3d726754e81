"""What a client sends: the part of OpenAI's protocol that is answered, checked by pydantic.

OpenAI's options that would change an answer and are not supported are errors; names that are not known are passed over,
as clients send many. Knows no model: lengths and names are checked where they are known.
Source: the API reference of OpenAI (chat completions, completions).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

MOST_STOPS, LONGEST_STOP = 16, 1000
MOST_MESSAGES = 4096

# Without effect at these values; anything else is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
    "prediction": (None,),
}


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status and the fields of OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, headers


def _join_parts(content: Any) -> Any:
    """The text of a message given as a list of parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("only parts of type text are supported")
        texts.append(part["text"])
    return "".join(texts)


def _join_stops(stop: Any) -> Any:
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts)]


class StreamOptions(BaseModel):
    """What a stream also carries."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class AnyCompletion(BaseModel):
    """What both kinds of completion take. ``aird_policy`` is this server's own: a policy for this request."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=MOST_STOPS),
        BeforeValidator(_join_stops),
    ] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    aird_policy: Literal["log", "warn", "refuse"] | None = None

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 1 << 53 else value


class ChatCompletion(AnyCompletion):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class TextCompletion(AnyCompletion):
    """The body of ``/v1/completions``."""

    prompt: str


Body = TypeVar("Body", bound=AnyCompletion)


def parse_body(content: bytes, kind: type[Body]) -> Body:
    """A request's body.

    Raises:
        RequestError: it is not what is needed, with the field at fault.

    >>> parse_body(b'{"prompt": "Hi", "max_tokens": 3}', TextCompletion).max_tokens
    3
    """
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"The body is no UTF-8: {error.reason} at byte {error.start}.") from error
    except RecursionError as error:
        raise RequestError(400, "The body is nested too deeply.") from error
    except ValueError as error:
        raise RequestError(400, f"The body is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise RequestError(400, f"The body is a JSON {type(data).__name__}; an object is needed.")
    try:
        body = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        missing = first["type"] == "missing"
        raise RequestError(
            400,
            f"{where}: {first['msg']}.",
            param=where,
            code="missing_required_parameter" if missing else "invalid_value",
        ) from error
    _refuse_unsupported(body)
    _check_text(body)
    return body


def _refuse_unsupported(body: AnyCompletion) -> None:
    for name, value in (body.model_extra or {}).items():
        if name in NEUTRAL and not any(type(value) is type(one) and value == one for one in _numbers(NEUTRAL[name])):
            raise RequestError(
                400, f"{name} is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
            )


def _numbers(values: tuple[Any, ...]) -> list[Any]:
    """Whole numbers also as the floats that some clients send."""
    return [*values, *(float(one) for one in values if type(one) is int)]


def _check_text(body: AnyCompletion) -> None:
    """JSON can spell half of a character, which no tokenizer can read."""
    texts = {"stop": "".join(body.stop)}
    if isinstance(body, ChatCompletion):
        texts |= {f"messages.{at}.content": one.content for at, one in enumerate(body.messages)}
    elif isinstance(body, TextCompletion):
        texts["prompt"] = body.prompt
    for name, text in texts.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                400, f"{name}: half of a character at {error.start}; text is needed.", param=name, code="invalid_value"
            ) from error


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
