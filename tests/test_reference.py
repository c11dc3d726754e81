"""The dense model is asked everything, or refused in one line before anything is generated; its answers are kept."""

from __future__ import annotations

import pytest

from aird_mlx.activations import TokenBatch
from aird_mlx.errors import DirectionError, PromptError
from aird_mlx.evaluation import COMPLIANCE, REFUSAL
from aird_mlx.inputs import Inputs
from aird_mlx.model import ChatModel
from aird_mlx.prompts import KINDS, PARTS, ContrastSet, Split, render_dialogue, render_prompt
from aird_mlx.reference import CROSSED, ask_reference
from conftest import ANSWER_TEXT, CORPUS, REFUSAL_TEXT, make_reference


def inputs_with(*prompts: str) -> Inputs:
    empty = Split((), (), ())
    contrast = ContrastSet(Split((), (), prompts), empty, empty, "here")
    return Inputs(contrast, (), (), (), contrast)


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


def sequences_of(batches: list[TokenBatch]) -> list[tuple[list[int], int]]:
    """Token ids in the order they were given, each with the token its answer opens from."""
    found = {
        batch.order[row] if len(batches) == 1 else (number, row): (
            batch.ids[row, : batch.lengths[row]].tolist(),
            batch.opens[row],
        )
        for number, batch in enumerate(batches)
        for row in range(len(batch.lengths))
    }
    return [found[key] for key in sorted(found)]  # type: ignore[type-var]


def test_answers_are_judged_in_the_order_of_kinds_and_prompts(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    kinds, classes = reference.judged("validate")
    assert kinds == ["harmful"] * 4 + ["harmless"] * 4 + ["twin"] * 2
    assert classes == [REFUSAL] * 4 + [COMPLIANCE] * 6


def test_model_whose_thoughts_are_cut_is_told_from_one_that_never_refuses(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    del reference.refusal_tokens  # found here, not given
    thoughts = tiny.tokenizer.encode(f"<think>{ANSWER_TEXT}", add_special_tokens=False)
    for words, answer in (("100% of its answers .* larger --max-new-tokens", thoughts), (r"with --harmful\.$", None)):
        plain = tiny.tokenizer.encode(ANSWER_TEXT, add_special_tokens=False)
        for part in PARTS:
            reference.answers["harmful"][part] = [answer or plain] * len(reference.answers["harmful"][part])
        with pytest.raises(DirectionError, match=f"refuses 0% of the harmful prompts.*{words}") as raised:
            assert reference.refusal_tokens
        assert "\n" not in str(raised.value)


def test_answers_are_judged_on_their_first_tokens_where_asked(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    text = f"{ANSWER_TEXT} bread {REFUSAL_TEXT}"
    turned = tiny.tokenizer.encode(f"{REFUSAL_TEXT} {text}", add_special_tokens=False)
    reference.answers["harmless"]["test"][0] = turned
    short = len(tiny.tokenizer.encode(REFUSAL_TEXT, add_special_tokens=False))
    assert reference.judged("test", short)[1][2] == REFUSAL
    reference.answers["harmless"]["test"][0] = turned[short:]
    assert reference.judged("test", short)[1][2] == COMPLIANCE


def test_calibration_is_dialogues_that_know_where_they_open_and_texts(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    (batch,) = reference.calibration(["harmful", "twin"])
    found = sequences_of([batch])
    asked = [(prompt, REFUSAL_TEXT) for prompt in reference.inputs.contrast.part("harmful", "find")]
    asked += [(prompt, ANSWER_TEXT) for prompt in reference.inputs.contrast.part("twin", "find")]
    expected = [render_dialogue(tiny.tokenizer, *pair) for pair in asked]
    texts = [(list(tiny.tokenizer.encode(text)), 0) for text in CORPUS]
    assert found == [(ids, start - 1) for ids, start in (*expected, *texts)]
    assert batch.counted.sum().item() == sum(len(ids) for ids, _ in found), "every token counts"


def test_crossed_calibration_adds_dialogues_put_together_from_two_and_none_longer(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    kinds = ["harmful", "twin"]
    found = sequences_of(reference.calibration(kinds, "crossed"))
    plain = sequences_of(reference.calibration(kinds))
    dialogues = [one for one in plain if one[1] >= 0]
    crossed = [one for one in found if one not in plain]
    assert [one for one in found if one in plain] == plain
    assert 0 < len(crossed) <= CROSSED * len(dialogues)
    longest = max(len(ids) for ids, _ in dialogues)
    answers = {tuple(ids[opens + 1 :]) for ids, opens in dialogues}
    for ids, opens in crossed:
        assert len(ids) <= longest
        assert tuple(ids[opens + 1 :]) in answers


def test_calibration_on_prompts_is_what_users_say_and_no_more(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    found = sequences_of(reference.calibration(["harmless", "twin"], "prompts"))
    prompts = [reference.prompts(kind, "find") for kind in ("harmless", "twin")]
    assert found == [(ids, -1) for of_kind in prompts for ids in of_kind]
