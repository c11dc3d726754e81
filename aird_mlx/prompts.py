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
import re
from collections.abc import Iterator, Mapping, Sequence
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
# HarmBench's contextual behaviours come with a text that is put before the request, as its own code does.
CONTEXT_COLUMN, CONTEXT_SEPARATOR = "contextstring", "\n\n---\n\n"
MINIMUM_PROMPTS = 12
# What a template can raise besides jinja's own errors: it computes, indexes, and calls methods of strings.
TEMPLATE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


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


def read_prompts(path: Path, kind: str = "harmful", *, column: str | None = None) -> list[str]:
    """Read a prompt file: .txt (one a line), .jsonl (``prompt`` or another known key), .csv/.tsv (a known column).

    A .json file may hold one array instead of JSON lines. The case of a file's extension does not matter.

    Knows AdvBench, JailbreakBench, HarmBench (its context is put before the request), StrongREJECT, MaliciousInstruct
    and XSTest by their columns. In files that label their rows safe/unsafe (XSTest), ``harmful`` takes the unsafe
    rows and the other kinds the safe ones. Repeated prompts are dropped.

    Args:
        path: the file.
        kind: ``harmful``, ``harmless`` or ``twin``.
        column: where the prompts are, of a table or JSON lines; a known column by default. Case does not matter.

    Raises:
        PromptError: missing, unreadable, empty, or without the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PromptError(
            f"prompts: there is no file {path}; a .txt, .jsonl or .csv is needed. Check the path."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompts: {path} cannot be read ({error}); UTF-8 text is needed. Check the file.") from error
    rows: list[str]
    labels: set[str] = set()
    columns = PROMPT_COLUMNS if column is None else (column.strip().lower(),)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json", ".ndjson"):
        rows = _read_json(path, text, kind, columns, labels)
    elif suffix in (".csv", ".tsv"):
        rows = _read_table(path, text, kind, columns, labels)
    else:
        rows = text.splitlines()
    prompts = list(dict.fromkeys(row.strip() for row in rows if row.strip()))
    if not prompts and labels:
        raise PromptError(
            f"prompts: {path} holds no prompts that are {kind}: its rows are labelled {' and '.join(sorted(labels))}; "
            f"rows labelled {'unsafe' if kind == 'harmful' else 'safe'} are needed. Use another file for this kind."
        )
    if not prompts:
        raise PromptError(f"prompts: {path} holds no prompts; at least one is needed. Fill the file.")
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise PromptError(
                f"prompts: {path} holds half a surrogate pair in {prompt[:60]!r}; whole characters are needed. Mend it."
            )
    return prompts


def _read_json(path: Path, text: str, kind: str, columns: Sequence[str], labels: set[str]) -> list[str]:
    prompts = []
    for place, row in _json_rows(path, text):
        if isinstance(row, str):
            prompts.append(row)
            continue
        fields = {str(key).strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
        column = next((name for name in columns if isinstance(fields.get(name), str)), None)
        if column is None:
            known = [f"{fields[name]!r:.60} under {name}" for name in columns if name in fields]
            raise PromptError(
                f"prompts: {path} {place} has {known[0] if known else f'the keys {sorted(fields)}'}; a text under one "
                f"of {', '.join(columns)} is needed. {'Put it in quotes' if known else 'Rename the key'}."
            )
        if _is_wanted(fields, kind, labels):
            prompts.append(_request(fields, column))
    return prompts


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The elements of the array in a .json file, else the values of JSON lines, each with its place."""
    is_array = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    # Not splitlines: a JSON string may hold U+2028 and its like.
    for number, line in enumerate([text] if is_array else text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            place, form = ("", "an array of texts or objects") if is_array else (f" line {number}", "one object a line")
            raise PromptError(
                f"prompts: {path}{place} is not JSON ({error}); JSON, {form}, is needed. Mend it."
            ) from error
        if is_array:
            yield from ((f"element {index}", row) for index, row in enumerate(value, 1))
        else:
            yield f"line {number}", value


def _read_table(path: Path, text: str, kind: str, columns: Sequence[str], labels: set[str]) -> list[str]:
    try:
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
        )
        there = [str(name) for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise PromptError(f"prompts: {path} is not a table ({error}); valid CSV is needed. Mend the file.") from error
    column = next((name for name in columns if name in {name.strip().lower() for name in there}), None)
    if column is None:
        raise PromptError(
            f"prompts: {path} has the columns {there}; one of {', '.join(columns)} is needed. "
            "Give the column that holds the prompts one of these names."
        )
    lowered = ({str(key).strip().lower(): value for key, value in row.items()} for row in rows)
    return [_request(row, column) for row in lowered if _is_wanted(row, kind, labels)]


def _is_wanted(row: dict[str, Any], kind: str, labels: set[str]) -> bool:
    """Whether a row is of this kind, by its label if it has one; the labels seen are put into ``labels``.

    XSTest's tables of model answers have none, but call the types of unsafe prompts ``contrast_...``.
    """
    label = str(row.get("label", "")).strip().lower()
    if not label and {"type", "completion"} <= row.keys() and str(row.get("id", "")).startswith("v2-"):
        label = "unsafe" if str(row.get("type", "")).strip().startswith("contrast_") else "safe"
    if label not in ("safe", "unsafe"):
        return True
    labels.add(label)
    return (label == "unsafe") == (kind == "harmful")


def _request(row: dict[str, Any], column: str) -> str:
    """The prompt of a row, behind its context where HarmBench gives one; "" for a row that is too short."""
    request, context = row[column] or "", row.get(CONTEXT_COLUMN)
    if column != "behavior" or not isinstance(context, str) or not context.strip() or not request.strip():
        return str(request)
    return f"{context.strip()}{CONTEXT_SEPARATOR}{request}"


def split_prompts(prompts: Sequence[str], seed: int, *, kind: str, test: Sequence[str] | None = None) -> Split:
    """Split one kind by seed: 40 % find, 20 % validate, 40 % test; with ``test`` given, 2/3 find and 1/3 validate.

    A prompt that is also in ``test`` is taken out of the other parts.

    Raises:
        PromptError: fewer than 12 prompts remain.
    """
    held_out = set(test or ())
    pool = [prompt for prompt in dict.fromkeys(prompts) if prompt not in held_out]
    if len(pool) < MINIMUM_PROMPTS:
        but = f" that are not among the {len(held_out)} test prompts" if test else ""
        raise PromptError(
            f"prompts: {len(pool)} different {kind} prompts{but} to split; at least {MINIMUM_PROMPTS} are needed. "
            "Add prompts, or leave the option out to use the built-in set."
        )
    random.Random(f"{seed}:{kind}").shuffle(pool)
    if test is not None:
        cut = round(len(pool) * 2 / 3)
        return Split(tuple(pool[:cut]), tuple(pool[cut:]), tuple(dict.fromkeys(test)))
    first, second = round(len(pool) * 0.4), round(len(pool) * 0.6)
    return Split(tuple(pool[:first]), tuple(pool[first:second]), tuple(pool[second:]))


def cross_dialogues(dialogues: Sequence[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Up to ``count`` new prompts, each the beginning of one and the end of another, with the answer to the latter.

    They make little sense and need not: what a model would say to them can be asked of it, and lies between what it
    says to prompts that were written.

    Args:
        dialogues: (prompt, answer); prompts are cut between words, and those of one word are left out.
        count: how many; fewer where so many different ones do not turn up.
        seed: which.

    >>> sorted(cross_dialogues([("kill time", "Sure."), ("greet bob", "Hello.")], 9, seed=0))
    [('greet time', 'Sure.'), ('kill bob', 'Hello.')]
    """
    words = [(re.findall(r"\s*\S+", prompt), answer) for prompt, answer in dialogues]
    cut = [(parts, answer) for parts, answer in words if len(parts) > 1]
    known = {prompt for prompt, _ in dialogues}
    generator = random.Random(seed)
    crossed: dict[str, str] = {}
    for _ in range(4 * count if len(cut) > 1 else 0):
        if len(crossed) == count:
            break
        (first, _), (second, answer) = generator.sample(cut, 2)
        prompt = "".join(first[: generator.randrange(1, len(first))] + second[generator.randrange(1, len(second)) :])
        if prompt not in known:
            crossed.setdefault(prompt, answer)
    return list(crossed.items())


def render_prompt(tokenizer: TokenizerWrapper, prompt: str) -> list[int]:
    """Token ids of ``prompt`` in the chat template, ending where the model starts to answer."""
    return render_messages(tokenizer, [{"role": "user", "content": prompt}])


def render_text(tokenizer: TokenizerWrapper, prompt: str) -> str:
    """The same as text, as a chat app would send it to a runtime."""
    return str(_apply_template(tokenizer, [{"role": "user", "content": prompt}], tokenize=False))


def render_dialogue(tokenizer: TokenizerWrapper, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer up to the end-of-turn token, and where the answer begins."""
    start = render_prompt(tokenizer, prompt)
    end = [min(tokenizer.eos_token_ids)] if tokenizer.eos_token_ids else []
    return start + tokenizer.encode(answer, add_special_tokens=False) + end, len(start)


def check_context(
    rendered: Sequence[Sequence[int]], new_tokens: int | None, context: int | None, prompts: Sequence[str] = ()
) -> None:
    """Refuse prompts that a model's context cannot take, before anything is generated.

    Args:
        rendered: token ids of the prompts.
        new_tokens: of each answer; None if one is enough.
        context: most tokens of prompt and answer together; None if unknown.
        prompts: their words, to name the longest by.

    Raises:
        PromptError: the longest prompt with its answer is longer than the context.
    """
    lengths = [len(ids) for ids in rendered]
    if context is None or not lengths or max(lengths) + (new_tokens or 1) <= context:
        return
    longest = max(lengths)
    words = f"{prompts[lengths.index(longest)][:60]!r}..." if prompts else "the longest"
    raise PromptError(
        f"prompts: {words} has {longest} tokens, its answer {new_tokens or 'at least 1'}; the model's context takes "
        f"{context} in all. Leave long prompts out{', or use a smaller --max-new-tokens' if new_tokens else ''}."
    )


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


def render_messages(tokenizer: TokenizerWrapper, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
    """Token ids of a conversation in the chat template, ending where the model starts to answer.

    Args:
        tokenizer: of the model.
        messages: each with ``role`` and ``content``.
        options: what the template itself understands, ``enable_thinking`` for example.

    Raises:
        PromptError: the template cannot render it, or renders nothing.
    """
    ids = _apply_template(tokenizer, messages, tokenize=True, return_dict=False, **options)
    if not ids:
        raise PromptError(
            "prompts: the model's chat template renders nothing; a template that gives the user's words is needed. "
            "Check chat_template in the model folder."
        )
    return [int(token) for token in ids]


def _apply_template(tokenizer: TokenizerWrapper, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, **options
        )
    except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
        roles = " and ".join(dict.fromkeys(f"a {message['role']}" for message in messages))
        raise PromptError(
            f"prompts: the model's chat template cannot render {roles} message ({error}); a working jinja template is "
            "needed. Check chat_template in the model folder."
        ) from error
