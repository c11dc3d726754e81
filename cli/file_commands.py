"""The commands on a GGUF file that was written: verify, sign, selftest, serve, chat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from .boundary import show, start_library
from .option_sets import selftest_options, sign_options, verify_options
from .serve_options import chat_options, serve_options


@click.command()
@verify_options
def verify(file: Path, as_json: bool, **options: Any) -> int:
    """Say whether FILE.gguf is what was written: its layout, every byte, its chat template.

    Runs nothing and needs no llama.cpp. Exit code 5 when a check fails; a file without a manifest is said to be
    unknown. Hashes find damage and edits; only --root or --public-key, from a source you trust, also says who wrote it.
    """
    from aird_mlx.guard.verify import verify_file

    from . import render, render_guard

    with render.StageProgress(quiet=as_json) as progress:
        found = verify_file(file, progress=partial(progress, "hash"), **options)
    return show(found.exit_code, render_guard.show_verification, found, as_json)


@click.command()
@sign_options
def sign(file: Path, key: Path, out: Path | None, as_json: bool) -> int:
    """Sign FILE.gguf with a local key, in the format of OpenSSF Model Signing; it must pass `verify`.

    The signature is a file beside it, FILE.gguf.sig. Nothing is sent anywhere.
    """
    from aird_mlx.guard.sign import sign_file

    from . import render, render_guard

    with render.StageProgress(quiet=as_json) as progress:
        written = sign_file(file, key, out=out, progress=partial(progress, "hash"))
    return show(0, render_guard.show_signing, written, as_json)


@click.command()
@selftest_options
def selftest(file: Path, as_json: bool, **options: Any) -> int:
    """Ask FILE.gguf forty canary prompts in llama.cpp: does it still refuse what it refused?

    Exit code 3 when refusals or the probe are lost, 4 when template, token ids or other answers changed, 5 when the
    file is damaged.
    """
    start_library()
    from aird_mlx.guard.selftest import selftest_file

    from . import render_guard

    found = selftest_file(file, **options)
    return show(found.exit_code, render_guard.show_selftest, found, as_json)


@click.command()
@serve_options
def serve(file: Path, **options: Any) -> int:
    """Check FILE.gguf with verify and selftest, then serve it: OpenAI's protocol and a chat page, with a guard.

    Every prompt is read by the file's probe while llama.cpp evaluates it; --policy says what an alarm does. A file that
    fails a check is not served (exit code 3, 4 or 5); without a manifest it needs --allow-unverified.
    """
    start_library()
    from aird_mlx.guard.packages import check_packages

    from . import serving

    check_packages("serve", "serve")
    return serving.check_then(serving.run_server, file, **options)


@click.command()
@chat_options
def chat(file: Path, **options: Any) -> int:
    """Check FILE.gguf with verify and selftest, then talk to it in the terminal, with the guard of `serve`."""
    start_library()
    from . import serving

    return serving.check_then(serving.run_chat, file, parallel=1, queue=0, **options)
