"""Folding adds the change once, keeps dtype and mask, counts what it costs; files give back the patch."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.errors import AirdError, ShapeError
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, Patch, fold, load_patch, patched, save_patch, scaled
from aird_mlx.pruning import prune_model


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def low_rank_and_delta() -> Patch:
    return Patch(
        "least-squares",
        1.0,
        0.01,
        beta=30.0,
        parts=(
            LinearPatch(0, "self_attn.o_proj", left=normal(32, 1), right=normal(1, 32, seed=1)),
            LinearPatch(2, "mlp.down_proj", delta=normal(32, 64, seed=2)),
        ),
    )


def test_fold_adds_the_change_to_the_weights_it_names_and_to_no_others(tiny: ChatModel) -> None:
    before = {(block, name): np.array(linear.weight) for block, name, linear in tiny.linears()}
    patch = low_rank_and_delta()
    fold(tiny, patch)
    expected = {
        (0, "self_attn.o_proj"): np.array(patch.parts[0].left) @ np.array(patch.parts[0].right),
        (2, "mlp.down_proj"): np.array(patch.parts[1].delta),
    }
    for block, name, linear in tiny.linears():
        change = expected.get((block, name), 0)
        np.testing.assert_allclose(np.array(linear.weight), before[block, name] + change, atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_fold_adds_in_float32_and_rounds_once_to_the_dtype_of_the_weight(tiny: ChatModel, dtype: mx.Dtype) -> None:
    tiny.network.set_dtype(dtype)
    before = tiny.linear(2, "mlp.down_proj").weight.astype(mx.float32)
    patch = low_rank_and_delta()
    fold(tiny, patch)
    after = tiny.linear(2, "mlp.down_proj").weight
    assert after.dtype == dtype
    assert mx.array_equal(after, (before + patch.parts[1].delta).astype(dtype)).item()


def test_fold_counts_the_sparsity_it_cost(tiny: ChatModel) -> None:
    prune_model(tiny, [], method="magnitude", sparsity=0.5)
    weights = sum(linear.weight.size for _, _, linear in tiny.linears())
    result = fold(tiny, low_rank_and_delta())
    assert result.sparsity_before == 0.5
    assert result.sparsity_after == tiny.sparsity() < 0.5
    assert result.sparsity_lost == pytest.approx((32 * 32 + 32 * 64) / 2 / weights, rel=1e-6)


def test_fold_inside_the_mask_costs_no_sparsity(tiny: ChatModel) -> None:
    prune_model(tiny, [], method="magnitude", sparsity=0.5)
    kept = (tiny.linear(1, "mlp.down_proj").weight != 0).astype(mx.float32)
    result = fold(tiny, Patch("refit", 1.0, 0.1, (LinearPatch(1, "mlp.down_proj", delta=kept * normal(32, 64)),)))
    assert result.sparsity_lost == 0.0


def test_fold_of_a_patch_that_does_not_fit_changes_nothing(tiny: ChatModel) -> None:
    before = [np.array(linear.weight) for _, _, linear in tiny.linears()]
    bad = Patch("refit", 1.0, 0.1, (*low_rank_and_delta().parts, LinearPatch(3, "mlp.up_proj", delta=normal(32, 64))))
    with pytest.raises(ShapeError, match=r"mlp.up_proj in block 3 has shape \(32, 64\); the weight needs \(64, 32\)"):
        fold(tiny, bad)
    for (_, _, linear), weight in zip(tiny.linears(), before, strict=True):
        np.testing.assert_array_equal(np.array(linear.weight), weight)


def test_fold_of_a_patch_for_a_deeper_model_is_one_clear_error(tiny: ChatModel) -> None:
    with pytest.raises(AirdError, match=r"^fold: .*block 9"):
        fold(tiny, Patch("refit", 1.0, 0.1, (LinearPatch(9, "mlp.up_proj", delta=normal(64, 32)),)))


def test_fold_of_two_parts_of_one_linear_adds_both(tiny: ChatModel) -> None:
    before = np.array(tiny.linear(1, "mlp.up_proj").weight)
    parts = tuple(LinearPatch(1, "mlp.up_proj", delta=normal(64, 32, seed=seed)) for seed in (3, 4))
    fold(tiny, Patch("refit", 1.0, 0.1, parts))
    expected = before + np.array(parts[0].delta) + np.array(parts[1].delta)
    np.testing.assert_allclose(np.array(tiny.linear(1, "mlp.up_proj").weight), expected, atol=1e-6)


def test_layers_and_rank_describe_the_parts() -> None:
    mixed, low = low_rank_and_delta(), Patch("paper", 2.0, 0.0, low_rank_and_delta().parts[:1])
    assert mixed.layers == [0, 2]
    assert mixed.rank is None
    assert low.rank == 1
    assert Patch("paper", 1.0, 0.0, ()).rank == 0


def test_patch_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = low_rank_and_delta()
    save_patch(saved, tmp_path / "patch.safetensors")
    loaded = load_patch(tmp_path / "patch.safetensors")
    assert (loaded.rule, loaded.strength, loaded.ridge, loaded.beta) == ("least-squares", 1.0, 0.01, 30.0)
    by_place = {(part.block, part.name): part for part in loaded.parts}
    assert len(by_place) == len(saved.parts)
    for part in saved.parts:
        other = by_place[part.block, part.name]
        for field in ("left", "right", "delta"):
            mine, theirs = getattr(part, field), getattr(other, field)
            assert (mine is None) == (theirs is None)
            assert mine is None or mx.array_equal(mine, theirs).item()


def test_patch_file_of_the_version_before_beta_is_read(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    settings = {"rule": "paper", "strength": 2.0, "ridge": 0.0}
    mx.save_safetensors(
        str(path), {"0.mlp.down_proj.delta": mx.ones((2, 3))}, metadata={"aird.patch": json.dumps(settings)}
    )
    loaded = load_patch(path)
    assert (loaded.rule, loaded.strength, loaded.beta) == ("paper", 2.0, 0.0)


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_scaled_patch_makes_the_same_change_so_many_times(strength: float) -> None:
    patch = low_rank_and_delta()
    found = scaled(patch, strength)
    assert (found.rule, found.strength, found.ridge, found.beta) == ("least-squares", strength, 0.01, 30.0)
    assert (found.layers, found.rank) == (patch.layers, patch.rank)
    for mine, theirs in zip(found.parts, patch.parts, strict=True):
        assert (mine.left is None, mine.delta is None) == (theirs.left is None, theirs.delta is None)
        np.testing.assert_allclose(np.array(mine.change()), strength * np.array(theirs.change()), rtol=1e-6)


def test_scaling_counts_from_strength_one_however_often_it_is_done() -> None:
    patch = low_rank_and_delta()
    twice, once = scaled(scaled(patch, 0.5), 4.0), scaled(patch, 4.0)
    assert twice.strength == 4.0
    for mine, theirs in zip(twice.parts, once.parts, strict=True):
        np.testing.assert_allclose(np.array(mine.change()), np.array(theirs.change()), rtol=1e-6)
    assert scaled(once, 4.0) is once


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_scaled_delta_keeps_its_dtype_and_its_zeros(dtype: mx.Dtype) -> None:
    kept = normal(32, 64, seed=9) > 0
    delta = mx.where(kept, normal(32, 64), 0).astype(dtype)
    (part,) = scaled(Patch("refit", 1.0, 0.1, (LinearPatch(1, "mlp.down_proj", delta=delta),)), 1.3).parts
    assert part.delta is not None
    assert part.delta.dtype == dtype
    assert not mx.where(kept, 0, part.delta).any().item()
    assert mx.array_equal(part.delta, (delta * 1.3).astype(dtype)).item()


def test_patched_model_is_the_folded_one_and_is_put_back_even_after_an_error(tiny: ChatModel) -> None:
    before = [np.array(linear.weight) for _, _, linear in tiny.linears()]
    part = LinearPatch(1, "mlp.down_proj", delta=normal(32, 64))
    patch = Patch("refit", 1.0, 0.1, (part, part))
    ids = mx.array([[5, 6, 7]])
    plain = np.array(tiny.network(ids))
    with patched(tiny, patch):
        inside = np.array(tiny.network(ids))
    with pytest.raises(KeyboardInterrupt), patched(tiny, patch):
        raise KeyboardInterrupt
    misfit = LinearPatch(2, "mlp.down_proj", delta=normal(3, 5))
    with pytest.raises(ValueError, match="broadcast"), patched(tiny, Patch("refit", 1.0, 0.1, (part, misfit))):
        pass
    for (_, _, linear), weight in zip(tiny.linears(), before, strict=True):
        np.testing.assert_array_equal(np.array(linear.weight), weight)
    fold(tiny, patch)
    np.testing.assert_array_equal(np.array(tiny.network(ids)), inside)
    assert np.abs(inside - plain).max() > 1e-3


def test_empty_patch_survives_its_file(tmp_path: Path) -> None:
    save_patch(Patch("restore", 1.0, 0.0, ()), tmp_path / "patch.safetensors")
    assert load_patch(tmp_path / "patch.safetensors") == Patch("restore", 1.0, 0.0, ())


def test_files_that_are_no_patch_are_refused_in_one_line(tmp_path: Path) -> None:
    foreign, broken = tmp_path / "foreign.safetensors", tmp_path / "broken.safetensors"
    mx.save_safetensors(str(foreign), {"a": mx.zeros(1)})
    broken.write_bytes(b"not safetensors at all")
    odd = {"block": {"x.mlp.delta": mx.zeros(1)}, "field": {"0.mlp.other": mx.zeros(1)}, "settings": {}}
    for name, arrays in odd.items():
        settings = {} if name == "settings" else {"rule": "restore", "strength": 1.0, "ridge": 0.0}
        written = tmp_path / f"{name}.safetensors"
        mx.save_safetensors(str(written), arrays or {"empty": mx.zeros(1)}, {"aird.patch": json.dumps(settings)})
    for path in (foreign, broken, tmp_path / "missing.safetensors", *(tmp_path / f"{one}.safetensors" for one in odd)):
        with pytest.raises(AirdError, match=r"^patch: .* is not a patch") as raised:
            load_patch(path)
        assert "\n" not in str(raised.value)
