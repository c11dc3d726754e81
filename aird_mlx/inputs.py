"""What a run asks its model: the contrast set and the texts, from files, the demo's own language, or the built-in set.

This is the one place that decides which prompts belong to which model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.errors import PromptError
from aird_mlx.prompts import (
    DATA_FOLDER,
    KINDS,
    ContrastSet,
    Split,
    distinct,
    read_prompts,
    render_dialogue,
    same_words,
    split_prompts,
)

TEXT_CHUNK = 256

# How many prompts of each kind the demo's language gives: find, validate, test.
DEMO_COUNTS = {"harmful": (256, 100, 300), "harmless": (256, 100, 300), "twin": (128, 100, 300)}
DEMO_HELD_OUT_DIALOGUES = 300
# And how many the probe of an exported file is fitted and validated on: it has thousands of weights.
DEMO_PROBE_COUNTS = (2000, 600)

NO_TWINS = (
    "no benign twins: whether the repair refuses prompts that only look harmful more often than before was not "
    "measured. Give some with --twins; it learns from them as well"
)


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads besides the model.

    Attributes:
        contrast: the prompts, split.
        texts: plain calibration texts; may be empty.
        held_out_texts: plain texts for perplexity, none of them in ``texts``.
        held_out_dialogues: (prompt, answer) pairs for perplexity, counted from the answer on.
        probe: what the probe of an exported file is fitted on; that of ``contrast``, or more where there is more.
    """

    contrast: ContrastSet
    texts: tuple[str, ...]
    held_out_texts: tuple[str, ...]
    held_out_dialogues: tuple[tuple[str, str], ...]
    probe: ContrastSet

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the prompts come from, and what cannot be known from them."""
        unknown = () if self.contrast.twin.test else (NO_TWINS,)
        return (f"prompts: {self.contrast.origin}", *unknown)


def gather_inputs(
    model: str,
    seed: int,
    *,
    harmful: Path | None = None,
    harmless: Path | None = None,
    twins: Path | None = None,
    calibration: Path | None = None,
    test_harmful: Path | None = None,
    test_harmless: Path | None = None,
    test_twins: Path | None = None,
    limit: int | None = None,
) -> Inputs:
    """Read and split what the user gave; what was not given is the demo's own or the built-in set.

    With own harmful or harmless prompts built-in twins are left out, since they may be about something the model knows
    nothing of: without own ones no twins are asked, and with own test twins alone none are learned from.

    Args:
        limit: keep at most this many test prompts of each kind, the first of a test file.

    Raises:
        PromptError: a file that cannot be used, or too few prompts.
    """
    files = {"harmful": harmful, "harmless": harmless, "twin": twins}
    tests = {"harmful": test_harmful, "harmless": test_harmless, "twin": test_twins}
    own = harmful is not None or harmless is not None
    splits: dict[str, Split] = {}
    for kind in KINDS:
        test = None if tests[kind] is None else read_prompts(tests[kind], kind)  # type: ignore[arg-type]
        file = files[kind]
        if file is not None:
            split = split_prompts(read_prompts(file, kind), seed, kind=kind, test=test)
        elif kind == "twin" and own and model != "demo":
            split = Split((), (), tuple(distinct(test or ())))
        else:
            split = _demo_split(kind, seed) if model == "demo" else _built_in_split(kind, seed)
            split = split if test is None else _with_test(split, test)
        splits[kind] = split
    _check_disjoint(splits)
    texts, held_out_texts = _texts(model, seed, calibration)
    dialogues = _demo_dialogues(seed) if model == "demo" and calibration is None else ()
    given = [str(path) for path in (*files.values(), *tests.values()) if path is not None]
    ours = "the demo's own language" if model == "demo" else "the built-in general set"
    filled = [kind for kind in KINDS if files[kind] is None and splits[kind].find]
    origin = f"{', '.join(given)}; {' and '.join(filled)} from {ours}" if given and filled else ", ".join(given) or ours
    asked = {kind: Split(split.find, split.validate, split.test[:limit]) for kind, split in splits.items()}
    probe = {
        kind: _with_test(_demo_split(kind, seed, (*DEMO_PROBE_COUNTS, 0)), split.test)
        if model == "demo" and files[kind] is None
        else split
        for kind, split in splits.items()
    }
    return Inputs(
        ContrastSet(**asked, origin=origin), texts, held_out_texts, dialogues, ContrastSet(**probe, origin=origin)
    )


def _with_test(split: Split, test: Sequence[str]) -> Split:
    held_out = distinct(test)
    find, validate = (tuple(distinct(part, held_out)) for part in (split.find, split.validate))
    return Split(find, validate, tuple(held_out))


def _check_disjoint(splits: dict[str, Split]) -> None:
    prompts = {
        kind: {same_words(prompt): prompt for part in vars(split).values() for prompt in part}
        for kind, split in splits.items()
    }
    for one, other in combinations(KINDS, 2):
        both = sorted(prompts[one][words] for words in prompts[one].keys() & prompts[other].keys())
        if both:
            raise PromptError(
                f"prompts: {len(both)} prompts are both {one} and {other}, for example {both[0][:60]!r}; each belongs "
                "to one kind. Remove them from one file."
            )


def _demo_split(kind: str, seed: int, counts: tuple[int, int, int] | None = None) -> Split:
    from aird_mlx.demo.language import prompts

    find, validate, test = counts or DEMO_COUNTS[kind]
    return Split(
        tuple(prompts(kind, "train", find, seed)),
        tuple(prompts(kind, "validation", validate, seed)),
        tuple(prompts(kind, "test", test, seed)),
    )


def _demo_dialogues(seed: int) -> tuple[tuple[str, str], ...]:
    from aird_mlx.demo.language import dialogues

    return tuple(dialogues("test", DEMO_HELD_OUT_DIALOGUES, seed))


def _built_in_split(kind: str, seed: int) -> Split:
    name = {"harmful": "harmful", "harmless": "harmless", "twin": "twins"}[kind]
    return split_prompts(read_prompts(DATA_FOLDER / f"{name}.txt", kind), seed, kind=kind)


def _texts(model: str, seed: int, calibration: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if calibration is None and model == "demo":
        return (), ()
    path = calibration or DATA_FOLDER / "calibration.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"calibration: {path} cannot be read ({error}); UTF-8 text, one passage a line, is needed. Check the path."
        ) from error
    paragraphs = distinct(line.strip() for line in lines if line.strip())  # a repeated one would be in both parts
    if len(paragraphs) < 4:
        raise PromptError(
            f"calibration: {path} holds {len(paragraphs)} passages; at least 4 different ones, one a line, are needed. "
            "Add text."
        )
    random.Random(f"{seed}:calibration").shuffle(paragraphs)
    cut = max(1, round(len(paragraphs) * 0.7))
    return tuple(paragraphs[:cut]), tuple(paragraphs[cut:])


def text_sequences(tokenizer: TokenizerWrapper, texts: Sequence[str]) -> list[list[int]]:
    """Texts as token ids in chunks of at most 256, each chunk at least two tokens."""
    chunks = []
    for text in texts:
        ids = list(tokenizer.encode(text))
        chunks += [ids[start : start + TEXT_CHUNK] for start in range(0, len(ids), TEXT_CHUNK)]
    return [chunk for chunk in chunks if len(chunk) > 1]


def held_out_sequences(tokenizer: TokenizerWrapper, inputs: Inputs) -> list[tuple[list[int], int]]:
    """What perplexity is measured on, with the first token that counts: whole texts, and the answers of dialogues."""
    texts = [(chunk, 0) for chunk in text_sequences(tokenizer, inputs.held_out_texts)]
    return texts + [render_dialogue(tokenizer, prompt, answer) for prompt, answer in inputs.held_out_dialogues]
