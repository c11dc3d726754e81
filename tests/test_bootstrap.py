"""The resampled selection equals the selection rule applied to each draw, and its intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.direction import Candidate, choose, resample, select_candidate

score = st.floats(-5, 5, width=32)
kl = st.sampled_from([0.0, 0.05, 0.1, 0.11, 3.0])
rows = st.lists(st.tuples(score, score, kl), min_size=1, max_size=6)


def choose_by_hand(bypass: list[float], induce: list[float], kl: list[float]) -> int:
    """The rule of the paper, one candidate after the other."""
    everyone = range(len(bypass))
    survivors = [one for one in everyone if not (kl[one] > 0.1 or induce[one] < 0)]
    pool = survivors or [one for one in everyone if not kl[one] > 0.1] or list(everyone)
    best = pool[0]
    for one in pool[1:]:
        if bypass[one] < bypass[best]:
            best = one
    return best


@given(rows)
def test_choice_is_the_rule_applied_one_by_one(scores: list[tuple[float, float, float]]) -> None:
    columns = [list(column) for column in zip(*scores, strict=True)]
    expected = choose_by_hand(*columns)
    assert int(choose(*map(np.array, columns))) == expected
    candidates = [Candidate(index, -1, 1.0, *row) for index, row in enumerate(scores)]
    assert select_candidate(candidates).layer == expected


def test_every_resample_selects_by_the_rule_from_means_of_drawn_prompts() -> None:
    generator = np.random.default_rng(0)
    bypass, induce, kl = generator.normal(size=(4, 6)), generator.normal(size=(4, 9)), generator.random((4, 9)) * 0.2
    found = resample(bypass, induce, kl, resamples=50, seed=3)
    assert found.bypass.shape == found.kl.shape == (50, 4)
    for row in range(50):
        assert found.winners[row] == choose_by_hand(
            *(part[row].tolist() for part in (found.bypass, found.induce, found.kl))
        )
    np.testing.assert_allclose(found.bypass.mean(axis=0), bypass.mean(axis=1), atol=0.3)
    assert found.shares().sum() == pytest.approx(1.0)
    assert found.shares()[2] == np.mean(found.winners == 2)


def test_one_score_resamples_into_whole_counts() -> None:
    one_hot = np.eye(5)
    found = resample(one_hot, one_hot, np.zeros((5, 5)), resamples=20)
    counts = found.bypass * 5
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    np.testing.assert_allclose(counts.sum(axis=1), 5)
    assert counts.max() > 1, "with replacement some prompt is drawn twice"


def test_the_same_seed_draws_the_same_prompts_for_another_model() -> None:
    generator = np.random.default_rng(1)
    one = [generator.normal(size=(3, 8)) for _ in range(3)]
    again = [generator.normal(size=(5, 8)) for _ in range(3)]
    for number, part in enumerate(one):
        again[number][4] = part[2]
    names = ("bypass", "induce", "kl")
    first, second = resample(*one, seed=7), resample(*again, seed=7)
    for name in names:
        np.testing.assert_allclose(getattr(first, name)[:, 2], getattr(second, name)[:, 4])
    assert not np.array_equal(first.bypass, resample(*one, seed=8).bypass)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        scores = generator.normal(size=(1, 40))
        low, high = resample(scores, scores, scores, resamples=300, seed=int(generator.integers(1e6))).interval("kl", 0)
        covered += low <= 0 <= high
    assert 176 <= covered <= 199, covered


def test_near_ties_are_told_by_the_difference_on_the_same_prompts() -> None:
    generator = np.random.default_rng(2)
    shared, own = generator.normal(size=32) * 5, generator.normal(size=(2, 32))
    # The second is worse on every prompt though both scatter widely; the third scatters on its own.
    bypass = np.stack([shared, shared + 0.5 + 0.1 * own[0], shared + own[1] - own[1].mean() + 0.05])
    found = resample(bypass, np.ones((3, 32)), np.zeros((3, 32)))
    assert found.near_ties(0).tolist() == [True, False, True]
    low, high = found.interval("bypass", 0)
    assert low < bypass[1].mean() < high, "intervals of the means alone would have called it a tie"
