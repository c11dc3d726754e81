"""Questions of both kinds, parsed, tokenized across the border, and answered by likelihood."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from aird_mlx.errors import PromptError
from aird_mlx.evaluation import MlxChat, answer_questions, cut_windows, read_questions, read_text
from aird_mlx.evaluation.multiple_choice import Question, parse_question
from aird_mlx.model import ChatModel

ROW = {"query": "Question: Why?\n", "choices": ["a", "bb"], "gold": 1}


def test_questions_get_an_answer_line_and_endings_a_space() -> None:
    context = "Question: Why?\nAnswer:"
    assert parse_question(ROW) == Question(((context, " a"), (context, " bb")), 1)
    assert parse_question(ROW | {"query": "Fog is near "}).choices[0] == ("Fog is near", " a")
    passage = parse_question(ROW | {"query": "Passage: x.\nQuestion: y?"})
    assert passage.choices[0][0] == "Passage: x.\nQuestion: y?\nAnswer:"
    assert parse_question(ROW | {"query": "Question: y?\nAnswer:"}).choices[0][0] == "Question: y?\nAnswer:"


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(ROW | {"choices": ["a\u2028b", "c\x85d"]}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [ending for _, ending in read_questions(file)[0].choices] == [" a\u2028b", " c\x85d"]


def test_winogrande_rows_differ_in_their_beginning() -> None:
    row = {"context_options": ["so Sarah", "so Maria"], "continuation": "won.", "gold": 0}
    assert parse_question(row).choices == (("so Sarah", " won."), ("so Maria", " won."))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("query", "choices", "context_options", "continuation", "gold"), json_values)
)


@given(json_values | rows)
def test_any_row_is_a_question_or_one_line(row: Any) -> None:
    try:
        question = parse_question(row)
    except (KeyError, TypeError, ValueError):
        return
    assert len(question.choices) >= 2
    assert 0 <= question.gold < len(question.choices)
    assert all(context and ending.startswith(" ") and ending.strip() for context, ending in question.choices)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no questions"),
        ("{\n", "row 1 is no question"),
        ("[" * 100_000, "row 1 is no question"),
        (json.dumps(ROW) + "\n[]\n", "row 2 is no question"),
        (json.dumps(ROW | {"gold": 2}), "gold is 2 of 2"),
        (json.dumps(ROW | {"gold": True}), "gold is True"),
        (json.dumps(ROW | {"choices": ["a"]}), "fewer than two"),
        (json.dumps(ROW | {"choices": ["a", " "]}), "empty one"),
        (json.dumps({"query": "x", "gold": 0}), "no 'choices'"),
    ],
)
def test_bad_question_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=said) as raised:
        read_questions(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(PromptError, match="cannot be read"):
        read_questions(tmp_path / "gone.jsonl")


def test_a_sample_of_questions_is_seeded_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(ROW | {"query": f"{number:02}"}) + "\n" for number in range(30)))
    sample = [one.choices[0][0] for one in read_questions(path, 10, seed=1)]
    assert len(sample) == 10
    assert sample == sorted(sample)
    assert sample == [one.choices[0][0] for one in read_questions(path, 10, seed=1)]
    assert sample != [one.choices[0][0] for one in read_questions(path, 10, seed=2)]


def encode(text: str) -> list[int]:
    """One token a character behind a first token, except that ``: a`` is one token across the border."""
    return [0, *(ord(letter) for letter in text.replace(": a", "\x01"))]


def test_endings_are_what_the_whole_has_after_the_context() -> None:
    seen: list[tuple[list[int], int]] = []

    def score(sequences: list[list[int]], first: list[int]) -> list[float]:
        seen.extend(zip(sequences, first, strict=True))
        return [-1.0] * len(sequences)

    question = Question((("Q:", " a"), ("Q:", " bb")), 0)
    answer_questions("q", [question], encode=encode, log_likelihoods=score, context_length=None)
    assert seen[1] == ([0, ord("Q"), ord(":"), ord(" "), ord("b"), ord("b")], 3)
    assert seen[0] == ([0, ord("Q"), 1], 2), "a token across the border is scored as a whole"


def test_longer_endings_win_only_by_their_characters() -> None:
    question = Question((("Q", " no"), ("Q", " not at all")), 1)
    figures = answer_questions(
        "q", [question] * 3, encode=encode, log_likelihoods=lambda s, f: [-3.0, -6.0] * 3, context_length=None
    )
    assert (figures.accuracy.rate, figures.accuracy_normalized.rate) == (0.0, 1.0)
    assert (figures.name, figures.accuracy.n, figures.truncated) == ("q", 3, 0)


def test_long_contexts_lose_their_beginning_and_are_counted() -> None:
    seen: list[list[int]] = []

    def score(sequences: list[list[int]], first: list[int]) -> list[float]:
        seen.extend(ids[at:] for ids, at in zip(sequences, first, strict=True))
        assert max(map(len, sequences)) == 6
        return [0.0, -1.0]

    question = Question((("x" * 20, " b"), ("x" * 20, " cc")), 0)
    figures = answer_questions("q", [question], encode=encode, log_likelihoods=score, context_length=6)
    assert seen == [[32, ord("b")], [32, ord("c"), ord("c")]]
    assert figures.truncated == 2


def test_log_likelihoods_equal_a_numpy_forward_in_the_order_given(tiny: ChatModel) -> None:
    from mlx.utils import tree_flatten

    chat = MlxChat(tiny.network, tiny.tokenizer, tiny.config)
    sequences, first = [list(range(3, 30)), [50, 51], [7, 9, 11, 200, 5, 6]], [20, 1, 0]
    reference = oracle.Llama(dict(tree_flatten(tiny.network.parameters())), tiny.config)
    expected = [
        sum(float(oracle.log_softmax(reference.logits(ids)[at - 1])[ids[at]]) for at in range(max(1, start), len(ids)))
        for ids, start in zip(sequences, first, strict=True)
    ]
    assert chat.log_likelihoods(sequences, first) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbook_qa", "piqa", "boolq", "winogrande"])
def test_public_question_files_are_read_whole(name: str) -> None:
    data = os.environ.get("AIRD_TEST_DATA")
    if not data:
        pytest.skip("AIRD_TEST_DATA names no folder with multiple_choice")
    questions = read_questions(Path(data) / "multiple_choice" / f"{name}.jsonl")
    assert len(questions) == 250
    asks = [context.endswith("\nAnswer:") for question in questions for context, _ in question.choices]
    assert all(asks) if name in ("arc_easy", "arc_challenge", "piqa", "boolq") else not any(asks)


# --- text ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 20), st.none() | st.integers(1, 5))
def test_windows_are_consecutive_and_whole(ids: list[int], window: int, most: int | None) -> None:
    windows = cut_windows(ids, window, most)
    joined = [token for one in windows for token in one]
    assert joined == ids[: len(joined)]
    if len(ids) >= window:
        assert {len(one) for one in windows} == {window}
        assert len(windows) == min(len(ids) // window, most or len(ids))
    else:
        assert windows == [ids]


def test_unusable_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    for name, said in (("blank.txt", "is empty"), ("gone.txt", "cannot be read")):
        with pytest.raises(PromptError, match=rf"^text: .*{name} {said}"):
            read_text(tmp_path / name)
    with pytest.raises(PromptError, match="1 tokens"):
        cut_windows([1], 4)
