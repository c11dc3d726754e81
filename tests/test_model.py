"""Loading says in one line what is wrong; saving gives a folder that mlx-lm reads, with the very same bytes."""

from __future__ import annotations

import errno
import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load as mlx_lm_load
from mlx_lm.utils import load_config, load_model, quantize_model, save_config, save_model

from aird_mlx.errors import AirdError, ModelError, OutputError
from aird_mlx.model import COMPANION_FILES, ChatModel, load, peak_memory, save
from aird_mlx.pruning import prune_model
from family_models import FAMILIES, write_family

Maker = Callable[..., Path]


def refusal(model: str | Path, kind: type[AirdError] = ModelError) -> str:
    """What `load` says of a model that it refuses, in one line."""
    with pytest.raises(kind) as raised:
        load(model)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("model: ")
    assert message.endswith(".")
    return message


def weights_of(network: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(network.parameters())}


def change_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


# --- what cannot be loaded ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "~/no-such-folder", "gone", "a/b/c", "a\\b"])
def test_mistyped_folder_is_one_line(name: str) -> None:
    said = refusal(name)
    assert name in said and "there is no folder" in said


def test_file_instead_of_folder_is_one_line(model_folder: Maker) -> None:
    assert "is a file; a folder" in refusal(model_folder() / "model.safetensors")


def test_hub_id_without_a_connection_is_one_line_and_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    # A port where nobody listens stands for a broken connection.
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    assert "the hub cannot be reached" in refusal("no-such-organization/no-such-model")
    assert time.monotonic() - started < 10


def test_hub_id_in_offline_mode_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    assert "no-such-organization/no-such-model" in refusal("no-such-organization/no-such-model")


def test_impossible_hub_id_is_one_line() -> None:
    assert "nor a valid hub id" in refusal("bad id!/x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": "mammoth"}', "'mammoth' is none that mlx-lm .* runs; one of its types is needed"),
        ('{"model_type": ["llama"]}', "names no model_type"),
        ('{"model_type": "llama"}', r"config\.json cannot be used .*'hidden_size'"),
        ("[" * 10**5, "is not JSON"),
        ('{"model_type": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_unusable_config_is_one_line(model_folder: Maker, text: str | None, words: str) -> None:
    folder = model_folder()
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_text(text)
    assert re.search(words, refusal(folder))


def test_config_that_is_no_text_is_one_line(model_folder: Maker) -> None:
    folder = model_folder()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_hidden_layers": "four"},
        {"eos_token_id": "x"},
        {"rope_scaling": {"rope_type": "weird"}},
        {"quantization": "int4"},
        {"quantization": {"bits": 4}},
    ],
    ids=str,
)
def test_setting_of_a_wrong_kind_blames_the_config(model_folder: Maker, changes: dict[str, Any]) -> None:
    folder = model_folder()
    change_config(folder, **changes)
    assert re.search(r"config\.json cannot be used", refusal(folder))


def test_rope_parameters_that_are_no_object_are_named(model_folder: Maker) -> None:
    folder = model_folder()
    change_config(folder, rope_parameters="x")
    assert re.search("rope_parameters in config.json is 'x'", refusal(folder))


def test_code_of_the_model_is_not_run_without_permission(model_folder: Maker) -> None:
    folder = model_folder()
    change_config(folder, model_file="own.py")
    (folder / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs\nRAN = __file__ + '.ran'\n"
                                   "open(RAN, 'w').close()\n")  # fmt: skip
    assert re.search(r"code of its own \('own\.py'\), which was not run; .* add --trust-remote-code", refusal(folder))
    assert not (folder / "own.py.ran").exists()
    assert load(folder, trust_remote_code=True).parameters
    assert (folder / "own.py.ran").exists()


def test_code_of_the_tokenizer_is_not_run_without_permission(model_folder: Maker) -> None:
    folder = model_folder()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own_tokenizer.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own_tokenizer.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n"
        f"Path({str(folder / 'ran')!r}).touch()\nclass OwnTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    assert re.search("is code of its own, which was not run; .* add --trust-remote-code", refusal(folder))
    assert not (folder / "ran").exists()


def test_broken_code_of_the_model_is_one_line(model_folder: Maker) -> None:
    folder = model_folder()
    change_config(folder, model_file="own.py")
    for code in ("import no_such_module", "def", "", "1 / 0"):
        (folder / "own.py").write_text(code)
        with pytest.raises(ModelError, match="cannot be used"):
            load(folder, trust_remote_code=True)


def test_link_to_nowhere_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to("gone")
    assert "org/name is a link to gone, where nothing is" in refusal("org/name")


def test_missing_weights_are_one_line(model_folder: Maker) -> None:
    folder = model_folder()
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_truncated_weights_are_one_line(model_folder: Maker, kept: int) -> None:
    path = model_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert re.search("the weights in .* cannot be read", refusal(path.parent))


def test_missing_tensor_is_named(model_folder: Maker) -> None:
    path = model_folder() / "model.safetensors"
    arrays = mx.load(str(path))
    del arrays["model.layers.2.mlp.down_proj.weight"]
    mx.save_safetensors(str(path), arrays)
    assert re.search("the weights in .*Missing 1 parameters: model.layers.2.mlp.down_proj.weight", refusal(path.parent))


def test_tensor_of_a_wrong_shape_is_one_line(model_folder: Maker) -> None:
    path = model_folder() / "model.safetensors"
    arrays = mx.load(str(path))
    arrays["model.layers.2.mlp.down_proj.weight"] = mx.zeros((3, 3))
    mx.save_safetensors(str(path), arrays)
    assert "cannot be read" in refusal(path.parent)


def test_missing_tokenizer_is_one_line(model_folder: Maker) -> None:
    folder = model_folder()
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "{}", "not json"])
def test_broken_tokenizer_is_one_line(model_folder: Maker, text: str) -> None:
    folder = model_folder()
    (folder / "tokenizer.json").write_text(text)
    assert re.search("the tokenizer in .* cannot be read", refusal(folder))


@pytest.mark.parametrize("template", [None, ""])
def test_missing_chat_template_is_one_line(model_folder: Maker, template: str | None) -> None:
    folder = model_folder()
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has no chat template" in refusal(folder)


# --- what is loaded -----------------------------------------------------------------------------------------------


def test_loaded_model_knows_its_parts(tiny: ChatModel) -> None:
    assert len(tiny.blocks) == 4
    assert tiny.hidden_size == 32
    assert len(list(tiny.linears())) == 28
    assert tiny.linear(3, "mlp.up_proj") is tiny.blocks[3].mlp.up_proj
    assert tiny.parameters == sum(value.size for value in weights_of(tiny.network).values())
    assert tiny.bits_per_weight == 32
    assert tiny.notes == []


def test_context_length_is_that_of_the_config(model_folder: Maker) -> None:
    folder = model_folder()
    assert load(folder).context_length == 256
    change_config(folder, max_position_embeddings=None)
    assert load(folder).context_length is None


def test_sparsity_counts_zeros_of_the_linears_only(tiny: ChatModel) -> None:
    assert tiny.sparsity() == 0
    weight = tiny.linear(1, "mlp.down_proj").weight
    tiny.linear(1, "mlp.down_proj").weight = mx.zeros_like(weight)
    tiny.network.model.embed_tokens.weight = mx.zeros_like(tiny.network.model.embed_tokens.weight)
    total = sum(linear.weight.size for _, _, linear in tiny.linears())
    assert tiny.sparsity() == weight.size / total


def quantized(folder: Path, out: Path, bits: int = 8) -> Path:
    """The model of ``folder`` quantized by mlx-lm, as a folder."""
    network, config = load_model(folder)
    network, config = quantize_model(network, config, group_size=32, bits=bits)
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    save_model(out, network)
    save_config(config, out / "config.json")
    return out


def test_quantized_model_is_dequantized_with_a_note(model_folder: Maker, tmp_path: Path) -> None:
    folder = quantized(model_folder(), tmp_path / "quantized")
    assert "quantization" in load_config(folder)
    model = load(folder)
    reference, _ = load_model(folder)
    ids = mx.array([[5, 6, 7]])
    np.testing.assert_allclose(np.array(model.network(ids)), np.array(reference(ids)), atol=1e-3)
    assert len(model.notes) == 1
    assert "8 bits, group 32" in model.notes[0]
    assert not any("scales" in name for name in weights_of(model.network))
    assert prune_model(model, [], method="magnitude", sparsity=0.5).sparsity >= 0.5


def test_model_of_which_only_experts_are_quantized_is_dequantized(tmp_path: Path) -> None:
    """As gpt-oss comes: mlx-lm's module for fused experts is none of MLX's quantized ones."""
    folder = write_family(tmp_path / "mlx", "qwen3_moe", {**FAMILIES["qwen3_moe"], "moe_intermediate_size": 64})
    network, config = load_model(folder)
    network, config = quantize_model(
        network, config, group_size=32, bits=4, quant_predicate=lambda path, module: "switch_mlp" in path
    )
    (folder / "model.safetensors").unlink()
    save_model(folder, network)
    save_config(config, folder / "config.json")
    model = load(folder)
    assert "4 bits, group 32" in model.notes[0]
    assert not any("scales" in name for name in weights_of(model.network))
    assert "quantization" not in model.config


def test_weights_that_are_not_quantized_as_the_config_says_are_noted(model_folder: Maker) -> None:
    folder = model_folder()
    change_config(folder, quantization={"bits": 4, "group_size": 32})
    model = load(folder)
    assert len(model.notes) == 1
    assert "its weights are not" in model.notes[0]
    assert "quantization" not in model.config


def test_dequantized_model_is_saved_as_a_plain_one(model_folder: Maker, tmp_path: Path) -> None:
    model = load(quantized(model_folder(), tmp_path / "quantized"))
    save(model, tmp_path / "out")
    assert not {"quantization", "quantization_config"} & set(load_config(tmp_path / "out"))
    again = load(tmp_path / "out")
    assert again.notes == []
    for name, value in weights_of(again.network).items():
        np.testing.assert_array_equal(value, weights_of(model.network)[name])


# --- what is saved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize(("model_type", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)])
def test_saved_model_is_read_by_mlx_lm_bit_for_bit(
    model_folder: Maker, tmp_path: Path, model_type: str, tied: bool, dtype: mx.Dtype
) -> None:
    model = load(model_folder(model_type, tie_word_embeddings=tied))
    model.network.set_dtype(dtype)
    prune_model(model, [], method="magnitude", sparsity=0.5)
    save(model, tmp_path / "out")
    network, tokenizer = mlx_lm_load(str(tmp_path / "out"))
    written, expected = dict(tree_flatten(network.parameters())), dict(tree_flatten(model.network.parameters()))
    assert set(written) == set(expected)
    for name, value in expected.items():
        assert written[name].dtype == dtype, name
        assert mx.array_equal(written[name], value).item(), name
    assert tokenizer.encode("Hello bread") == model.tokenizer.encode("Hello bread")
    assert load(tmp_path / "out").sparsity() == 0.5


def test_companion_files_are_copied_byte_for_byte(model_folder: Maker, tmp_path: Path) -> None:
    folder = model_folder()
    (folder / "generation_config.json").write_text('{"temperature":   0.6 }\n')
    (folder / "chat_template.jinja").write_bytes(b"{{ messages[0].content }}\r\n")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "modeling_own.py").write_text("VALUE = 1\n")
    (folder / "notes.txt").write_text("private")
    save(load(folder), tmp_path / "out", card="# A card\n")
    for name in (*(name for name in COMPANION_FILES if (folder / name).exists()), "modeling_own.py"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_saved_config_keeps_what_the_model_came_with(model_folder: Maker, tmp_path: Path) -> None:
    folder = model_folder(rope_theta=12345.0)
    save(load(folder), tmp_path / "out")
    written, original = (json.loads((one / "config.json").read_text()) for one in (tmp_path / "out", folder))
    assert {name: written[name] for name in original} == original


def test_existing_folder_is_not_written_to(tiny: ChatModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=r"^save: .*out exists already") as raised:
        save(tiny, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_place_that_cannot_be_written_is_one_line(tiny: ChatModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^output: .*out cannot be written \(Not a directory\)") as raised:
        save(tiny, tmp_path / "file" / "out")
    assert "\n" not in str(raised.value)


def test_full_disk_while_saving_is_one_line(tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(OutputError, match=r"^output: .*out cannot be written \(the disk is full\)"):
        save(tiny, tmp_path / "out")
    assert not list(tmp_path.glob("*out"))


def test_interrupted_save_leaves_nothing(tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "new"
    # The tokenizer is copied after the weights are written.
    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tiny, target)
    assert not target.exists()
    assert not target.with_name(".writing-new").exists()


def test_leftovers_of_an_interrupted_save_are_replaced(tiny: ChatModel, tmp_path: Path) -> None:
    (tmp_path / ".writing-out").mkdir()
    (tmp_path / ".writing-out" / "stale.safetensors").write_text("x")
    save(tiny, tmp_path / "out")
    assert not (tmp_path / "out" / "stale.safetensors").exists()
    assert not (tmp_path / ".writing-out").exists()


@pytest.mark.parametrize("status", ["Name:\tpython\nVmRSS:\t 12 kB\n", ""], ids=["gVisor", "empty"])
def test_peak_memory_without_vmhwm_is_that_of_getrusage(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: status)
    found = peak_memory()
    monkeypatch.undo()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.9 * peak < found <= peak


def test_peak_memory_is_what_proc_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: "VmPeak:\t 99 kB\nVmHWM:\t   12 kB\n")
    assert peak_memory() == 12 * 1024
