"""Quantize a model's linears and embeddings in place, in any mode of MLX, one module at a time.

Affine modules that hold zeros go through our kernel, which keeps them; everything else is `mx.quantize`. The result is
what mlx-lm itself would build: its quantized modules, and its ``quantization`` in the config, per layer where modules
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from aird_mlx.errors import ModelError, UsageError
from aird_mlx.model import QUANTIZED, ChatModel, ShardFolder
from aird_mlx.quantization.affine import BITS, GROUP_SIZES, quantize_with_zeros
from aird_mlx.report import QuantizationReport, TensorQuantization

# Mode -> (bits, group sizes) that MLX has, the default first.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, *(bits for bits in BITS if bits != 4)), (64, *(size for size in GROUP_SIZES if size != 64))),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

# What mlx-lm calls a quant predicate: True, False, or the parameters of one module.
Recipe = Callable[[str, nn.Module], bool | Mapping[str, Any]]


def check_quantization(mode: str, bits: int | None, group_size: int | None) -> tuple[int, int]:
    """Bits and group size, the mode's own where they are None.

    Raises:
        UsageError: a mode, bits or a group size that MLX lacks.

    >>> check_quantization("affine", None, 32), check_quantization("nvfp4", None, None)
    ((4, 32), (4, 16))
    """
    if mode not in MODES:
        raise UsageError(f"quantize: mode is {mode!r}; one of {', '.join(MODES)} is needed. Choose one of them.")
    chosen = []
    for word, value, known in zip(("bits", "group_size"), (bits, group_size), MODES[mode], strict=True):
        if value is not None and value not in known:
            raise UsageError(
                f"quantize: {word} is {value}; mode {mode} in MLX has {', '.join(map(str, sorted(known)))}. Choose "
                f"{'one of them' if len(known) > 1 else 'that, or another mode'}."
            )
        chosen.append(known[0] if value is None else value)
    return chosen[0], chosen[1]


def quantize_model(
    model: ChatModel,
    *,
    mode: str = "affine",
    bits: int | None = None,
    group_size: int | None = None,
    recipe: Recipe | None = None,
    shards: ShardFolder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizationReport:
    """Quantize every linear and embedding of the network in place, and say so in the model's config.

    Args:
        model: changed in place, its config too, so that `save` writes a folder that ``mlx_lm.load`` reads.
        mode: of `MODES`.
        bits, group_size: None for the mode's own.
        recipe: as mlx-lm's quant predicates: (path, module) -> True, False (leave it), or a mapping with ``bits``,
            ``group_size`` and ``mode`` of this module; what it lacks is as given above.
        shards: a new folder of this model that each block is written to when it is done; a streamed model needs one.
        progress: called with (modules done, modules).

    Raises:
        UsageError: settings that MLX lacks, or a group size that does not divide a linear's width.
        ModelError: the network is quantized already.
    """
    default, plan, skipped = plan_modules(model, mode, bits, group_size, recipe)
    last = {model.block_of(path): path for path in plan}
    tensors = []
    for done, (path, parameters) in enumerate(plan.items(), start=1):
        owner, name, module = find_module(model.network, path)
        quantized, figures = _quantize_module(path, module, **parameters)
        owner[name] = quantized
        tensors.append(figures)
        del module, quantized
        block = model.block_of(path)
        if shards is not None and block is not None and path == last[block]:
            shards.write(block, None)
        progress(done, len(plan))
    layers: dict[str, Any] = {path: own for path, own in plan.items() if own != default}
    layers |= dict.fromkeys(skipped, False)
    describe_quantization(model, default | layers)
    return QuantizationReport(mode, default["bits"], default["group_size"], model.bits_per_weight, tensors, skipped)


def plan_modules(
    model: ChatModel, mode: str, bits: int | None, group_size: int | None, recipe: Recipe | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """What `quantize_model` would do; nothing is changed.

    Returns:
        The parameters of most modules, by path those of each module to quantize, and the paths of those that stay.

    Raises:
        UsageError, ModelError: as `quantize_model`.
    """
    whole_bits, whole_group = check_quantization(mode, bits, group_size)
    default = {"group_size": whole_group, "bits": whole_bits, "mode": mode}
    plan: dict[str, dict[str, Any]] = {}
    skipped = []
    # Routers and what sets the steps of a recurrence are small; where groups do not fit, they stay as they are.
    kept = {
        model.path(block, name)
        for block in range(len(model.blocks))
        for part in model.layout(block).parts
        for name in part.kept
    }
    for path, module in leaf_modules(model.network).items():
        if isinstance(module, QUANTIZED):
            raise ModelError(
                f"quantize: {path} of {model.name} is quantized already ({module.bits} bits, group "
                f"{module.group_size}); a model that is not quantized is needed. Quantize the original."
            )
        if not hasattr(module, "to_quantized"):
            continue
        wanted = True if recipe is None else recipe(path, module)
        if wanted is False:
            skipped.append(path)
            continue
        own = {**default, **(wanted if isinstance(wanted, Mapping) else {})}
        check_quantization(own["mode"], own["bits"], own["group_size"])
        width = module.weight.shape[-1]
        if width % own["group_size"] and path in kept:
            skipped.append(path)
            continue
        if width % own["group_size"]:
            raise UsageError(
                f"quantize: group_size {own['group_size']} does not divide the {width} inputs of {path}; a divisor is "
                "needed. Use a smaller group size, or a mode with smaller groups."
            )
        plan[path] = own
    return default, plan, skipped


def leaf_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights, by dotted path."""
    return dict(tree_flatten(network.leaf_modules(), is_leaf=nn.Module.is_module))


def describe_quantization(model: ChatModel, how: Mapping[str, Any]) -> None:
    """Write into the model's config how it is quantized: mlx-lm reads the first place, the hub shows the second."""
    model.config["quantization"] = dict(how)
    model.config["quantization_config"] = dict(how)


def find_module(network: nn.Module, path: str) -> tuple[Any, Any, nn.Module]:
    """What holds the module at a dotted path, under which key, and the module."""
    *steps, last = path.split(".")
    owner: Any = network
    for step in steps:
        owner = owner[int(step)] if isinstance(owner, list) else owner[step]
    key = int(last) if isinstance(owner, list) else last
    return owner, key, owner[key]


def _quantize_module(
    path: str, module: nn.Module, mode: str, bits: int, group_size: int
) -> tuple[nn.Module, TensorQuantization]:
    weight = module.weight
    quantized = module.to_quantized(group_size, bits, mode=mode)
    if mode == "affine" and (weight == 0).any().item():
        rows = quantize_with_zeros(weight.reshape(-1, weight.shape[-1]), group_size, bits)
        quantized.weight, quantized.scales, quantized.biases = (one.reshape(*weight.shape[:-1], -1) for one in rows)
    figures = tensor_figures(path, quantized, weight)
    mx.eval(quantized.parameters())
    return quantized, figures


def tensor_figures(path: str, module: nn.Module, original: mx.array) -> TensorQuantization:
    """What a quantized module kept of its weight: zeros, and how far the others are off, relative to the weight.

    Args:
        path: of the module.
        module: quantized.
        original: ``[..., out, in]`` floating, the weight it was made from.
    """
    stored = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    ).astype(mx.float32)
    is_zero = original == 0
    zeros = is_zero.sum().item()
    wanted = original.astype(mx.float32)
    error = mx.square((stored - wanted) * (~is_zero)).sum().item()
    return TensorQuantization(
        name=path,
        mode=module.mode,
        bits=module.bits,
        group_size=module.group_size,
        weights=original.size,
        zeros=zeros / original.size,
        zeros_kept=(is_zero & (stored == 0)).sum().item() / zeros if zeros else 1.0,
        error=(error / max(mx.square(wanted).sum().item(), 1e-30)) ** 0.5,
    )
