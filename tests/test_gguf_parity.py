"""Every family of the export: a tiny random model's logits in real llama.cpp beside MLX's, token by token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from aird_mlx.gguf_export import export_gguf, exportable_families, is_available, refused_families
from aird_mlx.gguf_export.runtime import LlamaRuntime
from family_models import (
    FAMILIES,
    IDS,
    SEEDS,
    WIDE,
    assert_same_logits,
    mlx_logits,
    tensors_of,
    to_hugging_face,
    write_family,
)

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, and what it says anyway": {
        "factor": 8.0, "original_max_position_embeddings": 128, "attention_factor": 1.2079441541679836,
    },
    "dynamic": {"factor": 2.0},
}  # fmt: skip


@needs_llama
@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_family_gives_the_logits_of_mlx(model_type: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", model_type, FAMILIES[model_type], SEEDS.get(model_type, 0))
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert_same_logits(written.path, mlx_logits(folder, IDS), IDS)


@needs_llama
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("granite", "llama3"),
        ("granitemoe", "yarn"),
        ("exaone4", "llama3"),
        ("olmo3", "yarn"),
        ("olmo3", "yarn, and what it says anyway"),
        ("gemma3_text", "linear"),
        ("nemotron", "linear"),
        ("internlm3", "dynamic"),
        ("qwen3_next", "yarn"),
        ("dots1", "yarn"),
    ],
)
def test_rope_scaling_of_other_families_gives_the_logits_of_mlx(model_type: str, kind: str, tmp_path: Path) -> None:
    scaling = {"type": kind.partition(",")[0], "rope_type": kind.partition(",")[0], **SCALINGS[kind]}
    changes = {**FAMILIES[model_type], "rope_scaling": scaling}
    folder = write_family(tmp_path / "model", model_type, changes, SEEDS.get(model_type, 0))
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    expected = mlx_logits(folder, IDS)
    assert_same_logits(written.path, expected, IDS)
    if kind != "dynamic":  # which begins beyond the context
        plain = write_family(tmp_path / "plain", model_type, FAMILIES[model_type], SEEDS.get(model_type, 0))
        assert np.abs(mlx_logits(plain, IDS) - expected).max() > 0.1, "the scaling changes nothing here"


@needs_llama
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"group_size": 32, "bits": 4}, "Q4_1"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MXFP4"),
    ],
)
def test_quantized_experts_keep_their_codes(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen3_moe", {**FAMILIES["qwen3_moe"], "moe_intermediate_size": 64})
    network, config = load_model(folder)
    mlx.nn.quantize(network, **settings, class_predicate=lambda path, module: hasattr(module, "to_quantized"))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    (folder / "config.json").write_text(json.dumps({**config, "quantization": settings}))
    written = export_gguf(folder, tmp_path / "m.gguf", "auto")
    stored = tensors_of(written.path)
    for name in ("gate", "up", "down"):
        found, data = stored[f"blk.2.ffn_{name}_exps.weight"]
        linear = network.layers[2].mlp.switch_mlp[f"{name}_proj"]
        biases = {"biases": linear.biases.astype(mx.float32)} if "biases" in linear else {}
        scales = linear.scales if kind == "MXFP4" else linear.scales.astype(mx.float32)
        expected = mx.dequantize(linear.weight, scales, **biases, **settings).astype(mx.float32)
        assert found == kind
        decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[found]).reshape(expected.shape)
        # The codes are MLX's; scales lie in float16, which holds eleven bits of them.
        np.testing.assert_allclose(decoded, np.array(expected), rtol=1e-3, atol=2e-3 if kind == "Q4_1" else 0)
    expected_logits = np.array(network(mx.array([IDS]))[0].astype(mx.float32))
    with LlamaRuntime(written.path, n_ctx=512) as runtime:
        found_logits = runtime.logits(IDS)
    assert (found_logits.argmax(-1) == expected_logits.argmax(-1)).mean() > 0.8  # llama.cpp rounds what goes in


@needs_llama
def test_llama_cpp_quantizes_experts_and_recurrent_blocks(tmp_path: Path) -> None:
    for model_type in ("qwen3_moe", "mamba2"):
        folder = write_family(tmp_path / model_type, model_type, {**FAMILIES[model_type], **WIDE[model_type]})
        written = export_gguf(folder, tmp_path / f"{model_type}.gguf", "q4_k_m")
        stored = tensors_of(written.path)
        assert {"Q4_K"} < {kind for kind, _ in stored.values()}
        assert {kind for name, (kind, _) in stored.items() if "ffn_gate_inp" in name or "ssm_conv1d" in name} <= {"F32"}
        with LlamaRuntime(written.path, n_ctx=64) as runtime:
            found = runtime.logits(IDS[:32])
        expected = mlx_logits(folder, IDS[:32])
        correlation = np.corrcoef(found.reshape(-1), expected.reshape(-1))[0, 1]
        assert correlation > 0.8  # four bits of random weights


def test_every_row_of_the_table_is_tested() -> None:
    here = {name.partition("+")[0] for name in FAMILIES}
    elsewhere = {"llama", "mistral", "qwen2", "qwen3"}  # with every type and rope scaling, in test_gguf_export.py
    assert here | elsewhere == set(exportable_families())
    assert not set(exportable_families()) & set(refused_families())


@needs_llama
@pytest.mark.parametrize("left_out", [(), ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")])
def test_language_model_of_a_larger_one_is_exported(left_out: tuple[str, ...], tmp_path: Path) -> None:
    """Gemma 3 with its vision tower: names with a prefix, the config inside another, and leaving to its class what
    that of the text model would fill in otherwise."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072}
    changes = {**FAMILIES["gemma3_text"], **sizes}
    plain = write_family(tmp_path / "plain", "gemma3_text", changes, seed=1)  # see SEEDS
    folder = tmp_path / "wrapped"
    shutil.copytree(plain, folder)
    config = json.loads((plain / "config.json").read_text())
    weights = {f"language_model.{name}": value for name, value in mx.load(str(plain / "model.safetensors")).items()}
    weights["vision_tower.vision_model.post_layernorm.weight"] = mx.zeros((8,))
    weights["multi_modal_projector.mm_soft_emb_norm.weight"] = mx.zeros((8,))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    text = {name: value for name, value in config.items() if name not in left_out}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "eos_token_id": 2}))
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert_same_logits(written.path, mlx_logits(plain, IDS), IDS)
    keys = gguf.GGUFReader(written.path).fields
    found = [keys[f"gemma3.{name}"].contents() for name in ("attention.head_count", "context_length")]
    assert found == [8, 131072]


@needs_llama
def test_sharded_bfloat16_of_hugging_face_runs(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "mlx", "qwen3_moe", FAMILIES["qwen3_moe"], seed=3)
    other = to_hugging_face(folder, "qwen3_moe", tmp_path / "hf", dtype=mx.bfloat16, shards=4)
    rounded = {
        name: value.astype(mx.bfloat16).astype(mx.float32)
        for name, value in mx.load(str(folder / "model.safetensors")).items()
    }
    mx.save_safetensors(str(tmp_path / "rounded.safetensors"), rounded)
    shutil.move(tmp_path / "rounded.safetensors", folder / "model.safetensors")
    written = export_gguf(other, tmp_path / "m.gguf", "auto")
    assert written.outtype == "bf16"
    exact = export_gguf(other, tmp_path / "exact.gguf", "f32")
    assert_same_logits(exact.path, mlx_logits(folder, IDS), IDS)
