"""The chat templates of a model folder, wherever they stand.

``chat_template.jinja`` comes before ``tokenizer_config.json``, as in transformers and so in MLX.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import jinja2

from aird_mlx.errors import ModelError, PromptError
from aird_mlx.gguf_export.chat import compile_template
from aird_mlx.gguf_export.hyperparameters import read_json
from aird_mlx.prompts import TEMPLATE_ERRORS


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


def chat_begins_with(template: str | None, tokens: Collection[str], bos: str) -> bool:
    """Whether a rendered chat begins with one of these tokens; False without a template that renders.

    Args:
        template: the model's.
        tokens: texts of its added tokens.
        bos: how the template's ``bos_token`` is written.
    """
    if not template:
        return False
    try:
        said = [{"role": "user", "content": "a"}]
        text = compile_template(template, "the model").render(messages=said, bos_token=bos, add_generation_prompt=True)
    except (PromptError, jinja2.TemplateError, *TEMPLATE_ERRORS):
        return False
    return text.startswith(tuple(tokens))


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
