"""Controls change one thing about a plan, are as large where they must be, and leave the models as found."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import batch_sequences
from aird_mlx.controls import ControlRepair, as_large, control_repairs
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import LinearPatch, Patch
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import prune_model
from aird_mlx.reference import Reference
from aird_mlx.repair import RepairPlan, solve_patch
from conftest import make_reference, write_model

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 20).tolist() for seed in range(8)]
DIRECTIONS, OWN = (
    mx.array(oracle.orthonormal_rows(np.random.default_rng(seed), count, 32).astype(np.float32))
    for seed, count in ((1, 3), (2, 1))
)
PLANS = {
    "paper": RepairPlan("paper", (1,), 4.0),
    "restore": RepairPlan("restore", (0, 1), 2.0, rank=3),
    "least-squares": RepairPlan("least-squares", (0, 1), 1.5, beta=30.0, rank=3),
    "refit": RepairPlan("refit", (0, 1, 2, 3), tokens="prompts"),
    "reconstruct": RepairPlan("reconstruct", (0, 1, 2, 3), beta=3.0, steps=4),
    "distill": RepairPlan("distill", (0, 1, 2, 3), steps=4),
    "distill further": RepairPlan("distill", (0, 1, 2, 3), steps=4, tokens="crossed"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatModel, Reference]:
    """A pruned model, and the dense one it was made from with its answers."""
    folder = write_model(tmp_path_factory.mktemp("pair") / "model")
    model, dense = load(folder), load(folder)
    prune_model(model, batch_sequences(SEQUENCES), sparsity=0.5)
    return model, make_reference(dense)


def controls(pair: tuple[ChatModel, Reference], plan: RepairPlan, seed: int = 0) -> dict[str, ControlRepair]:
    repairs = control_repairs(*pair, plan, DIRECTIONS, OWN[0], source_layer=2, seed=seed)
    return {repair.name: repair for repair in repairs}


def size(patch: Patch) -> float:
    return float(np.sqrt(sum(np.sum(np.array(part.change(), dtype=np.float64) ** 2) for part in patch.parts)))


def same(one: Patch, other: Patch) -> bool:
    parts = list(zip(one.parts, other.parts, strict=True))
    return all(
        (mine.block, mine.name) == (theirs.block, theirs.name) and mx.array_equal(mine.change(), theirs.change()).item()
        for mine, theirs in parts
    )


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("paper", ["random direction", "own direction"]),
        ("restore", ["random direction", "own direction"]),
        ("least-squares", ["random direction", "own direction", "harmless only"]),
        ("refit", ["least-squares along r", "random direction", "own direction", "harmless only", "beta 3"]),
        ("reconstruct", ["least-squares along r", "random direction", "own direction", "harmless only", "beta 0"]),
        ("distill", ["least-squares along r", "random direction", "own direction", "harmless only", "beta 3"]),
        ("distill further", ["least-squares along r", "random direction", "own direction", "harmless only", "beta 3"]),
    ],
)
def test_each_plan_has_the_controls_that_go_with_it_and_they_leave_the_models_as_found(
    pair: tuple[ChatModel, Reference], rule: str, names: list[str]
) -> None:
    models = pair[0], pair[1].model
    before = [{name: np.array(value) for name, value in tree_flatten(one.network.parameters())} for one in models]
    found = controls(pair, PLANS[rule])
    assert list(found) == names
    patches = [repair.solve() for repair in found.values()]
    assert all(size(patch) > 0 for patch in patches)
    for number, patch in enumerate(patches):
        assert not any(same(patch, other) for other in patches[:number] if len(other.parts) == len(patch.parts))
    for one, weights in zip(models, before, strict=True):
        for name, value in tree_flatten(one.network.parameters()):
            np.testing.assert_array_equal(np.array(value), weights[name], err_msg=name)


@pytest.mark.parametrize("rule", ["paper", "restore", "least-squares", "refit"])
@pytest.mark.parametrize("name", ["random direction", "own direction"])
def test_change_along_another_direction_is_as_large_as_the_one_along_r(
    pair: tuple[ChatModel, Reference], rule: str, name: str
) -> None:
    model, reference = pair
    plan = PLANS[rule]
    found = controls(pair, plan)
    if rule == "refit":
        along_r = found["least-squares along r"].solve()
        assert along_r.rule == "least-squares"
    else:
        calibration = reference.calibration(KINDS, plan.tokens)
        along_r = solve_patch(model, reference.model, calibration, DIRECTIONS[:1], replace(plan, rank=1))
    other = found[name].solve()
    assert size(other) == pytest.approx(size(along_r), rel=1e-4)
    assert [(part.block, part.name) for part in other.parts] == [(part.block, part.name) for part in along_r.parts]
    assert not same(other, along_r)


def test_own_direction_is_written_along_and_no_other(pair: tuple[ChatModel, Reference]) -> None:
    plan = replace(PLANS["restore"], inside_mask=False)
    for part in controls(pair, plan)["own direction"].solve().parts:
        change, own = np.array(part.change(), dtype=np.float64), np.array(OWN[0], dtype=np.float64)
        np.testing.assert_allclose(change, np.outer(own, own @ change), atol=1e-5)


def test_random_direction_is_the_seeds(pair: tuple[ChatModel, Reference]) -> None:
    one, again, other = (controls(pair, PLANS["restore"], seed)["random direction"].solve() for seed in (3, 3, 4))
    assert same(one, again)
    assert not same(one, other)


def test_harmless_only_is_the_plan_solved_without_harmful_and_twin_prompts(pair: tuple[ChatModel, Reference]) -> None:
    model, reference = pair
    plan = PLANS["refit"]
    calibration = reference.calibration(("harmless",), "prompts")
    expected = solve_patch(model, reference.model, calibration, DIRECTIONS, plan)
    assert same(controls(pair, plan)["harmless only"].solve(), expected)


def test_plan_that_went_on_from_another_does_so_without_harmful_prompts_too(pair: tuple[ChatModel, Reference]) -> None:
    model, reference = pair
    kinds, plan, earlier = ("harmless",), PLANS["distill further"], PLANS["distill"]
    start = solve_patch(model, reference.model, reference.calibration(kinds), DIRECTIONS, earlier)
    crossed = reference.calibration(kinds, "crossed")
    expected = solve_patch(model, reference.model, crossed, DIRECTIONS, plan, start=start)
    assert same(controls(pair, plan)["harmless only"].solve(), expected)


@pytest.mark.parametrize(("rule", "name", "beta"), [("refit", "beta 3", 3.0), ("reconstruct", "beta 0", 0.0)])
def test_beta_control_is_the_plan_with_the_other_beta(
    pair: tuple[ChatModel, Reference], rule: str, name: str, beta: float
) -> None:
    model, reference = pair
    plan = PLANS[rule]
    control = controls(pair, plan)[name]
    calibration = reference.calibration(KINDS, plan.tokens)
    assert same(control.solve(), solve_patch(model, reference.model, calibration, DIRECTIONS, replace(plan, beta=beta)))
    assert f"weighted {1 + beta:g} times, chosen was {1 + plan.beta:g}" in control.meaning


def delta(values: np.ndarray, strength: float = 1.0) -> Patch:
    return Patch("paper", strength, 0.0, (LinearPatch(0, "mlp.down_proj", delta=mx.array(values.astype(np.float32))),))


def test_as_large_takes_the_size_of_the_other_and_keeps_what_is_changed() -> None:
    generator = np.random.default_rng(0)
    mine, model = (generator.normal(size=(4, 6)) for _ in range(2))
    found = as_large(delta(mine, strength=2.0), delta(9 * model))
    change = np.array(found.parts[0].change())
    assert np.linalg.norm(change) == pytest.approx(9 * np.linalg.norm(model), rel=1e-5)
    np.testing.assert_allclose(change / np.linalg.norm(change), mine / np.linalg.norm(mine), atol=1e-6)
    assert found.strength == pytest.approx(2.0 * 9 * np.linalg.norm(model) / np.linalg.norm(mine), rel=1e-5)


def test_as_large_counts_low_rank_parts_by_what_they_change() -> None:
    left, right = mx.array([[3.0], [4.0]]), mx.array([[2.0, 0.0]])
    low_rank = Patch("paper", 1.0, 0.0, (LinearPatch(0, "mlp.down_proj", left=left, right=right),))
    assert size(as_large(low_rank, delta(np.full((1, 4), 10.0)))) == pytest.approx(20.0)
    assert size(as_large(delta(np.ones((1, 1))), low_rank)) == pytest.approx(10.0)


def test_change_of_nothing_stays_nothing() -> None:
    nothing = delta(np.zeros((2, 2)))
    assert as_large(nothing, delta(np.ones((2, 2)))) is nothing
