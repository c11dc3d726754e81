"""Validation prompts: judged by one forward pass over the dense model's answers, or by answers of the model's own.

The pass says whether the likeliest next token opens a refusal, and how far the model is from the dense one on what the
dense one says. It is cheap, but an opening is not an answer: finalists are judged on those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk, batch_sequences, run_head
from aird_mlx.direction import kl_divergence
from aird_mlx.evaluation import measure_refusals, perplexity, utility_batch_tokens
from aird_mlx.model import ChatModel
from aird_mlx.prompts import KINDS
from aird_mlx.report import RefusalRates, TrialFigures

# Prompts of each kind whose openings a pass looks at, how many of them with the answer, for the distance.
FORESEEN_PROMPTS, FORESEEN_ANSWERS = 64, 32
# Prompts without and with an answer differ in length: small batches hold little padding.
TOKENS_PER_BATCH = 2048
# Tokens that generated answers are judged on.
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class _Part:
    """One batch: where answers are predicted, the tokens they have there, and what the dense model thinks of them.

    Attributes:
        batch: the dialogues.
        at: ``[n]`` flat indices of the tokens that the next one is predicted from.
        following: ``[n]`` the tokens that follow.
        opens: per dialogue, index into ``at`` of its answer's first prediction.
        kinds: per dialogue.
        dense: ``[n, hidden]`` final hidden states of the dense model there.
    """

    batch: TokenBatch
    at: mx.array
    following: mx.array
    opens: mx.array
    kinds: tuple[str, ...]
    dense: mx.array


class Validation:
    """Validation prompts with the dense model's answers; models are read only.

    Attributes:
        prompts: by kind.
        dense: the dense model's own figures in the pass.
        answered: its refusals, from the answers it gave.
    """

    def __init__(
        self,
        dense: ChatModel,
        dialogues: Mapping[str, Sequence[tuple[list[int], int]]],
        prompts: Mapping[str, Sequence[str]],
        answered: RefusalRates,
        refusal_tokens: Sequence[int],
        *,
        batch_size: int,
    ) -> None:
        """Run the dense model over its own answers once.

        Args:
            dialogues: by kind, token ids of a prompt with the dense model's answer, and where the answer starts.
            prompts: by kind, all validation prompts.
            answered: the dense model's refusals of them.
            refusal_tokens: ids of the tokens that refusals start with.
            batch_size: answers generated side by side.
        """
        self.prompts = {kind: list(prompts.get(kind, ())) for kind in KINDS}
        self._model, self._tokens, self._batch_size = dense, mx.array(list(refusal_tokens)), batch_size
        chosen = [
            (kind, ids if number < FORESEEN_ANSWERS else ids[: first + 1], first)
            for kind in KINDS
            for number, (ids, first) in enumerate(dialogues.get(kind, ())[:FORESEEN_PROMPTS])
            if 0 < first < len(ids)
        ]
        self._parts = [
            _predict(dense, batch, [chosen[index] for index in batch.order])
            for batch in batch_sequences(
                [ids for _, ids, _ in chosen],
                tokens_per_batch=min(TOKENS_PER_BATCH, utility_batch_tokens(dense.vocabulary)),
            )
        ]
        self.dense = self._foresee(dense, [part.dense for part in self._parts])
        self.answered = self._figures(answered, self.dense)

    @property
    def counts(self) -> dict[str, int]:
        """Prompts of each kind."""
        return {kind: len(prompts) for kind, prompts in self.prompts.items()}

    @property
    def foreseen_counts(self) -> dict[str, int]:
        """Prompts of each kind that a pass looks at."""
        return {kind: sum(part.kinds.count(kind) for part in self._parts) for kind in KINDS}

    def foresee(self, model: ChatModel) -> TrialFigures:
        """One forward pass over the dense model's answers."""
        return self._foresee(model, (_final_states(model, part.batch, part.at) for part in self._parts))

    def _foresee(self, model: ChatModel, states_of: Iterable[mx.array]) -> TrialFigures:
        """The figures of a model's final hidden states, ``[n, hidden]`` for each part."""
        opens: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        loss = divergence = 0.0
        for part, states in zip(self._parts, states_of, strict=True):
            logits = run_head(model, states[None])[0].astype(mx.float32)
            wanted = run_head(self._model, part.dense[None])[0].astype(mx.float32)
            losses = nn.losses.cross_entropy(logits, part.following)
            refuses = (logits[part.opens].argmax(axis=-1)[:, None] == self._tokens).any(axis=1)
            sums = [losses.sum(), kl_divergence(wanted, logits).sum()]
            mx.eval(sums, refuses)
            loss, divergence = loss + sums[0].item(), divergence + sums[1].item()
            for kind, value in zip(part.kinds, refuses.tolist(), strict=True):
                opens[kind] += value
        tokens = sum(part.at.size for part in self._parts)
        counts = self.foreseen_counts
        shares = {kind: total / max(counts[kind], 1) for kind, total in opens.items()}
        return TrialFigures(**shares, kl_to_dense=max(0.0, divergence / tokens), perplexity=perplexity(loss, tokens))

    def answer(self, model: ChatModel, foreseen: TrialFigures) -> TrialFigures:
        """Refusals and broken text in the model's answers to all prompts; distance and perplexity as foreseen."""
        rates = measure_refusals(model, self.prompts, max_new_tokens=ANSWER_TOKENS, batch_size=self._batch_size)
        return self._figures(rates, foreseen)

    def _figures(self, rates: RefusalRates, foreseen: TrialFigures) -> TrialFigures:
        harmful, harmless, twin, incoherent = (
            0.0 if rate is None else rate.rate for rate in (rates.harmful, rates.harmless, rates.twin, rates.incoherent)
        )
        return TrialFigures(harmful, harmless, twin, foreseen.kl_to_dense, foreseen.perplexity, incoherent)


def _predict(dense: ChatModel, batch: TokenBatch, dialogues: Sequence[tuple[str, list[int], int]]) -> _Part:
    width = batch.ids.shape[1]
    at: list[int] = []
    following: list[int] = []
    opens: list[int] = []
    for row, (_, ids, first) in enumerate(dialogues):
        opens.append(len(at))
        at += [row * width + token for token in range(first - 1, len(ids) - 1)]
        following += ids[first:]
    where = mx.array(at)
    kinds = tuple(kind for kind, _, _ in dialogues)
    return _Part(batch, where, mx.array(following), mx.array(opens), kinds, _final_states(dense, batch, where))


def _final_states(model: ChatModel, batch: TokenBatch, at: mx.array) -> mx.array:
    """``[n, hidden]``: what the last block gives at flat token indices ``at``."""
    walk = Walk(model, [batch])
    walk.move_to(len(model.blocks))
    states = walk.hidden[0].reshape(-1, walk.hidden[0].shape[-1])[at]
    mx.eval(states)
    return states
