"""Exports in every type: what is in the file, what llama.cpp makes of it, what is said, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from aird_mlx.errors import DependencyError, ExportError, ModelError, UsageError
from aird_mlx.gates import ARGMAX_AGREEMENT
from aird_mlx.gguf_export import (
    LlamaRuntime,
    check_exportable,
    check_parity,
    export_gguf,
    is_available,
    name_files,
    plan_export,
)
from aird_mlx.gguf_export.imatrix import Imatrix, Importance
from aird_mlx.gguf_export.outtypes import OUTTYPES
from aird_mlx.inputs import gather_inputs, held_out_sequences
from aird_mlx.model import exact_logits, load
from aird_mlx.model.find import DEMO_FOLDER
from aird_mlx.settings import GGUF_TYPES
from aird_mlx_cli.main import main
from aird_mlx_cli.options import GGUF_TYPES as CLI_TYPES
from conftest import write_model

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
NATIVE = [one.name for one in OUTTYPES.values() if one.native]
LLAMA = [one.name for one in OUTTYPES.values() if not one.native]
# llama.cpp searches long for these, even on 256 x 256.
SEARCHED = ("iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xxs", "iq1_m", "iq1_s")
LINEAR = "model.layers.1.mlp.up_proj"


def quantize_folder(source: Path, folder: Path, dtype: Any = mx.bfloat16, **settings: Any) -> Path:
    """A copy of a folder whose linears and embedding MLX has quantized."""
    shutil.copytree(source, folder)
    network, config = load_model(source)
    network.set_dtype(dtype)
    nn.quantize(network, **settings)
    (folder / "config.json").write_text(json.dumps(config | {"quantization": settings}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    return folder


def change_weight(folder: Path, name: str, change: Any) -> None:
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(*weights.values())
    weights[name] = change(weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def prune(folder: Path) -> Path:
    """Every other weight of the linears, a quarter of the file in each block of 32."""
    weights = dict(mx.load(str(folder / "model.safetensors")))
    for name, weight in weights.items():
        if "_proj" in name:
            weights[name] = mx.where(mx.arange(weight.shape[1]) % 2 == 0, 0.0, weight)
    mx.eval(*weights.values())
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama whose rows divide into all blocks, pruned to half."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return prune(write_model(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=2, head_dim=64))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of width 96: no blocks of 64 or 256."""
    return write_model(tmp_path_factory.mktemp("narrow") / "model", hidden_size=96, num_hidden_layers=2, head_dim=24)


SCHEMES: list[tuple[dict[str, Any], str]] = [
    ({"bits": 2, "group_size": 32}, "q4_1"),
    ({"bits": 3, "group_size": 64}, "q4_1"),
    ({"bits": 4, "group_size": 32}, "q4_1"),
    ({"bits": 4, "group_size": 64}, "q4_1"),
    ({"bits": 4, "group_size": 128}, "q4_1"),
    ({"bits": 5, "group_size": 64}, "q5_1"),
    ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "mxfp4"),
    ({"bits": 4, "group_size": 16, "mode": "nvfp4"}, "nvfp4"),
]


@pytest.mark.parametrize(("settings", "target"), SCHEMES, ids=str)
def test_auto_keeps_what_mlx_decodes(wide: Path, tmp_path: Path, settings: dict[str, Any], target: str) -> None:
    folder = quantize_folder(wide, tmp_path / "model", **settings)
    written = export_gguf(folder, tmp_path / "m.gguf", "auto")
    assert (written.outtype, written.dequantized) == (target, False)
    assert any("keep their codes and scales" in note for note in written.notes)
    assert not any("rounded" in note or "undoes" in note for note in written.notes)
    assert written.sparsity == written.sparsity_before
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(written.path).tensors}
    assert found["blk.1.ffn_up.weight"].tensor_type.name == target.upper()
    weights = dict(mx.load(str(folder / "model.safetensors")))

    def decoded(name: str) -> np.ndarray:
        parts = [weights[f"{name}.{part}"] for part in ("weight", "scales", "biases") if f"{name}.{part}" in weights]
        if len(parts) == 3:
            parts[1:] = [part.astype(mx.float32) for part in parts[1:]]
        return np.array(mx.dequantize(*parts, **settings).astype(mx.float32))

    for theirs, ours in (("blk.1.ffn_up", LINEAR), ("token_embd", "model.embed_tokens")):
        tensor = found[f"{theirs}.weight"]
        assert np.abs(gguf.quants.dequantize(tensor.data, tensor.tensor_type) - decoded(ours)).max() == 0.0
    query = found["blk.0.attn_q.weight"]
    rows = decoded("model.layers.0.self_attn.q_proj").reshape(4, 2, 32, 256).swapaxes(1, 2).reshape(256, 256)
    assert np.abs(gguf.quants.dequantize(query.data, query.tensor_type) - rows).max() == 0.0


@needs_llama
@pytest.mark.parametrize(("settings", "target"), [SCHEMES[3], SCHEMES[5], *SCHEMES[6:]], ids=str)
def test_repacked_demo_agrees_with_mlx_in_llama_cpp(tmp_path: Path, settings: dict[str, Any], target: str) -> None:
    # Where the model writes: inside a user's text it hardly knows what follows, and the eight bits that llama.cpp's
    # kernels give an activation decide between equals.
    folder = quantize_folder(DEMO_FOLDER, tmp_path / "model", mx.float16, **settings)
    written = export_gguf(folder, tmp_path / "m.gguf", "auto")
    assert written.outtype == target
    model = load(folder)  # dequantized: codes times scales
    agrees: list[bool] = []
    with LlamaRuntime(written.path, n_ctx=512, n_threads=1) as runtime:
        for ids, first in held_out_sequences(model.tokenizer, gather_inputs("demo", 0))[:40]:
            pair = [
                logits[max(first, 1) - 1 : -1].argmax(-1) for logits in (exact_logits(model, ids), runtime.logits(ids))
            ]
            agrees += (pair[0] == pair[1]).tolist()
    assert len(agrees) >= 500
    assert np.mean(agrees) >= 0.99


def test_scales_that_are_no_float16_are_counted(wide: Path, tmp_path: Path) -> None:
    folder = quantize_folder(wide, tmp_path / "model", mx.float32, bits=4, group_size=64)
    written = export_gguf(folder, tmp_path / "m.gguf", "q4_1")
    (note,) = [note for note in written.notes if "rounded" in note]
    rounded, total = int(note.split()[0]), int(note.split()[2])
    assert 0.8 * total < rounded <= total


@pytest.mark.parametrize(("settings"), [{"bits": 6}, {"bits": 8}, {"bits": 8, "group_size": 32, "mode": "mxfp8"}])
def test_auto_says_which_block_is_nearest(wide: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = quantize_folder(wide, tmp_path / "model", **{"group_size": 64, **settings})
    written = export_gguf(folder, tmp_path / "m.gguf", "auto")
    assert (written.outtype, written.dequantized) == ("q8_0", True)
    assert [note for note in written.notes if "q8_0 is the nearest of" in note and "relative error 0.0" in note]


@needs_llama
@pytest.mark.parametrize(
    "outtype",
    [pytest.param(name, marks=pytest.mark.slow) if name in SEARCHED else name for name in OUTTYPES],
)
def test_every_type_is_written_counted_and_run(wide: Path, tmp_path: Path, outtype: str) -> None:
    imatrix = None
    if OUTTYPES[outtype].needs_imatrix:  # every input alike
        ones = [(one.name, one.shape[1]) for one in plan_export(wide, "f32").tensors if len(one.shape) == 2]
        entries = {name: Importance(np.ones((1, width), np.float32), np.ones(1, np.float32)) for name, width in ones}
        imatrix = Imatrix(entries, (), 1, 512)
    plan = plan_export(wide, outtype)
    written = export_gguf(wide, tmp_path / "m.gguf", outtype, imatrix=imatrix)
    tensors = gguf.GGUFReader(written.path).tensors
    assert [(one.name, one.type, one.size_bytes) for one in plan.tensors] == [
        (tensor.name, tensor.tensor_type.name.lower(), tensor.n_bytes) for tensor in tensors
    ]
    linears = [tensor for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    assert OUTTYPES[outtype].kind in {tensor.tensor_type for tensor in linears}
    values = [gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in linears]
    assert written.sparsity == pytest.approx(sum((one == 0).sum() for one in values) / sum(one.size for one in values))
    assert written.sparsity_before == 0.5
    warned = [note for note in written.notes if f"{outtype} loses zeros, and pruning with them" in note]
    assert bool(warned) is (written.sparsity < 0.49)
    assert OUTTYPES[outtype].keeps_zeros is (written.sparsity >= 0.5), written.sparsity
    assert not warned or "q8_0" in warned[0]
    ids = list(range(3, 40))
    network, _ = load_model(wide)
    parity = check_parity(
        written.path, texts=[""], token_ids=[ids], n_threads=1,
        mlx_logits=lambda ids: np.array(network(mx.array([list(ids)]))[0].astype(mx.float32)),
    )  # fmt: skip
    # Half of these weights are zero, and types of up to three bits but q3_k have no zero at all.
    assert parity.mean_kl < (4.0 if outtype.startswith(("tq", "iq1", "iq2", "iq3", "q2_k_s")) else 0.5)


def test_rows_that_do_not_divide_become_f16(narrow: Path, tmp_path: Path) -> None:
    for outtype in ("tq2_0", "nvfp4"):
        written = export_gguf(narrow, tmp_path / f"{outtype}.gguf", outtype)
        kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(written.path).tensors}
        assert kinds["blk.0.attn_q.weight"] == "F16"
        assert any("do not divide into the blocks" in note for note in written.notes)
    kinds = {one.name: one.type for one in plan_export(narrow, "q4_1").tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.attn_norm.weight"]) == ("q4_1", "f32")


@needs_llama
def test_llama_cpp_falls_back_for_short_rows_and_it_is_said(narrow: Path, tmp_path: Path) -> None:
    written = export_gguf(narrow, tmp_path / "m.gguf", "q4_k_m")
    kinds = {one.tensor_type.name for one in gguf.GGUFReader(written.path).tensors}
    assert "Q4_K" not in kinds
    assert "Q5_0" in kinds
    assert any("do not divide into blocks of 256" in note for note in written.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]  # and no intermediate file


@needs_llama
def test_embedding_and_output_may_have_another_type(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", hidden_size=256, num_hidden_layers=1, tie_word_embeddings=False)
    for outtype, kind in (("q4_0", "Q4_0"), ("q3_k_s", "Q3_K")):
        written = export_gguf(
            folder, tmp_path / f"{outtype}.gguf", outtype, embedding_type="q8_0", output_type="q5_1"
        )  # fmt: skip
        kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(written.path).tensors}
        assert kinds["token_embd.weight"] == "Q8_0"
        assert kinds["output.weight"] == "Q5_1"
        assert kinds["blk.0.attn_q.weight"] == kind
    ternary = {one.name: one.type for one in plan_export(folder, "tq1_0").tensors}
    assert (ternary["token_embd.weight"], ternary["output.weight"]) == ("f16", "f16")


def test_types_are_the_same_everywhere() -> None:
    assert CLI_TYPES == GGUF_TYPES == tuple(OUTTYPES)
    assert set(ARGMAX_AGREEMENT) == set(OUTTYPES)
    assert NATIVE and LLAMA


def test_auto_of_plain_weights_is_the_type_they_have(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert name_files(str(folder), folder, None, ["auto"]) == {"auto": folder / "model-F32.gguf"}
    change_weight(folder, f"{LINEAR}.weight", lambda weight: weight.astype(mx.bfloat16))
    kinds = {one.name: one.type for one in plan_export(folder, "auto").tensors}
    assert (kinds["blk.1.ffn_up.weight"], kinds["blk.0.ffn_up.weight"]) == ("bf16", "f32")


# --- planted errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("scales", float("nan"), "holds 1 values that are not finite"),
        ("biases", 2.0**20, "reaches 1.04858e+06; q4_1 holds"),
    ],
)
def test_bad_scale_names_the_tensor(wide: Path, tmp_path: Path, part: str, value: float, said: str) -> None:
    folder = quantize_folder(wide, tmp_path / "model", bits=4, group_size=64)
    change_weight(
        folder, f"{LINEAR}.{part}", lambda old: mx.where(mx.arange(old.size).reshape(old.shape) == 7, value, old)
    )
    with pytest.raises(ExportError) as caught:
        export_gguf(folder, tmp_path / "out" / "m.gguf", "auto")
    assert said in str(caught.value) and f"{LINEAR}.weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_exponent_that_is_no_number_is_refused(wide: Path, tmp_path: Path) -> None:
    folder = quantize_folder(wide, tmp_path / "model", bits=4, group_size=32, mode="mxfp4")
    change_weight(folder, f"{LINEAR}.scales", lambda old: mx.full(old.shape, 255, mx.uint8))
    with pytest.raises(ExportError, match="scales that are not finite"):
        export_gguf(folder, tmp_path / "m.gguf", "auto")


def test_scales_of_another_shape_are_refused(wide: Path, tmp_path: Path) -> None:
    folder = quantize_folder(wide, tmp_path / "model", bits=4, group_size=64)
    change_weight(folder, f"{LINEAR}.scales", lambda old: old[:, :1])
    with pytest.raises(ModelError, match="one for each group"):
        check_exportable(folder, "auto")


def test_weights_of_a_foreign_type_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    change_weight(folder, f"{LINEAR}.weight", lambda old: old.astype(mx.uint8))
    with pytest.raises(ExportError, match="stored as U8"):
        check_exportable(folder, "f16")


def test_missing_quantizer_is_one_line(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird_mlx.gguf_export.llama_quantizer.is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match=r"gguf: outtype q4_k_m .*`pip install") as caught:
        export_gguf(wide, tmp_path / "m.gguf", "q4_k_m")
    assert "\n" not in str(caught.value)


@needs_llama
def test_failed_quantizer_leaves_nothing(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'llama_model_quantize: failed to quantize: no luck' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("aird_mlx.gguf_export.llama_quantizer.is_available", lambda: False)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    with pytest.raises(ExportError, match=r"cannot write q4_k_m .*no luck"):
        export_gguf(wide, tmp_path / "out" / "m.gguf", "q4_k_m")
    assert not (tmp_path / "out").exists()


def test_two_types_need_two_names(wide: Path) -> None:
    with pytest.raises(UsageError, match=r"2 types and --outfile 'm.gguf'"):
        name_files(str(wide), wide, "m.gguf", ["q4_1", "f16"])
    files = name_files("demo", DEMO_FOLDER, None, ["q4_1", "f16"])
    assert files == {"q4_1": Path("demo-Q4_1.gguf"), "f16": Path("demo-F16.gguf")}


@pytest.mark.parametrize(
    ("outtype", "option", "given", "accepted"),
    [
        ("f16", "--embedding-type", "auto", "embedding type 'auto'; one of f32, .*, tq2_0 is needed"),
        ("q8_0,f16", "--output-type", "q4_k_m", "output type 'q4_k_m'; one of f32, .*, tq2_0 is needed"),
        ("q2_k,f16", "--embedding-type", "q9", "embedding type 'q9'; one of f32, .*, iq1_s is needed"),
        ("q2_k,f16", "--embedding-type", "iq4_nl", "embedding type 'iq4_nl'; one of f32, .*, tq2_0 is needed"),
    ],
)
@needs_llama
def test_type_that_a_matrix_cannot_have_is_named_before_anything_is_written(
    outtype: str, option: str, given: str, accepted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "demo", "--no-check", "--outfile", str(tmp_path / "m-{ftype}.gguf"), "--outtype", outtype]
    assert main([*command, option, given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: gguf: {accepted}. Choose one of these.", line), line
    assert list(tmp_path.iterdir()) == []


@needs_llama
def test_type_with_blocks_that_do_not_fit_the_embedding_is_one_line(narrow: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"token_embd.weight has rows of 96 weights, and q6_k was asked for, .* 256"):
        export_gguf(narrow, tmp_path / "m.gguf", "q4_k_m", embedding_type="q6_k")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outfile", [None, "m-{ftype}.gguf"])
def test_auto_and_the_type_it_means_are_one(narrow: Path, outfile: str | None) -> None:
    with pytest.raises(UsageError, match=r"outtype auto is f32 for this model, and so is the other; .* Leave one out"):
        name_files(str(narrow), narrow, outfile, ["f32", "auto"])


def test_tokenizer_is_read_for_the_file_and_not_for_its_name(narrow: Path, tmp_path: Path) -> None:
    """A large one takes seconds; what is wrong with it is said before there is a file."""
    folder = shutil.copytree(narrow, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    files = name_files(str(folder), folder, "m-{ftype}.gguf", ["auto", "f16"])
    assert files == {"auto": Path("m-f32.gguf"), "f16": Path("m-f16.gguf")}
    for look in (check_exportable, plan_export):
        with pytest.raises(ModelError, match="tokenizer: "):
            look(folder, "f16")
    with pytest.raises(ModelError, match="tokenizer: "):
        export_gguf(folder, tmp_path / "out" / "m.gguf", "f16")
    assert not (tmp_path / "out").exists()


def test_command_writes_several_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "demo", "--outtype", "q4_1,mxfp4", "--outfile", str(tmp_path / "demo-{ftype}.gguf")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"demo-{kind}.gguf{end}" for kind in ("mxfp4", "q4_1") for end in ("", ".manifest")
    ]
    assert "zeros" in capsys.readouterr().out
    assert main(["export", "demo", "--outtype", "q8_0", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "token_embd.weight" in shown and "139,264" in shown and "total" in shown
    assert main(["export", "demo", "--outtype", "q8_0", "--outtype", "f16, Q8_0", "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "bytes" in line] == ["q8_0", "f16"]
    assert main(["export", "demo", "--outtype", "q9_0"]) == 2
    assert "'q9_0' is none of auto, f32" in capsys.readouterr().err
