"""What a row of the result rests on: logits that do not depend on the type weights are stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.model import load
from aird_mlx.stages import exact_logits

IDS = np.random.default_rng(0).integers(3, 300, 50).tolist()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_logits_of_16_bit_weights_are_computed_in_float32(
    model_folder: Callable[..., Path], model_type: str, dtype: mx.Dtype
) -> None:
    model = load(model_folder(model_type))
    model.network.set_dtype(dtype)
    weight = model.linear(1, "mlp.down_proj").weight
    found = exact_logits(model, IDS)
    rounded = np.array(model.network(mx.array([IDS]))[0].astype(mx.float32))
    assert model.linear(1, "mlp.down_proj").weight is weight, "the model is left as found"
    model.network.set_dtype(mx.float32)
    wanted = np.array(model.network(mx.array([IDS]))[0])
    # The head's sums may come in another order; what is left is float32 rounding.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(rounded - wanted).max() > 50 * np.abs(found - wanted).max()
