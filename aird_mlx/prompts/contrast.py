"""Contrast sets: prompts of three kinds in three parts each, split by seed; and dialogues crossed with one another."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import PromptError

KINDS = ("harmful", "harmless", "twin")
PARTS = ("find", "validate", "test")
DATA_FOLDER = Path(__file__).parent.parent / "data"
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


def same_words(text: str) -> str:
    """What two texts share that differ in case or white space only: asked again, they are no new prompt.

    >>> same_words(" How do  I bake?") == same_words("how do I bake?")
    True
    """
    return " ".join(text.casefold().split())


def distinct(texts: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """The first of all texts with the same words (`same_words`), without those of ``known``.

    >>> distinct(["Bake", "bake ", "fry", "boil"], ["Boil"])
    ['Bake', 'fry']
    """
    seen = set(map(same_words, known))
    found: dict[str, str] = {}
    for text in texts:
        key = same_words(text)
        if key not in seen:
            found.setdefault(key, text)
    return list(found.values())


def split_prompts(prompts: Sequence[str], seed: int, *, kind: str, test: Sequence[str] | None = None) -> Split:
    """Split one kind by seed: 40 % find, 20 % validate, 40 % test; with ``test`` given, 2/3 find and 1/3 validate.

    A prompt that is also in ``test`` is taken out of the other parts; case and white space make no other prompt.

    Raises:
        PromptError: fewer than 12 prompts remain.
    """
    held_out = distinct(test or ())
    pool = distinct(prompts, held_out)
    if len(pool) < MINIMUM_PROMPTS:
        but = f" that are not among the {len(held_out)} test prompts" if test else ""
        raise PromptError(
            f"prompts: {len(pool)} different {kind} prompts{but} to split; at least {MINIMUM_PROMPTS} are needed. "
            "Add prompts, or leave the option out to use the built-in set."
        )
    random.Random(f"{seed}:{kind}").shuffle(pool)
    if test is not None:
        cut = round(len(pool) * 2 / 3)
        return Split(tuple(pool[:cut]), tuple(pool[cut:]), tuple(held_out))
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
