"""A checked file, opened and guarded: all that answers a request, without HTTP."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, TextIO

from starlette.requests import Request

from aird_mlx import __version__
from aird_mlx.errors import AirdError, DirectionError, PromptError
from aird_mlx.guard.probe import scale
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.conversation import ContextError
from aird_mlx.server.engine import QueueFullError
from aird_mlx.server.observe import Metrics, log_line
from aird_mlx.server.requests import RequestError
from aird_mlx.server.settings import ServiceSettings, open_guard


class Service:
    """A file that answers; `close` frees it.

    Args:
        checked: the file, and what its checks said.
        settings: how it is served.
        log: where a line per request goes, None for nowhere.

    Raises:
        UsageError: a policy that nothing can carry out. AirdError: llama.cpp cannot run a file.
    """

    def __init__(self, checked: CheckedFile, settings: ServiceSettings, log: TextIO | None = None) -> None:
        self.checked, self.settings, self.log = checked, settings, log
        self.name = settings.alias or checked.path.stem
        self.started_at = time.time()
        self.metrics = Metrics()
        self._mean_seconds = 1.0
        self.guard = open_guard(checked, settings)
        self.engine = self.guard.engine
        self.metrics.watch(lambda: self.engine.load)

    def close(self) -> None:
        """Stop all answers and free the files."""
        self.guard.close()

    @property
    def description(self) -> dict[str, Any]:
        """What the chat page shows about the file."""
        checked, probe = self.checked, self.engine.probe
        about: dict[str, Any] | None = None
        if probe is not None:
            low, high = scale(probe)
            about = {name: getattr(probe, name) for name in ("layers", "tokens", "threshold", "auc", "prompts")}
            about |= {"low": low, "high": high}
        return {
            "version": __version__,
            "model": self.name,
            "policy": self.guard.policy,
            "guard_model": None if self.settings.guard_model is None else self.settings.guard_model.name,
            "context_length": self.engine.context_length,
            "max_tokens": self.settings.max_tokens,
            "facts": {} if checked.manifest is None else checked.manifest.facts,
            "probe": about,
            "verification": dataclasses.asdict(checked.verification),
            "selftest": None if checked.selftest is None else dataclasses.asdict(checked.selftest),
            "exit_code": checked.exit_code,
        }

    def note_seconds(self, seconds: float) -> None:
        """Remember how long answers take, newer ones more."""
        self._mean_seconds += (seconds - self._mean_seconds) / 8

    def as_request_error(self, error: AirdError) -> RequestError:
        """What a client is told."""
        if isinstance(error, QueueFullError):
            wait = {"retry-after": str(max(1, math.ceil(self._mean_seconds)))}
            return RequestError(503, str(error), kind="overloaded_error", code="queue_full", headers=wait)
        if isinstance(error, ContextError):
            return RequestError(400, str(error), code="context_length_exceeded")
        if isinstance(error, (PromptError, DirectionError)):
            return RequestError(400, str(error), code="invalid_value")
        return RequestError(500, str(error), kind="server_error", code="generation_failed")

    def log_request(self, request: Request, endpoint: str, status: int, **values: Any) -> None:
        """A line for one request, if it has none yet."""
        if not getattr(request.state, "logged", False):
            request.state.logged = True
            seconds = round(time.monotonic() - request.state.started, 4)
            line = {"id": request.state.id, "endpoint": endpoint, "status": status, "seconds": seconds}
            log_line(self.log, "request", **line, **values)
