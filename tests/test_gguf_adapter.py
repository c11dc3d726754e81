"""A patch as a LoRA file: in llama.cpp, on the compressed base, it is the folded model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from aird_mlx.errors import ExportError, ParityError
from aird_mlx.gguf_export import LlamaRuntime, export_gguf, is_available
from aird_mlx.gguf_export.adapter import export_lora
from aird_mlx.gguf_export.control_vector import export_control_vector
from aird_mlx.model import ChatModel, load, save
from aird_mlx.patch import LinearPatch, Patch, factor_change, fold, save_patch
from aird_mlx.pipeline.adapters import export_adapters
from aird_mlx.pruning import prune_model
from aird_mlx.report import DirectionFigures, RepairFigures, Report, to_json
from family_models import FAMILIES, write_family

IDS = [[5, 17, 300, 42, 8, 99, 3], [1, 2, 3, 250, 251]]


def make_patch(model: ChatModel, *, inside_mask: bool = True) -> Patch:
    """A change of every linear: confined to what is kept, or of rank 2."""
    parts = []
    for number, (block, name, linear) in enumerate(model.linears()):
        *experts, out, width = linear.weight.shape
        left, right = (
            0.3 * mx.random.normal((*experts, *shape), key=mx.random.key(2 * number + at))
            for at, shape in enumerate(((out, 2), (2, width)))
        )
        noise = 0.2 * mx.random.normal(linear.weight.shape, key=mx.random.key(1000 + number))
        delta = mx.where(model.kept(block, name), noise, 0.0)
        parts.append(
            LinearPatch(block, name, delta=delta) if inside_mask else LinearPatch(block, name, left=left, right=right)
        )
    return Patch("distill", 1.0, 0.0, tuple(parts))


def make_folders(
    make: Callable[..., Path], tmp_path: Path, model_type: str = "llama", *, inside_mask: bool = True
) -> tuple[Path, Path, Patch]:
    """A pruned model, what a patch makes of it, and the patch."""
    model = load(
        write_family(tmp_path / "dense", model_type, FAMILIES[model_type]) if "moe" in model_type else make(model_type)
    )
    prune_model(model, [], method="magnitude", sparsity=0.5)
    save(model, tmp_path / "compressed")
    patch = make_patch(model, inside_mask=inside_mask)
    fold(model, patch)
    save(model, tmp_path / "repaired")
    return tmp_path / "compressed", tmp_path / "repaired", patch


def logits(path: Path, lora: Path | None = None) -> np.ndarray:
    with LlamaRuntime(path, n_ctx=32, lora=lora) as runtime:
        return np.concatenate([runtime.logits(ids) for ids in IDS])


@pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(
    ("model_type", "inside_mask"),
    [("llama", True), ("llama", False), ("qwen3", True), ("qwen3_moe", True), ("qwen3_moe", False)],
)
def test_lora_on_the_compressed_base_is_the_folded_model(
    model_folder: Callable[..., Path], tmp_path: Path, model_type: str, inside_mask: bool
) -> None:
    compressed, repaired, patch = make_folders(model_folder, tmp_path, model_type, inside_mask=inside_mask)
    base = export_gguf(compressed, tmp_path / "base.gguf", "f32").path
    folded = export_gguf(repaired, tmp_path / "folded.gguf", "f32").path
    written = export_lora(repaired, patch, tmp_path / "patch.gguf", base=base)
    wanted, found, without = logits(folded), logits(base, written.path), logits(base)
    assert np.abs(wanted - without).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    widest = max(min(part.change().shape[-2:]) for part in patch.parts)
    assert (written.lost, written.rank) == (0.0, widest if inside_mask else 2)
    assert written.base_distance == pytest.approx(0.0, abs=1e-6)


def test_lora_file_says_what_it_is_and_for_which_base(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    compressed, repaired, patch = make_folders(model_folder, tmp_path)
    base = export_gguf(compressed, tmp_path / "base.gguf", "q4_1").path
    written = export_lora(
        repaired, patch, tmp_path / "patch.gguf", rank=5, base=base, extra_metadata={"aird.repair.rule": "distill"}
    )
    reader = gguf.GGUFReader(written.path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert keys["general.type"] == "adapter"
    assert keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "llama"
    assert keys["adapter.lora.alpha"] == 5.0
    assert keys["aird.base.sha256"] == hashlib.sha256(base.read_bytes()).hexdigest() == written.base_sha256
    assert keys["aird.base.name"] == "base.gguf"
    assert keys["aird.repair.rule"] == "distill"
    shapes = {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
    assert len(shapes) == 2 * len(patch.parts)
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (64, 5)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (5, 32)
    assert written.size_bytes == written.path.stat().st_size
    assert written.base_distance is not None
    assert 0.01 < written.base_distance < 0.2  # what q4_1 rounds away


def test_truncation_keeps_the_leading_singular_values(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    _, repaired, patch = make_folders(model_folder, tmp_path)
    left_out = whole = 0.0
    for part in patch.parts:
        values = np.linalg.svd(np.array(part.change(), dtype=np.float64), compute_uv=False)
        left_out, whole = left_out + (values[7:] ** 2).sum(), whole + (values**2).sum()
        left, right = factor_change(part, 7)
        assert left.shape[1] == right.shape[0] == 7
    written = export_lora(repaired, patch, tmp_path / "patch.gguf", rank=7)
    assert written.lost == pytest.approx((left_out / whole) ** 0.5, rel=1e-4)
    assert written.base_sha256 is None
    exact = export_lora(repaired, patch, tmp_path / "exact.gguf", rank=32)
    assert exact.lost == 0.0


@pytest.mark.parametrize("shape", [(3, 12, 20), (3, 20, 12)])
def test_every_expert_keeps_its_own_leading_singular_values(shape: tuple[int, ...]) -> None:
    change = mx.random.normal(shape, key=mx.random.key(7))
    left, right = factor_change(LinearPatch(0, "mlp.switch_mlp.up_proj", delta=change), 4)
    assert (left.shape, right.shape) == ((3, shape[1], 4), (3, 4, shape[2]))
    for expert in range(3):
        u, s, vt = np.linalg.svd(np.array(change[expert], dtype=np.float64), full_matrices=False)
        np.testing.assert_allclose(np.array(left @ right)[expert], u[:, :4] * s[:4] @ vt[:4], atol=1e-4)


def test_adapter_of_experts_is_the_folded_model_in_mlx(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    compressed, repaired, patch = make_folders(model_folder, tmp_path, "qwen3_moe", inside_mask=False)
    save_patch(patch, tmp_path / "patch.safetensors")
    (tmp_path / "mlx").symlink_to(repaired)
    report = Report("moe", {}, {}, DirectionFigures(0, -1, 1.0, 1.0), [], RepairFigures("paper", [0], 1.0, 2, 0.0), [])
    (tmp_path / "report.json").write_text(to_json(report))
    written = export_adapters(tmp_path)
    ids = mx.array(IDS[0])[None]
    wanted, without = (mlx_lm.load(str(folder))[0](ids) for folder in (repaired, compressed))
    adapted = mlx_lm.load(str(compressed), adapter_path=written.written["mlx adapter"])[0](ids)
    assert mx.abs(wanted - without).max().item() > 0.1
    np.testing.assert_allclose(np.array(adapted), np.array(wanted), atol=1e-4)


def test_lora_of_another_model_is_refused(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    compressed, repaired, patch = make_folders(model_folder, tmp_path)
    other = export_gguf(model_folder("llama", seed=3), tmp_path / "other.gguf", "f16").path
    small = export_gguf(model_folder("llama", seed=4, num_hidden_layers=2), tmp_path / "small.gguf", "f16").path
    qwen = export_gguf(model_folder("qwen2", seed=5), tmp_path / "qwen.gguf", "f16").path
    same = export_gguf(repaired, tmp_path / "repaired.gguf", "f16").path
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    for base, said in (
        (other, "the length of those that were repaired"),
        (small, "has no tensor blk.2"),
        (qwen, "architecture qwen2"),
        (same, "holds the repaired weights already"),
        (text, "cannot be read"),
        (tmp_path / "none.gguf", "cannot be read"),
    ):
        with pytest.raises(ExportError, match=said):
            export_lora(repaired, patch, tmp_path / "patch.gguf", base=base)
    beyond = replace(patch, parts=(replace(patch.parts[0], block=9),))
    with pytest.raises(ExportError, match=r"model\.layers\.9"):
        export_lora(repaired, beyond, tmp_path / "patch.gguf")
    assert not (tmp_path / "patch.gguf").exists()
    export_lora(repaired, patch, tmp_path / "patch.gguf")
    with pytest.raises(ExportError, match="exists already"):
        export_lora(repaired, patch, tmp_path / "patch.gguf")
    if is_available():
        with pytest.raises(ParityError, match="refuses the adapter"):
            LlamaRuntime(small, lora=tmp_path / "patch.gguf")
    assert compressed.is_dir()


@pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
def test_control_vector_adds_at_the_input_of_its_layer_in_llama_cpp(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    import ctypes

    folder, layer = model_folder(), 3
    vector = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    export_control_vector(folder, vector, layer, tmp_path / "refusal.cvec.gguf")
    reader = gguf.GGUFReader(tmp_path / "refusal.cvec.gguf")
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    (tensor,) = reader.tensors
    at = int(tensor.name.removeprefix("direction."))
    rows = np.zeros((4, 32), dtype=np.float32)
    rows[at - 1] = tensor.data  # llama.cpp's buffer starts at layer 1
    file = export_gguf(folder, tmp_path / "model.gguf", "f32").path
    with LlamaRuntime(file, n_ctx=32) as runtime:
        runtime.logits(IDS[0])
        data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        runtime._library.llama_set_adapter_cvec(runtime._context._context, data, rows.size, 32, 1, 4)
        found = runtime.logits(IDS[0])
    model = load(folder)

    def add(index: int, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        hidden: mx.array = block(args[0] + (mx.array(vector) if index == layer else 0.0), *args[1:], **kwargs)
        return hidden

    with model.block_taps(add):
        wanted = np.array(model.network(mx.array([IDS[0]]))[0])
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    with pytest.raises(ExportError, match="adds from 2 to 4"):
        export_control_vector(folder, vector, 1, tmp_path / "other.gguf")
    with pytest.raises(ExportError, match="exists already"):
        export_control_vector(folder, vector, layer, tmp_path / "refusal.cvec.gguf")
