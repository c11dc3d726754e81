"""The README says what is there: its file map, its commands and its code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from aird_mlx_cli.main import aird_mlx

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_of(language: str) -> list[str]:
    """The README's fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def file_map() -> list[str]:
    """The paths in the README's file map, in its order."""
    section = README.split("## File map")[1].split("\n## ")[0]
    return [line.split()[0] for line in section.split("```")[1].splitlines() if line.strip()]


def readme_commands() -> list[list[str]]:
    """Every ``aird-mlx ...`` the README shows, as arguments."""
    lines = [line for block in blocks_of("console") for line in block.splitlines()]
    return [shlex.split(line[2:], comments=True)[1:] for line in lines if line.startswith("$ aird-mlx")]


def test_file_map_is_what_is_there() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aird_mlx").glob("*.py")}
    there |= {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "aird_mlx").glob("*/__init__.py")}
    there |= {"cli/", "examples/", "benchmarks/"}
    assert sorted(file_map()) == sorted(there)


def test_readme_is_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("arguments", readme_commands(), ids=" ".join)
def test_readme_command_parses(arguments: list[str]) -> None:
    command = aird_mlx.commands[arguments[0]]
    with command.make_context(arguments[0], arguments[1:]) as context:
        assert context.params


def test_readme_shows_every_command() -> None:
    assert {arguments[0] for arguments in readme_commands()} == set(aird_mlx.commands)


@pytest.mark.parametrize("name", sorted(aird_mlx.commands))
def test_every_option_has_help(name: str) -> None:
    options = [option for option in aird_mlx.commands[name].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help and not isinstance(option.type, click.Choice)] == []


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks_of("python"))
def test_readme_code_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit code 0" in done.stdout


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
