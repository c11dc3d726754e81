"""Brute force in numpy float64: what the kernels and drivers must agree with. Imports nothing of the project.

Axes as everywhere: weights ``[out, in]``, activations ``[token, in]``. Nothing here is fast, and nothing here knows
how the project computes the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def lowest_mask(scores: Array, removed: int) -> Mask:
    """True at the ``removed`` lowest scores of each row; among equals the lower index goes first."""
    mask = np.zeros(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        order = sorted(range(scores.shape[1]), key=lambda column: (scores[row, column], column))
        mask[row, order[:removed]] = True
    return mask


def n_of_m_mask(scores: Array, removed: int, group: int) -> Mask:
    """`lowest_mask` on each ``group`` consecutive scores."""
    parts = [lowest_mask(scores[:, start : start + group], removed) for start in range(0, scores.shape[1], group)]
    return np.concatenate(parts, axis=1)


def log_softmax(logits: Array) -> Array:
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def refusal_log_odds(logits: Array, tokens: Sequence[int]) -> Array:
    """log p - log(1 - p), p the probability of all ``tokens`` together."""
    probability = np.exp(log_softmax(logits))[..., sorted(set(tokens))].sum(axis=-1)
    return np.log(probability) - np.log1p(-probability)


def kl_divergence(reference: Array, other: Array) -> Array:
    first, second = log_softmax(reference), log_softmax(other)
    return (np.exp(first) * (first - second)).sum(axis=-1)


def split_scores(one_first: Array, one_second: Array, other_first: Array, other_second: Array) -> dict[str, float]:
    """Cosines, inner products and gaps of squared lengths of two models' half differences ``[hidden]``."""

    def unit(vector: Array) -> Array:
        return vector / np.sqrt(vector @ vector)

    return {
        "null_one": unit(one_first) @ unit(one_second),
        "null_other": unit(other_first) @ unit(other_second),
        "cross": unit(one_first) @ unit(other_second),
        "inner_one": one_first @ one_second,
        "inner_other": other_first @ other_second,
        "gap_one": np.sum(one_first**2) - np.sum(one_second**2),
        "gap_other": np.sum(other_first**2) - np.sum(other_second**2),
    }


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The two rates p with |successes/n - p| = z sqrt(p (1 - p) / n): the roots of a quadratic."""
    z, rate = 1.959963984540054, successes / n
    roots = np.roots([1 + z * z / n, -(2 * rate + z * z / n), rate * rate])
    low, high = sorted(float(root.real) for root in roots)
    return max(0.0, low), min(1.0, high)


def least_squares_change(
    directions: Array, original: Array, compressed: Array, inputs: Array, drifted: Array, ridge: float
) -> Array:
    """D with the least ``sum_t |R W_c x' + D x' - R W_o x|^2 / n + lambda |D|^2``, as one tall system."""
    count = len(drifted)
    penalty = ridge * np.mean(np.sum(drifted**2, axis=0) / count)
    wanted = (inputs @ original.T - drifted @ compressed.T) @ directions.T
    width = drifted.shape[1]
    tall = np.concatenate([drifted / np.sqrt(count), np.sqrt(penalty) * np.eye(width)])
    right = np.concatenate([wanted / np.sqrt(count), np.zeros((width, len(directions)))])
    return np.linalg.lstsq(tall, right, rcond=None)[0].T


def refit_rows(original: Array, compressed: Array, second: Array, cross: Array, ridge: float) -> Array:
    """Each row alone: ``min |W' x' - W_o x|^2 + lambda |W' - W_c|^2`` over its surviving weights, by a direct solve."""
    penalty = ridge * np.mean(np.diag(second))
    result = np.zeros(compressed.shape)
    for row in range(len(compressed)):
        kept = np.flatnonzero(compressed[row])
        if len(kept):
            right = (original[row] @ cross)[kept] + penalty * compressed[row, kept]
            result[row, kept] = np.linalg.solve(second[np.ix_(kept, kept)] + penalty * np.eye(len(kept)), right)
    return result


def masked_least_squares(
    compressed: Array, wanted: Array, drifted: Array, ridge: float, directions: Array, beta: float
) -> Array:
    """``min sum_t |W' x' - y|^2 / n + beta |R (W' x' - y)|^2 / n + lambda |W' - W_c|^2`` over the surviving weights.

    One tall system over all of them; ``wanted`` are the outputs y, ``[token, out]``.
    """
    rows, width = compressed.shape
    count = len(drifted)
    penalty = ridge * np.mean(np.sum(drifted**2, axis=0) / count)
    kept = np.flatnonzero(compressed)
    # Errors are weighed by the square root of I + beta R^T R.
    values, vectors = np.linalg.eigh(np.eye(rows) + beta * directions.T @ directions)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    tall = np.einsum("ko,ti->tkoi", root, drifted).reshape(count * rows, rows * width)[:, kept] / np.sqrt(count)
    right = (wanted @ root.T).reshape(-1) / np.sqrt(count)
    damping = np.sqrt(penalty) * np.eye(len(kept))
    solution = np.linalg.lstsq(
        np.concatenate([tall, damping]),
        np.concatenate([right, np.sqrt(penalty) * compressed.reshape(-1)[kept]]),
        rcond=None,
    )[0]
    result = np.zeros(rows * width)
    result[kept] = solution
    return result.reshape(rows, width)


def least_squares_inside_mask(
    original: Array, compressed: Array, inputs: Array, drifted: Array, ridge: float, directions: Array, beta: float
) -> Array:
    """`masked_least_squares` towards outputs that are the dense model's along R and the compressed one's across it."""
    stays = drifted @ compressed.T
    missing = inputs @ original.T - stays
    return masked_least_squares(
        compressed, stays + missing @ directions.T @ directions, drifted, ridge, directions, beta
    )


def carried_by_survivors(directions: Array, kept: Mask) -> Array:
    """``[in, k]``: per column, ascending, how much of the directions the survivors carry (squared singular values)."""
    count = len(directions)
    result = np.zeros((kept.shape[1], count))
    for column in range(kept.shape[1]):
        rows = np.flatnonzero(kept[:, column])
        if len(rows):
            sizes = np.linalg.svd(directions[:, rows], compute_uv=False) ** 2
            result[column, count - len(sizes) :] = sorted(sizes)
    return result


def smallest_masked_change(directions: Array, change_along: Array, kept: Mask) -> Array:
    """Column by column the shortest vector on the survivors whose product with R is the wanted change, or nearest.

    What the survivors carry less than a millionth of is left alone.
    """
    result = np.zeros(kept.shape)
    for column in range(kept.shape[1]):
        rows = np.flatnonzero(kept[:, column])
        if len(rows):
            left, sizes, right = np.linalg.svd(directions[:, rows], full_matrices=False)
            used = sizes**2 > 1e-6
            result[rows, column] = right[used].T @ ((left[:, used].T @ change_along[:, column]) / sizes[used])
    return result


def orthonormal_rows(generator: np.random.Generator, count: int, width: int) -> Array:
    """So many random unit vectors ``[count, width]`` at right angles, with float32 values."""
    rows = np.linalg.qr(generator.normal(size=(width, count)))[0].T
    return np.asarray(rows, dtype=np.float32).astype(np.float64)


class Llama:
    """A llama forward pass written from its paper: RMSNorm, rotary embedding, grouped attention, SwiGLU, no cache.

    Args:
        weights: names as in a Hugging Face checkpoint.
        config: the model's config.json.
        ablate: a unit direction taken out of every block's input and of every residual writer's output.
        add: ``(layer, vector)`` added to every token at the input of block ``layer``.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        ablate: Array | None = None,
        add: tuple[int, Array] | None = None,
    ) -> None:
        self.weights = {name: np.array(value, dtype=np.float64) for name, value in weights.items()}
        self.config = config
        self.ablate = ablate
        self.add = add

    def project(self, values: Array) -> Array:
        return values if self.ablate is None else values - np.outer(values @ self.ablate, self.ablate)

    def norm(self, name: str, values: Array) -> Array:
        square = np.mean(values**2, axis=-1, keepdims=True)
        return values / np.sqrt(square + self.config["rms_norm_eps"]) * self.weights[name]

    def rotate(self, values: Array) -> Array:
        """Rotary embedding of ``[token, head, head_dim]``, halves paired."""
        half = values.shape[-1] // 2
        frequency = self.config["rope_theta"] ** (-np.arange(half) / half)
        angle = np.arange(len(values))[:, None] * frequency
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        first, second = values[..., :half], values[..., half:]
        return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)

    def block(self, index: int, hidden: Array, see: Callable[[str, Array], None] = lambda name, value: None) -> Array:
        """Output ``[token, hidden]`` of one block; ``see`` is called with each linear's name and input."""

        def linear(name: str, value: Array) -> Array:
            see(name, value)
            return value @ self.weights[f"model.layers.{index}.{name}.weight"].T

        count, heads = len(hidden), self.config["num_attention_heads"]
        shared = heads // self.config["num_key_value_heads"]
        normed = self.norm(f"model.layers.{index}.input_layernorm.weight", hidden)
        query, key, value = (
            linear(f"self_attn.{part}_proj", normed).reshape(count, -1, self.config["head_dim"]) for part in "qkv"
        )
        query, key = self.rotate(query), self.rotate(key)
        mixed = np.zeros_like(query)
        for head in range(heads):
            scores = query[:, head] @ key[:, head // shared].T / np.sqrt(self.config["head_dim"])
            scores[np.triu_indices(count, 1)] = -np.inf
            mixed[:, head] = np.exp(log_softmax(scores)) @ value[:, head // shared]
        hidden = hidden + self.project(linear("self_attn.o_proj", mixed.reshape(count, -1)))
        normed = self.norm(f"model.layers.{index}.post_attention_layernorm.weight", hidden)
        gate, up = linear("mlp.gate_proj", normed), linear("mlp.up_proj", normed)
        return hidden + self.project(linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * up))

    def hidden(self, ids: Sequence[int]) -> list[Array]:
        """Inputs of every block and, last, the output of the last one."""
        states = [self.weights["model.embed_tokens.weight"][list(ids)]]
        for index in range(self.config["num_hidden_layers"]):
            if self.add is not None and self.add[0] == index:
                states[-1] = states[-1] + self.add[1]
            states[-1] = self.project(states[-1])
            states.append(self.block(index, states[-1]))
        return states

    def logits(self, ids: Sequence[int]) -> Array:
        """``[token, vocab]``."""
        final = self.norm("model.norm.weight", self.hidden(ids)[-1])
        return final @ self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"]).T


def wanda_masks(
    weights: Mapping[str, Any],
    config: Mapping[str, Any],
    sequences: Sequence[tuple[Sequence[int], int]],
    mark: Callable[[Array], Mask],
) -> dict[str, Mask]:
    """Masks of every linear by Wanda, block by block through the blocks pruned before, one sequence at a time.

    Args:
        sequences: token ids and the first token that counts.
        mark: scores -> mask.
    """
    llama = Llama(weights, config)
    states = [llama.weights["model.embed_tokens.weight"][list(ids)] for ids, _ in sequences]
    masks: dict[str, Mask] = {}
    for block in range(config["num_hidden_layers"]):
        squares: dict[str, Array] = {}
        for hidden, (_, first) in zip(states, sequences, strict=True):

            def see(name: str, value: Array, first: int = first, sums: dict[str, Array] = squares) -> None:
                sums[name] = sums.get(name, np.zeros(value.shape[1])) + np.sum(value[first:] ** 2, axis=0)

            llama.block(block, hidden, see)
        for group in GROUPS:
            for name in group:
                key = f"model.layers.{block}.{name}.weight"
                masks[f"{block}.{name}"] = mark(np.abs(llama.weights[key]) * np.sqrt(squares[name]))
                llama.weights[key] = np.where(masks[f"{block}.{name}"], 0.0, llama.weights[key])
        states = [llama.block(block, hidden) for hidden in states]
    return masks


def sparsegpt(
    weight: Array,
    second_moment: Array,
    sparsity: float = 0.5,
    groups: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Array:
    """Algorithm 1 of arXiv:2301.00774 as its authors write it: invert, factor, and walk column by column."""
    weight, moment = np.array(weight, dtype=np.float64), np.array(second_moment, dtype=np.float64)
    dead = np.diag(moment) == 0
    moment[dead, dead] = 1.0
    weight[:, dead] = 0.0
    moment += damping * np.mean(np.diag(moment)) * np.eye(len(moment))
    factor = np.linalg.cholesky(np.linalg.inv(moment)).T
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        part, own = weight[:, start:stop].copy(), factor[start:stop, start:stop]
        errors = np.zeros_like(part)
        if groups is None:
            scores = part**2 / np.diag(own) ** 2
            mask = lowest_mask(scores.reshape(1, -1), int(scores.size * sparsity + 1e-9)).reshape(scores.shape)
        else:
            mask = np.zeros(part.shape, dtype=bool)
        for column in range(stop - start):
            if groups and column % groups[1] == 0:
                now = slice(column, column + groups[1])
                mask[:, now] = lowest_mask(part[:, now] ** 2 / np.diag(own)[now] ** 2, groups[0])
            errors[:, column] = np.where(mask[:, column], part[:, column], 0.0) / own[column, column]
            part[:, column][mask[:, column]] = 0.0
            part[:, column + 1 :] -= np.outer(errors[:, column], own[column, column + 1 :])
        weight[:, start:stop] = part
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight


def layer_objective(pruned: Array, original: Array, second_moment: Array) -> float:
    """``sum |(W' - W) x|^2`` over the tokens that H is of."""
    change = np.asarray(pruned, dtype=np.float64) - np.asarray(original, dtype=np.float64)
    return float(np.sum((change @ second_moment) * change))
