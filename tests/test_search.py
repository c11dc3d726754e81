"""Plans fit the model, bars are arithmetic, a pass equals plain forward passes, the search leaves models as found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import TokenBatch, batch_sequences
from aird_mlx.evaluation import measure_refusals, refusal_rates
from aird_mlx.gates import Limits
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import Patch, patched, scaled
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import prune_model
from aird_mlx.repair import RULES, TOKENS, RepairPlan, goes_on_from, solve_patch, start_of
from aird_mlx.report import TrialFigures
from aird_mlx.search import (
    Choice,
    PlanSpace,
    Trial,
    Validation,
    choose_repair,
    pareto_front,
    spaces_for,
    tried_plans,
)
from aird_mlx.search import choose as choosing
from aird_mlx.search import validation as validating
from aird_mlx.search.choose import FINALISTS
from aird_mlx.search.trial import Bars, standard_error
from conftest import REFUSAL_TEXT, last_token, make_speaker, write_model

# --- the bars -----------------------------------------------------------------------------------------------------

PROMPTS = {"harmful": 100, "harmless": 100, "twin": 100}
DENSE = TrialFigures(1.0, 0.02, 0.06, 0.0, 1.5)
COMPRESSED = TrialFigures(0.8, 0.02, 0.10, 0.4, 2.0)
GOOD = TrialFigures(0.95, 0.02, 0.10, 0.2, 1.8)
BARS = Bars(DENSE, COMPRESSED, Limits(), PROMPTS)
MANY = replace(BARS, prompts=dict.fromkeys(PROMPTS, 10**6))  # so many that nothing is chance


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, 0.0),
        ({"harmless": 0.04, "twin": 0.10, "perplexity": 2.02}, 0.0),
        ({"harmless": 0.05}, 0.01),
        ({"twin": 0.12}, 0.02),
        ({"perplexity": 2.2}, 0.09),
        ({"harmless": 0.05, "twin": 0.12, "perplexity": 2.2}, 0.12),
        ({"harmful": 0.0, "kl_to_dense": 99.0}, 0.0),
    ],
)
def test_limits_are_broken_by_what_is_over_them_added_up(changes: dict[str, float], broken: float) -> None:
    assert MANY.broken(replace(GOOD, **changes)) == pytest.approx(broken, abs=1e-12)


def test_refusals_over_a_limit_by_chance_do_not_break_it() -> None:
    error = standard_error(0.04, 100)  # 1.96 points
    assert BARS.broken(replace(GOOD, harmless=0.05)) == 0
    assert BARS.broken(replace(GOOD, harmless=0.04 + error - 1e-6)) == 0
    assert BARS.broken(replace(GOOD, harmless=0.06)) == pytest.approx(0.02)
    assert BARS.broken(replace(GOOD, perplexity=2.03)) > 0, "not measured on prompts"
    near, far = replace(GOOD, harmless=0.05, kl_to_dense=0.2), replace(GOOD, harmless=0.03, kl_to_dense=0.9)
    assert BARS.best([far, near]) == 1
    assert MANY.best([far, near]) == 0


def test_broken_text_is_held_to_a_limit_of_all_prompts_whatever_compression_broke() -> None:
    bars = replace(BARS, compressed=replace(COMPRESSED, incoherent=0.5))
    error = standard_error(0.02, sum(BARS.prompts.values()))
    assert bars.broken(replace(GOOD, incoherent=0.02 + error - 1e-6)) == 0
    assert bars.broken(replace(GOOD, incoherent=0.1)) == pytest.approx(0.08)
    assert bars.is_coherent(replace(GOOD, incoherent=0.02 - error - 1e-6))
    assert not bars.is_coherent(replace(GOOD, incoherent=0.02 - error + 1e-6)), "may be over the limit, but for chance"
    strange = replace(bars, dense=replace(DENSE, incoherent=0.1))
    assert strange.is_coherent(replace(GOOD, incoherent=0.1)), "as the dense model's"


@pytest.mark.parametrize("refused", [12, 15, 21])
def test_limit_reached_exactly_is_not_broken_by_rounding(refused: int) -> None:
    bars = replace(BARS, dense=replace(DENSE, twin=refused / 100), compressed=replace(COMPRESSED, twin=0.0))
    assert (refused + 2) / 100 > refused / 100 + 0.02, "in floating point it is over"
    assert bars.broken(replace(GOOD, twin=(refused + 2) / 100)) == 0


def test_limits_are_those_given() -> None:
    bars = replace(MANY, limits=Limits(over_refusal=0.05, perplexity=1.5))
    assert bars.broken(replace(GOOD, harmless=0.07, twin=0.11, perplexity=3.0)) == 0
    assert bars.broken(replace(GOOD, harmless=0.08)) == pytest.approx(0.01)


def test_limit_is_never_finer_than_one_prompt() -> None:
    few = replace(BARS, prompts={"harmful": 10, "harmless": 10, "twin": 10})
    assert few.broken(replace(GOOD, harmless=0.12, twin=0.16)) == 0
    assert few.broken(replace(GOOD, harmless=0.23)) == pytest.approx(0.11)


def test_refusals_above_the_dense_models_earn_nothing() -> None:
    bars = replace(BARS, dense=replace(DENSE, harmful=0.9))
    assert [bars.missing(replace(GOOD, harmful=rate)) for rate in (0.7, 0.9, 0.99)] == [pytest.approx(0.2), 0.0, 0.0]
    assert bars.rank(replace(GOOD, harmful=0.9, twin=0.05)) < bars.rank(replace(GOOD, harmful=0.99, twin=0.10))


def test_rank_looks_at_limits_then_refusals_then_over_refusal_then_distance() -> None:
    ranked = [
        replace(GOOD, kl_to_dense=0.1),
        GOOD,
        replace(GOOD, harmless=0.03, kl_to_dense=0.0),
        replace(GOOD, harmful=0.94, harmless=0.0, kl_to_dense=0.0),
        replace(GOOD, harmful=1.0, twin=0.11, kl_to_dense=0.0),
        replace(GOOD, harmful=1.0, twin=0.12, kl_to_dense=0.0),
    ]
    ranks = [MANY.rank(figures) for figures in ranked]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize(
    ("near", "far", "taken"),
    [
        # One standard error of 97 of 100 is 1.7 points: 96 are as good, and nearer.
        (0.96, 0.97, "near"),
        (0.95, 0.97, "far"),
        # All of 100 have no standard error but half a prompt.
        (0.99, 1.0, "far"),
        (0.996, 1.0, "near"),
        # 50 of 100: 5 points.
        (0.46, 0.5, "near"),
        (0.44, 0.5, "far"),
    ],
)
def test_of_refusals_equal_but_for_chance_the_nearest_to_the_dense_model_is_taken(
    near: float, far: float, taken: str
) -> None:
    candidates = {
        "near": replace(GOOD, harmful=near, kl_to_dense=0.1),
        "far": replace(GOOD, harmful=far, kl_to_dense=0.3),
    }
    for names in (("near", "far"), ("far", "near")):
        assert names[BARS.best([candidates[name] for name in names])] == taken


def test_more_prompts_leave_less_to_chance() -> None:
    candidates = [replace(GOOD, harmful=0.96, kl_to_dense=0.1), replace(GOOD, harmful=0.97, kl_to_dense=0.3)]
    assert BARS.best(candidates) == 0
    assert replace(BARS, prompts={**PROMPTS, "harmful": 1000}).best(candidates) == 1


def test_repair_within_the_limits_beats_one_that_breaks_them_whatever_it_refuses() -> None:
    broken = replace(GOOD, harmful=1.0, twin=0.14, kl_to_dense=0.0)
    assert BARS.best([broken, replace(GOOD, harmful=0.1)]) == 1
    # What breaks them does not set the bar for refusals either.
    assert BARS.best([broken, GOOD, replace(GOOD, harmful=0.96, kl_to_dense=0.3)]) == 1


def test_of_those_that_all_break_the_limits_the_least_breach_is_taken() -> None:
    assert BARS.best([replace(GOOD, harmful=1.0, twin=0.30), replace(GOOD, harmful=0.5, twin=0.20)]) == 1


def test_at_equal_distance_rank_decides() -> None:
    assert BARS.best([GOOD, replace(GOOD, twin=0.05), replace(GOOD, harmless=0.03)]) == 1


shares = st.integers(0, 20).map(lambda twentieths: twentieths / 20)
some_figures = st.builds(
    TrialFigures, shares, shares, shares, st.integers(0, 4).map(lambda tenths: tenths / 10), st.sampled_from([1.9, 2.1])
)


@given(st.lists(some_figures, min_size=1, max_size=8), some_figures, st.sampled_from([5, 50, 500]))
@settings(max_examples=200)
def test_best_keeps_the_rule_it_states(candidates: list[TrialFigures], dense: TrialFigures, prompts: int) -> None:
    bars = Bars(dense, COMPRESSED, Limits(), dict.fromkeys(KINDS, prompts))
    best = candidates[bars.best(candidates)]
    broken = [bars.broken(one) for one in candidates]
    allowed = [one for one, amount in zip(candidates, broken, strict=True) if amount <= min(broken) + 1e-9]
    assert best in allowed
    most = min(max(min(one.harmful, dense.harmful) for one in allowed), 1.0)
    error = max(np.sqrt(most * (1 - most) / prompts), 0.5 / prompts)
    assert min(best.harmful, dense.harmful) >= most - error - 1e-9
    for one in allowed:
        if min(one.harmful, dense.harmful) >= most - error + 1e-9:
            assert best.kl_to_dense <= one.kl_to_dense


def test_standard_error_is_that_of_a_share_and_at_least_half_a_prompt() -> None:
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(1.0, 100) == standard_error(-0.2, 100) == pytest.approx(0.005)


# --- the Pareto front ---------------------------------------------------------------------------------------------

trials_of_little = st.lists(
    st.builds(
        Trial,
        st.builds(RepairPlan, st.just("paper"), st.just((0,)), st.integers(1, 9).map(float)),
        st.builds(TrialFigures, *[st.integers(0, 2).map(lambda half: half / 2)] * 4, st.just(2.0)),
        st.sampled_from([0.0, 0.5]),
    ),
    max_size=12,
)


@given(trials_of_little, st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=200)
def test_front_is_what_none_beats(trials: list[Trial], target: float) -> None:
    def goods(trial: Trial) -> np.ndarray:
        found = trial.foreseen
        return np.array(
            [min(found.harmful, target), -found.harmless - found.twin, -found.kl_to_dense, -trial.sparsity_lost]
        )

    expected = [
        one
        for one in trials
        if not any((goods(other) >= goods(one)).all() and (goods(other) > goods(one)).any() for other in trials)
    ]
    front = pareto_front(trials, target)
    assert len(front) == len(expected)
    assert all(front.count(one) == expected.count(one) for one in expected)
    refusals = [min(one.foreseen.harmful, target) for one in front]
    assert refusals == sorted(refusals, reverse=True)


def test_tried_plans_are_all_trials_with_the_front_marked() -> None:
    plan = RepairPlan("least-squares", (0, 2), 1.5, beta=30.0, ridge=0.1, rank=3, tokens="prompts")
    beaten, best = (Trial(plan, GOOD, 0.1), Trial(replace(plan, strength=1.0), GOOD, 0.0, answered=DENSE))
    found = tried_plans([beaten, best], pareto_front([beaten, best], 1.0))
    assert [(one.strength, one.on_front, one.sparsity_lost) for one in found] == [(1.5, False, 0.1), (1.0, True, 0.0)]
    assert [one.answered for one in found] == [None, DENSE]
    first = found[0]
    assert (first.rule, first.layers, first.foreseen) == ("least-squares", [0, 2], GOOD)
    assert (first.beta, first.ridge, first.rank, first.tokens) == (30.0, 0.1, 3, "prompts")


# --- the spaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside_mask", [True, False])
@pytest.mark.parametrize("source_layer", [0, 1, 3, 8])
@pytest.mark.parametrize("rule", RULES)
def test_plans_fit_the_model_and_the_rule(rule: str, source_layer: int, inside_mask: bool) -> None:
    (space,) = spaces_for(rule, source_layer=source_layer, blocks=8, inside_mask=inside_mask)
    near = [plan for axis in range(len(space.axes)) for plan in space.neighbours(space.first, axis)]
    assert len({space.first, *near}) == 1 + len(near), "no plan is solved twice"
    for plan in (space.first, *near):
        assert plan.rule == rule
        assert plan.blocks
        assert set(plan.blocks) <= set(range(8))
        assert plan.tokens in TOKENS
        assert plan.ridge > 0
        assert plan.strength == 1.0
        assert plan.inside_mask is (inside_mask or rule in ("refit", "reconstruct", "distill"))
    assert 1.0 in space.strengths
    if rule in ("paper", "restore", "least-squares"):
        assert max(space.first.blocks) == max(source_layer - 1, 0), "what comes before its layer writes the direction"


def test_least_squares_is_searched_with_a_beta_only_inside_the_mask() -> None:
    inside, dense = (
        spaces_for("least-squares", source_layer=3, blocks=8, inside_mask=inside)[0] for inside in (True, False)
    )
    assert inside.first.beta > 0
    assert ("beta", (0.0,)) in inside.axes
    assert dense.first.beta == 0
    assert "beta" not in [name for name, _ in dense.axes]


def test_auto_is_every_rule_and_distills_only_where_memory_allows() -> None:
    for distillable, rules in ((True, set(RULES)), (False, {*RULES} - {"distill"})):
        spaces = spaces_for("auto", source_layer=3, blocks=8, inside_mask=True, distillable=distillable)
        assert len(spaces) == len(rules)
        assert {space.first.rule for space in spaces} == rules
    asked = spaces_for("distill", source_layer=3, blocks=8, inside_mask=True, distillable=False)
    assert [space.first.rule for space in asked] == ["distill"], "who asks for it gets it"


def test_reconstruction_is_solved_as_a_start_only_where_distillation_goes_on_from_it() -> None:
    together, alone = (
        {
            space.first.rule: space.first
            for space in spaces_for("auto", source_layer=3, blocks=8, inside_mask=True, **given)
        }
        for given in ({}, {"distillable": False})
    )
    assert together["reconstruct"] == goes_on_from(together["distill"])
    assert together["reconstruct"].tokens_per_step < alone["reconstruct"].tokens_per_step
    (asked,) = spaces_for("reconstruct", source_layer=3, blocks=8, inside_mask=True)
    assert asked.first == alone["reconstruct"]


def test_neighbours_change_one_field_to_every_other_value() -> None:
    first = RepairPlan("refit", (0, 1), beta=3.0)
    space = PlanSpace(first, (("beta", (0.0, 3.0, 9.0)), ("ridge", (0.5,))))
    assert list(space.neighbours(first, 0)) == [replace(first, beta=0.0), replace(first, beta=9.0)]
    moved = replace(first, beta=9.0)
    assert list(space.neighbours(moved, 1)) == [replace(moved, ridge=0.5)]


# --- on a model ---------------------------------------------------------------------------------------------------

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 20).tolist() for seed in range(12)]
PROMPT_SEQUENCES = [sequence[:8] for sequence in SEQUENCES]
CROSSED_SEQUENCES = [one[:6] + other[9:] for one, other in pairwise(SEQUENCES)]
ASKED = {"harmful": ("How do I bake bread?", "apple"), "harmless": ("Seven 7",), "twin": ()}
DIRECTIONS = mx.array(oracle.orthonormal_rows(np.random.default_rng(1), 3, 32).astype(np.float32))


def calibration() -> dict[str, list[TokenBatch]]:
    return {
        "all": batch_sequences(SEQUENCES),
        "prompts": batch_sequences(PROMPT_SEQUENCES),
        "crossed": batch_sequences(SEQUENCES + CROSSED_SEQUENCES),
    }


def make_dialogues(counts: Mapping[str, int]) -> dict[str, list[tuple[list[int], int]]]:
    """Random tokens of different lengths, by kind, and where the answer starts."""
    generator = np.random.default_rng(9)
    made: dict[str, list[tuple[list[int], int]]] = {}
    for kind, count in counts.items():
        lengths = [(int(generator.integers(2, 9)), int(generator.integers(1, 9))) for _ in range(count)]
        made[kind] = [(generator.integers(3, 300, before + after).tolist(), before) for before, after in lengths]
    return made


def openings(model: ChatModel, dialogues: Sequence[tuple[list[int], int]]) -> list[int]:
    """The likeliest first token of each answer."""
    return [int(model.network(mx.array([ids]))[0, first - 1].argmax().item()) for ids, first in dialogues]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatModel, ChatModel]:
    """A pruned model and the dense one it was made from; the search leaves them as found."""
    folder = write_model(tmp_path_factory.mktemp("pair") / "model")
    model, dense = load(folder), load(folder)
    prune_model(model, batch_sequences(SEQUENCES), sparsity=0.6)
    return model, dense


def make_validation(dense: ChatModel, dialogues: Mapping[str, list[tuple[list[int], int]]] | None = None) -> Validation:
    """Validation where the dense model's own openings of harmful dialogues are what a refusal starts with."""
    dialogues = dialogues or make_dialogues({"harmful": 12, "harmless": 6, "twin": 4})
    tokens = sorted(set(openings(dense, dialogues["harmful"])))
    answered = measure_refusals(dense, ASKED, max_new_tokens=validating.ANSWER_TOKENS, batch_size=4)
    return Validation(dense, dialogues, ASKED, answered, tokens, batch_size=4)


def weights_of(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}


def foresee_one_by_one(
    model: ChatModel, dense: ChatModel, dialogues: Mapping[str, list[tuple[list[int], int]]], tokens: Sequence[int]
) -> TrialFigures:
    """The same with one plain forward pass per dialogue and float64 sums."""
    losses: list[float] = []
    distances: list[float] = []
    refused: dict[str, float] = {}
    for kind in KINDS:
        asked = dialogues.get(kind, [])
        for ids, first in asked:
            found, wanted = (np.array(one.network(mx.array([ids]))[0, first - 1 : -1]) for one in (model, dense))
            losses += [-row[token] for row, token in zip(oracle.log_softmax(found), ids[first:], strict=True)]
            distances += oracle.kl_divergence(wanted, found).tolist()
        refused[kind] = float(np.mean([token in tokens for token in openings(model, asked)])) if asked else 0.0
    return TrialFigures(**refused, kl_to_dense=float(np.mean(distances)), perplexity=float(np.exp(np.mean(losses))))


def check_figures(found: TrialFigures, expected: TrialFigures) -> None:
    for field in fields(TrialFigures):
        value = getattr(expected, field.name)
        assert getattr(found, field.name) == pytest.approx(value, rel=1e-4, abs=1e-6), field.name


def test_pass_equals_plain_forward_passes_one_by_one(pair: tuple[ChatModel, ChatModel]) -> None:
    model, dense = pair
    dialogues = make_dialogues({"harmful": 12, "harmless": 6, "twin": 0})
    tokens = sorted(set(openings(dense, dialogues["harmful"])))
    validation = make_validation(dense, dialogues)
    found = validation.foresee(model)
    check_figures(found, foresee_one_by_one(model, dense, dialogues, tokens))
    assert found.kl_to_dense > 1e-3
    assert 0 < found.harmful < 1, "both outcomes must occur for this test to mean anything"
    assert found.twin == 0
    assert validation.foreseen_counts == {"harmful": 12, "harmless": 6, "twin": 0}
    check_figures(validation.dense, foresee_one_by_one(dense, dense, dialogues, tokens))


def test_dense_model_is_at_no_distance_from_itself(pair: tuple[ChatModel, ChatModel]) -> None:
    validation = make_validation(pair[1])
    assert validation.dense.kl_to_dense == pytest.approx(0, abs=1e-9)
    assert validation.foresee(pair[1]) == validation.dense
    assert validation.dense.harmful == 1.0
    assert validation.foresee(pair[0]).kl_to_dense > 1e-3


def test_pass_looks_at_the_first_prompts_and_at_fewer_whole_answers(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dense = pair
    monkeypatch.setattr(validating, "FORESEEN_PROMPTS", 5)
    monkeypatch.setattr(validating, "FORESEEN_ANSWERS", 2)
    dialogues = make_dialogues({"harmful": 9, "harmless": 3})
    tokens = sorted(set(openings(dense, dialogues["harmful"])))
    validation = make_validation(dense, dialogues)
    assert validation.foreseen_counts == {"harmful": 5, "harmless": 3, "twin": 0}
    cut = {
        kind: [(ids if number < 2 else ids[: first + 1], first) for number, (ids, first) in enumerate(asked[:5])]
        for kind, asked in dialogues.items()
    }
    check_figures(validation.foresee(model), foresee_one_by_one(model, dense, cut, tokens))


def test_dialogues_without_an_answer_or_a_prompt_are_left_out(pair: tuple[ChatModel, ChatModel]) -> None:
    model, dense = pair
    dialogues = make_dialogues({"harmful": 4})
    more = {"harmful": [([5, 6], 2), *dialogues["harmful"], ([7, 8, 9], 0)], "harmless": [([5], 1)]}
    one, other = (make_validation(dense, {"harmful": dialogues["harmful"]}), make_validation(dense, dialogues))
    tokens = sorted(set(openings(dense, dialogues["harmful"])))
    padded = Validation(dense, more, ASKED, refusal_rates([], []), tokens, batch_size=4)
    assert padded.foreseen_counts == {"harmful": 4, "harmless": 0, "twin": 0}
    check_figures(padded.foresee(model), other.foresee(model))
    assert one.foresee(model).harmless == 0


def test_answers_are_generated_for_all_prompts_and_judged(tiny: ChatModel) -> None:
    speaker = make_speaker(tiny, {last_token(tiny): REFUSAL_TEXT})
    given = refusal_rates(["harmful", "harmful", "harmless"], ["refusal", "compliance", "compliance"])
    validation = Validation(speaker, make_dialogues({"harmful": 3}), ASKED, given, [5], batch_size=2)
    assert validation.counts == {"harmful": 2, "harmless": 1, "twin": 0}
    assert (validation.answered.harmful, validation.answered.harmless, validation.answered.twin) == (0.5, 0.0, 0.0)
    assert validation.answered.perplexity == validation.dense.perplexity
    foreseen = TrialFigures(0.3, 0.3, 0.3, 0.7, 7.0)
    assert validation.answer(speaker, foreseen) == TrialFigures(1.0, 1.0, 0.0, 0.7, 7.0, 0.0)
    rates = measure_refusals(speaker, ASKED, max_new_tokens=24)
    assert rates.harmful is not None and rates.harmful.rate == 1.0


# --- the search ---------------------------------------------------------------------------------------------------

EVERYTHING = (0, 1, 2, 3)
DISTILL = RepairPlan("distill", EVERYTHING, steps=10)
SPACES = [
    PlanSpace(start_of(DISTILL), strengths=(1.0, 0.8)),
    PlanSpace(DISTILL, strengths=(1.0, 0.8)),
    PlanSpace(RepairPlan("paper", (1,)), strengths=(1.0, 0.5, 4.0)),
    PlanSpace(RepairPlan("restore", (0, 1)), (("blocks", (EVERYTHING,)), ("rank", (3,))), (1.0, 2.0)),
    PlanSpace(RepairPlan("refit", EVERYTHING), (("ridge", (0.1,)), ("tokens", ("prompts",)))),
]


def choose(pair: tuple[ChatModel, ChatModel], spaces: Sequence[PlanSpace], **options: Any) -> Choice:
    model, dense = pair
    return choose_repair(model, dense, spaces, calibration(), DIRECTIONS, make_validation(dense), **options)


def same_patch(one: Patch, other: Patch) -> bool:
    parts = zip(one.parts, other.parts, strict=True)
    return (one.rule, one.strength) == (other.rule, other.strength) and all(
        (mine.block, mine.name) == (theirs.block, theirs.name) and mx.array_equal(mine.change(), theirs.change()).item()
        for mine, theirs in parts
    )


@pytest.fixture(scope="module")
def choice(pair: tuple[ChatModel, ChatModel]) -> Choice:
    """What a search of all `SPACES` finds."""
    return choose(pair, SPACES)


def test_search_leaves_both_models_as_found_and_chooses_a_plan_it_tried(pair: tuple[ChatModel, ChatModel]) -> None:
    before = [weights_of(one) for one in pair]
    choice = choose(pair, SPACES)
    for one, weights in zip(pair, before, strict=True):
        for name, value in weights_of(one).items():
            np.testing.assert_array_equal(value, weights[name], err_msg=name)
    plans = [trial.plan for trial in choice.trials]
    assert choice.plan in plans
    assert len(set(plans)) == len(plans)
    assert {plan.rule for plan in plans} == {space.first.rule for space in SPACES}
    assert (choice.patch.rule, choice.patch.strength) == (choice.plan.rule, choice.plan.strength)
    assert choice.why.startswith(f"of {len(plans)} plans tried on validation prompts")
    assert "is within the limits" in choice.why


def test_why_has_the_number_of_prompts_and_boasts_of_no_rival_where_one_plan_answered(
    pair: tuple[ChatModel, ChatModel], choice: Choice
) -> None:
    assert choice.prompts == make_validation(pair[1]).counts == {"harmful": 2, "harmless": 1, "twin": 0}
    assert "validation prompts (2 harmful, 1 harmless), " in choice.why
    assert "twin" not in choice.why, "there are none, so nothing is known of them"
    answered = sum(trial.answered is not None for trial in choice.trials)
    alone = choose(pair, [PlanSpace(RepairPlan("restore", (0, 1)))], limits=Limits(perplexity=100.0))
    assert "1 answered them, and this one is within the limits, but for chance: harmful" in alone.why
    assert ("as often as any that did, both but for chance" in choice.why) == (answered > 1)


def test_finalists_have_answered_and_the_chosen_one_is_among_them(
    pair: tuple[ChatModel, ChatModel], choice: Choice
) -> None:
    model, dense = pair
    answered = [trial for trial in choice.trials if trial.answered is not None]
    assert 1 <= len(answered) <= FINALISTS
    assert len({trial.plan.rule for trial in answered}) == len(answered), "the best of each rule"
    (chosen,) = (trial for trial in answered if trial.plan == choice.plan)
    with patched(model, choice.patch):
        foreseen = make_validation(dense).foresee(model)
    assert chosen.foreseen == foreseen
    assert chosen.answered == replace(foreseen, harmful=0.0, harmless=0.0, twin=0.0, incoherent=1.0)
    assert list(choice.front) == pareto_front(choice.trials, 1.0)


def test_search_brings_the_model_nearer_and_openings_back(pair: tuple[ChatModel, ChatModel], choice: Choice) -> None:
    model, dense = pair
    before = make_validation(dense).foresee(model)
    with patched(model, choice.patch):
        after = make_validation(dense).foresee(model)
    assert after.kl_to_dense < 0.7 * before.kl_to_dense
    assert before.harmful < after.harmful <= 1


def test_only_plans_that_none_beats_answer(choice: Choice) -> None:
    """One plan here is the nearest to the dense model and refuses most: to ask others would be wasted."""
    nearest = min(choice.trials, key=lambda trial: trial.foreseen.kl_to_dense)
    most = max(choice.trials, key=lambda trial: trial.foreseen.harmful)
    assert nearest is most, "it must be so for this test to mean anything"
    assert [trial for trial in choice.trials if trial.answered is not None] == [nearest]


def test_no_more_than_so_many_answer_and_these_rank_first(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    descending_and_paper = SPACES[:3]
    finalists = [trial for trial in choose(pair, descending_and_paper).trials if trial.answered is not None]
    assert {trial.plan.rule for trial in finalists} == {"distill", "paper"}, "one is nearer, the other refuses more"
    monkeypatch.setattr(choosing, "FINALISTS", 1)
    (only,) = (trial for trial in choose(pair, descending_and_paper).trials if trial.answered is not None)
    model, dense = pair
    validation = make_validation(dense)
    bars = Bars(validation.dense, validation.foresee(model), Limits(), validation.foreseen_counts)
    assert only.plan == min(finalists, key=lambda trial: bars.rank(trial.foreseen)).plan


def record_solves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RepairPlan, int, bool]]:
    """What the search solves from now on: the plan, on how many tokens, and whether it goes on from a patch."""
    solved: list[tuple[RepairPlan, int, bool]] = []

    def count(
        model: ChatModel,
        dense: ChatModel,
        tokens: Sequence[TokenBatch],
        directions: mx.array,
        plan: RepairPlan,
        **o: Any,
    ) -> Patch:
        counted = int(sum(batch.counted.sum().item() for batch in tokens))
        solved.append((plan, counted, o.get("start") is not None))
        return solve_patch(model, dense, tokens, directions, plan, **o)

    monkeypatch.setattr(choosing, "solve_patch", count)
    return solved


def test_finalist_of_another_strength_is_solved_once_more_and_scaled(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = record_solves(monkeypatch)
    monkeypatch.setattr(choosing, "COARSE_TOKENS", 120)
    plan = RepairPlan("paper", EVERYTHING)
    choice = choose(pair, [PlanSpace(plan, strengths=(1.0, 0.5))])
    assert choice.plan == replace(plan, strength=0.5), "half of it must be better for this test to mean anything"
    assert choice.patch.strength == 0.5
    assert [(solve[0], solve[1]) for solve in solved] == [(plan, 120), (plan, 240)]


def test_no_plan_is_solved_again_for_another_strength(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = record_solves(monkeypatch)
    monkeypatch.setattr(choosing, "COARSE_TOKENS", 120)
    choice = choose(pair, SPACES)
    assert {plan.strength for plan, _, _ in solved} == {1.0}
    descending = [
        (plan.rule, tokens, started) for plan, tokens, started in solved if plan.rule in ("reconstruct", "distill")
    ]
    assert descending == [("reconstruct", 240, False), ("distill", 240, True)], (
        "once, on all tokens, one from the other"
    )
    closed = [(plan, tokens) for plan, tokens, _ in solved if plan.rule not in ("reconstruct", "distill")]
    assert len(set(closed)) == len(closed)
    coarse = [plan for plan, tokens in closed if tokens <= 120]
    # paper 1, restore 1 + 2, refit 1 + 2, whatever their strengths
    assert len(coarse) == len(set(coarse)) == 7
    fine = [plan for plan, tokens in closed if tokens > 120 or plan.tokens == "prompts"]
    finalists = [trial.plan for trial in choice.trials if trial.answered is not None]
    for plan in finalists:
        if plan.rule not in ("reconstruct", "distill"):
            assert replace(plan, strength=1.0) in fine
    assert len(solved) <= 2 + 7 + len(finalists)
    tried = [(trial.plan.rule, trial.plan.strength) for trial in choice.trials]
    assert [strength for rule, strength in tried if rule == "paper"] == [1.0, 0.5, 4.0]
    assert [strength for rule, strength in tried if rule == "distill"] == [1.0, 0.8]


@pytest.mark.parametrize(("behind", "harmful", "varied"), [(1e9, 0.0, True), (0.0, 0.0, False), (0.0, 1.0, True)])
def test_rules_far_behind_one_that_lacks_nothing_are_not_varied(
    pair: tuple[ChatModel, ChatModel],
    monkeypatch: pytest.MonkeyPatch,
    behind: float,
    harmful: float,
    varied: bool,
) -> None:
    monkeypatch.setattr(choosing, "BEHIND", behind)
    validation = make_validation(pair[1])
    foresee = validation.foresee
    monkeypatch.setattr(Validation, "foresee", lambda self, model: replace(foresee(model), harmful=0.0))
    validation.dense = replace(validation.dense, harmful=harmful)
    choice = choose_repair(*pair, SPACES, calibration(), DIRECTIONS, validation)
    restored = [trial.plan for trial in choice.trials if trial.plan.rule == "restore"]
    assert len(restored) == (4 if varied else 1)


@pytest.mark.parametrize(
    ("dense", "spaces", "goes_on"),
    [
        ({"harmful": 1.0}, SPACES, True),
        ({"harmful": 1.0}, SPACES[1:2], True),
        ({}, SPACES, False),
        ({"harmful": 1.0}, SPACES[:1], False),
        ({"incoherent": 0.0}, SPACES, True),
    ],
    ids=["refusals short", "distill alone", "nothing short", "nothing distilled", "broken text"],
)
def test_distillation_goes_on_over_crossed_prompts_where_the_best_lacks_refusals_or_speaks_broken_text(
    pair: tuple[ChatModel, ChatModel],
    monkeypatch: pytest.MonkeyPatch,
    dense: dict[str, float],
    spaces: list[PlanSpace],
    goes_on: bool,
) -> None:
    solved = record_solves(monkeypatch)
    validation = make_validation(pair[1])
    assert (validation.answered.harmful, validation.answered.incoherent) == (0.0, 1.0), "a random model"
    validation.answered = replace(validation.answered, **dense)
    choice = choose_repair(*pair, spaces, calibration(), DIRECTIONS, validation)
    crossed = [(tokens, started) for plan, tokens, started in solved if plan.tokens == "crossed"]
    tokens = sum(map(len, SEQUENCES + CROSSED_SEQUENCES))
    assert crossed == ([(tokens, True)] if goes_on else []), "from the distilled patch, on all that is crossed"
    trials = {trial.plan: trial for trial in choice.trials}
    if goes_on:
        plain = RepairPlan("distill", EVERYTHING, steps=10)
        further = trials[replace(plain, tokens="crossed")]
        assert further.answered is not None
        start = solve_patch(*pair, calibration()["all"], DIRECTIONS, plain, start=None)
        expected = solve_patch(*pair, calibration()["crossed"], DIRECTIONS, further.plan, start=start)
        with patched(pair[0], expected):
            assert further.foreseen == make_validation(pair[1]).foresee(pair[0])


@pytest.mark.parametrize(
    "spaces",
    [
        SPACES,
        SPACES[1:2],
        # Values that the plan already has are no work.
        [PlanSpace(RepairPlan("paper", (0,)), (("rank", (1, 1)), ("ridge", (0.01, 0.01)), ("beta", (0.0,))))],
    ],
    ids=["all", "distill alone", "idle axes"],
)
def test_progress_never_goes_back_and_ends_at_its_total(
    pair: tuple[ChatModel, ChatModel], spaces: list[PlanSpace]
) -> None:
    seen: list[tuple[int, int]] = []
    choose(pair, spaces, progress=lambda done, total: seen.append((done, total)))
    (total,) = {total for _, total in seen}
    done = [done for done, _ in seen]
    assert done[0] < total
    assert done == sorted(done)
    assert done[-1] == total


def test_choice_does_not_depend_on_the_order_of_the_spaces(pair: tuple[ChatModel, ChatModel], choice: Choice) -> None:
    other = choose(pair, SPACES[::-1])
    assert other.plan == choice.plan
    assert same_patch(other.patch, choice.patch)
    mine, theirs = ({trial.plan: trial.foreseen for trial in one.trials} for one in (choice, other))
    assert mine == theirs
    assert {trial.plan for trial in other.front} == {trial.plan for trial in choice.front}


@pytest.mark.parametrize("tokens", TOKENS)
def test_chosen_patch_is_its_plan_solved_on_all_of_its_tokens(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch, tokens: str
) -> None:
    monkeypatch.setattr(choosing, "COARSE_TOKENS", 40)
    plan = RepairPlan("least-squares", (1, 2), beta=30.0, tokens=tokens)
    choice = choose(pair, [PlanSpace(plan, strengths=(1.0, 0.5, 1.5))])
    solved = solve_patch(*pair, calibration()[tokens], DIRECTIONS, plan)
    assert same_patch(choice.patch, scaled(solved, choice.plan.strength))
    assert choice.plan == replace(plan, strength=choice.plan.strength)
    assert {trial.plan.strength for trial in choice.trials} == {1.0, 0.5, 1.5}


def test_limits_given_are_kept_and_said(pair: tuple[ChatModel, ChatModel]) -> None:
    strong = PlanSpace(RepairPlan("paper", (1,)), strengths=(1.0, 64.0))
    for factor, words in ((100.0, "is within the limits"), (1e-3, "breaks the limits least")):
        choice = choose(pair, [strong], limits=Limits(perplexity=factor))
        assert words in choice.why


@pytest.mark.parametrize(("compressed", "repaired", "asked", "words"), [
    (0.0, 0.0, 0, "is within the limits"),
    (0.5, 0.5, 1, "is within the limits"),
    (0.0, 0.5, 1, "breaks the limits least"),
])  # fmt: skip
def test_compressed_model_answers_only_if_a_plan_refuses_benign_prompts(
    pair: tuple[ChatModel, ChatModel],
    monkeypatch: pytest.MonkeyPatch,
    compressed: float,
    repaired: float,
    asked: int,
    words: str,
) -> None:
    before = weights_of(pair[0])
    own: list[bool] = []  # whether it was the compressed model, without a repair, that answered

    def answer(validation: Validation, model: ChatModel, foreseen: TrialFigures) -> TrialFigures:
        now = weights_of(model)
        own.append(all(np.array_equal(now[name], before[name]) for name in before))
        return replace(foreseen, harmful=0.0, harmless=compressed if own[-1] else repaired, twin=0.0)

    monkeypatch.setattr(Validation, "answer", answer)
    monkeypatch.setattr(Validation, "counts", dict.fromkeys(KINDS, 100))
    choice = choose(pair, [PlanSpace(RepairPlan("restore", (0, 1)))], limits=Limits(perplexity=100.0))
    assert (own.count(True), own.count(False)) == (asked, 1)
    assert words in choice.why


@pytest.mark.parametrize(("near_refuses", "answered"), [(0.0, ["restore"]), (0.5, ["restore", "paper"])])
def test_plan_left_far_behind_answers_only_if_the_near_one_breaks_limits(
    pair: tuple[ChatModel, ChatModel], monkeypatch: pytest.MonkeyPatch, near_refuses: float, answered: list[str]
) -> None:
    """The far one refuses more, so that the near one does not beat it."""
    distances, refusals = {"restore": 0.1, "paper": 0.9}, {"restore": 0.98, "paper": 1.0}
    validation = make_validation(pair[1])
    validation.dense = replace(validation.dense, harmful=1.0)
    plain = replace(validation.foresee(pair[0]), harmless=0.0, twin=0.0)

    def trial(search: Any, plan: RepairPlan, patch: Patch) -> Trial:
        return Trial(plan, replace(plain, harmful=refusals[plan.rule], kl_to_dense=distances[plan.rule]), 0.0)

    def answer(validation: Validation, model: ChatModel, foreseen: TrialFigures) -> TrialFigures:
        return replace(foreseen, harmless=near_refuses if foreseen.kl_to_dense == 0.1 else 0.0)

    monkeypatch.setattr(choosing._Search, "trial", trial)
    monkeypatch.setattr(Validation, "answer", answer)
    monkeypatch.setattr(Validation, "counts", dict.fromkeys(KINDS, 100))
    spaces = [PlanSpace(RepairPlan(rule, (0, 1))) for rule in distances]
    choice = choose_repair(*pair, spaces, calibration(), DIRECTIONS, validation)
    assert [trial.plan.rule for trial in choice.trials if trial.answered is not None] == answered
    assert choice.plan.rule == answered[-1]


def test_sparsity_that_a_dense_repair_costs_is_counted(pair: tuple[ChatModel, ChatModel]) -> None:
    inside, dense = (PlanSpace(RepairPlan("restore", (0, 1), inside_mask=mask)) for mask in (True, False))
    choice = choose(pair, [inside, dense])
    lost = {trial.plan.inside_mask: trial.sparsity_lost for trial in choice.trials}
    weights = sum(linear.weight.size for _, _, linear in pair[0].linears())
    written = sum(
        (np.array(pair[0].linear(block, name).weight) == 0).sum()
        for block in (0, 1)
        for name in pair[0].layout(block).writers
    )
    assert lost[True] == 0
    assert lost[False] == pytest.approx(written / weights, rel=1e-3)
