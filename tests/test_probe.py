"""The probe: planted directions are found, thresholds keep their promise, and llama.cpp shows what MLX computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.errors import DirectionError, ParityError
from aird_mlx.gguf_export import LlamaRuntime, export_gguf, is_available
from aird_mlx.guard.manifest import read_manifest
from aird_mlx.guard.probe import auc, fisher_direction, fit_probe, project, read_residuals, threshold
from aird_mlx.guard.record import CanarySet, make_manifest
from aird_mlx.guard.seal import seal
from aird_mlx.guard.structure import read_structure
from aird_mlx.model import load

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


def clouds(
    places: dict[tuple[int, int], float], seed: int, count: int = 200
) -> dict[str, dict[tuple[int, int], np.ndarray]]:
    """Residuals by kind: harmful prompts are moved along axis 0 by so much at each place, twins along axis 1."""
    chance = np.random.default_rng(seed)
    found: dict[str, dict[tuple[int, int], np.ndarray]] = {"harmful": {}, "harmless": {}, "twin": {}}
    for place, distance in places.items():
        for kind, moved in (("harmful", (distance, 3.0)), ("harmless", (0.0, 0.0)), ("twin", (0.0, 3.0))):
            rows = chance.standard_normal((count, 16)).astype(np.float32)
            rows[:, :2] += moved
            found[kind][place] = rows
    return found


def test_planted_direction_and_place_are_found_in_spite_of_twins() -> None:
    places = {(1, -1): 1.0, (2, -1): 5.0, (2, -2): 2.0, (3, -1): 0.0}
    probe = fit_probe(clouds(places, 0), clouds(places, 1))
    assert (probe.layer, probe.position) == (2, -1)
    assert abs(probe.direction[0]) > 0.95 and abs(probe.direction[1]) < 0.2, "what twins share is turned away from"
    assert np.linalg.norm(probe.direction) == pytest.approx(1.0, abs=1e-6)
    assert probe.harmful[0] - probe.benign[0] == pytest.approx(5.0, abs=0.5)
    assert probe.auc > 0.99 and probe.prompts == (200, 200, 200)
    fresh = clouds(places, 2, 2000)
    alarms = {kind: (project(rows[2, -1], probe.direction) > probe.threshold).mean() for kind, rows in fresh.items()}
    assert alarms["harmful"] > 0.9 and alarms["harmless"] < 0.03 and alarms["twin"] < 0.08


def test_fisher_direction_solves_the_ridge_equations() -> None:
    chance = np.random.default_rng(3)
    harmful, benign = chance.standard_normal((30, 12)) @ np.diag(range(1, 13)) + 1, chance.standard_normal((50, 12))
    covariance = (np.cov(harmful.T, bias=True) + np.cov(benign.T, bias=True)) / 2
    ridge = 0.01 * np.trace(covariance) / 12
    expected = np.linalg.solve(covariance + ridge * np.eye(12), harmful.mean(axis=0) - benign.mean(axis=0))
    np.testing.assert_allclose(fisher_direction(harmful, benign), expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize(("harmless", "twins"), [(50, 0), (100, 100), (1000, 10), (1000, 1000)])
def test_threshold_keeps_its_share_of_false_alarms(harmless: int, twins: int) -> None:
    chance = np.random.default_rng(harmless)
    scores, others = chance.standard_normal(harmless), chance.standard_normal(twins) + 1
    limit = threshold(scores, others if twins else None)
    assert (scores > limit).sum() <= 0.01 * harmless
    assert twins == 0 or (others > limit).sum() <= 0.05 * twins
    lower = np.nextafter(limit, -np.inf)
    assert (scores > lower).sum() > 0.01 * harmless or (others > lower).sum() > 0.05 * twins


def test_auc_is_the_share_of_ordered_pairs() -> None:
    chance = np.random.default_rng(0)
    one, other = chance.integers(0, 9, 40).astype(float), chance.integers(0, 7, 30).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a in one for b in other]
    assert auc(one, other) == pytest.approx(sum(pairs) / len(pairs))


def test_nothing_to_fit_on_is_one_line() -> None:
    found = clouds({(1, -1): 1.0}, 0)
    with pytest.raises(DirectionError, match="no harmful or no harmless"):
        fit_probe(found | {"harmful": {}}, found)


@needs_llama
def test_residual_stream_in_llama_cpp_is_that_of_mlx(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder()
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    ids = [1, 45, 67, 89, 101, 7]
    seen: dict[int, np.ndarray] = {}
    model = load(folder)

    def keep(index: int, block: object, args: tuple[mx.array, ...], kwargs: dict[str, object]) -> mx.array:
        seen[index] = np.array(args[0][0])
        return block(*args, **kwargs)  # type: ignore[operator, no-any-return]

    with model.block_taps(keep):
        mx.eval(model.network(mx.array([ids])))
    with (
        LlamaRuntime(written.path, n_ctx=16, layers=(1, 2, 3)) as tapped,
        LlamaRuntime(written.path, n_ctx=16) as plain,
    ):
        assert (tapped.hidden, tapped.blocks) == (32, 4)
        logits, layers = tapped.residuals(ids)
        again, _ = tapped.residuals(ids)
        assert (logits == again).all()
        np.testing.assert_allclose(logits, plain.logits(ids)[-1], atol=1e-5)
        assert tapped.generate([ids], 5, []) == plain.generate([ids], 5, [])
        with pytest.raises(ParityError, match="n_batch"):
            LlamaRuntime(written.path, n_ctx=16, n_batch=4, layers=(1,)).residuals(ids)
    assert layers.keys() == {1, 2, 3}
    for layer, rows in layers.items():
        np.testing.assert_allclose(rows, seen[layer], atol=3e-3)


@needs_llama
def test_layer_that_llama_cpp_does_not_show_is_said(tiny_gguf: Path) -> None:
    with (
        LlamaRuntime(tiny_gguf, n_ctx=16, layers=(1, 9)) as runtime,
        pytest.raises(DirectionError, match=r"no residual stream at layers \[9\]"),
    ):
        read_residuals(runtime, [[1, 2]], [-1])


@needs_llama
def test_manifest_of_a_random_model_is_whole(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    chance = np.random.default_rng(0)
    part = {kind: chance.integers(3, 300, (9, 6)).tolist() for kind in ("harmful", "harmless", "twin")}
    steps: list[tuple[int, int]] = []
    canaries = CanarySet("demo", part["harmful"] + part["twin"], "r" * 9 + "c" * 9, 4)
    manifest = make_manifest(path, {"seed": 0}, part, part, canaries, lambda *step: steps.append(step))
    assert manifest.probe is not None and manifest.probe.layer == 1 and len(manifest.probe.direction) == 32
    assert manifest.canaries is not None and len(manifest.canaries.alarms) == len(manifest.canaries.classes) == 18
    assert steps[-1] == (54, 54)
    seal(path, manifest)
    assert read_manifest(read_structure(path)) == manifest


def test_without_llama_cpp_the_manifest_says_so(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird_mlx.guard.record.is_available", lambda: False)
    manifest = make_manifest(tiny_gguf, {}, {}, {}, CanarySet("demo", [], "", 4))
    assert manifest.probe is None and "not installed" in manifest.no_probe and manifest.canaries is None
