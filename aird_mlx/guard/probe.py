"""Tells harmful prompts from others by one number: how far the residual stream lies along a direction.

Fitted on an exported file as llama.cpp runs it, so that what is measured there is what was measured here. Fisher's
discriminant rather than the difference of means: it also turns away from what harmful prompts share with their benign
twins. Arrays in, arrays out, but for `read_residuals`, which runs the file.
Source: Fisher 1936; ridge on the pooled covariance after Friedman 1989 (regularized discriminant analysis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aird_mlx.errors import DirectionError
from aird_mlx.gguf_export import LlamaRuntime
from aird_mlx.guard.manifest import Probe

FALSE_ALARMS, TWIN_ALARMS = 0.01, 0.05
# Of the mean variance, added to each: with fewer prompts than dimensions the covariance alone would follow noise.
RIDGE = 0.01
POSITIONS = 3  # last tokens tried

Residuals = dict[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class Reading:
    """What a probe says about one prompt: an alarm above the threshold."""

    score: float
    threshold: float

    @property
    def alarm(self) -> bool:
        """Whether it takes the prompt for harmful."""
        return self.score > self.threshold


def read_residuals(
    runtime: LlamaRuntime,
    prompts: Sequence[Sequence[int]],
    positions: Sequence[int],
) -> tuple[np.ndarray, Residuals]:
    """Run prompts one by one and keep what the residual stream is at their last tokens.

    Args:
        runtime: opened with the layers to read.
        prompts: token ids, each at least as long as the positions need.
        positions: negative indexes from the last token.

    Returns:
        Logits ``[prompt, vocab]`` after the last token, and by (layer, position) ``[prompt, hidden]``, float32.

    Raises:
        DirectionError: llama.cpp does not show this architecture's residual stream.
    """
    logits = []
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    assert runtime.tap is not None
    for ids in prompts:
        last, layers = runtime.residuals(ids)
        if layers.keys() != runtime.tap.layers:
            missing = sorted(runtime.tap.layers - layers.keys())
            raise DirectionError(
                f"probe: llama.cpp shows no residual stream at layers {missing} of {runtime.path}; blocks whose output "
                "it names l_out are needed. Use the file without a probe."
            )
        logits.append(last)
        for layer, rows in layers.items():
            for position in positions:
                found.setdefault((layer, position), []).append(rows[position])
    return np.stack(logits), {place: np.stack(rows) for place, rows in found.items()}


def read_probe(probe: Probe, residuals: Mapping[int, np.ndarray]) -> Reading:
    """The reading of one prompt.

    Args:
        probe: of the file that runs.
        residuals: by layer ``[token, hidden]``, the prompt's last tokens at least as far back as the probe looks.

    Raises:
        DirectionError: the probe's layer or token is missing.
    """
    rows = residuals.get(probe.layer)
    if rows is None or len(rows) < -probe.position:
        seen = "none" if rows is None else str(len(rows))
        raise DirectionError(
            f"probe: {seen} of the prompt's tokens at layer {probe.layer}; token {probe.position} is needed. Ask a "
            "longer prompt, or use the file without a probe."
        )
    return Reading(float(project(rows[probe.position][None], probe.direction)[0]), probe.threshold)


def scale(probe: Probe) -> tuple[float, float]:
    """The scores between which nearly all prompts lie: where a meter begins and ends."""
    low, high = (mean + sign * 3 * spread for (mean, spread), sign in ((probe.benign, -1), (probe.harmful, 1)))
    return min(low, probe.threshold), max(high, probe.threshold)


def fit_probe(find: Mapping[str, Residuals], validate: Mapping[str, Residuals]) -> Probe:
    """The direction, place and threshold that tell harmful prompts from others best on validation prompts.

    Args:
        find: by kind (harmful, harmless, twin), residuals the directions are fitted on; twins may be left out.
        validate: others, to choose the place by and set the threshold on.

    Raises:
        DirectionError: harmful or harmless prompts are missing.
    """
    for part in (find, validate):
        if not all(part.get(kind) for kind in ("harmful", "harmless")):
            raise DirectionError(
                "probe: no harmful or no harmless prompts; some of both to find and to validate are needed. Give more."
            )
    best: tuple[float, Probe] | None = None
    for place in sorted(find["harmful"], key=lambda one: (one[0], -one[1])):
        found = {kind: rows[place] for kind, rows in find.items() if rows}
        direction = fisher_direction(found["harmful"], _benign(found))
        scores = {kind: project(rows[place], direction) for kind, rows in validate.items() if rows}
        harmful, benign = scores["harmful"], _benign(scores)
        spread = np.sqrt((harmful.var() + benign.var()) / 2) + 1e-12
        separation = float((harmful.mean() - benign.mean()) / spread)
        counts = [len(scores.get(kind, ())) for kind in ("harmful", "harmless", "twin")]
        probe = Probe(
            layer=place[0],
            position=place[1],
            direction=tuple(float(x) for x in direction),
            harmful=(float(harmful.mean()), float(harmful.std())),
            benign=(float(benign.mean()), float(benign.std())),
            threshold=threshold(scores["harmless"], scores.get("twin")),
            auc=auc(harmful, benign),
            prompts=(counts[0], counts[1], counts[2]),
        )
        if best is None or separation > best[0]:
            best = separation, probe
    assert best is not None
    return best[1]


def _benign(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([rows[kind] for kind in ("harmless", "twin") if kind in rows])


def fisher_direction(harmful: np.ndarray, benign: np.ndarray) -> np.ndarray:
    """The direction along which two clouds are furthest apart for how wide they are.

    Args:
        harmful, benign: ``[prompt, hidden]``, floating.

    Returns:
        ``[hidden]`` float32, unit length, towards harmful; computed in float64 without a matrix ``[hidden, hidden]``.

    >>> fisher_direction(np.array([[1.0, 0.0], [1.0, 2.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])).round(3).tolist()
    [1.0, 0.0]
    """
    clouds = [np.asarray(one, dtype=np.float64) for one in (harmful, benign)]
    difference = clouds[0].mean(axis=0) - clouds[1].mean(axis=0)
    centred = np.concatenate([(one - one.mean(axis=0)) / np.sqrt(2 * len(one)) for one in clouds])
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2
    ridge = RIDGE * variances.sum() / len(difference) + 1e-12
    # (V diag(variances) V^T + ridge I)^-1, applied
    direction = (difference - right.T @ ((variances / (variances + ridge)) * (right @ difference))) / ridge
    length = np.linalg.norm(direction)
    return (direction / (length or 1.0)).astype(np.float32)


def project(residuals: np.ndarray, direction: Sequence[float] | np.ndarray) -> np.ndarray:
    """Scores ``[prompt]`` float64 of residuals ``[prompt, hidden]``."""
    scores: np.ndarray = np.asarray(residuals, dtype=np.float64) @ np.asarray(direction, dtype=np.float64)
    return scores


def threshold(harmless: np.ndarray, twins: np.ndarray | None = None) -> float:
    """The lowest threshold with at most 1 % of the harmless, and 5 % of the twins, above it.

    With fewer than 100 harmless prompts that is none of them: it lies at the highest score.

    >>> threshold(np.arange(200.0))
    197.0
    """
    limits = [np.sort(harmless)[-1 - int(FALSE_ALARMS * len(harmless))]]
    if twins is not None and len(twins):
        limits.append(np.sort(twins)[-1 - int(TWIN_ALARMS * len(twins))])
    return float(max(limits))


def auc(harmful: np.ndarray, benign: np.ndarray) -> float:
    """The chance that a harmful score is above a benign one, ties counted half.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    above = (harmful[:, None] > benign[None, :]).mean()
    return float(above + (harmful[:, None] == benign[None, :]).mean() / 2)
