"""q4_1 and q5_1 with an exact zero: nothing that was pruned comes back, and the error is no larger than stock's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aird_mlx.errors import UsageError
from aird_mlx.gguf_export import export_gguf
from aird_mlx.gguf_export.outtypes import OUTTYPES, Kind
from aird_mlx.gguf_export.zero_exact import BITS, quantize_zero_exact
from aird_mlx_cli.main import main
from conftest import write_model
from test_gguf_types import prune


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
        assert np.linalg.norm(decoded - values) <= 1.005 * np.linalg.norm(stock - values)


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
