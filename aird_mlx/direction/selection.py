"""Candidates and their selection, as Arditi et al. 2024 (arXiv:2406.11717) do it.

Candidates are the differences of mean residual streams, harmful minus harmless prompts, at the input of every block
and every token position after the user's words. Ablating the right one stops refusals (*bypass*, lower is better),
adding it causes them (*induce*), and ablating it leaves harmless prompts alone (*KL*).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from aird_mlx.activations import Walk, batch_sequences, take_positions
from aird_mlx.direction.bootstrap import MAXIMUM_KL, MINIMUM_INDUCE, RESAMPLES, Floats, Resampled, choose, resample
from aird_mlx.direction.interventions import logits_from
from aird_mlx.direction.scores import cosine, kl_divergence, refusal_log_odds
from aird_mlx.direction.shared_start import SharedStart
from aird_mlx.errors import DirectionError, ModelError
from aird_mlx.model import ChatModel

# Candidates of later layers are out (Arditi et al., appendix C; their code rounds the bound down).
LAST_LAYER_SHARE = 0.8


@dataclass(frozen=True)
class Direction:
    """A selected refusal direction.

    Attributes:
        vector: ``[hidden]`` float32, unit length.
        layer: it is read at the input of this block.
        position: negative index from the prompt's last token (-1).
        norm: length of the difference of means before normalizing.
        bypass: mean refusal log-odds on harmful prompts with the direction ablated everywhere.
        induce: mean refusal log-odds on harmless prompts with the difference of means added at ``layer``.
        kl: mean KL(plain || ablated) of the next-token distribution on harmless prompts, nats.
        survived: whether it passed all filters; False means it is the best of those that did not.
        found: how many harmful and harmless prompts the means were taken over.
        selected: how many harmful and harmless prompts the scores were taken over.
    """

    vector: mx.array
    layer: int
    position: int
    norm: float
    bypass: float
    induce: float
    kl: float
    survived: bool
    found: tuple[int, int]
    selected: tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """Scores of one candidate; see `Direction`."""

    layer: int
    position: int
    norm: float
    bypass: float
    induce: float
    kl: float

    @property
    def is_survivor(self) -> bool:
        """Whether it passes the filters on KL and induce (its layer was checked when it was made)."""
        return self.kl <= MAXIMUM_KL and self.induce >= MINIMUM_INDUCE


@dataclass(frozen=True)
class CandidateScores:
    """All candidates with their scores on each prompt.

    Attributes:
        candidates: their mean scores, in order of layer and position.
        bypass: ``[candidate, harmful prompt]``.
        induce, kl: ``[candidate, harmless prompt]``.
    """

    candidates: tuple[Candidate, ...]
    bypass: Floats
    induce: Floats
    kl: Floats

    def resampled(self, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
        """The selection repeated on resampled prompts, without running the model."""
        return resample(self.bypass, self.induce, self.kl, resamples=resamples, seed=seed)

    def at(self, layer: int, position: int) -> int | None:
        """Index of the candidate at ``(layer, position)``; None where there is none."""
        places = [(candidate.layer, candidate.position) for candidate in self.candidates]
        return places.index((layer, position)) if (layer, position) in places else None


@dataclass(frozen=True)
class Measurement:
    """A selected direction with all it was selected from.

    Attributes:
        direction: the selected one.
        differences: ``[layer, position, hidden]`` float32, every difference of means.
        scores: the scores of all candidates.
    """

    direction: Direction
    differences: mx.array
    scores: CandidateScores

    def cosine_with(self, other: Direction) -> float:
        """Cosine of this model's difference of means with ``other``, at the layer and position of ``other``."""
        return cosine(self.differences[other.layer, other.position], other.vector)


def mean_differences(
    model: ChatModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    positions: int,
) -> mx.array:
    """Difference of mean residual streams, harmful minus harmless, before every block.

    Args:
        model: read only.
        harmful, harmless: token ids of rendered prompts, each longer than ``positions``.
        positions: how many last tokens to look at.

    Returns:
        ``[layer, position, hidden]`` float32; ``position`` runs from ``-positions`` to -1.
    """
    return _means(model, harmful, positions) - _means(model, harmless, positions)


def _means(model: ChatModel, prompts: Sequence[Sequence[int]], positions: int) -> mx.array:
    walk = Walk(model, batch_sequences(prompts))
    offsets = range(-positions, 0)
    layers = []
    while not walk.is_done:
        total = sum(
            (
                take_positions(hidden, batch.lengths, offsets).astype(mx.float32).sum(axis=0)
                for hidden, batch in zip(walk.hidden, walk.batches, strict=True)
            ),
            start=mx.zeros((positions, model.hidden_size)),
        )
        layers.append(total / len(prompts))
        mx.eval(layers[-1])
        walk.advance()
    return mx.stack(layers)


def measure_direction(
    model: ChatModel,
    *,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    select_harmful: Sequence[Sequence[int]],
    select_harmless: Sequence[Sequence[int]],
    tokens: Sequence[int],
    positions: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Find the refusal direction of ``model``.

    Args:
        model: read only; taps used on the way are gone afterwards.
        harmful, harmless: token ids of the prompts the means are taken over.
        select_harmful, select_harmless: token ids of the prompts the candidates are scored on.
        tokens: ids of the tokens refusals start with (`refusal_tokens`).
        positions: how many last prompt tokens are candidates (the template's ending).
        progress: called with (layers scored, layers).

    Raises:
        DirectionError: a kind of prompts, or the refusal tokens, are missing; a prompt is shorter than ``positions``;
            no candidate differs between the two sets at all.
        ModelError: a block gives values that are not finite.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, sections 2.3 and C.
    """
    _check_prompts(harmful, harmless, positions, "to take means over")
    _check_prompts(select_harmful, select_harmless, positions, "to score candidates on")
    if not tokens:
        raise DirectionError(
            "direction: no token is given that refusals start with; at least one is needed. Take them from the model's "
            "own refusals (refusal_tokens)."
        )
    differences = mean_differences(model, harmful, harmless, positions)
    scores = score_candidates(model, differences, select_harmful, select_harmless, tokens, progress=progress)
    candidates = scores.candidates
    if not all(np.isfinite(one).all() for one in (scores.bypass, scores.induce, scores.kl)):
        raise ModelError(
            "direction: the model gives logits that are not finite; finite weights are needed. Compress or download it "
            "again."
        )
    if not candidates:
        raise DirectionError(
            "direction: harmful and harmless prompts look the same at every layer; prompts that differ are needed. "
            "Check the prompt files."
        )
    best = select_candidate(candidates)
    return Measurement(
        Direction(
            vector=differences[best.layer, best.position] / best.norm,
            layer=best.layer,
            position=best.position,
            norm=best.norm,
            bypass=best.bypass,
            induce=best.induce,
            kl=best.kl,
            survived=best.is_survivor,
            found=(len(harmful), len(harmless)),
            selected=(len(select_harmful), len(select_harmless)),
        ),
        differences,
        scores,
    )


def _check_prompts(
    harmful: Sequence[Sequence[int]], harmless: Sequence[Sequence[int]], positions: int, purpose: str
) -> None:
    if not harmful or not harmless:
        raise DirectionError(
            f"direction: {len(harmful)} harmful and {len(harmless)} harmless prompts {purpose}; both kinds are needed. "
            "Add prompts of the kind that is missing."
        )
    shortest = min(len(ids) for ids in (*harmful, *harmless))
    if positions < 1 or shortest < positions:
        raise DirectionError(
            f"direction: {positions} last tokens of prompts of {shortest} tokens and more; at least one, and no more "
            "than a prompt has, are needed. Render the prompts with the chat template."
        )


def select_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The survivor with the lowest bypass; `choose` says what happens without survivors."""
    scores = np.array([(candidate.bypass, candidate.induce, candidate.kl) for candidate in candidates])
    return candidates[int(choose(*scores.T))]


def score_candidates(
    model: ChatModel,
    differences: mx.array,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CandidateScores:
    """Bypass, induce and KL of every candidate of layers below ``0.8 * blocks``, on each prompt.

    All positions of a layer ride in one batch; adding at layer l runs only the blocks from l on. A difference of
    length 0 is no candidate.
    """
    positions = differences.shape[1]
    layers = [layer for layer in range(differences.shape[0]) if layer < LAST_LAYER_SHARE * len(model.blocks)]
    asked_harmful = SharedStart(model, harmful)
    asked_harmless, moving = (SharedStart(model, harmless) for _ in range(2))
    plain = logits_from(asked_harmless)
    candidates: list[Candidate] = []
    rows: list[tuple[mx.array, mx.array, mx.array]] = []
    for layer in layers:
        moving.move_to(layer)
        norms = mx.linalg.norm(differences[layer], axis=-1)
        usable = [index for index in range(positions) if norms[index].item() > 1e-6]
        if usable:
            chosen = differences[layer][mx.array(usable)]
            unit = chosen / mx.linalg.norm(chosen, axis=-1, keepdims=True)
            bypass = refusal_log_odds(logits_from(asked_harmful, ablate=unit), tokens)
            induce = refusal_log_odds(logits_from(moving, add=chosen), tokens)
            kl = kl_divergence(plain, logits_from(asked_harmless, ablate=unit))
            rows.append((bypass, induce, kl))
            means = [scores.mean(axis=1).tolist() for scores in (bypass, induce, kl)]
            for index, its_bypass, its_induce, its_kl in zip(usable, *means, strict=True):
                norm = norms[index].item()
                candidates.append(Candidate(layer, index - positions, norm, its_bypass, its_induce, its_kl))
        progress(layer + 1, len(layers))
    if not rows:
        none = np.zeros((0, len(harmless)))
        return CandidateScores((), bypass=np.zeros((0, len(harmful))), induce=none, kl=none)
    bypass, induce, kl = (np.array(mx.concatenate(scores)) for scores in zip(*rows, strict=True))
    return CandidateScores(tuple(candidates), bypass, induce, kl)


def save_direction(direction: Direction, path: Path) -> None:
    """Write ``direction.safetensors``: the vector, with everything else as metadata."""
    facts = {name: value for name, value in vars(direction).items() if name != "vector"}
    mx.save_safetensors(str(path), {"vector": direction.vector}, metadata={"aird.direction": json.dumps(facts)})


def load_direction(path: Path) -> Direction:
    """Read what `save_direction` wrote.

    Raises:
        DirectionError: the file is not a direction.
    """
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        facts = json.loads(metadata["aird.direction"])
        counts = {name: tuple(facts[name]) for name in ("found", "selected")}
        return Direction(vector=arrays["vector"], **(facts | counts))
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise DirectionError(
            f"direction: {path} is not a direction of this project ({' '.join(str(error).split())}); "
            "direction.safetensors is needed. Give what `aird-mlx repair` or `aird-mlx direction` wrote."
        ) from error
