"""A quantized model that computes with plain weights, and can change them without being quantized anew.

`mx.quantized_matmul` has no gradient with respect to its weight, and a repair must see a pruned zero. So each quantized
module is set aside as a `QuantizedWeight`, whose scales and biases stay, and the network gets what it decodes to.
Whatever a repair changes goes to the nearest code of its group; `restore_modules` puts the modules back to be saved.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from aird_mlx.model import QUANTIZED, ChatModel, read_config, read_network
from aird_mlx.quantization.affine import pack_codes
from aird_mlx.quantization.quantize import find_module, leaf_modules


@dataclass(frozen=True)
class QuantizedWeight:
    """The weight of a module that MLX quantized; see `StoredWeight`.

    Attributes:
        module: MLX's, as it is saved; never changed.
        kept: ``[out, in]`` bool, True = not pruned.
        origin: ``[out, in]``, floating: what was rounded to the codes.
        is_fixed: a change stays beside the codes, as an adapter, and is not rounded; ``origin`` then is what they mean.
    """

    module: nn.Module
    kept: mx.array
    origin: mx.array
    is_fixed: bool = False

    @property
    def nbytes(self) -> int:
        """Codes, scales and biases."""
        parts = ("weight", "scales", "biases")
        return sum(int(self.module[part].nbytes) for part in parts if self.module.get(part) is not None)

    def values(self) -> mx.array:
        """``[out, in]`` float32: what the codes mean, exactly."""
        return self._decode(self.module.weight, self.module.scales)

    def nearest(self, weight: mx.array) -> mx.array:
        """``[out, in]`` float32: each weight of ``weight`` at the nearest code of its group.

        Affine groups keep their scale and bias. The others have a scale that the largest weight of a group says: it is
        MLX's for this very ``weight``.
        """
        weight = weight.astype(mx.float32)
        if self.is_fixed:
            return weight
        if self.module.mode != "affine":
            codes, scales = self._encode(weight)
            return self._decode(codes, scales)
        scale, bias = self._grid()
        return (self._codes(weight) * scale + bias).reshape(weight.shape)

    def holding(self, weight: mx.array) -> QuantizedWeight:
        """The same module with the nearest codes to ``weight`` in it."""
        weight = weight.astype(mx.float32)
        module = copy.copy(self.module)
        if module.mode == "affine":
            codes = self._codes(weight).reshape(-1, weight.shape[-1]).astype(mx.uint32)
            module.weight = pack_codes(codes, module.bits).reshape(module.weight.shape)
        else:
            module.weight, module.scales = self._encode(weight)
        mx.eval(module.parameters())
        return dataclasses.replace(self, module=module, origin=weight)

    def _grid(self) -> tuple[mx.array, mx.array]:
        """Scale and bias of an affine group, each ``[out, group, 1]`` float32."""
        scales, biases = (self.module[part].astype(mx.float32) for part in ("scales", "biases"))
        return scales[..., None], biases[..., None]

    def _codes(self, weight: mx.array) -> mx.array:
        """``[out, group, in of a group]`` float32, whole numbers."""
        scale, bias = self._grid()
        groups = weight.reshape(*scale.shape[:-1], self.module.group_size)
        codes = mx.round((groups - bias) / mx.where(scale == 0, 1.0, scale))
        return mx.clip(codes, 0, 2**self.module.bits - 1)

    def _encode(self, weight: mx.array) -> tuple[mx.array, mx.array]:
        settings = {key: getattr(self.module, key) for key in ("group_size", "bits", "mode")}
        codes, scales = mx.quantize(weight, **settings)
        return codes, scales

    def _decode(self, codes: mx.array, scales: mx.array) -> mx.array:
        settings = {key: getattr(self.module, key) for key in ("group_size", "bits", "mode")}
        biases = self.module.get("biases")
        if biases is None:
            return mx.dequantize(codes, scales, dtype=mx.float32, **settings)
        return mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **settings)


def set_aside_modules(
    model: ChatModel, kept: Mapping[str, mx.array], origins: Mapping[str, mx.array] | None = None
) -> None:
    """Have a quantized network compute with plain weights; what is stored goes to ``model.stored``.

    Args:
        model: changed in place; its config still says how it is quantized.
        kept: by path, ``[out, in]`` bool, what pruning left of a weight; all of it where a path is missing.
        origins: by path, the weight that was quantized; what is stored where a path is missing.
    """
    quantized = {path: module for path, module in leaf_modules(model.network).items() if isinstance(module, QUANTIZED)}
    dequantize_model(model.network)
    for path, module in quantized.items():
        plain = find_module(model.network, path)[2].weight
        everything = mx.ones(plain.shape, dtype=mx.bool_)
        origin = (origins or {}).get(path, plain)
        model.stored[path] = QuantizedWeight(module, kept.get(path, everything), origin)
    mx.eval(model.network.parameters())


def restore_modules(model: ChatModel) -> None:
    """Put what is stored back into the network, and have nothing set aside: `save` then writes it quantized."""
    for path, stored in model.stored.items():
        assert isinstance(stored, QuantizedWeight)
        owner, key, _ = find_module(model.network, path)
        owner[key] = stored.module
    model.stored.clear()


def load_quantized(
    folder: Path,
    like: ChatModel,
    kept: Mapping[str, mx.array],
    origins: Mapping[str, mx.array] | None = None,
    *,
    trust_remote_code: bool = False,
) -> ChatModel:
    """A quantized folder that `save` wrote, its modules set aside.

    Args:
        folder: the folder.
        like: the model it was made from.
        kept, origins: see `set_aside_modules`.
        trust_remote_code: see `load`.

    Raises:
        ModelError: it cannot be read.
    """
    network, tokenizer, config = read_network(folder, read_config(folder), trust_remote_code=trust_remote_code)
    model = ChatModel(network, tokenizer, config, like.name, folder, like.architecture)
    set_aside_modules(model, kept, origins)
    return model
