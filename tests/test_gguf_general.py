"""The keys under ``general.``, beside those that llama.cpp's converter writes for the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from aird_mlx.gguf_export import LlamaRuntime, check_exportable, export_gguf, is_available
from aird_mlx.gguf_export.general import read_general, read_licence

CARD = """---
license: other
license_name: tiny-licence
license_link: https://example.org/licence
language:
- en
- no
base_model:
- org/Tiny-Llama-3B-Base
- https://huggingface.co/other/Teacher-v2
datasets: org/words
tags: [chat, tiny]
pipeline_tag: text-generation
version: v1.5
---
# Tiny
"""


def general_keys(file: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(file).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("general.")}


def keys_of_the_converter(folder: Path, parameters: int, file: Path) -> dict[str, Any]:
    """What ``prepare_metadata`` of convert_hf_to_gguf.py does, with the library it calls."""
    metadata = gguf.Metadata.load(None, folder, None, parameters)
    metadata.name = metadata.name or folder.name
    metadata.size_label = metadata.size_label or gguf.size_label(parameters, 0, 0, 0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("model")
    metadata.set_gguf_meta_model(writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return general_keys(file)


@pytest.mark.parametrize("name", ["Tiny-3B-Instruct-v1.2", "plain", "Big-Mix-8x7B-chat", "a model of mine"])
@pytest.mark.parametrize("card", [None, CARD, "# no front matter\n"])
def test_keys_are_those_of_the_converter(
    model_folder: Callable[..., Path], tmp_path: Path, name: str, card: str | None
) -> None:
    folder = model_folder().rename(tmp_path / name)
    generation = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    written = export_gguf(folder, tmp_path / "ours.gguf", "f16")
    ours = general_keys(written.path)
    # The converter takes this since the library it is compared with here was published.
    assert ours.pop("general.sampling.penalty_repeat") == pytest.approx(1.05)
    assert ours == keys_of_the_converter(folder, written.parameters, tmp_path / "theirs.gguf")
    if card == CARD:
        assert ours["general.license"] == "other"
        assert ours["general.base_model.count"] == 2
        assert ours["general.base_model.0.repo_url"] == "https://huggingface.co/org/Tiny-Llama-3B-Base"
        assert ours["general.languages"] == ["en", "no"]
        assert ours["general.tags"] == ["chat", "tiny", "text-generation"]


def test_quantized_file_says_who_quantized_it(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder()
    keys = {kind: general_keys(export_gguf(folder, tmp_path / f"{kind}.gguf", kind).path) for kind in ("bf16", "q8_0")}
    assert keys["q8_0"]["general.quantized_by"] == "aird-mlx"
    assert keys["q8_0"]["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert "general.quantized_by" not in keys["bf16"]
    assert keys["bf16"]["general.quantization_version"] == 2


def test_model_of_the_hubs_cache_is_called_by_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Tiny-3B-Instruct" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    general = read_general(folder, 3_000_000_000)
    assert (general.basename, general.size_label, general.finetune) == ("Tiny", "3B", "Instruct")
    assert general.name == "Tiny 3B Instruct"
    assert read_general(folder, 0, "mine").name == "mine"


def test_values_of_other_types_are_written_as_what_gguf_has(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder()
    (folder / "README.md").write_text("---\nlicense: 2\nversion: 2024-01-31\ntags: [1, x]\nauthor: [a, b]\n---\n")
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 50.0, "temperature": "hot", "top_p": True}))
    keys = general_keys(export_gguf(folder, tmp_path / "m.gguf", "f16").path)
    assert (keys["general.license"], keys["general.version"], keys["general.tags"]) == ("2", "2024-01-31", ["1", "x"])
    assert keys["general.sampling.top_k"] == 50
    assert not [key for key in keys if key.endswith((".temp", ".top_p"))]
    assert read_licence(folder) == "2"


@pytest.mark.parametrize("card", [b"---\na: [1,\n---\n", b"---\nlicense: \xff\xfe\n---\n", b"---\n- a list\n---\n"])
def test_unreadable_card_is_noted(model_folder: Callable[..., Path], tmp_path: Path, card: bytes) -> None:
    folder = model_folder()
    (folder / "README.md").write_bytes(card)
    notes = [note for note in check_exportable(folder, "f16") if "model card" in note]
    assert len(notes) == (0 if b"list" in card else 1)
    assert not [note for note in notes if "\n" in note]
    assert "general.license" not in general_keys(export_gguf(folder, tmp_path / "m.gguf", "f16").path)


@pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", ["my-phi3-clone", "Phi-3.5-tiny"])
def test_name_of_a_phi_3_with_other_tokens_is_one_that_llama_cpp_takes(
    model_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    written = export_gguf(model_folder(), tmp_path / "m.gguf", "f16", name=name)
    with LlamaRuntime(written.path, vocab_only=True) as runtime:
        assert runtime.metadata("general.name") == name.replace("phi3", "phi 3").replace("Phi-3", "Phi 3")


@pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(("name", "written"), [("Phi 3.5 tiny", "Phi-3.5 tiny"), ("mine", "mine (Phi-3)")])
def test_special_tokens_of_a_phi_3_swallow_the_spaces_behind_them(
    model_folder: Callable[..., Path], tmp_path: Path, name: str, written: str
) -> None:
    folder = model_folder()
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    texts = ["<|endoftext|>", "<unk>", "<s>", "</s>", "<|user|>", "<|im_start|>", "<|im_end|>"]
    fixed = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
    vocab = content["model"]["vocab"]
    for left, right in content["model"]["merges"][-4:]:  # room for what is new
        del vocab[left + right]
    del content["model"]["merges"][-4:]
    for text in texts:
        vocab.setdefault(text, len(vocab))
    content["added_tokens"] = [
        {"id": vocab[text], "content": text, "rstrip": text not in texts[:3], **fixed} for text in texts
    ]
    file.write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(file))
    assert not [note for note in check_exportable(folder, "f16") if "swallow" in note]
    exported = export_gguf(folder, tmp_path / "m.gguf", "f16", name=name)
    with LlamaRuntime(exported.path, vocab_only=True) as runtime:
        assert runtime.metadata("general.name") == written
        for text in ("<|user|>\n Hello</s>  there<s> x", "<|im_start|>\n\n", "a <unk>  b<|endoftext|> c"):
            assert runtime.tokenize(text) == tokenizer.encode(text).ids
