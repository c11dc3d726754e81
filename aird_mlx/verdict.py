"""What the figures of a direction allow to say, in words that claim no more than their intervals do.

Takes figures and gives sentences; knows nothing of models or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aird_mlx.direction import MAXIMUM_KL, MINIMUM_INDUCE
from aird_mlx.report import PlaceFigures, ScoredDirection
from aird_mlx.report_page import percent

# A direction has moved when all of its interval lies below the one; it has turned at all when it lies below the other.
MOVED = 0.95
TURNED = math.cos(math.radians(1.0))

CAUTION = "Geometry does not replace measuring refusals: a model may keep its direction and lose its refusals."


def selection_in_words(selected: ScoredDirection, scored: Sequence[ScoredDirection]) -> str:
    """How sure the selection of ``selected`` among all ``scored`` is, or that nothing passed the filters."""
    place = f"layer {selected.layer}, position {selected.position}"
    if not selected.survived:
        gentle = sum(one.kl.value <= MAXIMUM_KL for one in scored)
        rest = "of those that keep the KL filter" if gentle else "of all"
        return (
            f"No candidate passes the filters (KL <= {MAXIMUM_KL}, induce >= {MINIMUM_INDUCE:g}): {gentle} of "
            f"{len(scored)} keep the first, none keeps both. Shown is {place}, the lowest bypass {rest}. "
            "Do not rely on it as this model's refusal direction."
        )
    others = sum(one.near_tie for one in scored) - 1
    ties = {0: "No other survivor is a near tie", 1: "1 other survivor is a near tie"}
    return (
        f"{place[0].upper()}{place[1:]} is selected in {percent(selected.win_share)} of the resamples of what was "
        f"scored. {ties.get(others, f'{others} other survivors are near ties')}."
    )


def comparison_in_words(fixed: PlaceFigures, selected: Sequence[ScoredDirection], same_winner: float) -> str:
    """Whether the direction moved, and its source with it.

    Args:
        fixed: both models at the place selected in the dense one.
        selected: the directions selected in the dense and in the other model.
        same_winner: share of resamples in which both models select the same place.
    """
    return " ".join([*_movement(fixed), *_source(selected, same_winner), CAUTION])


def _movement(fixed: PlaceFigures) -> list[str]:
    cosine, angle, ratio = fixed.calibrated_cosine, fixed.angle, fixed.norm_ratio
    if cosine is None or angle is None or ratio is None:
        return [
            "Whether the direction moved cannot be told: random halves of the prompts do not agree on one at this "
            f"place (cosine {fixed.null_dense:.2f} within DENSE, {fixed.null_other:.2f} within OTHER)."
        ]
    turn = f"{angle.value:.1f} degrees (95 % interval {angle.low:.1f} to {angle.high:.1f})"
    if cosine.high < MOVED:
        said = [f"The direction moved: it turned by {turn}."]
    elif cosine.high < TURNED:
        said = [f"The direction turned by {turn}; whether it is below a cosine of {MOVED} is not settled."]
        if cosine.low >= MOVED:
            said = [f"The direction turned a little: by {turn}."]
    elif cosine.low >= MOVED:
        said = [f"No evidence that the direction moved: unmoved within {angle.high:.1f} degrees."]
    else:
        said = [f"No evidence that the direction moved, but {angle.high:.0f} degrees cannot be ruled out."]
    if not ratio.low <= 1 <= ratio.high:
        said.append(f"Its length is {ratio.value:.2f} times what it was ({ratio.low:.2f} to {ratio.high:.2f}).")
    return said


def _source(selected: Sequence[ScoredDirection], same_winner: float) -> list[str]:
    dense, other = selected
    said = []
    if not (dense.survived and other.survived):
        names = [name for name, one in (("DENSE", dense), ("OTHER", other)) if not one.survived]
        said.append(f"In {' and '.join(names)} no candidate passes the selection's filters.")
    if (dense.layer, dense.position) == (other.layer, other.position):
        said.append(
            f"Both models select the same place, as they do in {percent(same_winner)} of the resamples of what was "
            "scored."
        )
    else:
        said.append(
            f"OTHER selects layer {other.layer}, position {other.position} instead of layer {dense.layer}, position "
            f"{dense.position}; in {percent(same_winner)} of the resamples of what was scored both select the same "
            "place."
        )
    return said
