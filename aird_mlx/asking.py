"""Prompt sets put to a model under attacks: conversations rendered, answers judged by the rules.

A `Chat` is a model that can be asked; whether MLX or llama.cpp answers makes no difference here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aird_mlx.errors import PromptError
from aird_mlx.evaluation import Attack, answer_rates, judge_answer, judge_figures
from aird_mlx.prompt_sets import PromptSet, prompt_id
from aird_mlx.prompts import check_context
from aird_mlx.report import AskedSet

# Answers are judged on this many tokens, or on what the model's context leaves (Arditi et al. use 512). A prompt that
# leaves less than the latter does not cut the answers of the others.
MAX_NEW_TOKENS, LEAST_ANSWER = 512, 64


class Chat(Protocol):
    """A model that can be asked: `MlxChat` or `GgufChat`."""

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together."""

    def render(self, messages: Sequence[Mapping[str, str]], prefill: str = "") -> list[int]:
        """Token ids up to where the model goes on writing."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Callable[[int, int], None] = ...,
    ) -> list[str]:
        """The text that follows each prompt."""

    def log_likelihoods(
        self,
        sequences: Sequence[Sequence[int]],
        first_counted: Sequence[int],
        progress: Callable[[int, int], None] = ...,
    ) -> list[float]:
        """Per sequence the log-likelihood of its counted tokens, nats."""

    def close(self) -> None:
        """Free what the model holds."""


@dataclass(frozen=True)
class Asked:
    """One set under one attack; ``answers`` are texts, by prompt and try."""

    prompts: PromptSet
    attack: Attack
    answers: list[list[str]]


def takes_system_prompt(chat: Chat) -> bool:
    """Whether the chat template renders a system prompt, instead of refusing or ignoring it."""
    user = {"role": "user", "content": "x"}
    try:
        return chat.render([{"role": "system", "content": "Be brief."}, user]) != chat.render([user])
    except PromptError:
        return False


def attacks_of_answerable(attacks: Sequence[Attack]) -> list[Attack]:
    """How harmless and twin prompts are asked: plainly, and with the system prompt if harmful ones are."""
    return [Attack(), *(attack for attack in attacks if attack.name == "system")]


def render_set(chat: Chat, prompts: PromptSet, attack: Attack, *, has_system: bool = True) -> list[list[int]]:
    """Token ids of every try of every prompt, in order.

    Args:
        chat: renders.
        prompts: the set.
        attack: how it is asked.
        has_system: whether the template takes a system prompt; otherwise it is put before the user's words.

    Raises:
        PromptError: the chat template fails.
    """
    rendered = []
    for prompt in prompts.prompts:
        for conversation in attack.conversations(prompt):
            if len(conversation) > 1 and not has_system:
                text = "\n\n".join(message["content"] for message in conversation)
                conversation = ({"role": "user", "content": text},)
            rendered.append(chat.render(conversation, attack.prefill))
    return rendered


def answer_length(
    rendered: Sequence[Sequence[int]], max_new_tokens: int | None, context: int | None, prompts: Sequence[str] = ()
) -> int:
    """How many tokens answers may have, but those of prompts that leave less.

    Args:
        rendered: token ids of all prompts, at least one.
        max_new_tokens: as asked for; None for 512, or what the context leaves all prompts that leave at least 64.
        context: the model's, None if unknown.
        prompts: the words of each, to name the longest by.

    Raises:
        PromptError: the longest prompt with its answer is longer than the context.

    >>> answer_length([[0] * 30, [0] * 40, [0] * 509], None, 512)
    472
    """
    check_context(rendered, max_new_tokens, context, prompts)
    rooms = rooms_for(rendered, MAX_NEW_TOKENS, context)
    return max_new_tokens or min([room for room in rooms if room >= LEAST_ANSWER] or rooms)


def rooms_for(rendered: Sequence[Sequence[int]], length: int, context: int | None) -> list[int]:
    """How many of ``length`` tokens the context leaves for the answer to each prompt.

    >>> rooms_for([[1, 2, 3], [1]], 4, 6)
    [3, 4]
    """
    return [length if context is None else min(length, context - len(ids)) for ids in rendered]


def answers_of(
    chat: Chat,
    rendered: Sequence[Sequence[int]],
    length: int,
    *,
    temperature: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Answers of at most ``length`` tokens, and where a prompt leaves the context less, of as many as it leaves."""
    rooms = rooms_for(rendered, length, chat.context_length)
    answers = [""] * len(rendered)
    for room in sorted(set(rooms), reverse=True):
        at = [index for index, one in enumerate(rooms) if one == room]
        found = chat.answers(
            [rendered[index] for index in at],
            max_new_tokens=room,
            temperature=temperature,
            seed=seed,
            progress=progress if room == length else lambda done, total: None,
        )
        for index, answer in zip(at, found, strict=True):
            answers[index] = answer
    return answers


def judge_set(asked: Asked) -> AskedSet:
    """Classes by the rule judge, and their rates."""
    classes = [[judge_answer(answer) for answer in tries] for tries in asked.answers]
    rates, mean = answer_rates(classes)
    one = asked.prompts
    by_id = {prompt_id(prompt): tries for prompt, tries in zip(one.prompts, classes, strict=True)}
    return AskedSet(one.name, one.kind, asked.attack.name, asked.attack.tries, rates, mean, by_id)


def add_verdicts(judged: AskedSet, verdicts: Sequence[str]) -> AskedSet:
    """The same with a judge model's verdicts, one per prompt and try, in the order of ``judged.classes``."""
    tries = judged.tries
    starts = range(0, len(verdicts), tries)
    by_id = {key: list(verdicts[at : at + tries]) for key, at in zip(judged.classes, starts, strict=True)}
    figures = judge_figures(list(judged.classes.values()), list(by_id.values()))
    return replace(judged, judge_model=figures, judge_model_classes=by_id)


def answer_rows(asked: Asked, judged: AskedSet) -> Iterator[dict[str, Any]]:
    """One row per answer for a file that people read: what was asked, what was said, how it was judged."""
    for prompt, answers in zip(asked.prompts.prompts, asked.answers, strict=True):
        key = prompt_id(prompt)
        for index, answer in enumerate(answers):
            row: dict[str, Any] = {
                "prompts": judged.prompts,
                "kind": judged.kind,
                "attack": judged.attack,
                "try": index,
            }
            row |= {"id": key, "prompt": prompt, "answer": answer, "class": judged.classes[key][index]}
            if judged.judge_model_classes is not None:
                row["judge_model_class"] = judged.judge_model_classes[key][index]
            yield row
