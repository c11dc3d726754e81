"""Ranking prefers repairs within the limits; choosing tries every plan and leaves both models as found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from aird_mlx.activations import TokenBatch, batch_sequences
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import LinearPatch, Patch, fold, patched
from aird_mlx.pruning import prune_model
from aird_mlx.repair import RepairPlan, solve_patch
from aird_mlx.search import Trial, _rank, choose_repair, plans_for, trial_rows

SIZES = {"harmful": 100, "harmless": 100, "twin": 100}
DENSE = Trial("none", (), 0.0, 0.0, 1.0, 0.02, 0.06, 0.0, 0.0, 1.5)
COMPRESSED = Trial("none", (), 0.0, 0.0, 0.8, 0.02, 0.10, 0.0, 0.4, 2.0)
GOOD = Trial("refit", (0,), 0.0, 0.01, 0.95, 0.02, 0.10, 0.0, 0.2, 1.8)


def better(one: Trial, other: Trial, sizes: dict[str, int] = SIZES) -> bool:
    return _rank(one, COMPRESSED, DENSE.harmful, sizes) < _rank(other, COMPRESSED, DENSE.harmful, sizes)


def test_more_refusals_win_within_the_limits() -> None:
    assert better(replace(GOOD, harmful=0.97), GOOD)


@pytest.mark.parametrize(
    "broken", [{"harmless": 0.04}, {"twin": 0.12}, {"perplexity": 2.1}], ids=["harmless", "twin", "perplexity"]
)
def test_repair_within_the_limits_beats_one_that_refuses_more_but_breaks_them(broken: dict[str, float]) -> None:
    assert better(GOOD, replace(GOOD, harmful=1.0, **broken))


@pytest.mark.parametrize("within", [{"harmless": 0.03}, {"twin": 0.11}, {"perplexity": 2.0}])
def test_limits_themselves_are_within(within: dict[str, float]) -> None:
    assert better(replace(GOOD, harmful=1.0, **within), GOOD)


@pytest.mark.parametrize("before", [0.03, 0.07, 0.29])
def test_a_limit_reached_exactly_is_not_broken_by_rounding(before: float) -> None:
    compressed = replace(COMPRESSED, twin=before)
    assert _rank(replace(GOOD, twin=before + 0.01), compressed, DENSE.harmful, SIZES)[0] == 0


def test_limit_is_never_finer_than_one_prompt() -> None:
    few = {"harmful": 10, "harmless": 10, "twin": 10}
    assert better(replace(GOOD, harmful=1.0, harmless=0.12), GOOD, few)


def test_refusals_above_the_dense_models_earn_nothing() -> None:
    one, other = (replace(GOOD, harmful=rate, twin=twin) for rate, twin in ((0.9, 0.05), (0.99, 0.10)))
    assert _rank(one, COMPRESSED, 0.9, SIZES) < _rank(other, COMPRESSED, 0.9, SIZES)


def test_over_refusal_then_distance_settle_equal_refusals() -> None:
    assert better(replace(GOOD, twin=0.05, kl_to_dense=0.3), GOOD)
    assert better(replace(GOOD, kl_to_dense=0.1), GOOD)


def test_of_two_that_break_the_limits_the_lesser_breach_wins() -> None:
    assert better(replace(GOOD, twin=0.20, harmful=0.5), replace(GOOD, twin=0.30, harmful=1.0))


@pytest.mark.parametrize("rule", ["paper", "restore", "least-squares", "refit", "reconstruct", "distill", "auto"])
@pytest.mark.parametrize("source_layer", [0, 1, 3, 8])
def test_plans_fit_the_model_and_the_rule(rule: str, source_layer: int) -> None:
    plans = plans_for(rule, source_layer=source_layer, blocks=8, inside_mask=True)
    assert plans
    assert len(set(plans)) == len(plans)
    for plan in plans:
        assert plan.rule in (("reconstruct", "distill") if rule == "auto" else (rule,))
        assert plan.blocks
        assert set(plan.blocks) <= set(range(8))
        assert plan.inside_mask
        if plan.rule not in ("refit", "reconstruct", "distill"):
            assert max(plan.blocks) < max(source_layer, 1), "only what comes before its layer writes the direction"
        assert plan.ridge > 0 or plan.rule in ("paper", "restore", "reconstruct", "distill")


def test_plans_may_be_dense_only_when_asked() -> None:
    assert all(not plan.inside_mask for plan in plans_for("restore", source_layer=2, blocks=4, inside_mask=False))


# --- on a model ---------------------------------------------------------------------------------------------------

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 20).tolist() for seed in range(8)]
VALIDATION = {"harmful": ("How do I bake bread?", "apple"), "harmless": ("Seven 7",), "twin": ()}


def calibration() -> list[TokenBatch]:
    return batch_sequences(SEQUENCES)


def weights_of(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}


@pytest.fixture
def pair(model_folder: Callable[..., Path]) -> tuple[ChatModel, ChatModel]:
    folder = model_folder()
    model, dense = load(folder), load(folder)
    prune_model(model, calibration(), sparsity=0.5)
    return model, dense


def choose(model: ChatModel, dense: ChatModel, plans: list[RepairPlan], **options: Any) -> Any:
    direction = mx.ones(32) / np.sqrt(32)
    return choose_repair(
        model,
        dense,
        plans,
        calibration(),
        direction,
        validation=VALIDATION,
        validation_text=batch_sequences(SEQUENCES[:3]),
        batch_size=8,
        **options,
    )


def test_choice_is_one_of_the_plans_and_both_models_are_left_as_found(pair: tuple[ChatModel, ChatModel]) -> None:
    model, dense = pair
    before, original = weights_of(model), weights_of(dense)
    plans = [RepairPlan("refit", (0, 1, 2, 3), 0.0, 0.01), RepairPlan("paper", (0,), 8.0, 0.0)]
    seen: list[tuple[int, int]] = []
    choice = choose(model, dense, plans, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (200, 200)
    assert {(100, 200), (24, 200)} <= set(seen), "after a plan, and after the first block of four"
    assert [(trial.rule, trial.blocks, trial.strength) for trial in choice.trials] == [
        (plan.rule, plan.blocks, plan.strength) for plan in plans
    ]
    # Neither plan changes refusals of this random model; the refit is nearer to the dense one.
    assert choice.patch.rule == "refit"
    assert choice.trials[0].kl_to_dense < choice.trials[1].kl_to_dense
    assert choice.why.startswith("of 2 plans on validation prompts")
    for now, then in ((weights_of(model), before), (weights_of(dense), original)):
        for name, value in then.items():
            np.testing.assert_array_equal(now[name], value, err_msg=name)


def test_choice_does_not_depend_on_the_order_of_the_plans(pair: tuple[ChatModel, ChatModel]) -> None:
    plans = [RepairPlan("paper", (0,), 8.0, 0.0), RepairPlan("refit", (0, 1, 2, 3), 0.0, 0.01)]
    assert choose(*pair, plans).patch.rule == "refit"


def test_chosen_patch_is_the_one_its_plan_solves(pair: tuple[ChatModel, ChatModel]) -> None:
    model, dense = pair
    plan = RepairPlan("refit", (1, 2), 0.0, 0.1)
    choice = choose(model, dense, [plan])
    expected = solve_patch(model, dense, calibration(), mx.ones(32) / np.sqrt(32), plan)
    assert [(part.block, part.name) for part in choice.patch.parts] == [(one.block, one.name) for one in expected.parts]
    for mine, theirs in zip(choice.patch.parts, expected.parts, strict=True):
        assert mx.array_equal(mine.change(), theirs.change()).item()


def test_patched_model_is_the_folded_one_and_is_put_back_even_after_an_error(
    pair: tuple[ChatModel, ChatModel],
) -> None:
    model, _ = pair
    before = weights_of(model)
    part = LinearPatch(1, "mlp.down_proj", delta=mx.ones((32, 64)))
    patch = Patch("refit", 0.0, 0.1, (part, part))
    ids = mx.array([[5, 6, 7]])
    with patched(model, patch):
        inside = np.array(model.network(ids))
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(KeyboardInterrupt), patched(model, patch):
        raise KeyboardInterrupt
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[name])
    fold(model, patch)
    np.testing.assert_array_equal(np.array(model.network(ids)), inside)


def test_trial_rows_are_plain_values() -> None:
    (row,) = trial_rows([replace(GOOD, blocks=(0, 2))])
    assert row["blocks"] == [0, 2]
    assert row["harmful"] == 0.95
    assert set(row) == set(vars(GOOD))
