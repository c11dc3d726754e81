"""Contrast sets, prompt files and calibration text, up to token ids in the model's own chat template.

Three kinds of prompts: ``harmful`` (a safe model refuses), ``harmless`` and benign ``twin`` (it answers; twins look
like harmful ones). Each kind is split by seed into *find* (measure and repair), *validate* (choose) and *test*
(report); no prompt is in two parts. This module knows nothing about activations or refusals.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.errors import PromptError

KINDS = ("harmful", "harmless", "twin")
PARTS = ("find", "validate", "test")
DATA_FOLDER = Path(__file__).parent / "data"

# Columns of the field's benchmark files that hold the request, most specific first.
PROMPT_COLUMNS = ("prompt", "goal", "behavior", "forbidden_prompt", "instruction", "question", "text", "query")
MINIMUM_PROMPTS = 12


@dataclass(frozen=True)
class Split:
    """One kind of prompts in its three parts, without a prompt in common."""

    find: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class ContrastSet:
    """The three kinds; ``twin`` may be empty. ``origin`` says where they come from, for the report."""

    harmful: Split
    harmless: Split
    twin: Split
    origin: str

    def part(self, kind: str, part: str) -> tuple[str, ...]:
        """The prompts of one kind and part, e.g. ``part("harmful", "test")``."""
        prompts: tuple[str, ...] = getattr(getattr(self, kind), part)
        return prompts


def read_prompts(path: Path, kind: str = "harmful") -> list[str]:
    """Read a prompt file: .txt (one a line), .jsonl (``prompt`` or another known key), .csv/.tsv (a known column).

    In files that label their rows safe/unsafe (XSTest), ``harmful`` takes the unsafe rows and the other kinds the
    safe ones. Repeated prompts are dropped.

    Raises:
        PromptError: missing, unreadable, empty, or without a known column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PromptError(
            f"prompts: there is no file {path}; a .txt, .jsonl or .csv is needed. Check the path."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompts: {path} cannot be read ({error}); UTF-8 text is needed. Check the file.") from error
    rows: Iterable[str]
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        rows = _read_json_lines(path, text, kind)
    elif path.suffix in (".csv", ".tsv"):
        rows = _read_table(path, text, kind)
    else:
        rows = text.splitlines()
    prompts = list(dict.fromkeys(row.strip() for row in rows if row.strip()))
    if not prompts:
        raise PromptError(f"prompts: {path} holds no prompts; at least {MINIMUM_PROMPTS} are needed. Fill the file.")
    return prompts


def _read_json_lines(path: Path, text: str, kind: str) -> list[str]:
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(
                f"prompts: {path} line {number} is not JSON ({error.msg}); one JSON object a line is needed. Mend it."
            ) from error
        if isinstance(row, str):
            prompts.append(row)
            continue
        fields = {str(key).lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
        column = next((name for name in PROMPT_COLUMNS if isinstance(fields.get(name), str)), None)
        if column is None:
            raise PromptError(
                f"prompts: {path} line {number} has the keys {sorted(fields)}; a text under one of "
                f"{', '.join(PROMPT_COLUMNS)} is needed. Rename the key."
            )
        if _is_wanted(fields, kind):
            prompts.append(fields[column])
    return prompts


def _read_table(path: Path, text: str, kind: str) -> list[str]:
    try:
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
        )
        columns = [str(name) for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise PromptError(f"prompts: {path} is not a table ({error}); valid CSV is needed. Mend the file.") from error
    by_name = {name.strip().lower(): name for name in columns}
    column = next((by_name[name] for name in PROMPT_COLUMNS if name in by_name), None)
    if column is None:
        raise PromptError(
            f"prompts: {path} has the columns {columns}; one of {', '.join(PROMPT_COLUMNS)} is needed. "
            "Rename the column that holds the prompts."
        )
    lowered = ({str(key).strip().lower(): value for key, value in row.items()} for row in rows)
    return [row[column.strip().lower()] or "" for row in lowered if _is_wanted(row, kind)]


def _is_wanted(row: dict[str, Any], kind: str) -> bool:
    label = str(row.get("label", "")).strip().lower()
    return label not in ("safe", "unsafe") or (label == "unsafe") == (kind == "harmful")


def split_prompts(prompts: Sequence[str], seed: int, *, kind: str, test: Sequence[str] | None = None) -> Split:
    """Split one kind by seed: 40 % find, 20 % validate, 40 % test; with ``test`` given, 2/3 find and 1/3 validate.

    A prompt that is also in ``test`` is taken out of the other parts.

    Raises:
        PromptError: fewer than 12 prompts remain.
    """
    pool = [prompt for prompt in dict.fromkeys(prompts) if test is None or prompt not in set(test)]
    if len(pool) < MINIMUM_PROMPTS:
        raise PromptError(
            f"prompts: {len(pool)} different {kind} prompts to split; at least {MINIMUM_PROMPTS} are needed. "
            "Add prompts, or leave the option out to use the built-in set."
        )
    random.Random(f"{seed}:{kind}").shuffle(pool)
    if test is not None:
        cut = round(len(pool) * 2 / 3)
        return Split(tuple(pool[:cut]), tuple(pool[cut:]), tuple(dict.fromkeys(test)))
    first, second = round(len(pool) * 0.4), round(len(pool) * 0.6)
    return Split(tuple(pool[:first]), tuple(pool[first:second]), tuple(pool[second:]))


def render_prompt(tokenizer: TokenizerWrapper, prompt: str) -> list[int]:
    """Token ids of ``prompt`` in the chat template, ending where the model starts to answer."""
    return _apply_template(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)


def render_text(tokenizer: TokenizerWrapper, prompt: str) -> str:
    """The same as text, as a chat app would send it to a runtime."""
    return str(
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
    )


def render_dialogue(tokenizer: TokenizerWrapper, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer up to the end-of-turn token, and where the answer begins."""
    start = render_prompt(tokenizer, prompt)
    end = [min(tokenizer.eos_token_ids)] if tokenizer.eos_token_ids else []
    return start + tokenizer.encode(answer, add_special_tokens=False) + end, len(start)


def post_instruction_tokens(tokenizer: TokenizerWrapper) -> list[int]:
    """The tokens the template puts after the user's words: the positions where a refusal is decided.

    Found by rendering two different prompts and taking the ending they share.

    Raises:
        PromptError: the template ends with the user's words.
    """
    one, other = render_prompt(tokenizer, "apple"), render_prompt(tokenizer, "Seven 7")
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    if shared == 0 or shared == min(len(one), len(other)):
        raise PromptError(
            f"prompts: the chat template puts {shared} tokens after the user's words; at least one, and the words "
            "themselves, are needed. Check the model's chat template."
        )
    return one[len(one) - shared :]


def _apply_template(tokenizer: TokenizerWrapper, messages: list[dict[str, str]], **options: Any) -> list[int]:
    import jinja2

    try:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise PromptError(
            f"prompts: the model's chat template cannot render a user message ({error}); a working jinja template is "
            "needed. Check chat_template in the model folder."
        ) from error
    return [int(token) for token in ids]
