"""A planted rotation is measured back through noise, and the kernels equal numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import oracle
from aird_mlx.direction.comparison import (
    SplitScores,
    compare_directions,
    half_means,
    random_halves,
    score_splits,
)
from aird_mlx.errors import DirectionError
from aird_mlx.model import ChatModel, load
from test_direction import HIDDEN, MARKER_DIMENSION, plant, planted_vector, prompts


def rotation(degrees: float, hidden: int = HIDDEN) -> np.ndarray:
    """The rotation ``[hidden, hidden]`` that turns the planted vector by an angle towards a direction without it."""
    one = np.zeros(hidden)
    one[: len(planted_vector())] = planted_vector()
    other = np.random.default_rng(9).normal(size=hidden)
    other[20:32] = 0
    other -= one * (one @ other)
    other /= np.linalg.norm(other)
    angle = np.radians(degrees)
    plane = np.outer(one, one) + np.outer(other, other)
    turned = np.cos(angle) * plane + np.sin(angle) * (np.outer(other, one) - np.outer(one, other))
    return np.eye(hidden) - plane + turned


def noisy_halves(
    generator: np.random.Generator, means: list[np.ndarray], *, n: int, splits: int, shared: float = 0.0
) -> list[tuple[mx.array, mx.array]]:
    """Half differences of models whose harmful states lie around ``means`` and harmless ones around 0, noise 1."""
    halves = [random_halves(n, splits, seed) for seed in generator.integers(0, 2**31, 2)]
    common = [generator.normal(size=(n, len(means[0]))) for _ in range(2)]
    made = []
    for mean in means:
        own = [generator.normal(size=(n, len(mean))) for _ in range(2)]
        noise = [np.sqrt(shared) * one + np.sqrt(1 - shared) * other for one, other in zip(common, own, strict=True)]
        states = [mx.array((noise[0] + mean)[:, None]), mx.array(noise[1][:, None])]
        (a, b), (c, d) = (half_means([(state, range(n))], half) for state, half in zip(states, halves, strict=True))
        made.append((a - c, b - d))
    return made


def test_random_halves_are_halves_and_differ() -> None:
    halves = random_halves(11, 50, seed=3)
    assert (halves.sum(axis=1) == 5).all()
    assert len({tuple(row) for row in halves.tolist()}) > 40
    np.testing.assert_array_equal(halves, random_halves(11, 50, seed=3))
    assert np.abs(halves.mean(axis=0) - 5 / 11).max() < 0.3


def test_halves_of_too_few_prompts_are_an_error() -> None:
    with pytest.raises(DirectionError, match=r"^compare: 7 prompts of one kind .* at least 8"):
        random_halves(7, 10, seed=0)


def test_half_means_equal_numpy_whatever_the_batches() -> None:
    generator = np.random.default_rng(0)
    states, halves = generator.normal(size=(9, 2, 5)), random_halves(9, 6, seed=1)
    orders = [[3, 0, 8], [1, 2, 4, 5, 6, 7]]
    first, rest = half_means([(mx.array(states[order]), order) for order in orders], halves)
    for split, half in enumerate(halves):
        np.testing.assert_allclose(np.array(first[split]), states[half].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(np.array(rest[split]), states[~half].mean(axis=0), atol=1e-6)


def test_split_scores_equal_the_oracle() -> None:
    generator = np.random.default_rng(2)
    one, other = ((generator.normal(size=(7, 3, 16)) + 0.5, generator.normal(size=(7, 3, 16)) + 0.5) for _ in range(2))
    found = score_splits(tuple(map(mx.array, one)), tuple(map(mx.array, other)))  # type: ignore[arg-type]
    for position, scores in enumerate(found):
        for split in range(7):
            halves = [half[split, position] for pair in (one, other) for half in pair]
            expected = oracle.split_scores(*halves)
            for name, value in expected.items():
                assert getattr(scores, name)[split] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("degrees", [0.0, 10.0, 30.0, 80.0])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_calibrated_cosine_gives_back_a_planted_angle_that_the_plain_one_misses(degrees: float, shared: float) -> None:
    generator = np.random.default_rng(int(degrees) + 1)
    hidden, n = 1024, 128
    mean, other = np.eye(hidden)[:2] * 8.0
    turned = np.cos(np.radians(degrees)) * mean + np.sin(np.radians(degrees)) * other
    found = noisy_halves(generator, [mean, turned], n=n, splits=100, shared=shared)
    calibrated = score_splits(*found)[0].calibrated_cosine()
    assert calibrated is not None
    true = np.cos(np.radians(degrees))
    assert calibrated.low - 1e-3 <= true <= calibrated.high + 1e-3
    assert calibrated.value == pytest.approx(true, abs=0.06)
    plain = float(np.array(score_splits(*found)[0].cross).mean())
    assert degrees == 80 or abs(plain - true) > 0.03, "noise must matter for this test to mean anything"


def test_intervals_cover_the_true_angle_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    mean, true = np.zeros(128), np.cos(np.radians(30.0))
    turned = np.zeros(128)
    mean[0], turned[0], turned[1] = 4.0, 5.0 * true, 5.0 * np.sin(np.radians(30.0))
    covered, widths, errors = np.zeros((2, 2)), np.zeros(2), np.zeros(2)
    for row, shared in enumerate((0.0, 0.7)):
        for _ in range(100):
            scores = score_splits(*noisy_halves(generator, [mean, turned], n=64, splits=80, shared=shared))[0]
            cosine, ratio = scores.calibrated_cosine(), scores.norm_ratio()
            assert cosine is not None and ratio is not None
            covered[row] += cosine.low <= true <= cosine.high, ratio.low <= 1.25 <= ratio.high
            widths[row] += (cosine.high - cosine.low) / 100
            errors[row] += (cosine.value - true) ** 2 / 100
    assert covered.min() >= 86, covered  # of 100 at 95 %: fewer than 86 happen about once in 2000 runs
    # Nor are they wide for nothing: a normal interval is 3.92 deviations wide, with shared noise ours is wider.
    assert widths[0] / np.sqrt(errors[0]) < 6 and widths[1] / np.sqrt(errors[1]) < 10


def test_without_a_direction_the_calibrated_cosine_is_undefined() -> None:
    generator = np.random.default_rng(0)
    mean = np.zeros(64)
    mean[0] = 5.0
    scores = score_splits(*noisy_halves(generator, [mean, np.zeros(64)], n=64, splits=50))[0]
    assert scores.null_one.min() > 0.5
    assert scores.null_other.mean() < 0.1
    assert scores.calibrated_cosine() is None
    assert scores.norm_ratio() is None


def test_noise_is_not_clipped() -> None:
    scores = SplitScores(*(np.full(3, value) for value in (0.8, 0.8, 0.9, 1.0, 1.0, 0.0, 0.0)))
    calibrated = scores.calibrated_cosine()
    assert calibrated is not None
    assert calibrated.value == pytest.approx(1.125)


@pytest.fixture
def planted(model_folder: Callable[..., Path]) -> Callable[[float], ChatModel]:
    """Models that write the planted direction, and noise from the words, into layer 2, turned by an angle."""

    def make(degrees: float) -> ChatModel:
        model = load(model_folder(num_hidden_layers=4, tie_word_embeddings=False))
        plant(model, 1)
        generator = np.random.default_rng(11)
        value, output = (np.array(model.linear(1, f"self_attn.{name}_proj").weight) for name in "vo")
        value[8:, :MARKER_DIMENSION] = generator.normal(size=(8, MARKER_DIMENSION))
        output[:, 16:24] = generator.normal(size=(HIDDEN, 8)) * 0.3
        model.linear(1, "self_attn.v_proj").weight = mx.array(value)
        model.linear(1, "self_attn.o_proj").weight = mx.array(rotation(degrees).astype(np.float32) @ output)
        for block in (0, 1):
            model.linear(block, "mlp.down_proj").weight = mx.zeros((HIDDEN, 64))
        return model

    return make


@pytest.mark.parametrize("degrees", [0.0, 10.0, 30.0])
def test_a_model_turned_by_a_known_angle_is_measured_so(planted: Callable[[float], ChatModel], degrees: float) -> None:
    dense, turned = planted(0.0), planted(degrees)
    found = compare_directions(
        dense,
        turned,
        prompts(48, 1, marked=True),
        prompts(48, 2, marked=False),
        positions=3,
        across=((2, -1), (2, -1)),
        splits=100,
    )
    assert set(found.places) == {(layer, position) for layer in range(4) for position in (-3, -2, -1)}
    place = found.places[2, -1]
    calibrated = place.splits.calibrated_cosine()
    assert calibrated is not None
    assert place.splits.null_one.mean() < 0.95, "noise must matter for this test to mean anything"
    # What a marker word itself looks like is part of the difference, and the rotation leaves most of that where it is.
    true = float(np.cos(np.radians(degrees)))
    assert calibrated.low - 1e-6 <= true <= calibrated.high + 1e-6
    assert calibrated.value == pytest.approx(true, abs=0.03)
    ratio = place.splits.norm_ratio()
    assert ratio is not None and ratio.value == pytest.approx(1.0, abs=0.02)
    assert found.across.splits.calibrated_cosine() == calibrated
    assert found.across.cosine == pytest.approx(place.cosine)
    before = found.places[1, -1]
    assert before.norms == (0, 0), "the template's ending knows nothing of the words before block 1"
    assert before.splits.calibrated_cosine() is None


def test_compared_norms_and_cosines_are_those_of_the_means(planted: Callable[[float], ChatModel]) -> None:
    from aird_mlx.direction import cosine, mean_differences

    models = planted(0.0), planted(30.0)
    asked = prompts(9, 1, marked=True), prompts(8, 2, marked=False)
    found = compare_directions(*models, *asked, positions=2, across=((2, -2), (3, -1)), splits=5)
    one, other = (mean_differences(model, *asked, 2) for model in models)
    for (layer, position), place in found.places.items():
        assert place.cosine == pytest.approx(cosine(one[layer, position], other[layer, position]), abs=1e-5)
        expected = [mx.linalg.norm(differences[layer, position]).item() for differences in (one, other)]
        assert place.norms == pytest.approx(expected, rel=1e-5)
    assert found.across.cosine == pytest.approx(cosine(one[2, -2], other[3, -1]), abs=1e-5)
