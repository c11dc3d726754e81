"""A planted direction is measured back, and its scores equal naive forward passes in numpy, one candidate at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.direction import (
    Candidate,
    Direction,
    cosine,
    kl_divergence,
    last_logits,
    last_refusal_log_odds,
    load_direction,
    mean_differences,
    measure_direction,
    refusal_log_odds,
    refusal_subspace,
    refusal_tokens,
    save_direction,
    score_candidates,
    select_candidate,
)
from aird_mlx.direction.shared_start import SharedStart
from aird_mlx.errors import DirectionError, ModelError
from aird_mlx.model import ChatModel, load

HIDDEN, MARKER, REFUSAL, ANSWER = 32, 300, 310, 311
ENDING = [1, 2, 3]
# Residual dimensions with a meaning in the planted model; the others carry what tokens are.
MARKER_DIMENSION, CONSTANT_DIMENSION = 20, 21


def planted_vector() -> np.ndarray:
    """The unit direction that the planted model refuses along; 0 where the model's other meanings lie."""
    vector = np.random.default_rng(5).normal(size=HIDDEN)
    vector[MARKER_DIMENSION:] = 0
    return vector / np.linalg.norm(vector)


def plant(model: ChatModel, block: int) -> None:
    """Make ``model`` refuse prompts that hold MARKER: block ``block`` writes r wherever a marker came before.

    Attention of that block looks everywhere alike and copies the marker's dimension onto r; the next block copies r
    onto another direction, so that only the input of block ``block + 1`` shows r alone. The rest adds noise.
    """
    generator = np.random.default_rng(6)
    other = np.zeros(HIDDEN)
    other[MARKER_DIMENSION + 2 :] = 1 / np.sqrt(HIDDEN - MARKER_DIMENSION - 2)
    embedding = np.zeros((320, HIDDEN))
    embedding[:, :MARKER_DIMENSION] = generator.normal(size=(320, MARKER_DIMENSION)) * 0.3
    embedding -= np.outer(embedding @ planted_vector(), planted_vector())
    embedding[:, CONSTANT_DIMENSION] = 1.0
    embedding[MARKER, MARKER_DIMENSION] = 4.0
    model.network.model.embed_tokens.weight = mx.array(embedding.astype(np.float32))
    for index in range(len(model.blocks)):
        for name in model.layout(0).linear_names:
            linear = model.linear(index, name)
            noise = 0.02 if name.startswith("mlp") else 0.0
            linear.weight = mx.array(generator.normal(size=linear.weight.shape).astype(np.float32) * noise)
    marker = np.eye(HIDDEN)[MARKER_DIMENSION]
    copies = ((block, marker, planted_vector() * 6), (block + 1, planted_vector(), other * 0.5))
    for index, read, written in copies:
        value, output = np.zeros((16, HIDDEN)), np.zeros((HIDDEN, HIDDEN))
        value[0], output[:, 0] = read, written
        model.linear(index, "self_attn.v_proj").weight = mx.array(value.astype(np.float32))
        model.linear(index, "self_attn.o_proj").weight = mx.array(output.astype(np.float32))
    head = generator.normal(size=(320, HIDDEN)) * 0.01
    head[REFUSAL] = 12 * planted_vector()
    head[ANSWER, CONSTANT_DIMENSION] = 3.0
    model.network.lm_head.weight = mx.array(head.astype(np.float32))


def prompts(count: int, seed: int, *, marked: bool) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words = generator.integers(10, 290, generator.integers(4, 9)).tolist()
        if marked:
            words.insert(int(generator.integers(0, 3)), MARKER)
        made.append(words + ENDING)
    return made


@pytest.fixture
def planted(model_folder: Callable[..., Path]) -> Callable[[int], ChatModel]:
    def make(block: int) -> ChatModel:
        model = load(model_folder(num_hidden_layers=6, tie_word_embeddings=False))
        plant(model, block)
        return model

    return make


@pytest.mark.parametrize("block", [0, 1, 3])
def test_planted_direction_is_found_at_the_layer_it_was_written_to(
    planted: Callable[[int], ChatModel], block: int
) -> None:
    model = planted(block)
    measured = measure_direction(
        model,
        harmful=prompts(48, 1, marked=True),
        harmless=prompts(48, 2, marked=False),
        select_harmful=prompts(12, 3, marked=True),
        select_harmless=prompts(12, 4, marked=False),
        tokens=[REFUSAL],
        positions=3,
    )
    direction = measured.direction
    assert direction.layer == block + 1
    assert float(np.dot(np.array(direction.vector), planted_vector())) > 0.999
    assert float(mx.linalg.norm(direction.vector).item()) == pytest.approx(1.0, abs=1e-5)
    assert direction.survived
    assert (direction.found, direction.selected) == ((48, 48), (12, 12))
    plain = last_refusal_log_odds(model, prompts(12, 3, marked=True), [REFUSAL])
    assert plain.min().item() > 0, "the model must refuse marked prompts"
    assert last_refusal_log_odds(model, prompts(12, 4, marked=False), [REFUSAL]).max().item() < 0
    assert direction.bypass < 0 < direction.induce
    assert measured.cosine_with(direction) == pytest.approx(1.0, abs=1e-5)
    ablated = last_refusal_log_odds(model, prompts(12, 3, marked=True), [REFUSAL], direction.vector * 7)
    assert ablated.mean().item() == pytest.approx(direction.bypass, abs=1e-4)


def test_prompts_that_do_not_differ_have_no_direction(tiny: ChatModel) -> None:
    same = prompts(6, 1, marked=False)
    with pytest.raises(DirectionError, match=r"^direction: .*look the same at every layer") as raised:
        measure_direction(
            tiny, harmful=same, harmless=same, select_harmful=same, select_harmless=same, tokens=[5], positions=2
        )
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"harmful": []}, "0 harmful and 6 harmless prompts to take means over"),
        ({"select_harmless": []}, "6 harmful and 0 harmless prompts to score candidates on"),
        ({"tokens": []}, "no token is given that refusals start with"),
        ({"positions": 40}, "40 last tokens of prompts of"),
        ({"positions": 0}, "0 last tokens"),
    ],
)
def test_what_is_missing_to_measure_a_direction_is_one_line(
    tiny: ChatModel, changes: dict[str, Any], said: str
) -> None:
    marked, plain = prompts(6, 1, marked=True), prompts(6, 2, marked=False)
    given = {"harmful": marked, "harmless": plain, "select_harmful": marked, "select_harmless": plain}
    with pytest.raises(DirectionError, match=f"^direction: {said}") as raised:
        measure_direction(tiny, **(given | {"tokens": [5], "positions": 2} | changes))
    assert "\n" not in str(raised.value)


def test_logits_that_are_not_finite_select_nothing(tiny: ChatModel) -> None:
    tiny.network.model.norm.weight = mx.full(tiny.network.model.norm.weight.shape, float("nan"))
    marked, plain = prompts(6, 1, marked=True), prompts(6, 2, marked=False)
    given = {"harmful": marked, "harmless": plain, "select_harmful": marked, "select_harmless": plain}
    with pytest.raises(ModelError, match=r"^direction: the model gives logits that are not finite"):
        measure_direction(tiny, **given, tokens=[5], positions=2)


def test_interventions_name_the_block_that_is_not_finite(tiny: ChatModel) -> None:
    linear = tiny.linear(3, "mlp.down_proj")
    linear.weight = mx.full(linear.weight.shape, float("inf"))
    with pytest.raises(ModelError, match=r"^activations: block 3 gives values that are not finite"):
        last_refusal_log_odds(tiny, prompts(2, 1, marked=True), [5], mx.ones(32))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"] * 2}),
    ],
)
def test_a_shared_start_changes_no_score(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any]
) -> None:
    model = load(model_folder(model_type, **changes))
    start = list(range(40, 60))
    asked = [[start + ids for ids in prompts(5, seed, marked=False)] for seed in (3, 4)]
    differences = mx.random.normal((4, 2, 32), key=mx.random.key(3))
    assert SharedStart(model, asked[0]).shared == 20
    shared = score_candidates(model, differences, *asked, [7])
    plain = np.array(last_logits(model, asked[0]))
    for row, ids in zip(plain, asked[0], strict=True):
        np.testing.assert_allclose(row, np.array(model.network(mx.array([ids]))[0, -1]), atol=2e-5)
    monkeypatch.setattr("aird_mlx.direction.shared_start.LEAST_SHARED", 1000)
    apart = score_candidates(model, differences, *asked, [7])
    for name in ("bypass", "induce", "kl"):
        np.testing.assert_allclose(getattr(shared, name), getattr(apart, name), atol=2e-5)


def test_candidates_in_small_parts_score_as_all_at_once(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = mx.random.normal((4, 3, 32), key=mx.random.key(3))
    asked = prompts(4, 3, marked=True), prompts(5, 4, marked=False)
    together = score_candidates(tiny, differences, *asked, [7])
    monkeypatch.setattr("aird_mlx.direction.interventions.RIDING_TOKENS", 100)
    apart = score_candidates(tiny, differences, *asked, [7])
    for name in ("bypass", "induce", "kl"):
        assert getattr(together, name).shape == (12, 4 if name == "bypass" else 5)
        np.testing.assert_allclose(getattr(together, name), getattr(apart, name), atol=1e-5)
    for candidate, *rows in zip(together.candidates, together.bypass, together.induce, together.kl, strict=True):
        means = (candidate.bypass, candidate.induce, candidate.kl)
        np.testing.assert_allclose(means, [row.mean() for row in rows], atol=1e-5)


def test_mean_differences_equal_numpy_means(tiny: ChatModel) -> None:
    harmful, harmless = prompts(5, 1, marked=True), prompts(7, 2, marked=False)
    reference = oracle.Llama(dict(tree_flatten(tiny.network.parameters())), tiny.config)

    def means(rows: list[list[int]]) -> np.ndarray:
        return np.mean([[state[-2:] for state in reference.hidden(ids)[:-1]] for ids in rows], axis=0)

    found = mean_differences(tiny, harmful, harmless, 2)
    assert found.shape == (4, 2, 32)
    np.testing.assert_allclose(np.array(found), means(harmful) - means(harmless), atol=1e-5)


@pytest.mark.parametrize("start", [[], list(range(40, 52))], ids=["nothing shared", "shared start"])
def test_candidate_scores_equal_naive_forwards_one_candidate_at_a_time(tiny: ChatModel, start: list[int]) -> None:
    asked = prompts(4, 3, marked=True), prompts(5, 4, marked=False)
    harmful, harmless = ([start + ids for ids in rows] for rows in asked)
    tokens = [7, 90, 91]
    differences = mx.random.normal((4, 2, 32), key=mx.random.key(3))
    weights = dict(tree_flatten(tiny.network.parameters()))

    def last(rows: list[list[int]], **change: object) -> np.ndarray:
        network = oracle.Llama(weights, tiny.config, **change)  # type: ignore[arg-type]
        return np.stack([network.logits(ids)[-1] for ids in rows])

    scores = score_candidates(tiny, differences, harmful, harmless, tokens)
    candidates = scores.candidates
    assert [(one.layer, one.position) for one in candidates] == [(layer, p) for layer in range(4) for p in (-2, -1)]
    for candidate in candidates:
        vector = np.array(differences[candidate.layer, candidate.position], dtype=np.float64)
        unit = vector / np.linalg.norm(vector)
        ablated = last(harmless, ablate=unit)
        added = last(harmless, add=(candidate.layer, vector))
        bypass = oracle.refusal_log_odds(last(harmful, ablate=unit), tokens).mean()
        assert candidate.norm == pytest.approx(np.linalg.norm(vector), rel=1e-5)
        assert candidate.bypass == pytest.approx(bypass, abs=2e-4)
        assert candidate.induce == pytest.approx(oracle.refusal_log_odds(added, tokens).mean(), abs=2e-4)
        assert candidate.kl == pytest.approx(oracle.kl_divergence(last(harmless), ablated).mean(), abs=2e-4)
        assert candidate.kl > 1e-3, "an ablation without effect would test nothing"


def test_ablation_projects_each_prompt_by_its_own_candidate_in_any_batching(tiny: ChatModel) -> None:
    rows = prompts(6, 8, marked=False)
    vector = mx.random.normal((32,), key=mx.random.key(1))
    together = last_refusal_log_odds(tiny, rows, [7], vector)
    alone = [last_refusal_log_odds(tiny, [ids], [7], vector).item() for ids in rows]
    np.testing.assert_allclose(np.array(together), alone, atol=1e-5)


def test_scores_leave_out_late_layers_and_empty_differences(model_folder: Callable[..., Path]) -> None:
    model = load(model_folder(num_hidden_layers=5))
    differences = mx.random.normal((5, 2, 32), key=mx.random.key(0))
    differences[1, 0] = 0
    seen: list[tuple[int, int]] = []
    candidates = score_candidates(
        model,
        differences,
        prompts(2, 1, marked=True),
        prompts(2, 2, marked=False),
        [5],
        progress=lambda done, total: seen.append((done, total)),
    ).candidates
    assert [(one.layer, one.position) for one in candidates] == [
        (0, -2), (0, -1), (1, -1), (2, -2), (2, -1), (3, -2), (3, -1),
    ]  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_scoring_leaves_the_model_as_found(tiny: ChatModel) -> None:
    before = np.array(tiny.network(mx.array([ENDING])))
    blocks = list(tiny.blocks)
    score_candidates(tiny, mx.ones((4, 1, 32)), prompts(2, 1, marked=True), prompts(2, 2, marked=False), [5])
    np.testing.assert_array_equal(np.array(tiny.network(mx.array([ENDING]))), before)
    assert all(now is then for now, then in zip(tiny.blocks, blocks, strict=True))


logits = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6), min_size=1, max_size=4)


@given(logits, st.lists(st.integers(0, 5), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_refusal_log_odds_equal_summed_probabilities(rows: list[list[float]], tokens: list[int]) -> None:
    found = np.array(refusal_log_odds(mx.array(rows), tokens))
    # log(1 - p) in float64 is exact enough only while 1 - p is not tiny.
    expected = np.clip(oracle.refusal_log_odds(np.array(rows, dtype=np.float32), tokens), -30, 30)
    np.testing.assert_allclose(np.clip(found, -30, 30), expected, atol=2e-4)


def test_refusal_log_odds_keep_their_meaning_at_the_extremes() -> None:
    rows = mx.array([[1000.0, 0.0], [-1000.0, 0.0]])
    assert refusal_log_odds(rows, [0]).tolist() == [1000.0, -1000.0]
    assert refusal_log_odds(mx.zeros((1, 8)).astype(mx.float16), [0, 1, 1]).item() == pytest.approx(np.log(2 / 6))


@given(logits)
@settings(max_examples=60, deadline=None)
def test_kl_equals_the_oracle_and_is_zero_for_equals(rows: list[list[float]]) -> None:
    one, other = mx.array(rows), mx.array(rows[::-1])
    expected = oracle.kl_divergence(np.array(one), np.array(other))
    np.testing.assert_allclose(np.array(kl_divergence(one, other)), expected, atol=1e-3, rtol=1e-4)
    np.testing.assert_array_equal(np.array(kl_divergence(one, one)), 0)


def candidate(bypass: float, *, induce: float = 1.0, kl: float = 0.01, layer: int = 1) -> Candidate:
    return Candidate(layer=layer, position=-1, norm=1.0, bypass=bypass, induce=induce, kl=kl)


def test_select_takes_the_lowest_bypass_among_survivors() -> None:
    chosen = candidate(-3.0)
    assert select_candidate([candidate(-1.0), chosen, candidate(-9.0, kl=0.2), candidate(-8.0, induce=-0.1)]) is chosen


def test_select_without_survivors_keeps_the_kl_filter_first() -> None:
    gentle = candidate(-2.0, induce=-1.0)
    assert select_candidate([candidate(-9.0, kl=0.5), gentle, candidate(-1.0, induce=-1.0)]) is gentle
    assert not gentle.is_survivor


def test_select_without_gentle_candidates_takes_the_lowest_bypass() -> None:
    lowest = candidate(-9.0, kl=0.5, induce=-1.0)
    assert select_candidate([candidate(-2.0, kl=0.3), lowest]) is lowest


@pytest.mark.parametrize(
    ("induce", "kl", "survives"), [(0.0, 0.1, True), (-1e-6, 0.1, False), (0.0, 0.1001, False), (2.0, 0.0, True)]
)
def test_filters_are_those_of_the_paper(induce: float, kl: float, survives: bool) -> None:
    assert candidate(0.0, induce=induce, kl=kl).is_survivor is survives


def logits_of(*rows: dict[int, float]) -> mx.array:
    """Logits ``[prompt, 10]`` whose softmax has the given probabilities, the rest spread evenly."""
    probabilities = np.zeros((len(rows), 10))
    for number, row in enumerate(rows):
        probabilities[number] = (1 - sum(row.values())) / (10 - len(row))
        for token, probability in row.items():
            probabilities[number, token] = probability
    return mx.array(np.log(probabilities).astype(np.float32))


def test_refusal_tokens_come_likeliest_first_without_those_of_answers() -> None:
    refused = logits_of({5: 0.3, 6: 0.4, 7: 0.25}, {5: 0.2, 6: 0.5, 7: 0.25})
    answered = logits_of({7: 0.25, 8: 0.72})
    assert refusal_tokens(refused, answered) == [6, 5]


def test_refusal_tokens_are_found_though_the_model_never_says_them_first() -> None:
    assert refusal_tokens(logits_of({5: 0.6, 6: 0.39}), logits_of({8: 0.99})) == [5, 6]


def test_refusal_tokens_like_those_of_answers_are_an_error() -> None:
    with pytest.raises(DirectionError, match=r"no first token of 1 refusals"):
        refusal_tokens(logits_of({1: 0.5, 2: 0.49}), logits_of({1: 0.5, 2: 0.49}))


def test_cosine_of_known_vectors() -> None:
    one, other = mx.array([3.0, 4.0]), mx.array([4.0, 3.0])
    assert cosine(one, other) == pytest.approx(0.96)
    assert cosine(one, -one) == pytest.approx(-1.0)
    assert cosine(one, mx.zeros(2)) == 0.0


def test_direction_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = Direction(
        vector=mx.random.normal((32,), key=mx.random.key(2)),
        layer=3,
        position=-2,
        norm=1.25,
        bypass=-3.5,
        induce=0.1,
        kl=1e-7,
        survived=False,
        found=(128, 127),
        selected=(32, 31),
    )
    save_direction(saved, tmp_path / "direction.safetensors")
    loaded = load_direction(tmp_path / "direction.safetensors")
    assert mx.array_equal(loaded.vector, saved.vector).item()
    assert {**vars(loaded), "vector": 0} == {**vars(saved), "vector": 0}


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"vector": mx.zeros(4)}, {}),
        ({"vector": mx.zeros(4)}, {"aird.direction": '{"layer": 3}'}),
        ({"vector": mx.zeros(4)}, {"aird.direction": "["}),
        ({"vector": mx.zeros(4)}, {"aird.direction": "[]"}),
        ({"0.mlp.down_proj.left": mx.zeros((4, 1))}, {"aird.patch": "{}"}),
    ],
)
def test_file_that_is_no_direction_is_one_line(
    arrays: dict[str, mx.array], metadata: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "direction.safetensors"
    mx.save_safetensors(str(path), arrays, metadata=metadata)
    with pytest.raises(DirectionError, match=r"^direction: .*direction\.safetensors is not a direction") as raised:
        load_direction(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_direction_that_is_missing_or_broken_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "direction.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DirectionError, match=r"^direction: .*direction\.safetensors is not a direction") as raised:
        load_direction(path)
    assert "\n" not in str(raised.value)


# --- more than one direction --------------------------------------------------------------------------------------


def direction_at(layer: int, position: int, vector: np.ndarray) -> Direction:
    return Direction(mx.array(vector.astype(np.float32)), layer, position, 1.0, 0.0, 0.0, 0.0, True, (1, 1), (1, 1))


def test_second_and_third_planted_directions_are_found_in_the_order_of_their_size(tiny: ChatModel) -> None:
    generator = np.random.default_rng(8)
    planted = oracle.orthonormal_rows(generator, 3, HIDDEN)
    # At the first layer a state is the embedding of its token: 10 to 59 end harmful prompts, 60 to 109 harmless ones.
    embedding = generator.normal(size=(320, HIDDEN)) * 0.02
    embedding[:, 0] += 1.0  # what all have in common
    embedding[10:60] += 5 * planted[0] + generator.normal(size=(50, 2)) * [2.0, 0.7] @ planted[1:]
    tiny.network.model.embed_tokens.weight = mx.array(embedding.astype(np.float32))
    harmful, harmless = ([[200 + token % 7, token, 5] for token in range(at, at + 50)] for at in (10, 60))
    found = np.array(refusal_subspace(tiny, direction_at(0, -2, planted[0]), harmful, harmless, 3))
    assert found.shape == (3, HIDDEN)
    np.testing.assert_array_equal(found[0], np.float32(planted[0]))
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    assert abs(found[1] @ planted[1]) > 0.99
    assert abs(found[2] @ planted[2]) > 0.99


@pytest.mark.parametrize(("layer", "position", "is_difference"), [(1, -1, True), (3, -3, True), (2, -2, False)])
def test_subspace_is_the_leading_components_of_what_sets_harmful_states_apart(
    tiny: ChatModel, layer: int, position: int, is_difference: bool
) -> None:
    reference = oracle.Llama(dict(tree_flatten(tiny.network.parameters())), tiny.config)
    harmful, harmless = prompts(14, 1, marked=True), prompts(9, 2, marked=False)
    states = [np.stack([reference.hidden(ids)[layer][position] for ids in asked]) for asked in (harmful, harmless)]
    apart = states[0] - states[1].mean(axis=0)
    first = apart.mean(axis=0) / np.linalg.norm(apart.mean(axis=0)) if is_difference else planted_vector()
    components = np.linalg.svd(apart - np.outer(apart @ first, first))[2]
    found = np.array(refusal_subspace(tiny, direction_at(layer, position, first), harmful, harmless, 4))
    assert found.shape == (4, HIDDEN)
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-5)
    for mine, expected in zip(found[1:], components, strict=False):
        assert abs(mine @ expected) > 0.999


@pytest.mark.parametrize("count", [1, 2, 3])
def test_subspace_has_no_more_directions_than_the_states_span(tiny: ChatModel, count: int) -> None:
    harmful, harmless = prompts(count, 1, marked=True), prompts(9, 2, marked=False)
    difference = mean_differences(tiny, harmful, harmless, 1)[2, -1]
    vector = np.array(difference / mx.linalg.norm(difference))
    found = np.array(refusal_subspace(tiny, direction_at(2, -1, vector), harmful, harmless, 5))
    assert len(found) == count, "the mean difference is one of as many directions as there are prompts"
    np.testing.assert_allclose(found @ found.T, np.eye(count), atol=1e-4)


def test_subspace_of_rank_one_is_the_direction(tiny: ChatModel) -> None:
    vector = planted_vector()
    harmful, harmless = prompts(6, 1, marked=True), prompts(6, 2, marked=False)
    found = np.array(refusal_subspace(tiny, direction_at(1, -1, vector), harmful, harmless, 1))
    np.testing.assert_array_equal(found, np.float32(vector)[None])
