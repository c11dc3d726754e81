"""The files that local chat programs read, written beside a GGUF file."""

from __future__ import annotations

from pathlib import Path

from aird_mlx.chat_apps.llama_server import write_preset, write_run_script
from aird_mlx.chat_apps.ollama import translate, write_modelfile
from aird_mlx.gguf_export.chat_facts import ChatFacts
from aird_mlx.workspace import whole_file, writing_to


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
        with writing_to(path, "folder"), whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.chmod(0o755 if kind == "run.sh" else 0o644)
        written.append(path)
    return written
