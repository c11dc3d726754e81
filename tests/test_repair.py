"""Repair kernels against float64 brute force; the driver leaves models as found, keeps masks and lowers the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import TokenBatch, Walk, batch_sequences
from aird_mlx.errors import ShapeError, UsageError
from aird_mlx.evaluation import measure_utility
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import Patch, fold
from aird_mlx.pruning import prune_model
from aird_mlx.repair import (
    RULES,
    RepairPlan,
    least_squares_change,
    least_squares_inside_mask,
    paired_moments,
    refit_weight,
    restore_change,
    solve_patch,
    spread_inside_mask,
)


def to_mlx(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))


class Problem:
    """A random pruned linear with the inputs it had and has; float32 values, held in float64."""

    def __init__(
        self, seed: int, rows: int, width: int, sparsity: float = 0.5, tokens: int | None = None, directions: int = 1
    ) -> None:
        generator = np.random.default_rng(seed)
        # A few loud features, as in real activations; the drifted inputs resemble the original ones.
        loudness = np.exp(generator.normal(size=width) * 0.7)
        inputs = generator.normal(size=(tokens or 4 * width, width)) * loudness
        drifted = inputs + 0.3 * generator.normal(size=inputs.shape) * loudness
        original = generator.normal(size=(rows, width))
        kept = generator.random((rows, width)) >= sparsity
        self.directions = oracle.orthonormal_rows(generator, min(directions, rows), rows)
        self.inputs, self.drifted, self.original, self.compressed = (
            np.asarray(value, dtype=np.float32).astype(np.float64)
            for value in (inputs, drifted, original, original * kept)
        )
        self.second = self.drifted.T @ self.drifted / len(inputs)
        self.cross = self.inputs.T @ self.drifted / len(inputs)

    def refit(self, ridge: float, **options: object) -> np.ndarray:
        arrays = map(to_mlx, (self.original, self.compressed, self.second, self.cross))
        return np.array(refit_weight(*arrays, ridge, **options), dtype=np.float64)  # type: ignore[arg-type]

    def along(self) -> list[mx.array]:
        """What the kernels that change what is written along the directions take."""
        return [to_mlx(one) for one in (self.directions, self.original, self.compressed, self.second, self.cross)]

    def along_inside_mask(self, ridge: float, beta: float) -> np.ndarray:
        return np.array(least_squares_inside_mask(*self.along(), ridge, beta), dtype=np.float64)

    def kept_across(self) -> np.ndarray:
        """Outputs that are the dense model's along the directions and stay across them."""
        stays = self.drifted @ self.compressed.T
        return stays + (self.inputs @ self.original.T - stays) @ self.directions.T @ self.directions

    def objective(self, weight: np.ndarray, ridge: float, beta: float = 0.0, wanted: np.ndarray | None = None) -> float:
        error = self.drifted @ weight.T - (self.inputs @ self.original.T if wanted is None else wanted)
        penalty = ridge * np.mean(np.diag(self.second))
        return float(
            (np.sum(error**2) + beta * np.sum((error @ self.directions.T) ** 2)) / len(self.inputs)
            + penalty * np.sum((weight - self.compressed) ** 2)
        )


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    width=st.sampled_from([3, 8, 17, 32]),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
)


@given(problems, st.sampled_from([0.001, 0.01, 0.1]))
@settings(max_examples=40, deadline=None)
def test_refit_meets_the_row_by_row_solution_and_keeps_the_mask(problem: Problem, ridge: float) -> None:
    found = problem.refit(ridge)
    expected = oracle.refit_rows(problem.original, problem.compressed, problem.second, problem.cross, ridge)
    assert not found[problem.compressed == 0].any()
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(found, expected, atol=2e-3 * scale)
    best = problem.objective(expected, ridge)
    assert problem.objective(found, ridge) <= best * (1 + 1e-4) + 1e-9


small_problems = st.builds(
    Problem,
    seed=st.integers(0, 2**31),
    rows=st.integers(2, 6),
    width=st.sampled_from([3, 8]),
    directions=st.integers(1, 3),
)


@given(small_problems, st.sampled_from([0.5, 3.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_refit_with_beta_meets_the_solution_of_the_whole_objective(problem: Problem, beta: float) -> None:
    found = problem.refit(0.01, directions=to_mlx(problem.directions), beta=beta)
    wanted = problem.inputs @ problem.original.T
    expected = oracle.masked_least_squares(problem.compressed, wanted, problem.drifted, 0.01, problem.directions, beta)
    assert not found[problem.compressed == 0].any()
    best = problem.objective(expected, 0.01, beta)
    assert problem.objective(found, 0.01, beta) <= best * (1 + 1e-3) + 1e-9
    np.testing.assert_allclose(found, expected, atol=2e-2 * max(np.abs(expected).max(), 1.0))


@given(small_problems, st.sampled_from([0.0, 3.0, 30.0]), st.sampled_from([0.01, 0.1]))
@settings(max_examples=40, deadline=None)
def test_least_squares_inside_mask_meets_the_solution_of_its_objective(
    problem: Problem, beta: float, ridge: float
) -> None:
    found = problem.along_inside_mask(ridge, beta)
    expected = oracle.least_squares_inside_mask(
        problem.original, problem.compressed, problem.inputs, problem.drifted, ridge, problem.directions, beta
    )
    assert not found[problem.compressed == 0].any()
    wanted = problem.kept_across()
    best = problem.objective(expected, ridge, beta, wanted)
    assert problem.objective(found, ridge, beta, wanted) <= best * (1 + 1e-3) + 1e-9
    np.testing.assert_allclose(found, expected, atol=2e-2 * max(np.abs(expected).max(), 1.0))


@pytest.mark.parametrize("directions", [1, 3])
def test_least_squares_inside_mask_writes_less_across_than_the_spread_of_the_same_effect(directions: int) -> None:
    problem = Problem(11, 24, 12, sparsity=0.6, directions=directions)
    # Inputs that say much the same, as activations do: then survivors of one column can undo what another's write.
    mixing = np.random.default_rng(12).normal(size=(12, 12)) / np.sqrt(12) + 1.5 * np.ones((12, 12)) / 12
    problem.inputs, problem.drifted = problem.inputs @ mixing, problem.drifted @ mixing
    problem.second = problem.drifted.T @ problem.drifted / len(problem.inputs)
    problem.cross = problem.inputs.T @ problem.drifted / len(problem.inputs)
    solved = problem.along_inside_mask(0.001, 30.0)
    kept = problem.compressed != 0
    effect = problem.directions @ (solved - problem.compressed)
    spread = np.array(spread_inside_mask(to_mlx(problem.directions), to_mlx(effect), mx.array(kept)))

    def across(change: np.ndarray) -> float:
        written = problem.drifted @ change.T
        return float(np.sum((written - written @ problem.directions.T @ problem.directions) ** 2))

    np.testing.assert_allclose(problem.directions @ spread, effect, atol=1e-4)
    assert across(solved - problem.compressed) < 0.7 * across(spread)

    def missing(weight: np.ndarray) -> float:
        error = problem.drifted @ weight.T - problem.inputs @ problem.original.T
        return float(np.sum((error @ problem.directions.T) ** 2))

    assert missing(solved) < 0.25 * missing(problem.compressed), "and it does bring back what is written along R"


def test_beta_lowers_the_error_along_the_direction() -> None:
    problem = Problem(4, 8, 16)

    def along(weight: np.ndarray) -> float:
        error = problem.drifted @ weight.T - problem.inputs @ problem.original.T
        return float(np.sum((error @ problem.directions[0]) ** 2))

    plain = problem.refit(0.01)
    weighted = problem.refit(0.01, directions=to_mlx(problem.directions), beta=30.0)
    assert along(weighted) < 0.5 * along(plain)


def test_refit_without_drift_or_pruning_gives_the_original_back() -> None:
    problem = Problem(5, 6, 12, sparsity=0.0)
    problem.drifted = problem.inputs
    problem.second = problem.cross = problem.inputs.T @ problem.inputs / len(problem.inputs)
    np.testing.assert_allclose(problem.refit(0.01), problem.original, atol=1e-4)


def test_refit_does_not_depend_on_the_scale_of_the_inputs() -> None:
    problem = Problem(6, 5, 10)
    plain = problem.refit(0.01)
    problem.second, problem.cross = problem.second * 1e8, problem.cross * 1e8
    np.testing.assert_allclose(problem.refit(0.01), plain, atol=1e-4)


def test_refit_without_any_input_leaves_the_weights() -> None:
    problem = Problem(7, 4, 6)
    problem.second, problem.cross = np.zeros((6, 6)), np.zeros((6, 6))
    np.testing.assert_allclose(problem.refit(0.01), problem.compressed, atol=1e-6)


def test_refit_refuses_moments_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"^refit: the moments have shapes \(4, 4\) and \(6, 6\)"):
        refit_weight(mx.zeros((2, 6)), mx.zeros((2, 6)), mx.eye(4), mx.eye(6), 0.1)


@given(
    st.builds(
        Problem,
        seed=st.integers(0, 2**31),
        rows=st.integers(1, 8),
        width=st.sampled_from([2, 8, 24]),
        directions=st.integers(1, 3),
    ),
    st.sampled_from([0.001, 0.1]),
)
@settings(max_examples=30, deadline=None)
def test_least_squares_change_meets_the_tall_system(problem: Problem, ridge: float) -> None:
    found = np.array(least_squares_change(*problem.along(), ridge))
    expected = oracle.least_squares_change(
        problem.directions, problem.original, problem.compressed, problem.inputs, problem.drifted, ridge
    )
    np.testing.assert_allclose(found, expected, atol=2e-3 * max(np.abs(expected).max(), 1.0))


def test_least_squares_change_of_fewer_tokens_than_inputs_is_still_solved() -> None:
    problem = Problem(3, 6, 24, tokens=5)
    expected = oracle.least_squares_change(
        problem.directions, problem.original, problem.compressed, problem.inputs, problem.drifted, 0.1
    )
    np.testing.assert_allclose(np.array(least_squares_change(*problem.along(), 0.1)), expected, atol=2e-3)


@pytest.mark.parametrize("directions", [1, 2])
def test_restore_change_is_what_the_original_wrote_along_the_directions(directions: int) -> None:
    problem = Problem(8, 7, 9, directions=directions)
    found = restore_change(*problem.along()[:3])
    expected = problem.directions @ (problem.original - problem.compressed)
    assert found.shape == (directions, 9)
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


@given(
    st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 3)
)
@settings(max_examples=100, deadline=None)
def test_spread_is_the_smallest_change_on_the_survivors_with_the_wanted_effect(
    seed: int, rows: int, width: int, sparsity: float, count: int
) -> None:
    generator = np.random.default_rng(seed)
    directions = oracle.orthonormal_rows(generator, min(count, rows), rows)
    wanted = np.float32(generator.normal(size=(len(directions), width))).astype(np.float64)
    kept = generator.random((rows, width)) >= sparsity
    found = np.array(spread_inside_mask(to_mlx(directions), to_mlx(wanted), mx.array(kept)), dtype=np.float64)
    assert not found[~kept].any()
    # Where survivors hardly carry a direction, float32 decides whether it is left alone.
    carried = oracle.carried_by_survivors(directions, kept)
    sure = ((carried < 1e-7) | (carried > 1e-3)).all(axis=1)
    expected = oracle.smallest_masked_change(directions, wanted, kept)
    np.testing.assert_allclose(found[:, sure], expected[:, sure], rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    solvable = (carried > 1e-3).all(axis=1)
    np.testing.assert_allclose((directions @ found)[:, solvable], wanted[:, solvable], atol=1e-3)


def test_spread_leaves_a_column_without_survivors_alone() -> None:
    kept = mx.array([[True, False], [True, False]])
    found = spread_inside_mask(mx.array([[0.6, 0.8]]), mx.array([[1.0, 5.0]]), kept)
    np.testing.assert_allclose(np.array(found), [[0.6, 0.0], [0.8, 0.0]], atol=1e-6)


def test_spread_of_two_directions_does_what_one_survivor_can() -> None:
    directions, wanted = mx.array([[0.6, 0.8], [0.8, -0.6]]), mx.array([[1.0], [0.5]])
    found = spread_inside_mask(directions, wanted, mx.array([[True], [False]]))
    # The survivor alone carries (0.6, 0.8): the nearest it gets to (1, 0.5) is that times their product.
    np.testing.assert_allclose(np.array(found), [[0.6 * 1.0 + 0.8 * 0.5], [0.0]], atol=1e-6)


def test_spread_leaves_a_column_alone_whose_survivors_do_not_carry_the_direction() -> None:
    found = spread_inside_mask(mx.array([[1e-4, 1.0]]), mx.array([[1.0]]), mx.array([[True], [False]]))
    assert found.tolist() == [[0.0], [0.0]], "a huge weight for a tiny component would wreck the model"
    found = spread_inside_mask(mx.array([[0.01, 1.0]]), mx.array([[1.0]]), mx.array([[True], [False]]))
    np.testing.assert_allclose(np.array(found), [[100.0], [0.0]], rtol=1e-4)


def test_spread_refuses_the_mask_of_another_linear() -> None:
    with pytest.raises(ShapeError, match=r"^repair: kept has shape \(3, 2\)"):
        spread_inside_mask(mx.ones((1, 2)), mx.ones((1, 3)), mx.ones((3, 2)) > 0)


def test_spread_refuses_a_change_along_other_directions() -> None:
    with pytest.raises(ShapeError, match=r"^repair: kept .*directions \(2, 4\) and change \(1, 3\)"):
        spread_inside_mask(mx.ones((2, 4)), mx.ones((1, 3)), mx.ones((4, 3)) > 0)


# --- the driver ---------------------------------------------------------------------------------------------------

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 40).tolist() for seed in range(30)]
HELD_OUT = [np.random.default_rng(100 + seed).integers(3, 300, 40).tolist() for seed in range(10)]


def calibration() -> list[TokenBatch]:
    return batch_sequences(SEQUENCES, first_counted=[seed % 4 for seed in range(30)], tokens_per_batch=400)


def unit(seed: int = 0) -> mx.array:
    vector = mx.random.normal((32,), key=mx.random.key(seed))
    return vector / mx.linalg.norm(vector)


@pytest.fixture
def pair(model_folder: Callable[..., Path]) -> Callable[..., tuple[ChatModel, ChatModel]]:
    """A pruned model and the dense one it was made from."""

    def make(pattern: str = "unstructured", model_type: str = "llama") -> tuple[ChatModel, ChatModel]:
        folder = model_folder(model_type)
        model, dense = load(folder), load(folder)
        prune_model(model, calibration(), sparsity=0.5, pattern=pattern)
        return model, dense

    return make


def weights_of(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}


@pytest.mark.parametrize("inside_mask", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_solve_patch_leaves_both_models_bit_identical(
    pair: Callable[..., tuple[ChatModel, ChatModel]], rule: str, inside_mask: bool
) -> None:
    model, dense = pair()
    before, original = weights_of(model), weights_of(dense)
    patch = solve_patch(
        model, dense, calibration(), unit(), RepairPlan(rule, (0, 2), 2.0, inside_mask=inside_mask, steps=20)
    )
    assert patch.rule == rule
    assert patch.layers == [0, 2]
    for now, then in ((weights_of(model), before), (weights_of(dense), original)):
        assert set(now) == set(then)
        for name, value in then.items():
            np.testing.assert_array_equal(now[name], value, err_msg=name)


def test_solve_patch_puts_the_weights_back_when_it_is_interrupted(
    pair: Callable[..., tuple[ChatModel, ChatModel]],
) -> None:
    model, dense = pair()
    before = weights_of(model)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_patch(model, dense, calibration(), unit(), RepairPlan("refit", (0, 1, 2, 3)), progress=interrupt)
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("rule", "inside_mask", "beta"),
    [
        *((rule, True, 0.0) for rule in RULES),
        ("least-squares", True, 30.0),
        ("refit", True, 3.0),
        ("refit", False, 0.0),
        ("reconstruct", False, 0.0),
        ("distill", False, 0.0),
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_repairs_inside_the_mask_keep_every_zero(
    pair: Callable[..., tuple[ChatModel, ChatModel]], rule: str, inside_mask: bool, beta: float, pattern: str
) -> None:
    model, dense = pair(pattern)
    masks = {f"{block}.{name}": np.array(linear.weight) == 0 for block, name, linear in model.linears()}
    patch = solve_patch(
        model, dense, calibration(), unit(), RepairPlan(rule, (0, 1), beta=beta, inside_mask=inside_mask, steps=20)
    )
    changed = {f"{part.block}.{part.name}" for part in patch.parts}
    result = fold(model, patch)
    assert result.sparsity_lost == 0.0
    assert changed
    for block, name, linear in model.linears():
        zeros = np.array(linear.weight) == 0
        assert zeros[masks[f"{block}.{name}"]].all(), (block, name)
        if pattern == "2:4":
            assert (zeros.reshape(zeros.shape[0], -1, 4).sum(axis=-1) >= 2).all()


@pytest.mark.parametrize(
    ("rule", "rank"),
    [("paper", 1), ("restore", 1), ("least-squares", 1), ("refit", None), ("reconstruct", None), ("distill", None)],
)
def test_rules_have_the_rank_they_claim(
    pair: Callable[..., tuple[ChatModel, ChatModel]], rule: str, rank: int | None
) -> None:
    model, dense = pair()
    patch = solve_patch(model, dense, calibration(), unit(), RepairPlan(rule, (1,), inside_mask=False, steps=20))
    assert patch.rank == rank
    writers = {"self_attn.o_proj", "mlp.down_proj"}
    assert {part.name for part in patch.parts} == (writers if rank else set(model.layout(0).linear_names))
    for part in patch.parts:
        values = np.linalg.svd(np.array(part.change(), dtype=np.float64), compute_uv=False)
        significant = int((values > 1e-5 * values[0]).sum())
        assert significant == 1 if rank else significant > 1


def test_paper_rule_adds_alpha_times_what_the_compressed_model_writes_along_r(
    pair: Callable[..., tuple[ChatModel, ChatModel]],
) -> None:
    model, dense = pair()
    plan = RepairPlan("paper", (2,), 4.0, inside_mask=False)
    patch = solve_patch(model, dense, [], unit(), plan)
    r = np.array(unit(), dtype=np.float64)
    for part in patch.parts:
        weight = np.array(model.linear(2, part.name).weight, dtype=np.float64)
        np.testing.assert_allclose(np.array(part.change()), 4.0 * np.outer(r, r @ weight), atol=1e-5)
    assert (patch.strength, patch.ridge) == (4.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "beta"), [("restore", 0.0), ("least-squares", 0.0), ("least-squares", 30.0), ("refit", 3.0)]
)
def test_strength_is_how_many_times_the_solved_change_is_made(
    pair: Callable[..., tuple[ChatModel, ChatModel]], rule: str, beta: float
) -> None:
    model, dense = pair()
    plan = RepairPlan(rule, (0, 1), beta=beta)
    once, more = (
        solve_patch(model, dense, calibration(), unit(), replace(plan, strength=strength)) for strength in (1.0, 1.5)
    )
    assert (once.strength, more.strength) == (1.0, 1.5)
    assert (once.beta, more.beta) == (beta, beta)
    for one, other in zip(once.parts, more.parts, strict=True):
        assert np.array(one.change()).any()
        np.testing.assert_allclose(np.array(other.change()), 1.5 * np.array(one.change()), atol=1e-6)


@pytest.mark.parametrize("inside_mask", [True, False])
def test_plan_uses_as_many_directions_as_its_rank(
    pair: Callable[..., tuple[ChatModel, ChatModel]], inside_mask: bool
) -> None:
    model, dense = pair()
    directions = oracle.orthonormal_rows(np.random.default_rng(3), 3, 32)

    def solve(given: np.ndarray, rank: int) -> Patch:
        plan = RepairPlan("restore", (1,), rank=rank, inside_mask=inside_mask)
        return solve_patch(model, dense, [], to_mlx(given), plan)

    for rank in (1, 2, 3):
        patch, alone = solve(directions, rank), solve(directions[:rank], 3)
        assert patch.rank == (None if inside_mask else rank)
        for one, other in zip(patch.parts, alone.parts, strict=True):
            assert mx.array_equal(one.change(), other.change()).item()
        for part in patch.parts:
            weights = [np.array(of.linear(1, part.name).weight, dtype=np.float64) for of in (dense, model)]
            missing = directions @ (weights[0] - weights[1] - np.array(part.change()))
            assert np.abs(missing[:rank]).max() < 1e-4
            assert rank == 3 or np.abs(missing[rank:]).max() > 1e-2
    for one, other in zip(solve(directions[0], 1).parts, solve(directions[:1], 1).parts, strict=True):
        assert mx.array_equal(one.change(), other.change()).item(), "one direction may come as a vector"


@pytest.mark.parametrize("inside_mask", [True, False])
def test_restore_rule_writes_along_r_what_the_dense_model_wrote(
    pair: Callable[..., tuple[ChatModel, ChatModel]], inside_mask: bool
) -> None:
    model, dense = pair()
    fold(model, solve_patch(model, dense, [], unit(), RepairPlan("restore", (0, 3), inside_mask=inside_mask)))
    r = np.array(unit())
    for block in (0, 3):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            wanted, got = (r @ np.array(one.linear(block, name).weight) for one in (dense, model))
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def error_along(model: ChatModel, dense: ChatModel, block: int, name: str, r: mx.array) -> float:
    """Mean squared difference of what ``name`` writes along r in the two models, on the calibration tokens."""
    walks = Walk(dense, calibration()), Walk(model, calibration())
    total = count = 0.0
    for walk in walks:
        walk.move_to(block)
    for index, batch in enumerate(walks[0].batches):
        wanted, got = (
            one.linear(block, name)(walk.inputs_of(index, [name])[name]) @ r
            for one, walk in zip((dense, model), walks, strict=True)
        )
        total += float((mx.square(wanted - got) * batch.counted).sum().item())
        count += float(batch.counted.sum().item())
    return total / count


def test_least_squares_rule_lowers_the_error_along_r_of_every_writer_it_solves(
    pair: Callable[..., tuple[ChatModel, ChatModel]],
) -> None:
    model, dense = pair()
    r, places = unit(), [(block, name) for block in (0, 1, 2) for name in model.layout(0).writers]
    before = {place: error_along(model, dense, *place, r) for place in places}
    fold(
        model,
        solve_patch(
            model, dense, calibration(), r, RepairPlan("least-squares", (0, 1, 2), ridge=0.001, inside_mask=False)
        ),
    )
    for place in places:
        assert error_along(model, dense, *place, r) < 0.9 * before[place], place


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_refit_brings_the_model_nearer_to_the_dense_one(
    pair: Callable[..., tuple[ChatModel, ChatModel]], model_type: str, pattern: str
) -> None:
    model, dense = pair(pattern, model_type)
    held_out = batch_sequences(HELD_OUT)
    before = measure_utility(model, held_out, dense=dense).kl_to_dense
    fold(model, solve_patch(model, dense, calibration(), unit(), RepairPlan("refit", (0, 1, 2, 3))))
    after = measure_utility(model, held_out, dense=dense).kl_to_dense
    assert before is not None
    assert after is not None
    assert after < 0.8 * before


def test_refit_lowers_the_objective_of_every_linear_on_the_inputs_it_really_gets(
    pair: Callable[..., tuple[ChatModel, ChatModel]],
) -> None:
    model, dense = pair()
    compressed = {(block, name): np.array(linear.weight) for block, name, linear in model.linears()}
    fold(model, solve_patch(model, dense, calibration(), unit(), RepairPlan("refit", (0, 1, 2, 3))))
    walks = Walk(dense, calibration()), Walk(model, calibration())
    for block in range(4):
        for name in model.layout(0).linear_names:
            second, cross = (np.array(moment, dtype=np.float64) for moment in paired_moments(*walks, name))
            original = np.array(dense.linear(block, name).weight, dtype=np.float64)

            refitted = np.array(model.linear(block, name).weight, dtype=np.float64)
            start = compressed[block, name]
            best = oracle.refit_rows(original, start, second, cross, 0.01)
            # Mean squared output error but for the constant |W_o x|^2, and what is minimized: with the ridge.
            errors = [np.sum((one @ second) * one) - 2 * np.sum((original @ cross) * one) for one in (start, refitted)]
            assert errors[1] < errors[0], (block, name)
            ridge = 0.01 * np.mean(np.diag(second))
            start, loss, least = (
                np.sum((one @ second) * one) - 2 * np.sum((original @ cross) * one) + ridge * np.sum((one - start) ** 2)
                for one in (start, refitted, best)
            )
            assert loss - least <= 1e-3 * (start - least), (block, name)
        for walk in walks:
            walk.advance()


def test_paired_moments_count_only_the_tokens_that_count(pair: Callable[..., tuple[ChatModel, ChatModel]]) -> None:
    model, dense = pair()
    sequences, first = [SEQUENCES[0][:9], SEQUENCES[1][:5]], [4, 0]
    batches = batch_sequences(sequences, first_counted=first)
    second, cross = paired_moments(Walk(dense, batches), Walk(model, batches), "self_attn.o_proj")
    seen: dict[str, list[np.ndarray]] = {"dense": [], "compressed": []}
    for key, one in (("dense", dense), ("compressed", model)):
        reference = oracle.Llama(dict(tree_flatten(one.network.parameters())), one.config)
        for ids, start in zip(sequences, first, strict=True):
            inputs: dict[str, np.ndarray] = {}
            reference.block(0, reference.hidden(ids)[0], inputs.__setitem__)
            seen[key].append(inputs["self_attn.o_proj"][start:])
    drifted, original = np.concatenate(seen["compressed"]), np.concatenate(seen["dense"])
    np.testing.assert_allclose(np.array(second), drifted.T @ drifted / 10, atol=1e-6, rtol=1e-4)
    np.testing.assert_allclose(np.array(cross), original.T @ drifted / 10, atol=1e-6, rtol=1e-4)


def test_refit_in_float16_keeps_dtype_and_mask(pair: Callable[..., tuple[ChatModel, ChatModel]]) -> None:
    model, dense = pair()
    for one in (model, dense):
        one.network.set_dtype(mx.float16)
    zeros = [np.array(linear.weight) == 0 for _, _, linear in model.linears()]
    result = fold(model, solve_patch(model, dense, calibration(), unit(), RepairPlan("refit", (0, 1, 2, 3))))
    assert result.sparsity_lost == 0.0
    for (_, _, linear), mask in zip(model.linears(), zeros, strict=True):
        assert linear.weight.dtype == mx.float16
        assert not np.array(linear.weight)[mask].any()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            RepairPlan("aird", (0,)),
            r"^repair: rule is 'aird'; one of paper, restore, least-squares, refit, reconstruct, distill is needed",
        ),
        (RepairPlan("refit", (0, 4)), r"^repair: blocks are \[0, 4\]; 0 to 3 are needed"),
        (RepairPlan("paper", (-1,)), r"^repair: blocks are \[-1\]"),
    ],
)
def test_plans_that_do_not_fit_are_refused_in_one_line(tiny: ChatModel, plan: RepairPlan, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        solve_patch(tiny, tiny, calibration(), unit(), plan)
    assert "\n" not in str(raised.value)


def test_plan_without_blocks_solves_nothing(tiny: ChatModel) -> None:
    assert solve_patch(tiny, tiny, calibration(), unit(), RepairPlan("refit", ())).parts == ()
