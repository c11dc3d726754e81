"""Tells harmful prompts from others by one number, read from the residual stream at several layers and last tokens.

Fitted on an exported file as llama.cpp runs it, so that what is measured there is what was measured here. Fisher's
discriminant rather than the difference of means: it also turns away from what harmful prompts share with their benign
twins. Many places rather than one: where pruning has blurred the direction that the model itself refuses along, what
a prompt is about can still be read from how the stream gets there. Arrays in, arrays out, but for `read_residuals`
and `read_streams`, which run the file.
Source: Fisher 1936; ridge on the pooled covariance after Friedman 1989 (regularized discriminant analysis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from aird_mlx.errors import DirectionError
from aird_mlx.gguf_export import LlamaRuntime
from aird_mlx.guard.manifest import Probe

FALSE_ALARMS, TWIN_ALARMS = 0.01, 0.05
# Of the mean variance, added to each: with fewer prompts than dimensions the covariance alone would follow noise.
# The one that separates validation prompts best is kept.
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3)
# What twins count among benign prompts: they may raise more alarms, and count no more than they may.
TWIN_SHARE = 1 / 3
# The threshold keeps its share of false alarms on prompts that weights were not fitted on: on validation's, and, since
# these may be few, on all others, left out by turns.
FOLDS = 3
# The last tokens that are read: of most chat templates the end of what the user says, and all that follows it.
TOKENS = 6
# Layers read at most, evenly spaced: they decide the size of what a file carries.
MOST_LAYERS = 8
# Numbers that are turned into float64 at a time: 64 MB.
CHUNK = 1 << 23


@dataclass(frozen=True)
class Reading:
    """What a probe says about one prompt: an alarm above the threshold."""

    score: float
    threshold: float

    @property
    def alarm(self) -> bool:
        """Whether it takes the prompt for harmful."""
        return self.score > self.threshold


def probe_layers(blocks: int) -> list[int]:
    """The layers that a probe of a model with so many blocks reads: inputs of all but the first, or of a part of them.

    >>> probe_layers(4), probe_layers(33)
    ([1, 2, 3], [1, 5, 10, 14, 19, 23, 28, 32])
    """
    return sorted({round(layer) for layer in np.linspace(1, max(blocks - 1, 1), min(MOST_LAYERS, max(blocks - 1, 1)))})


def read_residuals(
    runtime: LlamaRuntime, prompts: Sequence[Sequence[int]], tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run prompts one by one and keep what the residual stream is at their last tokens.

    Args:
        runtime: opened with the layers to read.
        prompts: token ids, each at least ``tokens`` long.
        tokens: how many of the last tokens are kept.

    Returns:
        Logits ``[prompt, vocab]`` after the last token, and the stream ``[prompt, layer, token, hidden]``, float32.

    Raises:
        DirectionError: llama.cpp does not show this architecture's residual stream.
    """
    found = [_read(runtime, ids, tokens) for ids in prompts]
    return np.stack([logits for logits, _ in found]), np.stack([stream for _, stream in found])


def read_streams(runtime: LlamaRuntime, prompts: Sequence[Sequence[int]], tokens: int) -> np.ndarray:
    """The stream alone, as `read_residuals` gives it: of thousands of prompts the logits would be the larger part."""
    assert runtime.tap is not None
    found = np.empty((len(prompts), len(runtime.tap.layers), tokens, runtime.hidden), dtype=np.float32)
    for at, ids in enumerate(prompts):
        found[at] = _read(runtime, ids, tokens)[1]
    return found


def _read(runtime: LlamaRuntime, ids: Sequence[int], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    assert runtime.tap is not None
    logits, layers = runtime.residuals(ids)
    if layers.keys() != runtime.tap.layers:
        missing = sorted(runtime.tap.layers - layers.keys())
        raise DirectionError(
            f"probe: llama.cpp shows no residual stream at layers {missing} of {runtime.path}; blocks whose output "
            "it names l_out are needed. Use the file without a probe."
        )
    return logits, np.stack([layers[layer][len(ids) - tokens :] for layer in sorted(layers)])


def read_probe(probe: Probe, residuals: Mapping[int, np.ndarray]) -> Reading:
    """The reading of one prompt.

    Args:
        probe: of the file that runs.
        residuals: by layer ``[token, hidden]``, the prompt's last tokens at least as far back as the probe looks.

    Raises:
        DirectionError: a layer or token that the probe reads is missing.
    """
    rows = [residuals.get(layer) for layer in probe.layers]
    seen = min(0 if one is None else len(one) for one in rows)
    if seen < probe.tokens:
        raise DirectionError(
            f"probe: {seen} of the prompt's tokens are seen at layers {list(probe.layers)}; its last {probe.tokens} "
            "are needed. Ask a longer prompt, or use the file without a probe."
        )
    stream = np.stack([one[len(one) - probe.tokens :] for one in rows if one is not None])
    return Reading(float(project(stream[None], probe)[0]), probe.threshold)


def scale(probe: Probe) -> tuple[float, float]:
    """The scores between which nearly all prompts lie: where a meter begins and ends."""
    low, high = (mean + sign * 3 * spread for (mean, spread), sign in ((probe.benign, -1), (probe.harmful, 1)))
    return min(low, probe.threshold), max(high, probe.threshold)


def fit_probe(find: Mapping[str, np.ndarray], validate: Mapping[str, np.ndarray], layers: Sequence[int]) -> Probe:
    """The weights and threshold that tell harmful prompts from others best on validation prompts.

    Args:
        find: by kind (harmful, harmless, twin), streams ``[prompt, layer, token, hidden]`` the weights are fitted on;
            twins may be left out.
        validate: others, to choose the ridge by.
        layers: which were read.

    Raises:
        DirectionError: harmful or harmless prompts are missing.
    """
    for part in (find, validate):
        if not all(len(part.get(kind, ())) for kind in ("harmful", "harmless")):
            raise DirectionError(
                "probe: no harmful or no harmless prompts; some of both to find and to validate are needed. Give more."
            )
    find, validate = ({kind: rows for kind, rows in part.items() if len(rows)} for part in (find, validate))
    candidates = [_scaled(layers, weight, validate) for weight in _fit(find, RIDGES)]
    ridge, probe = max(zip(RIDGES, candidates, strict=True), key=lambda one: _separation(one[1]))
    unseen: dict[str, list[np.ndarray]] = {kind: [] for kind in find}
    for fold in range(FOLDS):
        held_out = {kind: rows[fold::FOLDS] for kind, rows in find.items()}
        rest = {kind: np.delete(rows, slice(fold, None, FOLDS), axis=0) for kind, rows in find.items()}
        if all(map(len, rest.values())):
            without = _scaled(layers, _fit(rest, [ridge])[0], validate)
            for kind, rows in held_out.items():
                if len(rows):
                    unseen[kind].append(project(rows, without))
    scores = {kind: np.concatenate(parts) for kind, parts in unseen.items() if parts}
    if "harmless" not in scores:  # a single one cannot be left out
        return probe
    return replace(probe, threshold=max(probe.threshold, threshold(scores["harmless"], scores.get("twin"))))


def _fit(find: Mapping[str, np.ndarray], ridges: Sequence[float]) -> list[np.ndarray]:
    """Weights per ridge; harmless prompts and twins count as `TWIN_SHARE` says, however many there are of each."""
    harmless, twins = len(find["harmless"]), len(find.get("twin", ()))
    share = TWIN_SHARE if twins else 0.0
    shares = np.repeat([(1 - share) / harmless, share / max(twins, 1)], [harmless, twins])
    return fisher_weights(find["harmful"], _benign(find), shares, ridges)


def _scaled(layers: Sequence[int], weight: np.ndarray, validate: Mapping[str, np.ndarray]) -> Probe:
    """The probe with these weights, scaled so that benign validation prompts score 0 on average, give or take 1."""
    raw = _flat(_benign(validate)) @ weight
    spread = float(raw.std()) or 1.0
    weight, offset = (weight / spread).astype(np.float32), -float(raw.mean()) / spread
    scores = {kind: _scores(rows, weight, offset) for kind, rows in validate.items()}
    harmful, benign = scores["harmful"], _benign(scores)
    counts = [len(validate.get(kind, ())) for kind in ("harmful", "harmless", "twin")]
    return Probe(
        layers=tuple(layers),
        tokens=validate["harmful"].shape[2],
        weight=tuple(float(x) for x in weight),
        offset=offset,
        harmful=(float(harmful.mean()), float(harmful.std())),
        benign=(float(benign.mean()), float(benign.std())),
        threshold=threshold(scores["harmless"], scores.get("twin")),
        auc=auc(harmful, benign),
        prompts=(counts[0], counts[1], counts[2]),
    )


def _separation(probe: Probe) -> float:
    """How far apart the means are for how wide the clouds are."""
    spread = np.sqrt((probe.harmful[1] ** 2 + probe.benign[1] ** 2) / 2) + 1e-12
    return float((probe.harmful[0] - probe.benign[0]) / spread)


def _benign(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([rows[kind] for kind in ("harmless", "twin") if len(rows.get(kind, ()))])


def _flat(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)


def fisher_weights(
    harmful: np.ndarray, benign: np.ndarray, shares: np.ndarray, ridges: Sequence[float]
) -> list[np.ndarray]:
    """Per ridge the weights along which two clouds are furthest apart for how wide they are.

    Args:
        harmful, benign: ``[prompt, ...]``, floating, computed with as precisely; each feature counts in units of its
            own spread.
        shares: ``[prompt]``, what each benign prompt counts; they sum to 1.
        ridges: of the mean variance, added to each.

    Returns:
        ``[feature]`` float64 each, of unit length, towards harmful. Of prompts and features the fewer are solved for.

    Raises:
        DirectionError: the equations have no solution; streams may not be finite.

    >>> harmful, benign = np.array([[1.0, 0.0], [1.0, 2.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    >>> fisher_weights(harmful, benign, np.array([0.5, 0.5]), [0.01])[0].tolist()
    [1.0, 0.0]
    """
    centred = np.concatenate([cloud.reshape(len(cloud), -1) for cloud in (harmful, benign)])  # one copy, in their type
    deviation = centred.std(axis=0)
    deviation[deviation == 0] = 1.0
    centred /= deviation
    clouds = centred[: len(harmful)], centred[len(harmful) :]
    counts = [np.full(len(harmful), 1 / len(harmful)), np.asarray(shares, dtype=np.float64)]
    means = [count.astype(cloud.dtype) @ cloud for count, cloud in zip(counts, clouds, strict=True)]
    for cloud, mean, count in zip(clouds, means, counts, strict=True):
        cloud -= mean
        cloud *= np.sqrt(count / 2)[:, None]
    difference = (means[0] - means[1]).astype(np.float64)
    few_prompts = len(centred) < len(difference)
    products = _products(centred if few_prompts else centred.T)
    variance = float(np.trace(products)) / len(difference)
    projected = centred @ difference.astype(centred.dtype) if few_prompts else difference
    found = []
    for ridge in ridges:
        ridge = ridge * variance + 1e-12
        damped = products.copy()
        np.fill_diagonal(damped, damped.diagonal() + ridge)
        try:
            weight = scipy.linalg.solve(damped, projected, assume_a="pos", overwrite_a=True)
        except ValueError as error:  # not finite; or LinAlgError, which is one
            raise DirectionError(
                f"probe: no weights follow from {len(centred)} prompts' streams of {len(difference)} numbers each "
                f"({str(error).rstrip('.')}); finite numbers are needed. Use the file without a probe."
            ) from error
        if few_prompts:  # (C^T C + ridge I)^-1 d = (d - C^T (C C^T + ridge I)^-1 C d) / ridge
            weight = (difference - weight.astype(centred.dtype) @ centred) / ridge
        weight = weight / deviation
        found.append(weight / (np.linalg.norm(weight) or 1.0))
    return found


def _products(rows: np.ndarray) -> np.ndarray:
    """``rows @ rows.T`` in float64: rounded to float32 it is no longer positive by as little as a ridge adds.

    A part of the columns at a time, since a copy of all would take twice the memory of the rows.
    """
    found = np.zeros((len(rows), len(rows)))
    step = max(1, CHUNK // len(rows))
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step].astype(np.float64)
        found += part @ part.T
    return found


def project(streams: np.ndarray, probe: Probe) -> np.ndarray:
    """Scores ``[prompt]`` float64 of streams ``[prompt, layer, token, hidden]``."""
    return _scores(streams, np.asarray(probe.weights), probe.offset)


def _scores(streams: np.ndarray, weight: np.ndarray, offset: float) -> np.ndarray:
    scores: np.ndarray = _flat(streams) @ weight.astype(np.float64, copy=False) + offset
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
