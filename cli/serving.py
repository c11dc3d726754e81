"""Serving a file, and talking to it in the terminal: its checks are shown first."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import render, render_guard
from .boundary import fail

if TYPE_CHECKING:
    from aird_mlx.server.checks import CheckedFile
    from aird_mlx.server.guard import Guard, Verdict
    from aird_mlx.server.settings import ServiceSettings

# Options that say what a file is held against before it is used.
CHECKED_BY = ("root", "public_key", "signature", "canary_set", "allow_unverified")
COLOURS = {"passed": "green", "unscored": None, "refused": "red", "model-refused": "yellow"}


def check(file: Path, **options: Any) -> CheckedFile:
    """Verify and selftest a file, and show what was found."""
    from aird_mlx.server.checks import check_file

    with render.StageProgress() as progress:
        checked = check_file(file, progress=partial(progress, "hash"), **options)
    render_guard.show_verification(checked.verification)
    if checked.selftest is not None:
        render_guard.show_selftest(checked.selftest)
    return checked


def check_then(run: Callable[[CheckedFile, ServiceSettings], int], file: Path, **options: Any) -> int:
    """Check a file, and ``run`` it if it may be; else the exit code of what it failed."""
    from aird_mlx.server.settings import ServiceSettings

    checks = {name: options.pop(name) for name in CHECKED_BY}
    settings = ServiceSettings(**options)  # what is wrong with these is said before the file is read
    checked = check(file, **checks)
    return run(checked, settings) if checked.is_allowed else checked.exit_code


def run_server(checked: CheckedFile, settings: ServiceSettings) -> int:
    """Serve until told to stop."""
    from aird_mlx.server.run import serve

    serve(checked, settings, lambda url: click.echo(f"Listening on {url} - Ctrl-C stops it.", err=True))
    return 0


def run_chat(checked: CheckedFile, settings: ServiceSettings) -> int:
    """Talk until the input ends: a line is a message, /new forgets the conversation, /quit leaves."""
    from aird_mlx.server.settings import open_guard

    with closing(open_guard(checked, settings)) as guard:
        click.echo(f"Policy {guard.policy}. /new forgets the conversation, /quit leaves, Ctrl-C stops an answer.")
        messages: list[dict[str, str]] = []
        while (line := _read_line()) is not None and line != "/quit":
            if line == "/new":
                messages.clear()
            elif line:
                messages.append({"role": "user", "content": line})
                _exchange(guard, settings, messages)
    return 0


def _read_line() -> str | None:
    """One message, None at the end of the input."""
    if sys.stdin.isatty():
        click.secho("> ", bold=True, nl=False)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _exchange(guard: Guard, settings: ServiceSettings, messages: list[dict[str, str]]) -> None:
    """Answer the last message and keep the answer; a message that cannot be answered is taken back."""
    from aird_mlx.errors import AirdError

    said: list[str] = []
    try:
        asyncio.run(_answer(guard, settings, messages, said))
    except AirdError as error:
        messages.pop()
        click.echo(err=True)
        fail(str(error), error.exit_code)
        return
    except KeyboardInterrupt as stopped:
        click.echo()
        if type(stopped) is not KeyboardInterrupt:  # told to end, not to stop this answer
            raise
    messages.append({"role": "assistant", "content": "".join(said)})


async def _answer(guard: Guard, settings: ServiceSettings, messages: list[dict[str, str]], said: list[str]) -> None:
    from aird_mlx.server.conversation import make_request, render_conversation
    from aird_mlx.server.engine import Piece
    from aird_mlx.server.guard import Verdict

    ids = render_conversation(guard.engine.chat, messages)
    request = make_request(guard.engine, ids, settings.max_tokens, temperature=settings.temperature)
    async with aclosing(guard.answer(request, messages, guard.policy)) as stream:
        async for event in stream:
            if isinstance(event, Verdict):
                _show_verdict(event)
            elif isinstance(event, Piece):
                said.append(event.text)
                click.echo(render_guard.printable(event.text), nl=False)
    click.echo()


def _show_verdict(verdict: Verdict) -> None:
    score = "" if verdict.score is None else f" {verdict.score:.2f} (alarm above {verdict.threshold:.2f})"
    second = "" if verdict.second_opinion is None else f", guard model: {verdict.second_opinion}"
    click.secho(f"[{verdict.decision}{score}{second}]", fg=COLOURS.get(verdict.decision, "yellow"), dim=True)
