"""The files that local chat programs read, written beside a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.chat_apps.llama_server import not_in_a_preset, write_preset, write_run_script
from aird_mlx.chat_apps.ollama import NOT_IN_PARTS, merge_command, translate, write_modelfile
from aird_mlx.errors import OutputError
from aird_mlx.gguf_export.chat_facts import ChatFacts
from aird_mlx.workspace import whole_file, writing_to

ENDINGS = ("Modelfile", "preset.ini", "run.sh")


@dataclass(frozen=True)
class ChatAppFiles:
    """What was written: the files by their endings, and what has to be said about them, in sentences."""

    files: dict[str, Path]
    notes: tuple[str, ...]


def check_new_chat_apps(file: Path) -> None:
    """Find out whether `write_chat_apps` would replace a file that stands beside this one.

    Raises:
        OutputError: one does.
    """
    endings = [ending for ending in ENDINGS if ending != "preset.ini" or not not_in_a_preset(str(file.absolute()))]
    for path in (_beside(file, ending) for ending in endings):
        if os.path.lexists(path):
            raise OutputError(
                f"chat-apps: {path} exists already; a new file is needed. Choose another outfile, or remove it."
            )


def write_chat_apps(
    file: Path, facts: ChatFacts, *, final: Path | None = None, parts: Sequence[Path] = ()
) -> ChatAppFiles:
    """Write ``NAME.Modelfile``, ``NAME.preset.ini`` and ``NAME.run.sh`` beside ``NAME.gguf``; earlier ones go.

    A preset is left out where it cannot name the file.

    Args:
        file: the GGUF file, or what its parts are named after.
        facts: of its model.
        final: where the file will be when all is done; by default where it is.
        parts: where it was split, in order; llama.cpp is given the first.

    Raises:
        OutputError: they cannot be written.
    """
    name = file.name.removesuffix(".gguf")
    served = parts[0] if parts else file
    merged_from = served.name if len(parts) > 1 else None
    modelled = file.name if merged_from else served.name
    place = str((final or served).absolute())
    texts = {
        "Modelfile": write_modelfile(name, modelled, facts, translate(facts), merged_from),
        "preset.ini": write_preset(name, place, facts),
        "run.sh": write_run_script(name, served.name, facts),
    }
    notes = [f"{NOT_IN_PARTS}: before its Modelfile, {merge_command(merged_from, modelled)}"] if merged_from else []
    if cut := not_in_a_preset(place):
        del texts["preset.ini"]
        notes.append(f"no preset.ini: in one, llama-server reads a path only up to {cut[0]!r}, which {place!r} has")
    written = {}
    for ending, text in texts.items():
        path = _beside(file, ending)
        with writing_to(path, "folder"), whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.chmod(0o755 if ending == "run.sh" else 0o644)
        written[ending] = path
    return ChatAppFiles(written, tuple(notes))


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name.removesuffix('.gguf')}.{ending}")
