"""The GGUF room: written files are read back by PyPI's gguf and run by real llama.cpp beside MLX."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from aird_mlx.errors import AirdError, ExportError, ModelError, ParityError
from aird_mlx.gguf_export import check_exportable, check_parity, export_gguf, is_available
from aird_mlx.gguf_export.blocks import dequantize, quantize
from aird_mlx.gguf_export.families import read_hyperparameters
from aird_mlx.gguf_export.families.rope import neighbours, rope_frequency_factors
from aird_mlx.gguf_export.header import describe
from aird_mlx.gguf_export.keys import encode_keys
from aird_mlx.gguf_export.likelihood import log_likelihoods
from aird_mlx.gguf_export.preparation import prepare
from aird_mlx.gguf_export.runtime import LlamaRuntime
from aird_mlx.gguf_export.stream import whole_gguf, write_tensors
from aird_mlx.gguf_export.tokenizer import identify_pre_tokenizer, read_vocabulary
from aird_mlx.workspace import unfinished_of

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
DATA = Path(os.environ.get("AIRD_TEST_DATA", "/nonexistent")) / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AIRD_TEST_DATA is not set")

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROBE_TEXTS = [
    "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n",
    "It's 12345.678 o'clock, WE'LL see 3 of 1000000 cats; don't panic!",
    "def f(x, y):\n    return x**2 + y  # tab:\t\tend\n\n\nif a != b:\r\n\tpass\n",
    "na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f"
    " \u0440\u0443\u0441\u0441\u043a\u0438\u0439"
    " \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f600\U0001f44d\U0001f3fd \u20ac5",
    "   leading, trailing   and     runs of spaces \n \n  \t \n ",
    'http://a.b/c?d=e&f=g#h x_y-z <tag attr="v"/> \\n 100% ~`!@#$^&*()+={}[]|;:\'",.<>/?',
    "<|im_end|><|im_start|> odd <|endoftext|> places<|im_end|>",
]
CORPUS = [
    "How do I bake bread? It's easy: take flour, water and salt, then wait for twelve hours.",
    "def add(first, second):\n    return first + second\n",
    "The quick brown fox jumps over the lazy dog. We'll see what they've done, don't we?",
    "caf\u00e9 na\u00efve \u4f60\u597d\u4e16\u754c 12345 2024 100 user assistant system",
] * 8


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": split_by(QWEN2_PATTERN),
    "llama-bpe": split_by(LLAMA3_PATTERN),
}


def write_tokenizer(folder: Path, pre: str = "gpt-2", *, add_bos: bool = False, vocab_size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = PRE[pre]
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "vocab_size": 416,  # more rows than the tokenizer has tokens
}
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama-tied": ({"model_type": "llama", "tie_word_embeddings": True}, "smollm"),
    "llama-untied": (
        {"model_type": "llama", "tie_word_embeddings": False, "num_key_value_heads": 4},
        "gpt-2",
    ),
    "llama-bias": (
        {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "gpt-2",
    ),
    "mistral": (
        {"model_type": "mistral", "tie_word_embeddings": False, "head_dim": 32, "sliding_window": 256},
        "llama-bpe",
    ),
    "qwen2": ({"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6}, "qwen2"),
    "qwen3": (
        {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 32, "rope_theta": 1e6},
        "qwen2",
    ),
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}


def write_model(folder: Path, changes: dict[str, Any], pre: str = "gpt-2", shards: int = 1) -> Path:
    """A tiny model with random weights, of a size that makes attention and logits peaked rather than flat."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, pre)
    config = {**BASE, "eos_token_id": [2], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    model = _build(config)
    random = np.random.default_rng(7)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if value.ndim == 1:
            centre = 0.0 if name.endswith("bias") else 1.0
            weights[name] = mx.array((centre + 0.2 * random.standard_normal(value.shape)).astype(np.float32))
        else:
            spread = 0.5 if "embed" in name else 1.6 / np.sqrt(value.shape[-1])
            weights[name] = mx.array((spread * random.standard_normal(value.shape)).astype(np.float32))
    names = sorted(weights)
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        return folder
    index = {}
    for shard in range(shards):
        part = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mx.save_safetensors(str(folder / part), {name: weights[name] for name in names[shard::shards]})
        index.update(dict.fromkeys(names[shard::shards], part))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _build(config: dict[str, Any]) -> Any:
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    return module.Model(module.ModelArgs.from_dict(config))


def mlx_logits_of(folder: Path) -> Callable[[Sequence[int]], np.ndarray]:
    model, _ = load_model(folder)
    return lambda ids: np.array(model(mx.array([list(ids)]))[0].astype(mx.float32))


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def read_key(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, changes, pre) for name, (changes, pre) in FAMILIES.items()}


@needs_llama
@pytest.mark.parametrize(
    ("outtype", "agreement", "difference", "kl"),
    [("f32", 1.0, 1e-3, 1e-8), ("f16", 0.98, 0.5, 1e-3), ("q8_0", 0.85, 5.0, 0.1)],
)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_exported_file_gives_the_logits_and_ids_of_mlx(
    folders: dict[str, Path],
    tmp_path: Path,
    family: str,
    outtype: str,
    agreement: float,
    difference: float,
    kl: float,
) -> None:
    folder = folders[family]
    written = export_gguf(folder, tmp_path / "m.gguf", outtype)
    assert written.pre_tokenizer == FAMILIES[family][1]
    parity = check_parity(
        written.path,
        texts=PROBE_TEXTS,
        token_ids=encode(folder, PROBE_TEXTS),
        mlx_logits=mlx_logits_of(folder),
    )
    assert parity.token_ids_equal, parity.first_difference
    assert parity.argmax_agreement >= agreement
    assert parity.max_logit_difference < difference
    assert parity.mean_kl < kl


@needs_llama
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("linear", "rope_scaling"),
        ("llama3", "rope_scaling"),
        ("yarn", "rope_scaling"),
        ("yarn", "rope_parameters"),
    ],
)
def test_rope_scaling_gives_the_logits_of_mlx(tmp_path: Path, kind: str, where: str) -> None:
    family = "llama" if where == "rope_scaling" else "qwen3"
    changes: dict[str, Any] = {"model_type": family, "tie_word_embeddings": True, "head_dim": 32}
    if where == "rope_scaling":
        changes["rope_scaling"] = SCALINGS[kind]
    else:
        changes["rope_parameters"] = {**SCALINGS[kind], "rope_theta": 50000.0}
        changes["rope_theta"] = None
    folder = write_model(tmp_path / "model", changes)
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 300, 300)]  # beyond the original context
    with LlamaRuntime(written.path) as runtime:
        theirs = runtime.logits(ids)
    ours = mlx_logits_of(folder)(ids)
    assert np.abs(ours - theirs).max() < 1e-2
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


@needs_llama
def test_rope_theta_under_rope_parameters_is_used(tmp_path: Path) -> None:
    nested = {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 32, "rope_theta": None,
              "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}  # fmt: skip
    folder = write_model(tmp_path / "model", nested)
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert read_key(gguf.GGUFReader(written.path), "qwen3.rope.freq_base") == pytest.approx(777.0)
    ids = list(range(3, 100))
    with LlamaRuntime(written.path) as runtime:
        assert np.abs(runtime.logits(ids) - mlx_logits_of(folder)(ids)).max() < 1e-2


@needs_llama
def test_mlx_quantized_folder_is_dequantized_exactly(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {"model_type": "llama", "tie_word_embeddings": True})
    model, config = load_model(folder)
    mixed = {"model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}}

    def choose(path: str, module: Any) -> bool | dict[str, int]:
        return mixed.get(path, hasattr(module, "to_quantized") and "norm" not in path)

    mlx.nn.quantize(model, group_size=32, bits=4, class_predicate=choose)
    config["quantization"] = {"group_size": 32, "bits": 4, **mixed}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert written.dequantized
    assert written.parameters == sum(t.n_elements for t in gguf.GGUFReader(written.path).tensors)
    parity = check_parity(
        written.path,
        texts=PROBE_TEXTS[:2],
        token_ids=encode(folder, PROBE_TEXTS[:2]),
        mlx_logits=mlx_logits_of(folder),
    )
    assert parity.argmax_agreement == 1.0
    assert parity.max_logit_difference < 1e-2


def test_file_reads_back_with_every_weight_and_key(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["llama-untied"]
    steps: list[tuple[int, int]] = []
    extra: dict[str, str | int | float | bool] = {
        "aird.rule": "paper", "aird.layer": 3, "aird.strength": 0.5, "aird.passed": True, "aird.note": "",
    }  # fmt: skip
    written = export_gguf(
        folder, tmp_path / "out" / "m.gguf", "f32", name="Tiny", extra_metadata=extra,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert [path.name for path in written.path.parent.iterdir()] == ["m.gguf"]
    assert written.size_bytes == written.path.stat().st_size
    assert steps == [(done, written.tensors) for done in range(1, written.tensors + 1)]
    reader = gguf.GGUFReader(written.path)
    source = dict(mx.load(str(folder / "model.safetensors")))
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert len(found) == len(source) == written.tensors
    assert written.parameters == sum(value.size for value in source.values())
    np.testing.assert_array_equal(found["output.weight"], np.array(source["lm_head.weight"]))
    np.testing.assert_array_equal(
        found["blk.1.ffn_down.weight"], np.array(source["model.layers.1.mlp.down_proj.weight"])
    )
    query = np.array(source["model.layers.0.self_attn.q_proj.weight"]).reshape(4, 2, 8, 64)
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"].reshape(4, 8, 2, 64)[:, 5, 1], query[:, 1, 5])
    keys = {key: read_key(reader, key) for key in extra}
    assert keys == extra
    assert read_key(reader, "general.name") == "Tiny"
    assert read_key(reader, "general.file_type") == 0
    assert read_key(reader, "llama.attention.head_count_kv") == 4
    assert read_key(reader, "tokenizer.chat_template") == TEMPLATE
    tokens, types = read_key(reader, "tokenizer.ggml.tokens"), read_key(reader, "tokenizer.ggml.token_type")
    by_name = dict(zip(tokens, types, strict=True))
    assert len(tokens) == BASE["vocab_size"]
    assert by_name["<|im_end|>"] == gguf.TokenType.CONTROL
    assert by_name["<tool>"] == gguf.TokenType.USER_DEFINED
    assert by_name["[PAD415]"] == gguf.TokenType.UNUSED
    assert by_name["a"] == gguf.TokenType.NORMAL
    assert read_key(reader, "tokenizer.ggml.eos_token_id") == read_key(reader, "tokenizer.ggml.eot_token_id") == 2


@pytest.mark.parametrize(("outtype", "kinds"), [("f16", {"F32", "F16"}), ("q8_0", {"F32", "F16", "Q8_0"})])
def test_types_are_chosen_by_shape(tmp_path: Path, outtype: str, kinds: set[str]) -> None:
    folder = write_model(tmp_path / "model", {"model_type": "llama", "intermediate_size": 144})  # 144 % 32 = 16
    reader = gguf.GGUFReader(export_gguf(folder, tmp_path / "m.gguf", outtype).path)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == kinds
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert by_name["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert by_name["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert by_name["blk.0.ffn_up.weight"].tensor_type.name == outtype.upper()
    source = np.array(mx.load(str(folder / "model.safetensors"))["model.layers.0.mlp.up_proj.weight"])
    stored = by_name["blk.0.ffn_up.weight"]
    back = gguf.quants.dequantize(stored.data, stored.tensor_type)
    step = np.abs(source).max() / 127 if outtype == "q8_0" else 2**-9
    assert 0 < np.abs(back - source).max() <= step


def test_encoding_keeps_zeros_and_rounds_to_nearest() -> None:
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    values[:, ::2] = 0.0
    for kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0):
        data = quantize(values, kind)
        back = dequantize(data, kind)
        assert (back[:, ::2] == 0).all()
        blocks = np.abs(values.reshape(8, 2, 32)).max(axis=-1)
        limit = blocks / 127 * 0.57 if kind.name == "Q8_0" else blocks * 2**-11
        assert (np.abs(back - values).reshape(8, 2, 32).max(axis=-1) <= limit).all()


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_sparsity_is_counted_in_the_file(folders: dict[str, Path], tmp_path: Path, outtype: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)

    def prune(weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            if "_proj" in name:
                weights[name] = mx.where(mx.arange(weight.shape[1]) % 4 < 2, 0.0, weight)

    change_weights(folder, prune)
    written = export_gguf(folder, tmp_path / "m.gguf", outtype)
    zeros = total = 0
    for tensor in gguf.GGUFReader(written.path).tensors:
        if tensor.name.startswith("blk.") and "norm" not in tensor.name:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            zeros, total = zeros + int((values == 0).sum()), total + values.size
    assert written.sparsity == zeros / total
    # q8_0 rounds small weights to zero as well.
    assert 0.5 < written.sparsity < 0.6 if outtype == "q8_0" else written.sparsity == 0.5


def test_copied_output_of_a_tied_model_is_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)
    change_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"]}))
    copied = export_gguf(folder, tmp_path / "copied.gguf", "f16", name="same")
    single = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f16", name="same")
    assert copied.path.read_bytes() == single.path.read_bytes()


def test_permutation_moves_halves_to_neighbours() -> None:
    rows = np.arange(2 * 6 * 3).reshape(12, 3)
    permuted = rows[neighbours(2, len(rows))]
    for head in range(2):
        for pair in range(3):
            assert (permuted[head * 6 + 2 * pair] == rows[head * 6 + pair]).all()
            assert (permuted[head * 6 + 2 * pair + 1] == rows[head * 6 + 3 + pair]).all()


def test_shards_and_repetition_give_the_same_bytes(tmp_path: Path) -> None:
    changes = {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 32}
    one = write_model(tmp_path / "one" / "model", changes)
    three = write_model(tmp_path / "three" / "model", changes, shards=3)
    files = [
        export_gguf(folder, tmp_path / f"{number}.gguf", "q8_0").path for number, folder in enumerate((one, three, one))
    ]
    assert len({file.read_bytes() for file in files}) == 1


def test_llama3_factors_match_the_formula() -> None:
    config = {
        **BASE,
        "model_type": "llama",
        "head_dim": 64,
        "rope_theta": 500000.0,
        "rope_scaling": SCALINGS["llama3"],
    }
    factors = rope_frequency_factors(read_hyperparameters(config)[1])["rope_freqs.weight"]
    assert factors.shape == (32,)
    assert factors[[0, -1]].tolist() == [1.0, 8.0]
    assert (np.diff(factors) >= 0).all()
    assert ((factors > 1) & (factors < 8)).any()


# --- tokenizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", list(PRE))
def test_pre_tokenizer_is_recognized_by_behaviour(tmp_path: Path, pre: str) -> None:
    write_tokenizer(tmp_path, pre)
    assert identify_pre_tokenizer(json.loads((tmp_path / "tokenizer.json").read_text())) == (pre, [])


def test_ignore_merges_must_agree_or_not_matter(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["ignore_merges"] = True
    assert identify_pre_tokenizer(content) == ("qwen2", [])  # every token can be merged, so the flag changes nothing
    content["model"]["vocab"]["unreachable"] = 399
    with pytest.raises(ExportError, match="ignore_merges"):
        identify_pre_tokenizer(content)


def test_template_and_bos_are_read_from_either_place(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt-2", add_bos=True)
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = read_vocabulary(tmp_path, 416)
    assert vocabulary.chat_templates == {"default": "A", "tool_use": "B"}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)


@pytest.mark.parametrize("template", [None, ""])
def test_missing_chat_template_is_noted(folders: dict[str, Path], tmp_path: Path, template: str | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)
    assert check_exportable(folder, "f16") == ()
    file = folder / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    assert [note for note in check_exportable(folder, "f16") if "no chat template" in note]


def test_template_that_cannot_be_parsed_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    (note,) = check_exportable(folder, "f16")
    assert "no jinja (Unexpected end of template" in note
    assert "\n" not in note


def test_statement_that_llama_cpp_cannot_parse_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)
    (folder / "chat_template.jinja").write_text(
        "{% set a = 1 %}\n{%- with b = 1 %}{{ messages[0].content }}{% endwith %}\n"
        "{% include 'x' %}{% with %}{% endwith %}"
    )
    (note,) = check_exportable(folder, "f16")
    assert note == (
        "the chat template has `with` (line 2) and `include` (line 3), which llama.cpp's jinja does not know: it will "
        "not render it"
    )


def test_merges_are_read_in_both_forms(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "gpt-2")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert isinstance(content["model"]["merges"][0], list)
    pairs = read_vocabulary(tmp_path, 416).merges
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert pairs
    assert read_vocabulary(tmp_path, 416).merges == pairs


def test_nfc_normalization_is_reported(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, "qwen2")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert any("NFC" in note for note in read_vocabulary(tmp_path, 416).notes)


# --- running -----------------------------------------------------------------------------------------------------


@needs_llama
def test_generation_follows_the_logits_in_any_grouping(folders: dict[str, Path], tmp_path: Path) -> None:
    written = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f32")
    random = np.random.default_rng(3)
    prompts = [[int(i) for i in random.integers(3, 380, length)] for length in (1, 9, 4, 30, 17, 2, 9)]
    with LlamaRuntime(written.path, n_ctx=64, n_batch=16, parallel=3) as runtime:
        answers = runtime.generate(prompts, 8, [])
        assert runtime.generate(prompts, 8, []) == answers
        for prompt, answer in zip(prompts, answers, strict=True):
            assert len(answer) == 8
            logits = runtime.logits(prompt + answer)
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
        stop = answers[3][2]
        stopped = runtime.generate(prompts, 8, [stop])
        for answer, short in zip(answers, stopped, strict=True):
            assert short == (answer[: answer.index(stop)] if stop in answer else answer)
        assert runtime.generate([], 8, []) == []


@needs_llama
def test_log_likelihoods_are_those_of_mlx(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["qwen3"]
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    sequences = encode(folder, PROBE_TEXTS[:3])
    losses: list[float] = []
    forward = mlx_logits_of(folder)
    for ids in sequences:
        logits = forward(ids)[:-1].astype(np.float64)
        losses += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]).tolist()
    with LlamaRuntime(written.path) as runtime:
        found = log_likelihoods(runtime.logits, sequences, [0] * len(sequences))
        assert -sum(found) == pytest.approx(np.sum(losses), rel=1e-4)


@needs_llama
def test_metadata_is_readable_in_llama_cpp(folders: dict[str, Path], tmp_path: Path) -> None:
    long = "x" * 10000
    extra = {"aird.layer": 3, "aird.long": long}
    written = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f16", extra_metadata=extra)
    with LlamaRuntime(written.path, vocab_only=True) as runtime:
        assert runtime.metadata("aird.layer") == "3"
        assert runtime.metadata("aird.long") == long
        assert runtime.metadata("tokenizer.chat_template") == TEMPLATE
        assert runtime.metadata("aird.none") is None


@needs_llama
def test_runtime_is_quiet(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f16")
    with LlamaRuntime(written.path) as runtime:
        runtime.logits([3, 4])
    (tmp_path / "broken.gguf").write_bytes(written.path.read_bytes()[:4000])
    with pytest.raises(ParityError, match="refuses"):
        LlamaRuntime(tmp_path / "broken.gguf")
    assert capfd.readouterr() == ("", "")


@needs_llama
def test_parity_sees_a_wrong_row_order_and_other_ids(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["llama-tied"]
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name][mx.array(neighbours(4, len(weights[name])))]
    mx.save_safetensors(str(broken / "model.safetensors"), weights)
    written = export_gguf(broken, tmp_path / "m.gguf", "f32")
    ids = encode(folder, PROBE_TEXTS[:2])
    ids[1][5] = 300
    parity = check_parity(written.path, texts=PROBE_TEXTS[:2], token_ids=ids, mlx_logits=mlx_logits_of(folder))
    assert parity.argmax_agreement < 0.9
    assert parity.max_logit_difference > 1
    assert parity.mean_kl > 0.01
    assert not parity.token_ids_equal
    assert str(parity.first_difference).startswith("text 1, token 5:")


@needs_llama
def test_runtime_errors_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    written = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f32")
    with LlamaRuntime(written.path, n_ctx=32) as runtime:
        for call in (
            lambda: runtime.logits([]),
            lambda: runtime.logits(list(range(33))),
            lambda: runtime.logits([5000]),
            lambda: runtime.generate([[3] * 30], 8, []),
            lambda: log_likelihoods(runtime.logits, [[3]], [0]),
        ):
            with pytest.raises(ParityError) as caught:
                call()
            assert_one_line(caught.value)
    with pytest.raises(ParityError, match="no file"):
        LlamaRuntime(tmp_path / "none.gguf")
    with pytest.raises(ParityError, match="1 texts and 0"):
        check_parity(written.path, texts=["a"], token_ids=[], mlx_logits=lambda ids: np.zeros((1, 1)))


def test_missing_llama_cpp_is_one_line(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from aird_mlx.errors import DependencyError\n"
        "from aird_mlx.gguf_export import LlamaRuntime, is_available\n"
        "assert not is_available()\n"
        "try: LlamaRuntime('m.gguf')\n"
        "except DependencyError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'aird-mlx[llama]'" in run.stdout
    assert run.stdout.count("\n") == 1


# --- planted errors ------------------------------------------------------------------------------------------------


def assert_one_line(error: AirdError) -> None:
    message = str(error)
    assert "\n" not in message
    stage, _, rest = message.partition(": ")
    assert stage in {"gguf", "model", "tokenizer", "llama.cpp", "parity"}
    assert "; " in rest
    assert rest.endswith(".")


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(*weights.values())
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def plant(name: str, value: float) -> Callable[[Path], None]:
    def change(weights: dict[str, Any]) -> None:
        array = np.array(weights[name])
        array.reshape(-1)[7] = value
        weights[name] = mx.array(array)

    return lambda folder: change_weights(folder, change)


UP = "model.layers.1.mlp.up_proj.weight"


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "outtype", "kind", "said"),
    [
        (plant(UP, float("inf")), "f32", ExportError, UP),
        (plant(UP, float("nan")), "q8_0", ExportError, "1 values that are not finite"),
        (plant(UP, -70000.0), "f16", ExportError, "70000; f16 holds at most 65504"),
        (truncate, "f32", ModelError, "its header says"),
        (lambda f: (f / "model.safetensors").write_bytes(b"garbage!" * 9), "f32", ModelError, "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "f32", ModelError, "no *.safetensors"),
        (lambda f: change_weights(f, lambda w: w.pop(UP)), "f32", ModelError, f"no tensor {UP}"),
        (
            lambda f: change_weights(f, lambda w: w.update({"model.layers.0.mlp.router.weight": mx.zeros((2, 2))})),
            "f32", ExportError, "model.layers.0.mlp.router.weight",
        ),
        (lambda f: change_config(f, intermediate_size=96), "f32", ModelError, "config.json says (96, 64)"),
        (lambda f: change_config(f, vocab_size=400), "f32", ModelError, "(416, 64); config.json says (400, 64)"),
        (lambda f: change_config(f, vocab_size=500), "f32", ModelError, "(416, 64); config.json says (500, 64)"),
        (lambda f: change_config(f, model_type="bert"), "f32", ExportError, "model_type 'bert'"),
        (lambda f: change_config(f, rope_scaling={"rope_type": "longrope"}), "f32", ExportError, "scaling 'longrope'"),
        (
            lambda f: change_config(f, model_type="qwen3", rope_scaling=SCALINGS["llama3"]),
            "f32", ExportError, "'llama3' on qwen3",
        ),
        (lambda f: change_config(f, hidden_size=None), "f32", ModelError, "no hidden_size"),
        (lambda f: change_config(f, hidden_size="wide"), "f32", ModelError, "a value that is not what its key means"),
        (lambda f: change_config(f, rope_parameters="x"), "f32", ModelError, "a value that is not what its key means"),
        (
            lambda f: change_config(f, num_attention_heads=0, head_dim=None),
            "f32", ModelError, "a value that is not what its key means",
        ),
        (lambda f: (f / "config.json").write_text("[" * 10**5), "f32", ModelError, "cannot be read"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "f32", ModelError, "chat template in"),
        (lambda f: (f / "config.json").write_text("{"), "f32", ModelError, "cannot be read"),
        (lambda f: (f / "config.json").unlink(), "f32", ModelError, "no config.json"),
        (lambda f: (f / "config.json").write_text("{}"), "f32", ModelError, "config.json is empty"),
        (lambda f: (f / "tokenizer.json").unlink(), "f32", ModelError, "no tokenizer.json nor tokenizer.model"),
        (
            lambda f: change_tokenizer(f, lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
            "f32", ExportError, "like none that llama.cpp knows",
        ),
        (lambda f: change_tokenizer(f, lambda t: t.update(pre_tokenizer=None)), "f32", ExportError, "is null"),
        (
            lambda f: change_tokenizer(f, lambda t: t.update(normalizer={"type": "Lowercase"})),
            "f32", ExportError, "normalizer Lowercase",
        ),
        (
            lambda f: change_tokenizer(f, lambda t: t["model"].update(type="Unigram")),
            "f32", ModelError, "cannot be used",
        ),
        (
            lambda f: change_tokenizer(f, lambda t: t["model"]["vocab"].update(beyond=5000)),
            "f32", ExportError, "token id 5000; the embedding has 416 rows",
        ),
        (lambda f: None, "q3_x", ExportError, "outtype 'q3_x'"),
    ],
)  # fmt: skip
def test_damaged_folder_is_one_line_and_leaves_nothing(
    folders: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Path], Any],
    outtype: str,
    kind: type[AirdError],
    said: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama-tied"], folder)
    damage(folder)
    with pytest.raises(kind) as caught:
        export_gguf(folder, tmp_path / "out" / "m.gguf", outtype)
    assert said in str(caught.value)
    assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


def test_foreign_metadata_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for extra in ({"general.name": "x"}, {"aird.list": [1, 2]}):
        with pytest.raises(ExportError) as caught:
            export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f32", extra_metadata=extra)  # type: ignore[arg-type]
        assert_one_line(caught.value)
    assert not list(tmp_path.glob("m.gguf*"))


def test_interrupted_export_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    outfile = tmp_path / "new" / "folder" / "m.gguf"

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            assert unfinished_of(outfile).stat().st_size > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(folders["llama-tied"], outfile, "f32", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "folder", "link", "/dev/null", "."])
def test_existing_outfile_is_left_alone(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "model.safetensors").write_text("weights")
    before = sorted(tmp_path.rglob("*"))
    for extra in (None, {"aird.version": "1"}):
        with pytest.raises(ExportError, match="exists already; a new file is needed") as caught:
            export_gguf(folders["llama-tied"], tmp_path / name, "f16", extra_metadata=extra)
        assert_one_line(caught.value)
    assert (tmp_path / "model.safetensors").read_text() == "weights"
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_file_of_the_same_run_is_replaced(folders: dict[str, Path], tmp_path: Path) -> None:
    extra = {"aird.version": "1", "aird.rule": "auto"}
    first = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", "f16", extra_metadata=extra)
    written = first.path.read_bytes()
    with first.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert export_gguf(folders["llama-tied"], first.path, "f16", extra_metadata=extra).path.read_bytes() == written
    for other in (None, {"aird.version": "1"}, extra | {"aird.rule": "paper"}):
        with pytest.raises(ExportError, match="exists already"):
            export_gguf(folders["llama-tied"], first.path, "f16", extra_metadata=other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    header = describe(prepare(folders["llama-tied"], "f32"), None, {})

    def write() -> None:
        with whole_gguf(tmp_path / "m.gguf", 1) as partial:
            partial.symlink_to("/dev/full")
            write_tensors(header, encode_keys(header.kv_data[0]), partial, [])

    with pytest.raises(ExportError, match=r"does not fit: the disk is full") as caught:
        write()
    assert_one_line(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("outtype", "times"), [("q8_0", 2), pytest.param("q4_k_m", 1, marks=needs_llama)])
def test_room_is_asked_for_what_is_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outtype: str, times: int
) -> None:
    """A file is written once more to be sealed; llama.cpp's quantizer reads one that holds the weights exactly."""
    size = export_gguf(folders["llama-tied"], tmp_path / "m.gguf", outtype).size_bytes
    exact = export_gguf(folders["llama-tied"], tmp_path / "exact.gguf", "f32").size_bytes
    wanted = times * size if outtype == "q8_0" else size + max(size, exact)
    for free, fits in ((0.98 * wanted, False), (1.02 * wanted, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=int(free)))
        if fits:
            export_gguf(folders["llama-tied"], tmp_path / "again.gguf", outtype, copied=True)
            continue
        with pytest.raises(ExportError, match=r"again.gguf does not fit") as caught:
            export_gguf(folders["llama-tied"], tmp_path / "again.gguf", outtype, copied=True)
        assert_one_line(caught.value)


def test_short_write_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from aird_mlx.errors import ExportError\n"
        "from aird_mlx.gguf_export import export_gguf\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try: export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'f32')\n"
        "except ExportError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", program, str(folders["llama-tied"]), str(tmp_path / "m.gguf")]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "size limit is reached" in run.stdout
    assert run.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unwritable_outfile_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match="cannot be written") as caught:
        export_gguf(folders["llama-tied"], tmp_path / "file" / "m.gguf", "f32")
    assert_one_line(caught.value)
