"""Words claim no more than the intervals do."""

from __future__ import annotations

import dataclasses

import pytest

from aird_mlx.report import Estimate, PlaceFigures, ScoredDirection
from aird_mlx.verdict import CAUTION, comparison_in_words, selection_in_words

Triple = tuple[float, float, float]


def place(cosine: Triple | None, ratio: Triple = (1.0, 0.9, 1.1)) -> PlaceFigures:
    angle = None if cosine is None else Estimate(10.0, 5.0, 15.0)
    length = None if cosine is None else Estimate(*ratio)
    calibrated = None if cosine is None else Estimate(*cosine)
    return PlaceFigures(2, -1, 2, -1, 0.9, calibrated, angle, 0.8, 0.05, 1.0, 1.0, length)


def scored(layer: int = 2, *, survived: bool = True, kl: float = 0.01, tie: bool = True) -> ScoredDirection:
    score = Estimate(1.0, 0.5, 1.5)
    return ScoredDirection(layer, -1, 1.0, score, score, Estimate(kl, kl, kl), survived, 0.6, tie)


@pytest.mark.parametrize(
    ("cosine", "said"),
    [
        ((0.8, 0.7, 0.9), "The direction moved: it turned by 10.0 degrees (95 % interval 5.0 to 15.0)."),
        ((0.94, 0.90, 0.96), "whether it is below a cosine of 0.95 is not settled"),
        ((0.97, 0.96, 0.98), "The direction turned a little"),
        ((0.99, 0.96, 1.01), "No evidence that the direction moved: unmoved within 15.0 degrees."),
        ((1.0, 1.0, 0.99999), "No evidence that the direction moved: unmoved"),
        ((0.9, 0.6, 1.1), "No evidence that the direction moved, but 15 degrees cannot be ruled out."),
        (None, "cannot be told: random halves of the prompts do not agree"),
    ],
)
def test_movement_is_claimed_only_as_far_as_the_interval_goes(cosine: Triple | None, said: str) -> None:
    words = comparison_in_words(place(cosine), [scored(), scored()], 0.9)
    assert said in words
    assert words.endswith(CAUTION)
    assert "length" not in words


def test_a_changed_length_source_or_quality_is_said() -> None:
    figures = place((0.99, 0.96, 1.01), (0.8, 0.7, 0.9))
    words = comparison_in_words(figures, [scored(2), scored(4, survived=False)], 0.25)
    assert "Its length is 0.80 times what it was (0.70 to 0.90)." in words
    assert "OTHER selects layer 4, position -1 instead of layer 2, position -1; in 25.0 % of the resamples" in words
    assert "In OTHER no candidate passes" in words


def test_selection_says_its_near_ties_or_that_nothing_survived() -> None:
    assert "No other survivor is a near tie" in selection_in_words(scored(), [scored(), scored(tie=False)])
    assert "1 other survivor is a near tie" in selection_in_words(scored(), [scored(), scored()])
    assert "2 other survivors are near ties" in selection_in_words(scored(), [scored()] * 3)
    for share, words in ((1.0, "100 %"), (0.997, "99.7 %"), (0.001, "0.1 %"), (0.0, "0 %")):
        sure = dataclasses.replace(scored(), win_share=share)
        assert f"is selected in {words} of the resamples" in selection_in_words(sure, [sure])
        assert f"in {words} of the resamples" in comparison_in_words(
            place((0.99, 0.96, 1.01)), [sure, scored(4)], share
        )
    lost = scored(survived=False)
    words = selection_in_words(lost, [lost, scored(survived=False, kl=0.5)])
    assert words.startswith("No candidate passes the filters (KL <= 0.1, induce >= 0): 1 of 2 keep the first")
    assert "the lowest bypass of those that keep the KL filter" in words
