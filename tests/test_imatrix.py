"""The importance matrix: its numbers in float64, its file beside llama-imatrix's own, its use by the quantizer."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.activations import batch_sequences
from aird_mlx.errors import ExportError
from aird_mlx.gguf_export import export_gguf, is_available, plan_export
from aird_mlx.gguf_export.imatrix import (
    Imatrix,
    Importance,
    check_imatrix,
    measure_imatrix,
    read_imatrix,
    write_imatrix,
)
from aird_mlx.gguf_export.preparation import prepare
from aird_mlx.importance import find_importance, importance_on_reference
from aird_mlx.model import ChatModel, load
from aird_mlx_cli.main import main
from conftest import make_reference, write_model

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
# What llama-imatrix of llama.cpp wrote, in both formats, of this model and these tokens: see `theirs`.
DATA = Path(__file__).parent / "data"
MOE = {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
       "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
SEQUENCES = [[1, 5, 9, 40, 7], [3, 3, 200], [8, 60, 61, 62, 63, 64]]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """A random llama whose rows fit K- and I-quants; two inputs in each row matter, the others hardly."""
    folder = write_model(tmp_path_factory.mktemp("wide") / "m", hidden_size=256, intermediate_size=256,
                         num_hidden_layers=2, head_dim=64)  # fmt: skip
    weights = dict(mx.load(str(folder / "model.safetensors")))
    for name, weight in weights.items():
        if "layernorm" in name:
            weights[name] = mx.where(mx.arange(256) % 128 == 5, 30.0, 0.3) * weight
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return load(str(folder))


@pytest.fixture(scope="module")
def measured(wide: ChatModel) -> Imatrix:
    return measure_imatrix(wide, batch_sequences(SEQUENCES), prepare(wide.folder, "f32").plan, ["three sequences"])


def test_sums_are_those_of_float64_and_only_real_tokens_count(wide: ChatModel, measured: Imatrix) -> None:
    assert len(measured.entries) == 14
    assert {float(entry.counts[0]) for entry in measured.entries.values()} == {14.0}
    wanted: dict[str, np.ndarray] = {}

    def keep(name: str) -> object:
        def call(linear: object, value: mx.array) -> mx.array:
            squares = np.square(np.array(value, dtype=np.float64)).reshape(-1, value.shape[-1]).sum(axis=0)
            wanted[name] = wanted.get(name, 0) + squares
            return linear(value)  # type: ignore[operator]

        return call

    taps = {"mlp.down_proj": keep("blk.1.ffn_down.weight"), "self_attn.k_proj": keep("blk.1.attn_k.weight")}
    for sequence in SEQUENCES:  # one by one: nothing is padded
        with wide.linear_taps(1, taps):  # type: ignore[arg-type]
            mx.eval(wide.network(mx.array([sequence])))
    for name, squares in wanted.items():
        np.testing.assert_allclose(measured.entries[name].sums[0], squares, rtol=1e-4)
    same = [measured.entries[f"blk.0.attn_{part}.weight"].sums for part in "qkv"]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[1], same[2])


def test_file_of_llama_imatrix_is_written_again_to_the_byte(tmp_path: Path) -> None:
    theirs = DATA / "llama-imatrix.gguf"
    read = read_imatrix(theirs)
    assert (read.datasets, read.chunk_count, read.chunk_size, read.name) == (("text.txt",), 6, 16, theirs.name)
    write_imatrix(read, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == theirs.read_bytes()


def test_older_format_gives_the_same_means() -> None:
    new, old = read_imatrix(DATA / "llama-imatrix.gguf"), read_imatrix(DATA / "llama-imatrix.dat")
    assert new.entries.keys() == old.entries.keys()
    assert (old.datasets, old.chunk_count) == (new.datasets, new.chunk_count)
    for name, entry in new.entries.items():
        np.testing.assert_allclose(old.entries[name].means(), entry.means(), rtol=1e-6)


def test_our_numbers_are_llama_imatrix_s(tmp_path: Path) -> None:
    """The model and the tokens that the files in `DATA` were made of."""
    theirs = read_imatrix(DATA / "llama-imatrix.gguf")
    model = load(str(write_model(tmp_path / "m", num_hidden_layers=1, seed=7)))
    tokens = model.tokenizer.encode((DATA / "llama-imatrix.txt").read_text(), add_special_tokens=False)
    chunks = [tokens[start * 16 : start * 16 + 16] for start in range(theirs.chunk_count)]
    ours = measure_imatrix(model, batch_sequences(chunks), prepare(model.folder, "f32").plan, ["text.txt"])
    assert ours.entries.keys() == theirs.entries.keys()
    for name, entry in theirs.entries.items():
        assert ours.entries[name].counts.tolist() == entry.counts.tolist() == [96]
        np.testing.assert_allclose(ours.entries[name].means(), entry.means(), rtol=1e-3)


def test_expert_without_tokens_weighs_all_inputs_alike(tmp_path: Path) -> None:
    stack = Importance(np.array([[2.0, 8.0], [0.0, 0.0]], dtype=np.float32), np.array([2.0, 0.0], dtype=np.float32))
    assert stack.means().tolist() == [1.0, 4.0, 1.0, 1.0]
    write_imatrix(Imatrix({"blk.0.ffn_up_exps.weight": stack}, ("x",), 1, 512), tmp_path / "e.gguf")
    again = read_imatrix(tmp_path / "e.gguf").entries["blk.0.ffn_up_exps.weight"]
    assert np.array_equal(again.sums, stack.sums)
    assert np.array_equal(again.counts, stack.counts)


def test_experts_are_weighed_by_the_tokens_routed_to_them(tmp_path: Path) -> None:
    model = load(str(write_model(tmp_path / "m", "qwen3_moe", **MOE)))
    imatrix = measure_imatrix(model, batch_sequences(SEQUENCES), prepare(model.folder, "f32").plan, ["x"])
    up = imatrix.entries["blk.1.ffn_up_exps.weight"]
    assert up.sums.shape == (4, 32)
    assert up.counts.sum() == 2 * 14  # two experts a token
    assert (up.sums[up.counts > 0].sum(axis=1) > 0).all()
    assert check_imatrix(imatrix, prepare(model.folder, "f32").plan) == []


def weighted_error(model: ChatModel, file: Path, imatrix: Imatrix) -> float:
    """Mean over the inputs seen of the squared error of what the linears give: what the quantizer is to make small."""
    total = 0.0
    exact = {one.name: one for one in gguf.GGUFReader(export_f32(model, file)).tensors}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name in imatrix.entries:
            decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            difference = decoded - gguf.quants.dequantize(exact[tensor.name].data, exact[tensor.name].tensor_type)
            total += float((np.square(difference) * imatrix.entries[tensor.name].means()).sum())
    return total


def export_f32(model: ChatModel, beside: Path) -> Path:
    path = beside.with_name("exact.gguf")
    return path if path.exists() else export_gguf(model.folder, path, "f32").path


@needs_llama
@pytest.mark.parametrize("outtype", ["q2_k", "q3_k_m", "iq4_xs"])
def test_quantizer_uses_it(wide: ChatModel, measured: Imatrix, tmp_path: Path, outtype: str) -> None:
    without = export_gguf(wide.folder, tmp_path / "without.gguf", outtype)
    by_it = export_gguf(wide.folder, tmp_path / "with.gguf", outtype, imatrix=measured)
    assert weighted_error(wide, by_it.path, measured) < 0.9 * weighted_error(wide, without.path, measured)
    keys = gguf.GGUFReader(by_it.path).fields
    names = ("file", "dataset", "entries_count", "chunks_count")
    found = [keys[f"quantize.imatrix.{name}"].contents() for name in names]
    assert found == ["imatrix.gguf", "three sequences", 14, 1]
    assert not any(key.startswith("quantize.") for key in gguf.GGUFReader(without.path).fields)


@needs_llama
def test_smallest_types_are_written_with_one_and_refused_without(
    wide: ChatModel, measured: Imatrix, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="iq2_xxs without an imatrix"):
        export_gguf(wide.folder, tmp_path / "no.gguf", "iq2_xxs")
    assert not list(tmp_path.iterdir())
    planned = {one.name: one.type for one in plan_export(wide.folder, "iq2_xxs").tensors}
    written = export_gguf(wide.folder, tmp_path / "m.gguf", "iq2_xxs", imatrix=measured)
    found = {one.name: one.tensor_type.name.lower() for one in gguf.GGUFReader(written.path).tensors}
    assert planned == found
    assert found["blk.1.ffn_up.weight"] == "iq2_xxs"


def test_native_type_says_that_it_uses_none(wide: ChatModel, measured: Imatrix, tmp_path: Path) -> None:
    written = export_gguf(wide.folder, tmp_path / "m.gguf", "q4_0", imatrix=measured)
    assert any("written without an imatrix" in note for note in written.notes)


def test_imatrix_of_another_model_is_refused(wide: ChatModel, measured: Imatrix) -> None:
    plan = prepare(wide.folder, "f32").plan
    assert check_imatrix(measured, plan) == []
    fewer = dict(list(measured.entries.items())[1:])
    assert "nothing of 1 of 14" in check_imatrix(dataclasses.replace(measured, entries=fewer), plan)[0]
    short = {name: Importance(entry.sums[:, :8], entry.counts) for name, entry in measured.entries.items()}
    with pytest.raises(ExportError, match=r"blk\.0\.attn_q\.weight has 8 values; 256"):
        check_imatrix(dataclasses.replace(measured, entries=short), plan)
    other = {f"x.{name}": entry for name, entry in measured.entries.items()}
    with pytest.raises(ExportError, match="none of its 14 entries"):
        check_imatrix(dataclasses.replace(measured, entries=other), plan)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.dat", b"", "unpack requires"),
        ("cut.dat", struct.pack("<ii4sii", 1, 4, b"blk.", 1, 8) + bytes(8), "cannot be read"),
        ("huge.dat", struct.pack("<ii", 1, 2**31 - 1), "2147483647 at byte 4"),
        ("negative.dat", struct.pack("<ii4siiff", 1, 4, b"blk.", 1, 2, -1.0, 1.0), "no sums of squares"),
        ("nan.dat", struct.pack("<ii4siif", 1, 4, b"blk.", 1, 1, float("nan")), "no sums of squares"),
        ("none.dat", struct.pack("<i", 0), "no data"),
        ("cut.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2, 9), "cannot be read"),
        ("text.gguf", b"hello there, this is no imatrix", "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=said) as caught:
        read_imatrix(tmp_path / name)
    assert str(caught.value).startswith("imatrix: ")


def test_model_file_is_no_imatrix(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"general\.type is 'model'"):
        read_imatrix(tiny_gguf)
    with pytest.raises(ExportError, match="No such file"):
        read_imatrix(tmp_path / "nowhere.gguf")


def test_reference_measures_all_its_dialogues(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    imatrix = importance_on_reference(tiny, reference)
    tokens = sum(len(ids) for ids, _ in reference.dialogues(("harmful", "harmless", "twin")))
    counts = {float(entry.counts[0]) for entry in imatrix.entries.values()}
    assert len(counts) == 1
    assert counts.pop() > tokens  # and the texts
    assert "harmful prompts with answers, harmless" in imatrix.datasets[0]


def test_measured_one_never_overwrites(tmp_path: Path) -> None:
    place = tmp_path / "demo-imatrix.gguf"
    place.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        find_importance("measure", "demo", ["q2_k"], place)
    assert place.read_text() == "mine"
    assert find_importance(None, "demo", ["q2_k", "auto"], place) is None


def test_none_is_measured_for_types_that_use_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "demo-imatrix.gguf"
    place.write_text("mine")
    command = ["export", "demo", "--no-check", "--imatrix", "measure", "--outtype", "auto,q8_0"]
    assert main([*command, "--outfile", str(tmp_path / "m-{ftype}.gguf")]) == 0
    assert "note: no imatrix was measured: of these types none uses one" in capsys.readouterr().out
    assert place.read_text() == "mine" and (tmp_path / "m-q8_0.gguf").exists()


@needs_llama
def test_command_reads_a_file(
    wide: ChatModel, measured: Imatrix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_imatrix(measured, tmp_path / "own.gguf")
    command = ["export", str(wide.folder), "--outtype", "q2_k", "--no-check", "--outfile"]
    assert main([*command, str(tmp_path / "m.gguf"), "--imatrix", str(tmp_path / "own.gguf")]) == 0
    keys = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert keys["quantize.imatrix.file"].contents() == "own.gguf"
    assert main([*command, str(tmp_path / "n.gguf"), "--imatrix", str(tmp_path / "missing.gguf")]) == 1
    assert "imatrix: " in capsys.readouterr().err
