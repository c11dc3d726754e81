"""The refusal direction: candidates, selection, and how it compares between two models.

Candidates are the differences of mean residual streams, harmful minus harmless prompts, at the input of every block
and every token position after the user's words. Selection follows Arditi et al. 2024 (arXiv:2406.11717): ablating
the right one stops refusals (*bypass*, lower is better), adding it causes them (*induce*), and ablating it leaves
harmless prompts alone (*KL*). Interventions happen in memory, through taps, and only to measure.
This module does not know where prompts come from or what a refusal says; it is given tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk, batch_sequences, run_head, take_positions
from aird_mlx.errors import DirectionError
from aird_mlx.model import ChatModel

# Filters of Arditi et al., section 2.3 and appendix C.
MAXIMUM_KL = 0.1
MINIMUM_INDUCE = 0.0
LAST_LAYER_SHARE = 0.8

# A token opens refusals when it has this probability there, and is this many times likelier there than in answers.
OPENING_SHARE = 0.02
OPENING_RATIO = 4.0


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
class Measurement:
    """A selected direction with all it was selected from.

    Attributes:
        direction: the selected one.
        differences: ``[layer, position, hidden]`` float32, every difference of means.
        candidates: scores of all candidates.
    """

    direction: Direction
    differences: mx.array
    candidates: tuple[Candidate, ...]

    def cosine_with(self, other: Direction) -> float:
        """Cosine of this model's difference of means with ``other``, at the layer and position of ``other``."""
        return cosine(self.differences[other.layer, other.position], other.vector)


def refusal_tokens(refused: mx.array, answered: mx.array) -> list[int]:
    """The tokens a model's refusals start with, likeliest first.

    Taken from what the model deems likely, not only from what it says first: a greedy model that knows several openings
    says one of them, but is refusing with the probability of all.

    Args:
        refused: logits ``[prompt, vocab]`` after prompts that the model refused.
        answered: logits ``[prompt, vocab]`` after prompts that it answered.

    Raises:
        DirectionError: refusals start like answers do, so no token tells them apart.

    >>> refusal_tokens(mx.array([[9.0, 1.0, 8.5]]), mx.array([[0.0, 9.0, 8.0]]))
    [0]
    """
    there = mx.softmax(refused.astype(mx.float32), axis=-1).mean(axis=0)
    elsewhere = mx.softmax(answered.astype(mx.float32), axis=-1).mean(axis=0)
    is_opening = (there >= OPENING_SHARE) & (there >= OPENING_RATIO * elsewhere)
    likeliest_first = mx.argsort(-there).tolist()
    tokens = [token for token in likeliest_first[: int(1 / OPENING_SHARE)] if is_opening[token].item()]
    if not tokens:
        raise DirectionError(
            f"direction: no first token of {refused.shape[0]} refusals is likelier there than in answers; refusals "
            "that start in their own way are needed. Use more or clearer harmful prompts."
        )
    return tokens


def refusal_log_odds(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    """``log p - log(1 - p)`` with p the summed probability of the refusal tokens.

    Args:
        logits: ``[..., vocab]``.
        tokens: ids of the tokens refusals start with.

    Returns:
        ``[...]`` float32.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, section 2.3.

    >>> refusal_log_odds(mx.zeros((1, 4)), [0, 1]).tolist()
    [0.0]
    """
    logits = logits.astype(mx.float32)
    chosen = mx.array(list(tokens))
    is_refusal = (mx.arange(logits.shape[-1])[:, None] == chosen).any(axis=1)
    inside = mx.logsumexp(mx.where(is_refusal, logits, -float("inf")), axis=-1)
    outside = mx.logsumexp(mx.where(is_refusal, -float("inf"), logits), axis=-1)
    return inside - outside


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
        DirectionError: no candidate differs between the two sets at all.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, sections 2.3 and C.
    """
    differences = mean_differences(model, harmful, harmless, positions)
    candidates = score_candidates(model, differences, select_harmful, select_harmless, tokens, progress=progress)
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
        tuple(candidates),
    )


def select_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The survivor with the lowest bypass; without survivors, the lowest bypass among the least violating.

    Then candidates that keep the KL filter come first, since an ablation that breaks the model lowers refusals too.
    """
    survivors = [candidate for candidate in candidates if candidate.is_survivor]
    gentle = [candidate for candidate in candidates if candidate.kl <= MAXIMUM_KL]
    return min(survivors or gentle or candidates, key=lambda candidate: candidate.bypass)


def score_candidates(
    model: ChatModel,
    differences: mx.array,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Candidate]:
    """Bypass, induce and KL of every candidate of layers below ``0.8 * blocks``.

    All positions of a layer ride in one batch; adding at layer l runs only the blocks from l on.
    """
    positions = differences.shape[1]
    layers = [layer for layer in range(differences.shape[0]) if layer < LAST_LAYER_SHARE * len(model.blocks)]
    harmful_batches, harmless_batches = batch_sequences(harmful), batch_sequences(harmless)
    plain = _last_logits(model, harmless_batches, None)
    walk = Walk(model, harmless_batches)
    candidates = []
    for layer in layers:
        walk.move_to(layer)
        vectors = differences[layer]
        norms = mx.linalg.norm(vectors, axis=-1)
        usable = [index for index in range(positions) if norms[index].item() > 1e-6]
        if usable:
            chosen = vectors[mx.array(usable)]
            unit = chosen / mx.linalg.norm(chosen, axis=-1, keepdims=True)
            bypass = refusal_log_odds(_last_logits(model, harmful_batches, unit), tokens).mean(axis=1)
            ablated = _last_logits(model, harmless_batches, unit)
            divergence = kl_divergence(plain, ablated).mean(axis=1)
            induce = refusal_log_odds(_last_logits_with_added(walk, chosen), tokens).mean(axis=1)
            for row, index in enumerate(usable):
                candidates.append(
                    Candidate(
                        layer=layer,
                        position=index - positions,
                        norm=float(norms[index].item()),
                        bypass=float(bypass[row].item()),
                        induce=float(induce[row].item()),
                        kl=float(divergence[row].item()),
                    )
                )
        progress(layer + 1, len(layers))
    return candidates


def kl_divergence(reference: mx.array, other: mx.array) -> mx.array:
    """KL(reference || other) in nats over the last axis, from logits; shapes broadcast."""
    first = reference.astype(mx.float32)
    second = other.astype(mx.float32)
    first = first - mx.logsumexp(first, axis=-1, keepdims=True)
    second = second - mx.logsumexp(second, axis=-1, keepdims=True)
    return (mx.exp(first) * (first - second)).sum(axis=-1)


def last_refusal_log_odds(
    model: ChatModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], ablate: mx.array | None = None
) -> mx.array:
    """Refusal log-odds ``[prompt]`` after each prompt; ``ablate`` ``[hidden]`` is projected out everywhere."""
    unit = None if ablate is None else (ablate / mx.linalg.norm(ablate))[None]
    return refusal_log_odds(_last_logits(model, batch_sequences(prompts), unit)[0], tokens)


def last_logits(model: ChatModel, prompts: Sequence[Sequence[int]]) -> mx.array:
    """Logits ``[prompt, vocab]`` of the plain model after each prompt."""
    return _last_logits(model, batch_sequences(prompts), None)[0]


def _last_logits(model: ChatModel, batches: Sequence[TokenBatch], ablate: mx.array | None) -> mx.array:
    """Logits ``[candidate, prompt, vocab]`` after each prompt, with each row of ``ablate`` projected out everywhere.

    Without ``ablate`` there is one candidate: the plain model. Prompts come back in the order they were given.
    """
    count = 1 if ablate is None else ablate.shape[0]
    rows: dict[int, mx.array] = {}
    for batch in batches:
        walk = Walk(model, [batch])
        rode = len(batch.lengths)
        hidden = mx.concatenate([walk.hidden[0]] * count)
        directions = None if ablate is None else mx.repeat(ablate, rode, axis=0)[:, None]
        hidden = hidden if directions is None else _project_out(hidden, directions)
        while not walk.is_done:
            taps = {} if directions is None else dict.fromkeys(model.architecture.writers, _project_output(directions))
            with model.linear_taps(walk.layer, taps):
                hidden = walk.run_block(0, hidden)
            mx.eval(hidden)
            walk.layer += 1
        last = take_positions(hidden, batch.lengths * count, [-1])
        logits = run_head(model, last)[:, 0].reshape(count, rode, -1)
        mx.eval(logits)
        for row, index in enumerate(batch.order):
            rows[index] = logits[:, row]
    return mx.stack([rows[index] for index in range(len(rows))], axis=1)


def _last_logits_with_added(walk: Walk, vectors: mx.array) -> mx.array:
    """Logits ``[candidate, prompt, vocab]`` with each vector added to every token at the walk's layer."""
    count = vectors.shape[0]
    rows: dict[int, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        base = walk.hidden[index]
        rode = len(batch.lengths)
        hidden = mx.concatenate([base] * count)
        hidden = hidden + mx.repeat(vectors, rode, axis=0)[:, None].astype(base.dtype)
        start = walk.layer
        try:
            while not walk.is_done:
                hidden = walk.run_block(index, hidden)
                mx.eval(hidden)
                walk.layer += 1
        finally:
            walk.layer = start
        last = take_positions(hidden, batch.lengths * count, [-1])
        logits = run_head(walk.model, last)[:, 0].reshape(count, rode, -1)
        mx.eval(logits)
        for row, given in enumerate(batch.order):
            rows[given] = logits[:, row]
    return mx.stack([rows[index] for index in range(len(rows))], axis=1)


def _project_out(hidden: mx.array, directions: mx.array) -> mx.array:
    """``hidden - (hidden . r) r``, ``[row, token, hidden]``, with one unit direction ``[row, 1, hidden]`` per row."""
    values = hidden.astype(mx.float32)
    along = (values * directions).sum(axis=-1, keepdims=True)
    return (values - along * directions).astype(hidden.dtype)


def _project_output(directions: mx.array) -> Callable[[nn.Module, mx.array], mx.array]:
    def project(linear: nn.Module, value: mx.array) -> mx.array:
        return _project_out(linear(value), directions)

    return project


def cosine(one: mx.array, other: mx.array) -> float:
    """Cosine of two vectors ``[hidden]``; 0 when one of them is 0."""
    norms = mx.linalg.norm(one) * mx.linalg.norm(other)
    return float(((one * other).sum() / mx.maximum(norms, 1e-12)).item())


def save_direction(direction: Direction, path: Path) -> None:
    """Write ``direction.safetensors``: the vector, everything else as metadata."""
    fields = {name: value for name, value in vars(direction).items() if name != "vector"}
    mx.save_safetensors(str(path), {"vector": direction.vector}, metadata={k: repr(v) for k, v in fields.items()})


def load_direction(path: Path) -> Direction:
    """Read what `save_direction` wrote."""
    import ast

    arrays, metadata = mx.load(str(path), return_metadata=True)
    fields = {name: ast.literal_eval(metadata[name]) for name in metadata if name in Direction.__annotations__}
    return Direction(vector=arrays["vector"], **fields)
