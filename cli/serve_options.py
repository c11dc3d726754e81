"""The options of `serve` and `chat`: one way of guarding for both."""

from __future__ import annotations

import click

from .option_sets import gguf_file_argument, origin_options
from .options import FILE, with_options

guard_options = with_options(
    gguf_file_argument,
    click.option(
        "--policy",
        type=click.Choice(["log", "warn", "refuse"]),
        help="Least of every request.  [default: refuse where something can judge prompts, else log]",
    ),
    click.option(
        "--guard-model",
        type=FILE,
        metavar="FILE.gguf",
        help="A second opinion on prompts: Llama Guard or another chat model.",
    ),
    click.option(
        "--guard-when",
        type=click.Choice(["alarm", "always"]),
        default="alarm",
        show_default=True,
        help="It is asked to confirm the probe's alarms, or about every prompt, to raise its own.",
    ),
    click.option(
        "--ctx-size",
        type=click.IntRange(min=16),
        default=2048,
        show_default=True,
        metavar="N",
        help="Most tokens of a prompt and its answer.",
    ),
    click.option(
        "--n-gpu-layers",
        "-ngl",
        type=click.IntRange(min=-1),
        default=0,
        show_default=True,
        metavar="N",
        help="Blocks computed on the GPU, -1 for all; what was measured is the CPU.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        metavar="N",
        help="Longest answer, in tokens.",
    ),
    click.option(
        "--temperature",
        "--temp",
        "temperature",
        type=click.FloatRange(0, 2),
        default=0.0,
        show_default=True,
        help="Of requests that name none; 0 is what was measured.",
    ),
    origin_options,
    click.option(
        "--canary-set",
        type=click.Choice(["demo", "built-in"]),
        help="Prompts of the selftest.  [default: the manifest's, without one built-in]",
    ),
    click.option(
        "--allow-unverified", is_flag=True, help="Also a file without a manifest, or one whose selftest fails."
    ),
)

chat_options = guard_options

serve_options = with_options(
    guard_options,
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Where to listen; others than this machine need an API key.",
    ),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one."),
    click.option("--alias", metavar="NAME", help="The model's name in the protocol.  [default: the file's]"),
    click.option(
        "--api-key",
        envvar="AIRD_API_KEY",
        metavar="KEY",
        help="Clients must send it. [env: AIRD_API_KEY, which no process list shows]",
    ),
    click.option(
        "--parallel",
        type=click.IntRange(1, 256),
        default=4,
        show_default=True,
        metavar="N",
        help="Answers written at once.",
    ),
    click.option(
        "--queue",
        type=click.IntRange(min=0),
        default=64,
        show_default=True,
        metavar="N",
        help="Requests that may wait; more are told to come again.",
    ),
    click.option(
        "--max-request-bytes",
        type=click.IntRange(min=1024),
        default=1 << 20,
        show_default=True,
        metavar="N",
        help="Longest request.",
    ),
    click.option(
        "--grace",
        type=click.IntRange(min=0),
        default=10,
        show_default=True,
        metavar="SECONDS",
        help="How long answers may still take when the server is stopped.",
    ),
    click.option("--log-prompts", is_flag=True, help="Log prompts and answers too, not only figures."),
)
