"""The table of families: both layouts give the same file, and what has no equal in llama.cpp is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.errors import AirdError, ExportError, ModelError
from aird_mlx.gguf_export import export_gguf
from aird_mlx.gguf_export.families import read_hyperparameters
from family_models import FAMILIES, SIZES, tensors_of, to_hugging_face, write_family
from hugging_face import LAYOUTS, join_gate_and_up


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_both_layouts_give_the_same_file(model_type: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "mlx", model_type, FAMILIES[model_type])
    other = to_hugging_face(folder, model_type, tmp_path / "hf", shards=3)
    ours = tensors_of(export_gguf(folder, tmp_path / "mlx.gguf", "f32").path)
    theirs = tensors_of(export_gguf(other, tmp_path / "hf.gguf", "f32").path)
    assert list(ours) == list(theirs)
    for name, (kind, values) in ours.items():
        assert theirs[name][0] == kind, name
        # Falcon's multipliers and the one of norms are put in and taken out, with a rounding each.
        np.testing.assert_allclose(theirs[name][1], values, rtol=1e-6, atol=1e-6 if "norm" in name else 0, err_msg=name)


def test_experts_joined_without_a_suffix_give_the_same_file(tmp_path: Path) -> None:
    """As newer versions of transformers save them: ``mlp.experts.gate_up_proj``, one tensor for all experts."""
    folder = write_family(tmp_path / "mlx", "qwen3_moe", FAMILIES["qwen3_moe"])
    weights = {name: np.array(value) for name, value in mx.load(str(folder / "model.safetensors")).items()}
    joined = join_gate_and_up(weights, "experts.gate_up_proj", "experts.down_proj")
    arrays = {re.sub(r"(experts\.\w+)\.weight$", r"\1", name): mx.array(value) for name, value in joined.items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in arrays
    ours = tensors_of(export_gguf(folder, tmp_path / "mlx.gguf", "f32").path)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    theirs = tensors_of(export_gguf(folder, tmp_path / "hf.gguf", "f32").path)
    assert list(ours) == list(theirs)
    assert all(np.array_equal(theirs[name][1], values) for name, (_, values) in ours.items())


def test_mxfp4_blocks_of_hugging_face_keep_their_bytes(tmp_path: Path) -> None:
    """gpt-oss as it was published: bytes and exponents, gate and up in turns."""
    folder = write_family(tmp_path / "mlx", "gpt_oss", {**FAMILIES["gpt_oss"], "intermediate_size": 64})
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(weights)
    config = json.loads((folder / "config.json").read_text())
    settings = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    quantized: dict[str, Any] = dict(weights)
    blocks: dict[str, Any] = {name: value for name, value in weights.items() if ".experts." not in name}
    for name, value in weights.items():
        if not re.search(r"experts\.\w+\.weight$", name):
            continue
        stem = name.removesuffix(".weight")
        quantized[name], quantized[f"{stem}.scales"] = mx.quantize(value, **settings)
    for block in range(4):
        stem = f"model.layers.{block}.mlp.experts"
        for part in ("weight", "scales"):
            gate, up = (np.array(quantized[f"{stem}.{name}_proj.{part}"]) for name in ("gate", "up"))
            both = np.stack([gate, up], axis=2).reshape(len(gate), -1, gate.shape[-1])
            down = np.array(quantized[f"{stem}.down_proj.{part}"])
            for name, codes in (("gate_up_proj", both), ("down_proj", down)):
                if part == "weight":
                    packed = np.ascontiguousarray(codes).view(np.uint8)
                    blocks[f"{stem}.{name}_blocks"] = mx.array(packed.reshape(*codes.shape[:2], -1, 16))
                else:
                    blocks[f"{stem}.{name}_scales"] = mx.array(codes)
        gate, up = (np.array(weights[f"{stem}.{name}_proj.bias"]) for name in ("gate", "up"))
        blocks[f"{stem}.gate_up_proj_bias"] = mx.array(np.stack([gate, up], axis=2).reshape(len(gate), -1))
        blocks[f"{stem}.down_proj_bias"] = weights[f"{stem}.down_proj.bias"]
    mx.save_safetensors(str(folder / "model.safetensors"), quantized)
    (folder / "config.json").write_text(json.dumps({**config, "quantization": settings}))
    ours = tensors_of(export_gguf(folder, tmp_path / "mlx.gguf", "auto").path)
    mx.save_safetensors(str(folder / "model.safetensors"), blocks)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    theirs = tensors_of(export_gguf(folder, tmp_path / "hf.gguf", "auto").path)
    assert {kind for name, (kind, _) in theirs.items() if "_exps.weight" in name} == {"MXFP4"}
    assert list(ours) == list(theirs)
    assert all(np.array_equal(theirs[name][1], values) for name, (_, values) in ours.items())


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("helium", {}, "model_type 'helium'; llama.cpp has no such architecture"),
        ("recurrent_gemma", {}, "model_type 'recurrent_gemma'"),
        ("phimoe", {}, "sparse mixing"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar 64; llama.cpp computes gemma2 with 32"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "sliding_window_pattern 3"),
        ("cohere", {"use_qk_norm": True}, "4 blocks with use_qk_norm true"),
        ("cohere2", {"sliding_window_pattern": 2}, "sliding_window_pattern 2"),
        ("exaone4", {"sliding_window": 64, "sliding_window_pattern": "LLLG"}, "exactly in models of 64 blocks"),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}, "no_rope_layers [0, 1, 1, 1]"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob false; llama.cpp computes qwen3_moe with true"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers [0]"),
        ("deepseek_v2", {"q_lora_rank": None}, "4 blocks without q_lora_rank"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, "with 2 groups"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "every second block"),
        ("qwen3_moe", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' on qwen3_moe"),
        ("glm4_moe", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("mamba", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06"),
        ("mamba2", {"n_groups": 2}, "n_groups 2; llama.cpp normalizes each group by itself"),
        ("jamba", {"num_experts": 4, "num_experts_per_tok": 2}, "num_experts 4"),
        ("granitemoehybrid", {"position_embedding_type": "rope"}, "position_embedding_type 'rope'"),
        ("lfm2", {"conv_bias": True}, "conv_bias true"),
        ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob false"),
        ("rwkv7", {"head_dim": 32}, "head_dim 32; llama.cpp computes rwkv7 with heads of a multiple of 64"),
        ("minicpm", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' on minicpm"),
    ],
)
def test_what_llama_cpp_computes_differently_is_one_line(model_type: str, changes: dict[str, Any], said: str) -> None:
    config = {"model_type": model_type, **SIZES, **FAMILIES.get(model_type, {}), **changes}
    with pytest.raises(ExportError) as caught:
        read_hyperparameters(config)
    message = str(caught.value)
    assert said in message
    assert message.startswith("gguf: ")
    assert "; " in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["1.mlp.switch_mlp.up_proj", "2.self_attn.q_norm"])
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen3_moe", FAMILIES["qwen3_moe"])
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(weights)
    del weights[f"model.layers.{name}.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=f"no tensor model.layers.{name}.weight"):
        export_gguf(folder, tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"max_position_embeddings": -1}),
        ("qwen3_moe", {"moe_intermediate_size": 2**40}),
        ("lfm2", {"conv_L_cache": "three"}),
        ("olmo3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("granitemoehybrid", {"layer_types": [["mamba"]]}),
        ("nemotron_h", {"hybrid_override_pattern": "M-"}),
        ("gemma2", {"head_dim": 0, "num_attention_heads": 0}),
        ("mistral3", {"text_config": "none"}),
    ],
)
def test_config_that_lies_is_one_line(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", model_type, FAMILIES.get(model_type, {}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(AirdError) as caught:
        export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_missing_expert_is_named(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "mlx", "mixtral", FAMILIES["mixtral"])
    other = to_hugging_face(folder, "mixtral", tmp_path / "hf", shards=2)
    for part in other.glob("*.safetensors"):
        weights = dict(mx.load(str(part)))
        mx.eval(weights)
        gone = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
        mx.save_safetensors(str(part), {name: value for name, value in weights.items() if name != gone})
    with pytest.raises(ModelError, match=r"experts.w1.weight comes in parts \[0, 1, 3\]"):
        export_gguf(other, tmp_path / "m.gguf", "f32")


def test_expert_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "llama", {})
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(weights)
    weights["model.layers.0.mlp.gate.weight"] = mx.zeros((4, 64))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(ExportError, match=r"1 tensors have no place in llama, first model.layers.0.mlp.gate.weight"):
        export_gguf(folder, tmp_path / "m.gguf", "f32")
