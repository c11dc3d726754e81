"""The chat templates of a model folder, wherever they stand.

``chat_template.jinja`` comes before ``tokenizer_config.json``, as in transformers and so in MLX.
"""

from __future__ import annotations

from pathlib import Path

from aird_mlx.errors import ModelError
from aird_mlx.gguf_export.hyperparameters import read_json


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; the one in use is ``default``. Empty if there is none.

    Raises:
        ModelError: a file with one cannot be read.
    """
    try:
        return _find_chat_templates(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"tokenizer: the chat template in {folder} cannot be read ({type(error).__name__}: {error}); UTF-8 text, "
            "or entries with name and template, are needed. Copy the file again."
        ) from error


def _find_chat_templates(folder: Path) -> dict[str, str]:
    found = {
        path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("additional_chat_templates/*.jinja"))
    }
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8"), **found}
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if template is None:
        template = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, str):
        return {"default": template, **found}
    if isinstance(template, list):
        return {str(entry["name"]): str(entry["template"]) for entry in template} | found
    return found
