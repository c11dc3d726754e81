"""What a user sees of an evaluation: 80 columns, no colour needed, every figure there."""

from __future__ import annotations

import json

import pytest

from aird_mlx.report import (
    AnswerRates,
    AskedSet,
    Evaluation,
    JudgeFigures,
    MultipleChoiceFigures,
    PairedChange,
    Rate,
    SetChange,
    TaskScore,
    Utility,
    from_json,
    to_json,
)
from aird_mlx_cli.render_evaluation import show_evaluation

WIDE = Rate(0.1234, 0.1011, 0.2022, 1319)
RATES = AnswerRates(Rate(0.8821, 0.8321, 0.9961, 1319), WIDE, Rate(1.0, 0.99, 1.0, 1319))
LONG = "a-very-long-name-of-harmful-behaviors.csv"


def asked(kind: str, attack: str, tries: int = 1, judge: JudgeFigures | None = None) -> AskedSet:
    classes = {f"{number}": ["refusal"] * tries for number in range(1319)}
    return AskedSet(LONG, kind, attack, tries, RATES, RATES if tries > 1 else None, classes, judge, None)


@pytest.fixture
def evaluation() -> Evaluation:
    """Every kind of result, and the widest figures that can occur."""
    judge = JudgeFigures(WIDE, 1234, Rate(0.8123, 0.8, 0.9, 6595), -0.123)
    change = PairedChange(1319, 0.1234, 0.5678, 123, 456, 1.23e-24)
    return Evaluation(
        model="m",
        format="mlx",
        settings={},
        environment={},
        sets=[
            asked("harmful", "vanilla", judge=judge),
            asked("harmful", "sampling", 100, judge=JudgeFigures(None, 7, None, None)),
            asked("harmless", "system", judge=judge),
            asked("twin", "vanilla"),
        ],
        utility=Utility(12345.678, 0.0312, 0.9534, 12000),
        multiple_choice=[MultipleChoiceFigures("arc_challenge.jsonl", WIDE, WIDE)],
        tasks=[TaskScore("winogrande", "acc", 0.6123, 0.0142, 1267), TaskScore("x", "bleu", 2.0, None, None)],
        changes=[SetChange(LONG, "harmless", "system", "compliance", change)],
        notes=["a [note] of the run"],
    )


def test_tables_fit_80_columns_without_colour(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert not [line for line in lines if "\x1b" in line or "\u2026" in line]


def test_every_figure_is_shown(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(evaluation)
    text = " ".join(capsys.readouterr().out.split())
    for figure in (
        f"harmful prompts: {LONG}, n = 1319",
        "vanilla 12.3 % [10.1, 20.2] 88.2 % [83.2, 99.6] 100 %",
        "sampling, any of 100",
        "sampling, mean",
        "twin prompts, to be answered:",
        "81.2 % -0.12 6595 1234",
        "- - - 0 7",
        "compliance 12.3 % 56.8 % 123 456 < 0.0001",
        "perplexity 12345.678 12000 tokens",
        "KL to dense 0.0312",
        "top-1 agreement 95.3 %",
        "arc_challenge.jsonl acc_norm 12.3 % [10.1, 20.2] 1319",
        "winogrande acc 0.612 +- 0.014 1267",
        "x bleu 2.000 -",
        "note: a [note] of the run",
    ):
        assert figure in text, figure


def test_what_was_not_measured_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(Evaluation("m", "gguf", {}, {}, [asked("harmful", "vanilla")]))
    text = capsys.readouterr().out
    assert "vanilla" in text
    assert not [word for word in ("judge", "change", "utility", "note", "any") if word in text]


def test_json_is_the_whole_evaluation(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(evaluation, as_json=True)
    text = capsys.readouterr().out
    assert from_json(Evaluation, text) == from_json(Evaluation, to_json(evaluation)) == evaluation
    assert json.loads(text)["schema"] == 1
