"""REAP: remove whole experts of a mixture, those that add least to the residual stream, and reslice the router.

What an expert is worth is the mean, over the calibration tokens routed to it, of its routing weight times the length
of its output. The routing weight is read off the running block, as the derivative of what the mixture gives with
respect to what the expert gives; no router is re-implemented. Removed experts are gone from the weights, so the model
is smaller; every block loses as many, as one number in the config says how many there are.

Source: Lasby et al. 2025, REAP the Experts, arXiv:2510.13999.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from aird_mlx.activations import Walk
from aird_mlx.architectures import Experts, Part
from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel, submodule


def mixture_of(model: ChatModel, block: int) -> Part | None:
    """The part of a block that is a mixture of experts."""
    return next((part for part in model.layout(block).parts if part.experts is not None), None)


def check_experts(model: ChatModel, sparsity: float) -> int:
    """How many experts each mixture is to lose.

    Raises:
        UsageError: the model has no mixture whose router is known, or would keep fewer experts than a token passes, or
            would lose none.
    """
    mixtures = [(block, part) for block in range(len(model.blocks)) if (part := mixture_of(model, block))]
    if not mixtures or not all(part.experts and part.experts.router for _, part in mixtures):
        seen = "no mixture of experts" if not mixtures else "a router that is not in the table"
        raise UsageError(
            f"prune: method reap on a model with {seen}; experts to remove are needed. Use wanda or sparsegpt."
        )
    block, part = mixtures[0]
    experts = part.experts
    assert experts is not None
    count = _count(model, block, part)
    groups = groups_of(model, part)
    removed = int(count * sparsity + 1e-9) // groups * groups
    chosen = int(_config_of(model, experts).get(experts.chosen) or 1)
    if removed == 0 or count - removed < chosen:
        raise UsageError(
            f"prune: sparsity {sparsity} removes {removed} of {count} experts; at least one (of each group of experts: "
            f"{groups}), and {chosen} left that each token passes, are needed. Use for example "
            f"{max(0, (count - chosen) // groups * groups) / count:.2g}."
        )
    return removed


def expert_worth(walk: Walk, part: Part) -> mx.array:
    """What the experts of the walk's current block are worth, ``[expert]`` float32; 0 for one that sees no token."""
    assert part.experts is not None
    count = _count(walk.model, walk.layer, part)
    total, tokens = np.zeros(count), np.zeros(count)
    for index, batch in enumerate(walk.batches):
        choice, lengths, weights = routed_contributions(walk, index, part)
        counted = np.repeat(np.array(batch.counted).reshape(-1), choice.size // batch.counted.size)
        np.add.at(total, choice, counted * lengths * np.abs(weights))
        np.add.at(tokens, choice, counted)
    return mx.array((total / np.maximum(tokens, 1)).astype(np.float32))


def routed_contributions(walk: Walk, index: int, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row (token and expert it passes) the expert, the length of its output, and its routing weight."""
    assert part.experts is not None
    module = part.experts.module
    kept: dict[str, mx.array] = {}

    def keep(experts: nn.Module, value: mx.array) -> mx.array:
        kept["choice"], kept["output"] = experts.arguments[0], experts(value)
        return kept["output"]

    with walk.model.linear_taps(walk.layer, {module: keep}):
        mx.eval(walk.run_block(index))
    output = kept["output"]

    def mixed(given: mx.array) -> mx.array:
        """What the mixture gives when its experts give ``given``: what a linear after it reads, or the block."""
        read: list[mx.array] = []

        def read_input(linear: nn.Module, value: mx.array) -> mx.array:
            read.append(value)
            result: mx.array = linear(value)
            return result

        taps: dict[str, Any] = {module: lambda experts, value: given}
        if not part.writer.startswith(f"{module}."):
            taps[part.writer] = read_input
        with walk.model.linear_taps(walk.layer, taps):
            result = walk.run_block(index)
        return (read[0] if read else result).astype(mx.float32)

    given = output.astype(mx.float32)
    shape = mixed(given).shape
    _, gradient = mx.vjp(mixed, [given], [mx.ones(shape) / shape[-1]])
    weights = gradient[0].sum(axis=-1).reshape(-1)
    lengths = mx.linalg.norm(given, axis=-1).reshape(-1)
    return np.array(kept["choice"]).reshape(-1), np.array(lengths), np.array(weights)


def least_experts(worth: mx.array, removed: int, groups: int = 1) -> list[int]:
    """The experts to remove: those worth least, as many of each group of consecutive ones.

    >>> least_experts(mx.array([3.0, 1.0, 2.0, 5.0]), 2), least_experts(mx.array([3.0, 4.0, 2.0, 1.0]), 2, 2)
    ([1, 2], [0, 3])
    """
    values = np.array(worth).reshape(groups, -1)
    order = np.argsort(values, axis=1, kind="stable")[:, : removed // groups]
    return sorted(int(group * values.shape[1] + one) for group, row in enumerate(order) for one in row)


def remove_experts(model: ChatModel, removed: Mapping[int, Sequence[int]]) -> None:
    """Cut experts out of the weights of a model in place, and out of its routers and its config.

    Args:
        model: changed in place; ``model.kept_experts`` then says which of the original ones are left.
        removed: by block; the same number in every block that has a mixture.
    """
    for block, gone in removed.items():
        part = mixture_of(model, block)
        assert part is not None and part.experts is not None
        experts, module = part.experts, model.blocks[block]
        left = [one for one in range(_count(model, block, part)) if one not in set(gone)]
        keep = mx.array(left)
        for name in part.linear_names:
            if model.layout(block).is_expert(name):
                linear = submodule(module, name)
                for field in ("weight", "bias"):
                    if field in linear:
                        linear[field] = linear[field][keep]
        for path in experts.router:
            owner_name, _, field = path.rpartition(".")
            owner = submodule(module, owner_name)
            if owner is not None and field in owner:
                owner[field] = owner[field][keep]
        for path in experts.counts:
            owner_name, _, field = path.rpartition(".")
            setattr(submodule(module, owner_name), field, len(left))
        _config_of(model, experts)[experts.config] = len(left)
        mx.eval(module.parameters())
        before = model.kept_experts.get(block, list(range(len(left) + len(set(gone)))))
        model.kept_experts[block] = [before[one] for one in left]


def groups_of(model: ChatModel, part: Part) -> int:
    """How many groups the router chooses from first."""
    assert part.experts is not None
    return int(_config_of(model, part.experts).get(part.experts.groups) or 1) if part.experts.groups else 1


def _count(model: ChatModel, block: int, part: Part) -> int:
    fused = next(name for name in part.linear_names if model.layout(block).is_expert(name))
    return int(model.linear(block, fused).weight.shape[0])


def _config_of(model: ChatModel, experts: Experts) -> dict[str, Any]:
    """The part of the config that names the experts: of a wrapper, that of its language part."""
    inner = model.config.get("text_config")
    return inner if isinstance(inner, dict) and experts.config in inner else model.config
