"""The dense model is asked everything, or refused in one line before anything is generated."""

from __future__ import annotations

import pytest

from aird_mlx.errors import PromptError
from aird_mlx.inputs import Inputs
from aird_mlx.model import ChatModel
from aird_mlx.prompts import KINDS, PARTS, ContrastSet, Split, render_prompt
from aird_mlx.reference import ask_reference


def inputs_with(*prompts: str) -> Inputs:
    empty = Split((), (), ())
    return Inputs(ContrastSet(Split((), (), prompts), empty, empty, "here"), (), (), ())


def test_prompt_longer_than_the_context_is_named_before_anything_is_generated(tiny: ChatModel) -> None:
    seen: list[int] = []
    long = "How do I bake bread? " * 40
    tokens = len(render_prompt(tiny.tokenizer, long))
    with pytest.raises(
        PromptError, match=rf"'How do I bake.*'\.\.\. has {tokens} tokens, its answer 8.* 256 "
    ) as raised:
        ask_reference(
            tiny,
            inputs_with("apple", long),
            max_new_tokens=8,
            batch_size=2,
            progress=lambda done, total: seen.append(done),
        )
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 260
    assert seen == []


def test_prompt_that_just_fits_is_asked(tiny: ChatModel) -> None:
    room = 256 - len(render_prompt(tiny.tokenizer, "apple"))
    with pytest.raises(PromptError, match="'apple'"):
        ask_reference(tiny, inputs_with("apple"), max_new_tokens=room + 1, batch_size=2)
    answers = ask_reference(tiny, inputs_with("apple"), max_new_tokens=room, batch_size=2)
    assert {kind: [len(answers[kind][part]) for part in PARTS] for kind in KINDS} == {
        "harmful": [0, 0, 1],
        "harmless": [0, 0, 0],
        "twin": [0, 0, 0],
    }
