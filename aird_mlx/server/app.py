"""The HTTP side: OpenAI's endpoints, health, metrics and the chat page, on Starlette.

Every endpoint passes one gate: who may ask, what became of it, and errors as OpenAI's objects. A client that leaves
stops its generation.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aird_mlx.errors import AirdError
from aird_mlx.server.conversation import make_request, render_conversation
from aird_mlx.server.delivery import EventStream, GoneError, Record, collect, send_chunks, unless_gone
from aird_mlx.server.guard import POLICIES, REFUSE, Verdict
from aird_mlx.server.page import PAGE, PAGE_HEADERS
from aird_mlx.server.requests import AnyCompletion, ChatCompletion, RequestError, TextCompletion, parse_body
from aird_mlx.server.responses import Answer, error_body
from aird_mlx.server.service import Service

BODY_SECONDS = 30.0
Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The application that answers for a service; it does not close it."""
    api = _Api(service)
    gate = api.gate
    return Starlette(
        routes=[
            Route("/v1/chat/completions", gate("chat", api.chat), methods=["POST"]),
            Route("/v1/completions", gate("completions", api.complete), methods=["POST"]),
            Route("/v1/models", gate("models", api.models)),
            Route("/v1/models/{name:path}", gate("models", api.model)),
            Route("/metrics", gate("metrics", api.metrics)),
            Route("/aird/file", gate("file", api.file)),
            Route("/health", gate("health", api.health, is_open=True)),
            Route("/", gate("page", api.page, is_open=True)),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _own_error},
    )


class _Api:
    def __init__(self, service: Service) -> None:
        self.service = service
        key = service.settings.api_key
        self._key = None if key is None else hashlib.sha256(key.encode("utf-8")).digest()

    def gate(self, name: str, handler: Handler, is_open: bool = False) -> Handler:
        """An endpoint: allowed, counted, its errors made bodies."""

        async def endpoint(request: Request) -> Response:
            request.state.started, request.state.id = time.monotonic(), secrets.token_hex(8)
            try:
                self._check_host(request)
                if not is_open:
                    self._check_key(request)
                response = await handler(request)
            except (RequestError, AirdError) as error:
                known = error if isinstance(error, RequestError) else self.service.as_request_error(error)
                self.service.log_request(request, name, known.status, error=str(known))
                response = JSONResponse(error_body(known), known.status, headers=known.headers)
            except (ClientDisconnect, GoneError):
                self.service.log_request(request, name, 499)
                response = Response(status_code=499)
            self.service.metrics.requests.labels(name, str(response.status_code)).inc()
            response.headers["x-request-id"] = request.state.id
            return response

        return endpoint

    async def chat(self, request: Request) -> Response:
        body = parse_body(await self._read(request), ChatCompletion)
        roles = {"developer": "system"}
        messages = [{"role": roles.get(one.role, one.role), "content": one.content} for one in body.messages]
        ids = await asyncio.to_thread(render_conversation, self.service.engine.chat, messages)
        return await self._answer(request, body, ids, body.max_completion_tokens or body.max_tokens, messages)

    async def complete(self, request: Request) -> Response:
        body = parse_body(await self._read(request), TextCompletion)
        chat, messages = self.service.engine.chat, [{"role": "user", "content": body.prompt}]
        ids = await asyncio.to_thread(chat.encode, body.prompt)
        if not ids:
            raise RequestError(400, "prompt: it is empty; text is needed.", param="prompt", code="invalid_value")
        # The probe knows prompts inside the chat template only.
        probe_ids = await asyncio.to_thread(render_conversation, chat, messages)
        return await self._answer(request, body, ids, body.max_tokens, messages, probe_ids)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def metrics(self, _: Request) -> Response:
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def file(self, _: Request) -> Response:
        return JSONResponse(self.service.description)

    async def health(self, _: Request) -> Response:
        running = self.service.engine.is_running
        state = {"status": "ok" if running else "stopping", "checks": self.service.checked.exit_code}
        return JSONResponse(state, 200 if running else 503)

    async def page(self, _: Request) -> Response:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def _answer(
        self,
        request: Request,
        body: AnyCompletion,
        ids: list[int],
        max_new_tokens: int | None,
        messages: list[dict[str, str]],
        probe_ids: list[int] | None = None,
    ) -> Response:
        service, settings = self.service, self.service.settings
        self._check_model(body.model)
        asked = make_request(
            service.engine,
            ids,
            min(max_new_tokens or settings.max_tokens, settings.max_tokens),
            probe_ids,
            temperature=settings.temperature if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=None if body.seed is None else abs(body.seed),
            stop=body.stop,
        )
        stream = service.guard.answer(asked, messages, self._policy(body.aird_policy))
        verdict = await unless_gone(request, anext(stream))
        assert isinstance(verdict, Verdict), "the verdict comes first"
        service.metrics.first.observe(time.monotonic() - request.state.started)
        answer = Answer(service.name, verdict, isinstance(body, ChatCompletion), len(ids))
        record = Record(service, request, answer, messages, bool(body.stream))
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(send_chunks(record, stream, with_usage), headers=answer.headers())
        await unless_gone(request, collect(record, stream))
        return JSONResponse(record.whole(), headers=answer.headers())

    async def _read(self, request: Request) -> bytes:
        most = self.service.settings.max_request_bytes
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Content-Type: application/json is needed.")
        try:
            return await asyncio.wait_for(_read_at_most(request, most), BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"The body did not come within {BODY_SECONDS:g} seconds.") from error

    def _check_host(self, request: Request) -> None:
        """Without a key, a page of another site must not reach the server under a name of its own."""
        if self._key is None:
            try:
                host = urlsplit("//" + request.headers.get("host", "")).hostname or ""
            except ValueError:
                host = ""
            if host not in {"localhost", "127.0.0.1", "::1", self.service.settings.host.lower()}:
                raise RequestError(403, f"Host {host[:80]!r} is not this server.", code="unknown_host")

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Equal lengths, so that the time tells nothing.
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
        if not hmac.compare_digest(digest, self._key) or scheme.lower() != "bearer":
            raise RequestError(
                401,
                "The API key is missing or wrong; Authorization: Bearer KEY is needed.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.service.name):
            raise RequestError(
                404,
                f"The model {name[:80]!r} does not exist; {self.service.name!r} is served.",
                param="model",
                code="model_not_found",
            )

    def _policy(self, asked: str | None) -> str:
        least = self.service.guard.policy
        if asked is None:
            return least
        if POLICIES.index(asked) < POLICIES.index(least):
            raise RequestError(
                400,
                f"aird_policy: {asked!r} is weaker than the server's {least!r}; the same or a stricter one is needed.",
                param="aird_policy",
                code="invalid_value",
            )
        if asked == REFUSE and not self.service.guard.can_judge:
            raise RequestError(
                400,
                "aird_policy: 'refuse' needs a probe or a guard model, and this server has neither.",
                param="aird_policy",
                code="invalid_value",
            )
        return asked

    def _model(self) -> dict[str, Any]:
        created = int(self.service.started_at)
        return {"id": self.service.name, "object": "model", "created": created, "owned_by": "aird-mlx"}


async def _read_at_most(request: Request, most: int) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise RequestError(413, f"The body is longer than {most} bytes.", headers={"connection": "close"})
    return bytes(content)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = "There is no such endpoint." if error.status_code == 404 else error.detail
    return JSONResponse(error_body(RequestError(error.status_code, said)), error.status_code, headers=error.headers)


async def _own_error(_: Request, __: Exception) -> Response:
    said = RequestError(500, "The server failed; its log says where.", kind="server_error")
    return JSONResponse(error_body(said), 500)
