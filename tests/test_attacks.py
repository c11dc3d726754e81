"""Attacks turn a prompt into tries; drawn answers follow the model's distribution; shared beginnings change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import chisquare

from aird_mlx.errors import AirdError, PromptError, UsageError
from aird_mlx.evaluation import ATTACKS, Attack, generate_answers, generation, plan_attacks
from aird_mlx.evaluation.attacks import SYSTEM_PROMPT
from aird_mlx.model import ChatModel, load


def write_suffixes(folder: Path, text: str = "one\n\n two \none\n") -> Path:
    path = folder / "suffixes.txt"
    path.write_text(text)
    return path


def test_every_attack_is_planned_once_in_the_order_given(tmp_path: Path) -> None:
    names = ["prefill", *ATTACKS]
    planned = plan_attacks(names, suffixes=write_suffixes(tmp_path), samples=3)
    assert [one.name for one in planned] == ["prefill", "vanilla", "system", "suffix", "sampling"]
    by_name = {one.name: one for one in planned}
    assert {name: one.tries for name, one in by_name.items()} == {
        "vanilla": 1,
        "system": 1,
        "suffix": 2,
        "sampling": 3,
        "prefill": 1,
    }
    assert by_name["sampling"].temperature == 1.0
    assert [one.prefill for one in planned if one.prefill] == ["Sure, here is"]


def test_tries_are_the_prompt_with_each_suffix_behind_the_system_prompt(tmp_path: Path) -> None:
    planned = plan_attacks(["suffix", "system", "vanilla"], suffixes=write_suffixes(tmp_path))
    asked = [one.conversations("Hi") for one in planned]
    assert [[turn["content"] for turn in turns] for turns in asked[0]] == [["Hi one"], ["Hi two"]]
    assert [(turn["role"], turn["content"]) for turn in asked[1][0]] == [("system", SYSTEM_PROMPT), ("user", "Hi")]
    assert asked[2] == [({"role": "user", "content": "Hi"},)]
    assert Attack(samples=4).conversations("Hi") == asked[2] * 4


@pytest.mark.parametrize(
    ("names", "options", "kind", "said"),
    [
        (["jailbreak"], {}, UsageError, "'jailbreak'"),
        (["suffix"], {}, UsageError, "--suffixes"),
        (["vanilla"], {"suffixes": "one\n"}, UsageError, "--suffixes"),
        (["suffix"], {"suffixes": "\n \n"}, PromptError, "no suffix"),
        (["prefill"], {"prefill": " "}, UsageError, "prefill"),
        (["sampling"], {"samples": 0}, UsageError, "samples"),
    ],
)
def test_unusable_attack_is_one_line(
    names: list[str], options: dict[str, object], kind: type[AirdError], said: str, tmp_path: Path
) -> None:
    if "suffixes" in options:
        options = options | {"suffixes": write_suffixes(tmp_path, str(options["suffixes"]))}
    with pytest.raises(kind, match=said) as raised:
        plan_attacks(names, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_missing_suffix_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"suffixes: .*gone\.txt"):
        plan_attacks(["suffix"], suffixes=tmp_path / "gone.txt")


# --- drawn answers ------------------------------------------------------------------------------------------------

PROMPT = [5, 6, 7]


def draw(model: ChatModel, n: int, **options: float) -> list[list[int]]:
    return generate_answers(model, [PROMPT] * n, max_new_tokens=3, batch_size=500, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_drawn_tokens_follow_the_softmax(tiny: ChatModel, temperature: float) -> None:
    logits = np.array(tiny.network(mx.array([PROMPT]))[0, -1], dtype=np.float64) / temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    drawn = [answer[0] if answer else 2 for answer in draw(tiny, 2000, temperature=temperature)]
    counts = np.bincount(drawn, minlength=320)
    order = np.argsort(expected)
    bins = np.array_split(order, 12)
    test = chisquare([counts[one].sum() for one in bins], [2000 * expected[one].sum() for one in bins])
    assert test.pvalue > 0.001
    assert len(set(drawn)) > 50


def test_draws_depend_on_the_seed_alone(tiny: ChatModel) -> None:
    first = draw(tiny, 8, temperature=1.0, seed=1)
    mx.random.seed(99)
    assert draw(tiny, 8, temperature=1.0, seed=1) == first
    assert draw(tiny, 8, temperature=1.0, seed=2) != first
    assert len({tuple(one) for one in first}) > 1, "the same prompt twice must be drawn twice"
    greedy = draw(tiny, 8)
    assert len({tuple(one) for one in greedy}) == 1
    assert draw(tiny, 8, temperature=1e-4) == greedy


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_shared_beginning_changes_no_answer(
    model_folder: Callable[..., Path], model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(model_folder(model_type, tie_word_embeddings=False))
    beginning = list(range(20, 60))
    prompts = [beginning + ending for ending in ([5], [7, 8, 9], [], [11, 12], [5])]
    assert generation._share_prefix(model.network, prompts)[0] == 39, "the last token of a prompt is never shared"
    answers = generate_answers(model, prompts, max_new_tokens=10)
    monkeypatch.setattr(generation, "SHARED_TOKENS", 1000)
    assert generation._share_prefix(model.network, prompts) == (0, None)
    assert generate_answers(model, prompts, max_new_tokens=10) == answers
    assert len({tuple(one) for one in answers}) == 4
