"""What a model lost besides refusals: perplexity, and distance to the dense model on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk, run_head
from aird_mlx.direction import kl_divergence
from aird_mlx.errors import ModelError, PromptError
from aird_mlx.evaluation.generation import LanguageModel
from aird_mlx.model import ChatModel
from aird_mlx.report import Utility

# Logits held at once, per model: 32 M floats are 128 MB.
LOGITS_AT_ONCE = 32 << 20


def perplexity(loss: float, tokens: float) -> float:
    """``exp`` of the mean loss (nats) of so many tokens, at most ``exp(700)``.

    Raises:
        PromptError: no token.
    """
    if not tokens:
        raise PromptError("text: there is no token to predict; passages of two tokens and more are needed. Add text.")
    return math.exp(min(loss / tokens, 700.0))


def utility_batch_tokens(vocab_size: int) -> int:
    """How many tokens a batch for `measure_utility` may hold so that its logits stay small."""
    return max(256, LOGITS_AT_ONCE // vocab_size)


def measure_utility(
    model: LanguageModel,
    batches: Sequence[TokenBatch],
    *,
    dense: LanguageModel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Utility:
    """Perplexity over the counted tokens and, against ``dense``, KL(dense || model) and top-1 agreement.

    Args:
        model: read only.
        batches: held-out token batches; a token is predicted when it counts and is not its sequence's first.
        dense: the reference; without it KL and agreement are None.
        progress: called with (batches done, batches).

    Raises:
        ModelError: logits are not finite.
        PromptError: no token counts.
    """
    loss = divergence = agreed = tokens = 0.0
    found, wanted = _logits(model, batches), None if dense is None else _logits(dense, batches)
    for done, batch in enumerate(batches, 1):
        counted = batch.counted[:, 1:]
        logits = next(found)[:, :-1].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, batch.ids[:, 1:])
        sums = [(losses * counted).sum(), counted.sum()]
        if wanted is not None:
            reference = next(wanted)[:, :-1].astype(mx.float32)
            same = (reference.argmax(axis=-1) == logits.argmax(axis=-1)) * counted
            sums += [(kl_divergence(reference, logits) * counted).sum(), same.sum()]
        mx.eval(sums)
        values = [float(value.item()) for value in sums]
        if any(map(math.isnan, values)):
            raise _not_finite("the model" if math.isnan(values[0]) else "the dense model")
        loss, tokens = loss + values[0], tokens + values[1]
        if dense is not None:
            divergence, agreed = divergence + values[2], agreed + values[3]
        progress(done, len(batches))
    return Utility(
        perplexity=perplexity(loss, tokens),
        kl_to_dense=None if dense is None else max(0.0, divergence / tokens),
        top1_agreement=None if dense is None else agreed / tokens,
        tokens=int(tokens),
    )


def sequence_log_likelihoods(
    model: LanguageModel,
    batches: Sequence[TokenBatch],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Per sequence the log-likelihood (nats) of its counted tokens, given all before them.

    Args:
        model: read only.
        batches: what `batch_sequences` made of the sequences; their first tokens are never predicted.
        progress: called with (batches done, batches).

    Returns:
        One number per sequence, in the order they had before batching.

    Raises:
        ModelError: logits are not finite.
    """
    found = [0.0] * sum(len(batch.order) for batch in batches)
    logits_of = _logits(model, batches)
    for done, batch in enumerate(batches, 1):
        logits = next(logits_of)[:, :-1].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, batch.ids[:, 1:]) * batch.counted[:, 1:]
        for index, loss in zip(batch.order, losses.sum(axis=1).tolist(), strict=True):
            if math.isnan(loss):
                raise _not_finite("the model")
            found[index] = -loss
        progress(done, len(batches))
    return found


def _not_finite(which: str) -> ModelError:
    return ModelError(
        f"likelihoods: {which} gives logits that are not finite; finite weights are needed. Compress or download "
        "it again."
    )


def _logits(model: LanguageModel, batches: Sequence[TokenBatch]) -> Iterator[mx.array]:
    """Logits ``[batch, token, vocab]`` of each batch; blocks that do not all fit are read once for all batches."""
    streamed = model if isinstance(model, ChatModel) else getattr(model, "streamed", None)
    if streamed is not None and streamed.stream is not None:
        walk = Walk(streamed, batches)
        walk.move_to(len(streamed.blocks))
        yield from (run_head(streamed, hidden) for hidden in walk.hidden)
    else:
        yield from (model.network(batch.ids) for batch in batches)
