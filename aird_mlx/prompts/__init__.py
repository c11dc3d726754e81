"""Contrast sets and prompt files, up to token ids in the model's own chat template.

Three kinds of prompts: ``harmful`` (a safe model refuses), ``harmless`` and benign ``twin`` (it answers; twins look
like harmful ones). Each kind is split by seed into *find* (measure and repair), *validate* (choose) and *test*
(report); no prompt is in two parts, not in other case or spacing either. These modules know nothing about activations
or refusals.
"""

from aird_mlx.prompts.contrast import (
    DATA_FOLDER,
    KINDS,
    PARTS,
    ContrastSet,
    Split,
    cross_dialogues,
    distinct,
    same_words,
    split_prompts,
)
from aird_mlx.prompts.files import read_prompts
from aird_mlx.prompts.template import (
    TEMPLATE_ERRORS,
    check_context,
    post_instruction_tokens,
    render_dialogue,
    render_messages,
    render_prompt,
    render_text,
)

__all__ = [
    "DATA_FOLDER",
    "KINDS",
    "PARTS",
    "TEMPLATE_ERRORS",
    "ContrastSet",
    "Split",
    "check_context",
    "cross_dialogues",
    "distinct",
    "post_instruction_tokens",
    "read_prompts",
    "render_dialogue",
    "render_messages",
    "render_prompt",
    "render_text",
    "same_words",
    "split_prompts",
]
