"""mlx-lm's learned quantization, called on chats of our own: GPTQ, AWQ, DWQ, and bits by sensitivity.

What is learned is mlx-lm's; here are its inputs, its config, and the count of what it does to the zeros of a pruned
model. None of these methods knows a pruning mask: GPTQ moves error into removed weights, and the affine grid of the
others need not hold a zero.

Source: GPTQ arXiv:2210.17323, AWQ arXiv:2306.00978; DWQ and dynamic quantization are mlx-lm's (LEARNED_QUANTS.md).
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten

from aird_mlx.errors import PromptError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.quantization.affine import BITS
from aird_mlx.quantization.quantize import (
    check_quantization,
    describe_quantization,
    leaf_modules,
    tensor_figures,
)
from aird_mlx.report import QuantizationReport

LEARNED = ("gptq", "awq", "dwq", "dynamic")
# What packs whole numbers of codes into a word, in mlx-lm's GPTQ.
GPTQ_BITS = (2, 4, 8)
# GPTQ and AWQ leave embedding and head to plain rounding, at bits of their own.
OUTSIDE_BITS = 6
ROW_TOKENS, BATCH_ROWS, LEAST_ROWS = 256, 4, 8
DWQ_LEARNING_RATE, DWQ_EPOCHS = 1e-4, 4

TokenSequences = Sequence[Sequence[int]]


def check_learned(method: str, bits: int | None, group_size: int | None, model_type: str) -> tuple[int, int]:
    """Bits and group size of a learned method.

    Raises:
        UsageError: none of `LEARNED`, or bits, a group size or a type of model that it does not have in mlx-lm.

    >>> check_learned("gptq", None, None, "llama")
    (4, 64)
    """
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS

    if method not in LEARNED:
        raise UsageError(f"quantize: method is {method!r}; one of {', '.join(LEARNED)} is needed. Choose one of them.")
    chosen = check_quantization("affine", bits, group_size)
    if method == "gptq" and chosen[0] not in GPTQ_BITS:
        raise UsageError(
            f"quantize: bits is {chosen[0]}; gptq in mlx-lm has {', '.join(map(str, GPTQ_BITS))}. Choose one of them, "
            "or awq, dwq or dynamic."
        )
    if method == "awq" and model_type not in AWQ_MODEL_CONFIGS:
        raise UsageError(
            f"quantize: awq for model type {model_type}; mlx-lm has {', '.join(sorted(AWQ_MODEL_CONFIGS))}. Use gptq, "
            "dwq or dynamic."
        )
    return chosen


def learn_quantization(
    model: ChatModel,
    method: str,
    dialogues: TokenSequences,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    seed: int = 0,
) -> QuantizationReport:
    """Quantize in place by one of mlx-lm's learned methods, and say so in the model's config.

    Args:
        model: changed in place, its config too, so that `save` writes a folder that ``mlx_lm.load`` reads.
        method: of `LEARNED`.
        dialogues: token ids of chats to learn from.
        bits, group_size: None for 4 and 64. ``dynamic`` gives half of the weights, by size, the next number of bits.
        seed: of the order of the chats.

    Raises:
        UsageError: see `check_learned`, or a group size that does not divide a linear's width.
        PromptError: too few tokens.
    """
    bits, group_size = check_learned(method, bits, group_size, str(model.config["model_type"]))
    modules = {path: module for path, module in leaf_modules(model.network).items() if hasattr(module, "to_quantized")}
    for path, module in modules.items():  # mlx-lm's methods leave none out, not even routers
        if module.weight.shape[-1] % group_size:
            raise UsageError(
                f"quantize: group_size {group_size} does not divide the {module.weight.shape[-1]} inputs of {path}; a "
                "divisor is needed. Use a smaller group size."
            )
    originals = {path: module.weight for path, module in modules.items()}
    rows = _rows_of(dialogues, model.context_length)
    mx.random.seed(seed)
    np.random.seed(seed)  # mlx-lm's batches
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if method == "gptq":
            _gptq(model, rows, bits, group_size)
        elif method == "awq":
            _awq(model, rows, bits, group_size)
        elif method == "dwq":
            _dwq(model, dialogues, bits, group_size, seed)
        else:
            _dynamic(model, rows, bits, group_size)
    default = {"group_size": group_size, "bits": bits, "mode": "affine"}
    tensors, skipped = [], []
    layers: dict[str, Any] = {}
    for path, module in leaf_modules(model.network).items():
        if path not in originals:
            continue
        if not hasattr(module, "bits"):
            skipped.append(path)
            layers[path] = False
            continue
        own = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        if own != default:
            layers[path] = own
        figures = tensor_figures(path, module, originals[path])
        tensors.append(replace(figures, error=None) if method == "awq" else figures)  # whose weights are rescaled
    describe_quantization(model, default | layers)
    report = QuantizationReport(method, bits, group_size, model.bits_per_weight, tensors, skipped)
    zeros = sum(one.zeros * one.weights for one in tensors)
    if zeros > 0.01 * sum(one.weights for one in tensors):
        report.notes.append(
            f"{method} knows no pruning mask: {report.zeros_kept:.1%} of the zeros there were are zero still. Quantize "
            "without --method to keep them all"
        )
    return report


def _rows_of(dialogues: TokenSequences, context: int | None) -> mx.array:
    """The chats one after the other, cut to rows of one length: ``[row, token]``."""
    ids = [token for dialogue in dialogues for token in dialogue]
    length = min(ROW_TOKENS, context or ROW_TOKENS)
    if len(ids) < LEAST_ROWS * length:
        raise PromptError(
            f"calibration: {len(ids)} tokens; {LEAST_ROWS * length} or more are needed to learn a quantization from. "
            "Give more prompts or texts."
        )
    count = len(ids) // length
    return mx.array(ids[: count * length], dtype=mx.int32).reshape(count, length)


def _gptq(model: ChatModel, rows: mx.array, bits: int, group_size: int) -> None:
    from mlx_lm.quant.gptq import gptq_quantize

    gptq_quantize(model.network, rows, bits, group_size, max(bits, OUTSIDE_BITS), group_size, BATCH_ROWS)


def _awq(model: ChatModel, rows: mx.array, bits: int, group_size: int) -> None:
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize

    awq_quantize(
        model.network, rows, AWQ_MODEL_CONFIGS[model.config["model_type"]], group_size=group_size, bits=bits,
        embed_group_size=group_size, embed_bits=max(bits, OUTSIDE_BITS),
    )  # fmt: skip


def _dwq(model: ChatModel, dialogues: TokenSequences, bits: int, group_size: int, seed: int) -> None:
    from mlx_lm.quant.dwq import dwq_quantize

    dense, network = copy.deepcopy(model.network), model.network
    dtype = next(iter(tree_flatten(network.parameters())))[1].dtype
    nn.quantize(network, group_size=group_size, bits=bits)
    data = [(list(ids), 0) for ids in dialogues if len(ids) > 2]
    held_out = max(BATCH_ROWS, len(data) // 10)
    dwq_quantize(
        network,
        lambda batch, index, split: dense(batch),
        optimizers.Adam(learning_rate=DWQ_LEARNING_RATE, bias_correction=True),
        data[held_out:] * DWQ_EPOCHS,
        data[:held_out],
        batch_size=BATCH_ROWS,
        max_seq_length=max(len(ids) for ids, _ in data),
        seed=seed,
        dtype=dtype,
    )
    network.eval()


def _dynamic(model: ChatModel, rows: mx.array, bits: int, group_size: int) -> None:
    from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold

    if bits == max(BITS):
        raise UsageError(f"quantize: dynamic with {bits} bits; fewer are needed, since some get more. Use 4.")
    high = BITS[BITS.index(bits) + 1]
    network = model.network
    kinds: Mapping[str, Any] = {
        "low_bits": bits, "low_group_size": group_size, "high_bits": high, "high_group_size": group_size,
    }  # fmt: skip
    sensitivities = dict(estimate_sensitivities(network, rows, **kinds, batch_size=BATCH_ROWS))
    stored = 16 * next(iter(tree_flatten(network.parameters())))[1].dtype.size / group_size
    target = stored + (bits + high) / 2
    threshold = estimate_threshold(network, sensitivities, target_bpw=target, **kinds)

    def choose(path: str, module: nn.Module) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": high, "group_size": group_size} if sensitivities[path] > threshold else True

    nn.quantize(network, group_size=group_size, bits=bits, class_predicate=choose)
