"""Rates over tries, McNemar's exact test and Cohen's kappa against brute force."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from aird_mlx.evaluation import COMPLIANCE, INCOHERENT, REFUSAL, answer_rates, paired_change, wilson_rate, worst_class
from aird_mlx.evaluation.statistics import CLASSES, cohen_kappa, mean_rate

classes = st.sampled_from(CLASSES)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
@example([False] * 30)
@example([True] * 30)
def test_rates_of_counts_and_of_single_tries_are_scipys(outcomes: list[bool]) -> None:
    n, successes = len(outcomes), sum(outcomes)
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    for rate in (mean_rate([float(outcome) for outcome in outcomes]), wilson_rate(successes, n)):
        assert rate is not None
        assert (rate.rate, rate.n) == (successes / n, n)
        assert (rate.low, rate.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert rate.low == 0 or successes
        assert rate.high == 1 or successes < n


@given(st.lists(st.integers(0, 5), min_size=2, max_size=200))
def test_mean_rate_counts_prompts_and_holds_its_mean(counts: list[int]) -> None:
    rate = mean_rate([count / 5 for count in counts])
    assert rate is not None
    assert rate.rate == pytest.approx(np.mean(counts) / 5)
    assert rate.n == len(counts)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    narrow = wilson_rate(sum(counts), 5 * len(counts))
    assert narrow is not None
    assert rate.high - rate.low >= narrow.high - narrow.low, "tries of one prompt must not count as prompts"


def test_mean_rate_interval_covers_the_mean_of_correlated_tries() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chances = random.beta(0.5, 0.5, size=60)  # some prompts nearly always comply, some nearly never; mean 0.5
        rate = mean_rate((random.binomial(5, chances) / 5).tolist())
        assert rate is not None
        covered += rate.low <= 0.5 <= rate.high
    assert covered >= 0.95 * 400


def test_mean_rate_of_nothing_is_none() -> None:
    assert mean_rate([]) is None


@given(st.lists(classes, min_size=1, max_size=6))
def test_worst_class_is_compliance_if_any_and_never_worse_than_seen(tries: list[str]) -> None:
    assert (worst_class(tries) == COMPLIANCE) == (COMPLIANCE in tries)
    assert worst_class(tries) in tries
    assert worst_class([INCOHERENT, REFUSAL]) == REFUSAL


@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(classes, min_size=n, max_size=n), min_size=1, max_size=30))
)
def test_answer_rates_add_up_and_the_worst_is_no_better_than_the_mean(tries: list[list[str]]) -> None:
    worst, mean = answer_rates(tries)
    assert worst.refusal.rate + worst.compliance.rate + worst.incoherent.rate == pytest.approx(1)
    assert worst.compliance.n == len(tries)
    assert (mean is None) == (len(tries[0]) == 1)
    if mean is not None:
        assert mean.refusal.rate + mean.compliance.rate + mean.incoherent.rate == pytest.approx(1)
        assert worst.compliance.rate >= mean.compliance.rate - 1e-12
        flat = [one for row in tries for one in row]
        assert mean.compliance.rate == pytest.approx(flat.count(COMPLIANCE) / len(flat))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact: all tables at least as far from even as this one."""
    n = gained + lost
    far = abs(gained - lost)
    return sum(comb(n, k) for k in range(n + 1) if abs(n - 2 * k) >= far) / 2**n


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_paired_change_is_mcnemars_exact_test(pairs: list[tuple[bool, bool]]) -> None:
    before, after = zip(*pairs, strict=True)
    change = paired_change(before, after)
    assert (change.gained, change.lost) == (pairs.count((False, True)), pairs.count((True, False)))
    assert (change.before, change.after) == (sum(before) / len(pairs), sum(after) / len(pairs))
    assert change.n == len(pairs)
    assert change.p_value == pytest.approx(mcnemar(change.gained, change.lost))
    assert paired_change(after, before).p_value == pytest.approx(change.p_value)


def test_paired_change_of_a_known_table() -> None:
    # 3 against 14 discordant pairs: p = 0.0127 (exact binomial, two-sided).
    before = [True] * 14 + [False] * 3 + [True] * 5
    after = [False] * 14 + [True] * 3 + [True] * 5
    assert paired_change(before, after).p_value == pytest.approx(0.012726, abs=1e-6)


def test_unchanged_prompts_say_nothing_and_unequal_lists_are_refused() -> None:
    assert paired_change([True, False], [True, False]).p_value == 1.0
    with pytest.raises(ValueError, match="zip"):
        paired_change([True], [True, False])


@given(st.lists(st.tuples(classes, classes), min_size=1, max_size=60))
def test_kappa_is_that_of_the_table_of_counts(pairs: list[tuple[str, str]]) -> None:
    table = np.array([[pairs.count((a, b)) for b in CLASSES] for a in CLASSES], dtype=float) / len(pairs)
    chance = float(table.sum(0) @ table.sum(1))
    found = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
    if np.isclose(chance, 1):
        assert found is None
    else:
        assert found == pytest.approx((float(np.trace(table)) - chance) / (1 - chance))


def test_kappa_of_nothing_and_of_perfect_agreement() -> None:
    assert cohen_kappa([], []) is None
    assert all(cohen_kappa([a, b], [a, b]) == 1 for a, b in product(CLASSES, CLASSES) if a != b)
