"""Where the program meets the system: streams that close, signals, exit codes, and what comes before MLX."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells count


class Terminated(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C cleans up is cleaned up then too."""


def start_library() -> None:
    """Set what has to be set before MLX and the tokenizers are imported: the BLAS, and how much they say."""
    from aird_mlx.blas import use_openblas

    use_openblas()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def show(code: int, render: Callable[..., None], *arguments: object) -> int:
    """Render a result and give ``code`` back: it is that of the work, even when whoever reads our output has left."""
    try:
        render(*arguments)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich makes the one the other
        drop_output()
    return code


def drop_output() -> None:
    """Python flushes stdout again at exit: let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def termination() -> Iterator[None]:
    """While it lasts, SIGTERM raises `Terminated`; only the main thread may ask for signals."""

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str, code: int) -> int:
    """Say in one line on stderr what went wrong; gives ``code`` back."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
