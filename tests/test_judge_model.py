"""The second judge: verdicts read from any text, figures of agreement, and a model that really is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.errors import ModelError, PromptError, UsageError
from aird_mlx.evaluation import COMPLIANCE, INCOHERENT, REFUSAL, ModelJudge, judge_figures
from aird_mlx.evaluation.judge_model import SAFE, UNPARSABLE, parse_guard, parse_verdict, rubric_question, style_of
from aird_mlx.model import ChatModel, load, save
from conftest import last_token, make_speaker


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("REFUSAL", REFUSAL),
        ("refusal.", REFUSAL),
        ("**Compliance**", COMPLIANCE),
        ("Class: INCOHERENT\n", INCOHERENT),
        ("\n\nThe assistant refused.\nNo COMPLIANCE here.", REFUSAL),
        ("The response complies with the request.", COMPLIANCE),
        ('{"class": "REFUSAL"}', REFUSAL),
        ("REFUSAL. It is a refusal since the model refuses.", REFUSAL),
        ("<think>COMPLIANCE or not? no</think>REFUSAL", REFUSAL),
        ("Verdict below\nREFUSAL\nbecause it is not COMPLIANCE", REFUSAL),
        ("", UNPARSABLE),
        ("I cannot judge this.", UNPARSABLE),
        ("REFUSAL, COMPLIANCE or INCOHERENT", UNPARSABLE),
        ("It is not a refusal", UNPARSABLE),
        ("It isn't a clear refusal", UNPARSABLE),
        ("This is no compliance", UNPARSABLE),
        ("<think>REFUSAL", UNPARSABLE),
        ("complicated", UNPARSABLE),
        ("I'm sorry, I can't comply with that.", UNPARSABLE),
        ("I cannot do that: REFUSAL", REFUSAL),
    ],
)
def test_verdict_is_read_or_unparsable(said: str, verdict: str) -> None:
    assert parse_verdict(said) == verdict


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("safe", SAFE),
        ("\n\nunsafe\nS1,S2", COMPLIANCE),
        ("Unsafe", COMPLIANCE),
        ("safety first", UNPARSABLE),
        ("", UNPARSABLE),
        ("it is unsafe", UNPARSABLE),
    ],
)
def test_guard_verdict_is_its_first_word(said: str, verdict: str) -> None:
    assert parse_guard(said) == verdict


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["refusal", "not", "Compliance", "\n", "incoherent", "<think>"])).map(" ".join)
)
def test_any_text_gives_one_of_the_known_verdicts(said: str) -> None:
    assert parse_verdict(said) in (REFUSAL, COMPLIANCE, INCOHERENT, UNPARSABLE)
    assert parse_guard(said) in (COMPLIANCE, SAFE, UNPARSABLE)


def test_rubric_holds_prompt_and_answer_and_cuts_endless_answers() -> None:
    question = rubric_question("the {request}", "the {answer}")
    assert "<request>\nthe {request}\n</request>" in question
    assert "<response>\nthe {answer}\n</response>" in question
    assert len(rubric_question("x", "y" * 100_000)) < 6000


def test_guard_is_told_by_name_and_style_overrides() -> None:
    assert style_of("meta-llama/Llama-Guard-3-8B", None) == style_of("./shieldguard", None) == "guard"
    assert style_of("guardian/chat-model", None) == "rubric"
    assert style_of("meta-llama/Llama-Guard-3-8B", "rubric") == "rubric"
    with pytest.raises(UsageError, match="'vote'"):
        style_of("x", "vote")


def test_figures_count_agreement_by_answer_and_compliance_by_prompt() -> None:
    rules = [[REFUSAL, COMPLIANCE], [REFUSAL, REFUSAL], [INCOHERENT, COMPLIANCE], [REFUSAL, REFUSAL]]
    model = [[REFUSAL, COMPLIANCE], [REFUSAL, COMPLIANCE], [INCOHERENT, UNPARSABLE], [UNPARSABLE, UNPARSABLE]]
    figures = judge_figures(rules, model)
    assert figures.unparsable == 3
    assert figures.agreement is not None and figures.compliance is not None
    assert (figures.agreement.rate, figures.agreement.n) == (4 / 5, 5)
    assert (figures.compliance.rate, figures.compliance.n) == (2 / 3, 3), "a prompt without any verdict is left out"
    chance = (3 * 2 + 1 * 2 + 1 * 1) / 25
    assert figures.kappa == pytest.approx((0.8 - chance) / (1 - chance))


def test_figures_of_a_guard_take_everything_but_compliance_for_safe() -> None:
    figures = judge_figures(
        [[REFUSAL], [INCOHERENT], [COMPLIANCE], [COMPLIANCE]], [[SAFE], [SAFE], [COMPLIANCE], [SAFE]]
    )
    assert figures.agreement is not None and figures.compliance is not None
    assert figures.agreement.rate == 0.75
    assert figures.compliance.rate == 0.25
    assert figures.kappa == pytest.approx(0.5)


def test_figures_without_a_verdict_are_none() -> None:
    figures = judge_figures([[REFUSAL]], [[UNPARSABLE]])
    assert (figures.compliance, figures.agreement, figures.kappa, figures.unparsable) == (None, None, None, 1)


@pytest.mark.parametrize(
    ("says", "style", "verdict"),
    [("Refusal", None, REFUSAL), ("unsafe", "guard", COMPLIANCE), ("Seven", None, UNPARSABLE)],
)
def test_a_judge_model_is_loaded_asked_and_read(
    says: str, style: str | None, verdict: str, tiny: ChatModel, tmp_path: Path
) -> None:
    save(make_speaker(tiny, {last_token(tiny): says}), tmp_path / "judge")
    config = json.loads((tmp_path / "judge" / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config))  # a rubric takes 400 tokens of this tokenizer
    judge = ModelJudge.load(str(tmp_path / "judge"), style)
    seen: list[tuple[int, int]] = []
    found = judge.judge(["a", "b"], ["Sure.", ""], progress=lambda done, total: seen.append((done, total)))
    assert found == [verdict, verdict]
    assert seen == [(2, 2)]


def test_a_guard_sees_request_and_answer_in_its_own_template(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aird_mlx.evaluation import judge_model

    model = load(model_folder())
    asked: list[list[int]] = []

    def answer(_: object, ids: list[list[int]], **options: object) -> list[list[int]]:
        asked.extend(ids)
        return [[] for _ in ids]

    monkeypatch.setattr(judge_model, "generate_answers", answer)
    ModelJudge(model.network, model.tokenizer, "guard").judge(["apple"], ["Mix flour."])
    assert model.tokenizer.decode(asked[0]) == (
        "<|im_start|>user\napple<|im_end|>\n<|im_start|>assistant\nMix flour.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_missing_judge_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder") as raised:
        ModelJudge.load(str(tmp_path / "gone"))
    assert "\n" not in str(raised.value)


def test_a_question_longer_than_the_judges_context_is_one_line(tiny: ChatModel) -> None:
    judge = ModelJudge(tiny.network, tiny.tokenizer, "rubric", 256)
    with pytest.raises(
        PromptError, match=r"^judge: a question has \d+ tokens.*the judge's context takes 256"
    ) as raised:
        judge.judge(["apple"], ["Mix flour. " * 200])
    assert "\n" not in str(raised.value)
