"""The files that local chat programs read, written beside a GGUF file."""

from __future__ import annotations

import contextlib
from pathlib import Path

from aird_mlx.chat_apps.llama_server import write_preset, write_run_script
from aird_mlx.chat_apps.ollama import translate, write_modelfile
from aird_mlx.errors import OutputError
from aird_mlx.gguf_export.chat_facts import ChatFacts


def write_chat_apps(file: Path, facts: ChatFacts, *, final: Path | None = None) -> list[Path]:
    """Write ``NAME.Modelfile``, ``NAME.preset.ini`` and ``NAME.run.sh`` beside ``NAME.gguf``; earlier ones go.

    Args:
        file: the GGUF file.
        facts: of its model.
        final: where the file will be when all is done; by default where it is.

    Returns:
        The files written.

    Raises:
        OutputError: they cannot be written.
    """
    name, place = file.stem, (final or file).absolute()
    texts = {
        "Modelfile": write_modelfile(name, facts, translate(facts)),
        "preset.ini": write_preset(name, str(place), facts),
        "run.sh": write_run_script(name, facts),
    }
    written = []
    for kind, text in texts.items():
        path = file.with_name(f"{name}.{kind}")
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.chmod(0o755 if kind == "run.sh" else 0o644)
            partial.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OutputError(
                f"chat-apps: {path} cannot be written ({error.strerror or error}); a writable folder is needed. "
                "Free space, or choose another folder."
            ) from error
        written.append(path)
    return written
