"""Mixed precision by the refusal direction: what writes it gets more bits, at no more than the uniform size.

The residual writers of the blocks just before the direction's layer get the next number of bits. What that costs is
saved where the direction is not written: linears of the blocks farthest from there get fewer bits or, where MLX has
none fewer, twice the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel
from aird_mlx.quantization.affine import BITS, GROUP_SIZES

# Blocks before the direction's layer whose writers are favoured; the layer's mean is the sum of what they write.
FAVOURED_BLOCKS = 3


def stored_bits(shape: tuple[int, ...], bits: int, group_size: int, dtype: mx.Dtype) -> int:
    """Bits an affine weight takes: its codes, and a scale and a bias of ``dtype`` per group.

    >>> stored_bits((2, 64), 4, 32, mx.float16)
    640
    """
    weights = 1
    for size in shape:
        weights *= size
    return weights * bits + weights // group_size * 2 * 8 * dtype.size


def favour_writers(
    model: ChatModel, layer: int, bits: int, group_size: int
) -> Callable[[str, nn.Module], bool | Mapping[str, Any]]:
    """The recipe for `quantize_model` of ``bits``: writers just before ``layer`` get more, and others pay for it.

    Args:
        model: not quantized; read only.
        layer: of the refusal direction: the blocks before it write it.
        bits: of everything else.
        group_size: divides all widths.

    Returns:
        A recipe under which the model takes at most what ``bits`` everywhere take.

    Raises:
        UsageError: there is no number of bits above, or nothing that could pay.
    """
    if bits == max(BITS):
        raise UsageError(f"quantize: refusal with {bits} bits; fewer are needed, since some get more. Use 4.")
    more = BITS[BITS.index(bits) + 1]
    first = max(0, layer - FAVOURED_BLOCKS)
    favoured = [(block, name) for block in range(first, max(layer, 1)) for name in model.layout(block).writers]
    far = sorted(range(len(model.blocks)), key=lambda block: (-abs(block - layer), block))
    payers = [
        (block, name) for block in far for name in model.layout(block).linear_names if (block, name) not in favoured
    ]

    def cost(place: tuple[int, str], own_bits: int, own_group: int) -> int:
        weight = model.linear(*place).weight
        return stored_bits(weight.shape, own_bits, own_group, weight.dtype)

    def cheaper(place: tuple[int, str]) -> dict[str, int] | None:
        if bits > min(BITS):
            return {"bits": BITS[BITS.index(bits) - 1], "group_size": group_size}
        twice = 2 * group_size
        divides = twice in GROUP_SIZES and model.linear(*place).weight.shape[-1] % twice == 0
        return {"bits": bits, "group_size": twice} if divides else None

    chosen: dict[tuple[int, str], dict[str, int]] = {}
    debt = 0
    while favoured:
        # The nearest writer first; one that cannot be paid for stays as it is.
        place = favoured.pop()
        extra = cost(place, more, group_size) - cost(place, bits, group_size)
        paid: dict[tuple[int, str], dict[str, int]] = {}
        owed = debt + extra
        for payer in payers:
            own = cheaper(payer)
            if owed <= 0:
                break
            if payer in chosen or own is None:
                continue
            paid[payer] = own
            owed -= cost(payer, bits, group_size) - cost(payer, own["bits"], own["group_size"])
        if owed > 0:
            continue
        chosen |= paid | {place: {"bits": more, "group_size": group_size}}
        debt = owed
    if not chosen:
        raise UsageError(
            f"quantize: refusal with {bits} bits and group_size {group_size}: nothing can get fewer bits or larger "
            "groups to pay for more elsewhere. Use more bits, or a smaller group size."
        )
    by_path = {model.path(block, name): own for (block, name), own in chosen.items()}
    return lambda path, module: by_path.get(path, True)
