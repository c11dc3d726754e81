"""q4_1 and q5_1 with an exact zero: nothing that was pruned comes back, and the error is no larger than stock's."""

from __future__ import annotations

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aird_mlx.errors import UsageError
from aird_mlx.gguf_export import export_gguf, is_available
from aird_mlx.gguf_export.outtypes import OUTTYPES, Kind
from aird_mlx.gguf_export.zero_exact import BITS, quantize_zero_exact
from aird_mlx_cli.main import main
from conftest import write_model
from test_gguf_types import prune, quantize_folder

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


@pytest.mark.parametrize("kind", list(BITS), ids=lambda kind: kind.name)
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1e-4, 0.02, 1.0, 1000.0]),
       zeros=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), shift=st.sampled_from([0.0, 2.0]))  # fmt: skip
def test_zeros_stay_and_the_error_is_no_larger(kind: Kind, seed: int, scale: float, zeros: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    values = (scale * (random.standard_normal((32, 256)) + shift)).astype(np.float32)
    values[random.random(values.shape) < zeros] = 0
    decoded = gguf.quants.dequantize(quantize_zero_exact(values, kind)[0], kind)
    assert (decoded[values == 0] == 0).all()
    stock = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    # A block all of whose weights are of one sign spans zero too, which costs range; pruned ones do so in any case.
    if scale >= 1e-4 and (zeros or not shift):
        assert np.linalg.norm(decoded - values) <= 1.01 * np.linalg.norm(stock - values)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(write_model(tmp_path_factory.mktemp("pruned") / "model", hidden_size=64, num_hidden_layers=2))


@pytest.mark.parametrize("outtype", [kind.name.lower() for kind in BITS])
def test_file_is_as_sparse_as_the_model(pruned: Path, tmp_path: Path, outtype: str) -> None:
    stock = export_gguf(pruned, tmp_path / "stock.gguf", outtype)
    exact = export_gguf(pruned, tmp_path / "exact.gguf", outtype, zero_exact=True)
    assert stock.sparsity < 0.1 < exact.sparsity_before
    assert exact.sparsity >= exact.sparsity_before == stock.sparsity_before
    assert any("q5_1 and q4_1 with --zero-exact" in note for note in stock.notes)
    assert not any("undoes" in note for note in exact.notes)
    assert exact.size_bytes == stock.size_bytes


def test_type_without_an_exact_zero_is_refused(pruned: Path, tmp_path: Path) -> None:
    for outtype in ("q4_k_m", "iq4_nl"):
        with pytest.raises(UsageError, match=f"outtype {outtype}, whose blocks have no exact zero; one of .*q4_1"):
            export_gguf(pruned, tmp_path / "m.gguf", outtype, zero_exact=True)
    assert not list(tmp_path.iterdir())
    assert export_gguf(pruned, tmp_path / "m.gguf", "q8_0", zero_exact=True).sparsity > 0.4


def test_command_keeps_the_zeros(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(pruned), "--zero-exact", "--outfile", str(tmp_path / "m.gguf"), "--outtype"]
    assert main([*command, "q5_k_m", "--dry-run"]) == main([*command, "q5_k_m"]) == 2
    assert "no exact zero" in capsys.readouterr().err
    assert main([*command, "q4_1"]) == 0
    assert "undoes" not in capsys.readouterr().out


def test_types_that_can_are_those_with_a_kernel() -> None:
    assert {one.kind for one in OUTTYPES.values() if one.can_keep_zeros} == set(BITS)


@pytest.mark.parametrize(("bits", "outtype"), [(4, "q4_1"), (5, "q5_1")])
def test_codes_of_mlx_are_chosen_anew_where_float16_scales_lose_their_zeros(
    pruned: Path, tmp_path: Path, bits: int, outtype: str
) -> None:
    """`mx.quantize` makes zeros exact with float32 scales; rounded to float16 these make them small numbers."""
    folder = quantize_folder(pruned, tmp_path / "model", mx.float32, bits=bits, group_size=32)
    plain = export_gguf(folder, tmp_path / "plain.gguf", outtype)
    exact = export_gguf(folder, tmp_path / "exact.gguf", outtype, zero_exact=True)
    assert plain.retention < 0.9 and any("are still exactly zero" in note for note in plain.notes)
    assert any("scales as float16 holds them" in note for note in plain.notes)
    assert exact.retention == 1.0 and any("quantized anew so that zeros stay" in note for note in exact.notes)
    assert not any("loses zeros" in note for note in exact.notes)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    name = "model.layers.1.mlp.up_proj"
    parts = [weights[f"{name}.{part}"] for part in ("weight", "scales", "biases")]
    wanted = np.array(mx.dequantize(*parts, group_size=32, bits=bits))
    files = (gguf.GGUFReader(one.path) for one in (plain, exact))
    tensors = [{tensor.name: tensor for tensor in file.tensors}["blk.1.ffn_up.weight"] for file in files]
    kept, anew = (gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors)
    assert (anew[wanted == 0] == 0).all() and not (kept[wanted == 0] == 0).all()
    assert np.linalg.norm(anew - wanted) < 0.06 * np.linalg.norm(wanted)


@needs_llama
def test_zeros_made_elsewhere_do_not_hide_those_that_are_lost(tmp_path: Path) -> None:
    """Q3_K in a mixture makes zeros of small weights, as many as it loses of the pruned ones."""
    folder = write_model(tmp_path / "model", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    for name, value in weights.items():
        if "down_proj" in name:  # q3_k_m gives these q4_k and q5_k
            weights[name] = mx.where(mx.arange(value.shape[-1]) % 4 == 0, 0, value)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    written = export_gguf(folder, tmp_path / "m.gguf", "q3_k_m")
    assert written.sparsity > 0.9 * written.sparsity_before, "as if they were kept"
    assert written.retention < 0.1 and any("q3_k_m loses zeros" in note for note in written.notes)


def test_model_that_was_not_pruned_hears_nothing_of_pruning(tmp_path: Path) -> None:
    """One code in ten of an ordinary affine weight is an exact zero."""
    folder = write_model(tmp_path / "plain", hidden_size=256, num_hidden_layers=2)
    quantized = quantize_folder(folder, tmp_path / "model", bits=4, group_size=32)
    written = export_gguf(quantized, tmp_path / "m.gguf", "q4_1")
    assert written.sparsity_before > 0.05 and not any("pruning" in note for note in written.notes)


def test_weights_too_small_for_float16_are_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", hidden_size=64, num_hidden_layers=2)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights["model.layers.0.mlp.up_proj.weight"] = 1e-9 * weights["model.layers.0.mlp.up_proj.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    assert any("too small for float16" in note for note in export_gguf(folder, tmp_path / "a.gguf", "f16").notes)
    assert not any("too small" in note for note in export_gguf(folder, tmp_path / "b.gguf", "bf16").notes)
