"""The server's life: checked, opened, listening, told to stop, and stopped in order."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable

import uvicorn

from aird_mlx.errors import AirdError
from aird_mlx.server.app import make_app
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.observe import log_line, log_stream
from aird_mlx.server.service import Service
from aird_mlx.server.settings import ServiceSettings

BACKLOG = 512


def serve(checked: CheckedFile, settings: ServiceSettings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Answer requests until SIGINT or SIGTERM; then let answers end for a while, and cancel the rest.

    Args:
        checked: the file, found fit to be served.
        settings: how.
        ready: called with the address once requests are taken.

    Raises:
        UsageError: a policy that nothing can carry out.
        AirdError: the address is not to be had, or llama.cpp cannot run the file.
    """
    listener = _listen(settings.host, settings.port)
    try:
        # asyncio warns of each write to a client that has just left.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        log = log_stream()
        service = Service(checked, settings, log)
        try:
            config = uvicorn.Config(
                make_app(service),
                log_level="error",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=settings.grace,
                timeout_keep_alive=15,
            )
            host, port = listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log_line(
                log, "start", model=service.name, policy=service.guard.policy, parallel=service.engine.parallel, url=url
            )
            ready(url)
            with contextlib.suppress(KeyboardInterrupt):  # it was told to stop, and it has
                uvicorn.Server(config).run(sockets=[listener])
            log_line(log, "stop")
        finally:
            service.close()
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before llama.cpp opens the file: a taken port should not cost that."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_address(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error) from error
    return listener


def _no_address(host: str, port: int, error: OSError) -> AirdError:
    return AirdError(
        f"serve: cannot listen on {host}:{port} ({error.strerror or error}); a free address is needed. Choose another "
        "--port."
    )
