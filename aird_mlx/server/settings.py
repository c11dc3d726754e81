"""How a file is served, and the guard that this asks for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import AirdError, UsageError
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.engine import Engine
from aird_mlx.server.guard import LOG, REFUSE, WHEN, Guard
from aird_mlx.server.second_opinion import SecondOpinion


@dataclass(frozen=True)
class ServiceSettings:
    """How a file is served.

    Attributes:
        alias: the model's name in the protocol; by default the file's, without its ending.
        policy: least policy of every request; by default ``refuse`` where a probe or a guard model can judge, else
            ``log``.
        guard_model: another GGUF file, asked for a second opinion ``guard_when`` the probe raises an alarm, or always.
        ctx_size: most tokens of a prompt and its answer.
        n_gpu_layers: blocks computed on the GPU, -1 for all; the probe was fitted on the CPU.
        parallel: most answers at once; ``queue``: most requests waiting.
        max_tokens: of one answer.
        temperature: of requests that name none; 0 is what was measured.
        host: where it listens; without an API key only a loopback address.
        grace: seconds that answers may still take when the server is told to stop.
        log_prompts: the log holds prompts and answers, not only figures.

    Raises:
        UsageError: a host that others reach, and no API key.
    """

    alias: str | None = None
    policy: str | None = None
    guard_model: Path | None = None
    guard_when: str = WHEN[0]
    ctx_size: int = 2048
    parallel: int = 4
    queue: int = 64
    n_gpu_layers: int = 0
    max_tokens: int = 1024
    max_request_bytes: int = 1 << 20
    temperature: float = 0.0
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    grace: int = 10
    log_prompts: bool = False

    def __post_init__(self) -> None:
        """Refuse before any file is read what no file could make right."""
        if self.api_key is None and not _is_loopback(self.host):
            raise UsageError(
                f"serve: host {self.host!r} is reached by others; an API key is needed. Set AIRD_API_KEY, or listen on "
                "127.0.0.1."
            )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_guard(checked: CheckedFile, settings: ServiceSettings) -> Guard:
    """Open a file in llama.cpp behind its guard; `Guard.close` frees it.

    Args:
        checked: the file, found fit to be used.
        settings: how.

    Raises:
        UsageError: a policy that nothing can carry out. AirdError: llama.cpp cannot run a file.
    """
    manifest = checked.manifest
    found = None if manifest is None else manifest.probe
    can_judge = found is not None or settings.guard_model is not None
    policy = settings.policy or (REFUSE if can_judge else LOG)
    if policy != LOG and not can_judge:
        why = "the file has no manifest" if manifest is None else manifest.no_probe
        raise UsageError(
            f"serve: policy {policy!r} and no probe ({why}); a probe or a guard model is needed. Use --policy log or "
            "--guard-model."
        )
    second = None if settings.guard_model is None else SecondOpinion(settings.guard_model)
    try:
        engine = Engine(
            checked.path,
            found,
            context_length=settings.ctx_size,
            parallel=settings.parallel,
            queue=settings.queue,
            gpu_layers=settings.n_gpu_layers,
        )
    except AirdError:
        if second is not None:
            second.close()
        raise
    return Guard(engine, policy, second, settings.guard_when)
