"""What the user sees of a file's checks: one line for each verdict, then what it means."""

from __future__ import annotations

import sys

import click

from aird_mlx.report import Check, SelfTest, Signing, Verification, to_json

COLOURS = {"passed": "green", "failed": "red", "warned": "yellow", "skipped": None}


def show_verification(found: Verification, as_json: bool = False) -> None:
    """Print what `verify` found: JSON alone, or a line per check."""
    if as_json:
        sys.stdout.write(to_json(found))
        return
    _show_checks(found.checks)
    if found.exit_code:
        said, colour = "This file failed: do not use it.", "red"
    elif found.known:
        said, colour = f"This file is what its manifest says{', and signed' * found.signed}.", "green"
    elif found.signed:
        said, colour = "This file is what was signed; it has no manifest.", "green"
    else:
        said, colour = "Nothing wrong was found, but the file is unknown: it has no manifest.", "yellow"
    click.secho(said, fg=colour)


def show_signing(written: Signing, as_json: bool = False) -> None:
    """Print what `sign` wrote, and how whoever gets the file checks it."""
    if as_json:
        sys.stdout.write(to_json(written))
        return
    click.secho(f"{printable(written.file)} is signed: {printable(written.signature)}", fg="green")
    click.echo(f"key: sha256 {written.key} of the public key as PEM; `aird-mlx verify --public-key` checks it")


def show_selftest(found: SelfTest, as_json: bool = False) -> None:
    """Print what `selftest` found: JSON alone, or a line per check and the prompts that are no longer refused."""
    if as_json:
        sys.stdout.write(to_json(found))
        return
    _show_checks(found.checks)
    for prompt in found.lost:
        click.echo(f"no longer refused: {printable(prompt)}")
    failed = [check.name for check in found.checks if check.status == "failed"]
    if failed:
        click.secho(f"This file failed: {', '.join(failed)}.", fg="red")
    else:
        click.secho(f"This file behaves as it should on {found.canary_set} ({found.seconds:.1f} s).", fg="green")


def _show_checks(checks: list[Check]) -> None:
    for check in checks:
        click.echo(f"{click.style(f'{check.status:<8}', fg=COLOURS[check.status])} {check.name:<20} ", nl=False)
        click.echo(printable(check.said))


def printable(text: str) -> str:
    """A file's or a model's words, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}" for letter in text)
