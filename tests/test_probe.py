"""The probe: planted directions are found, thresholds keep their promise, and llama.cpp shows what MLX computes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.errors import DirectionError, ParityError
from aird_mlx.gguf_export import LlamaRuntime, export_gguf, is_available
from aird_mlx.guard.manifest import read_manifest
from aird_mlx.guard.probe import (
    RIDGES,
    auc,
    fisher_weights,
    fit_probe,
    project,
    read_probe,
    read_residuals,
    read_streams,
    threshold,
)
from aird_mlx.guard.record import CanarySet, make_manifest
from aird_mlx.guard.seal import seal
from aird_mlx.guard.structure import read_structure
from aird_mlx.model import load

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


LAYERS, TOKENS, HIDDEN = (1, 2, 3), 2, 16


def clouds(seed: int, count: int = 400, distance: float = 5.0) -> dict[str, np.ndarray]:
    """Streams by kind: harmful prompts are moved along axis 0 of layer 2's last token, twins and they along axis 1."""
    chance = np.random.default_rng(seed)
    found = {}
    for kind, moved in (("harmful", (distance, 3.0)), ("harmless", (0.0, 0.0)), ("twin", (0.0, 3.0))):
        found[kind] = chance.standard_normal((count, len(LAYERS), TOKENS, HIDDEN)).astype(np.float32)
        found[kind][:, 1, -1, :2] += moved
    return found


def test_planted_direction_and_place_are_found_in_spite_of_twins() -> None:
    probe = fit_probe(clouds(0), clouds(1), LAYERS)
    assert (probe.layers, probe.tokens) == (LAYERS, TOKENS)
    weight = np.reshape(probe.weight, (len(LAYERS), TOKENS, HIDDEN)) / np.linalg.norm(probe.weight)
    assert weight[1, -1, 0] > 0.9 and abs(weight[1, -1, 1]) < 0.25, "what twins share is turned away from"
    assert probe.benign == pytest.approx((0.0, 1.0), abs=1e-4)
    assert probe.harmful[0] > 3.0
    assert probe.auc > 0.99 and probe.prompts == (400, 400, 400)
    fresh = clouds(2, 2000)
    alarms = {kind: (project(rows, probe) > probe.threshold).mean() for kind, rows in fresh.items()}
    assert alarms["harmful"] > 0.9 and alarms["harmless"] < 0.03 and alarms["twin"] < 0.08


def test_a_reading_is_the_projection_of_the_last_tokens() -> None:
    probe = fit_probe(clouds(0), clouds(1), LAYERS)
    stream = clouds(3, 1)["harmful"]
    longer = {layer: np.concatenate([np.full((4, HIDDEN), 9.0), stream[0, at]]) for at, layer in enumerate(LAYERS)}
    reading = read_probe(probe, longer)
    assert reading.score == pytest.approx(project(stream, probe)[0])
    assert reading.threshold == probe.threshold and reading.alarm
    assert not read_probe(probe, {layer: np.zeros((2, HIDDEN)) for layer in LAYERS}).alarm
    with pytest.raises(DirectionError, match="1 of the prompt's tokens are seen at layers"):
        read_probe(probe, {layer: rows[-1:] for layer, rows in longer.items()})
    with pytest.raises(DirectionError, match="0 of the prompt's tokens"):
        read_probe(probe, {2: longer[2]})


@pytest.mark.parametrize(("harmful", "benign"), [(30, 50), (5, 4)], ids=["more prompts", "more features"])
def test_fisher_weights_solve_the_ridge_equations(harmful: int, benign: int) -> None:
    chance = np.random.default_rng(3)
    one = chance.standard_normal((harmful, 3, 4)) * np.arange(1, 5) + 1
    other = chance.standard_normal((benign, 3, 4))
    flat = [one.reshape(harmful, 12), other.reshape(benign, 12)]
    deviation = np.concatenate(flat).std(axis=0)
    flat = [rows / deviation for rows in flat]
    shares = np.arange(1.0, benign + 1) / np.arange(1.0, benign + 1).sum()
    covariance = (np.cov(flat[0].T, bias=True) + np.cov(flat[1].T, aweights=shares, bias=True)) / 2
    found = fisher_weights(one, other, shares, [0.01, 0.5])
    for ridge, weight in zip([0.01, 0.5], found, strict=True):
        damped = covariance + ridge * np.trace(covariance) / 12 * np.eye(12)
        expected = np.linalg.solve(damped, flat[0].mean(axis=0) - shares @ flat[1]) / deviation
        np.testing.assert_allclose(weight, expected / np.linalg.norm(expected), atol=1e-8)
    assert not np.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("features", [16384, 65536])
def test_fisher_weights_of_few_prompts_that_are_much_alike(features: int) -> None:
    """Rounded to float32 the products of such streams are less positive than the smallest ridge makes them."""
    chance = np.random.default_rng(0)
    rows = chance.standard_normal((12, 1)) * chance.standard_normal(features)
    rows += 1e-6 * chance.standard_normal((12, features))
    planted = chance.standard_normal(features)
    rows[:6] += 1e-5 * planted
    rows = rows.astype(np.float32)
    shares = np.full(6, 1 / 6)
    found = fisher_weights(rows[:6], rows[6:], shares, RIDGES)
    expected = fisher_weights(rows[:6].astype(np.float64), rows[6:].astype(np.float64), shares, RIDGES)
    for weight, precise in zip(found, expected, strict=True):
        assert weight @ precise > 0.999
        scores = rows.astype(np.float64) @ weight
        assert scores[:6].min() > scores[6:].max()


def test_products_are_summed_over_parts_of_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clouds(0, 5)
    one, other, shares = rows["harmful"], rows["harmless"], np.full(5, 0.2)
    whole = fisher_weights(one, other, shares, [0.01])[0]
    monkeypatch.setattr("aird_mlx.guard.probe.CHUNK", 70)  # 7 columns of 96
    np.testing.assert_allclose(fisher_weights(one, other, shares, [0.01])[0], whole, atol=1e-6)


def test_equations_without_a_solution_are_one_line() -> None:
    found = clouds(0, 9)
    broken = found | {"twin": np.full_like(found["twin"], np.nan)}
    with pytest.raises(DirectionError, match=r"^probe: .*27 prompts' .*; finite numbers are needed") as not_finite:
        fit_probe(broken, found, LAYERS)
    with pytest.raises(DirectionError, match=r"^probe: .*18 prompts' .*; finite numbers are needed") as singular:
        fisher_weights(found["harmful"], found["harmless"], np.full(9, 1 / 9), [-1.0])
    assert not any("\n" in str(raised.value) for raised in (not_finite, singular))


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
    found = clouds(0, 9)
    with pytest.raises(DirectionError, match="no harmful or no harmless"):
        fit_probe(found | {"harmful": found["harmful"][:0]}, found, LAYERS)
    with pytest.raises(DirectionError, match="no harmful or no harmless"):
        fit_probe(found, {"harmful": found["harmful"]}, LAYERS)
    without_twins = {kind: found[kind] for kind in ("harmful", "harmless")}
    assert fit_probe(without_twins, without_twins, LAYERS).prompts == (9, 9, 0)


@pytest.mark.parametrize("kind", ["harmful", "harmless", "twin"])
@pytest.mark.parametrize("count", [1, 2])
def test_probe_is_fitted_on_one_or_two_prompts_of_a_kind(kind: str, count: int) -> None:
    find, validate = clouds(0, 30), clouds(1, 30)
    few = find | {kind: find[kind][:count]}
    probe = fit_probe(few, validate, LAYERS)
    scores = {name: project(rows, probe) for name, rows in validate.items()}
    of_validation = threshold(scores["harmless"], scores["twin"])
    if (kind, count) == ("harmless", 1):
        assert probe.threshold == pytest.approx(of_validation), "no harmless prompt is left out"
    else:
        assert probe.threshold >= of_validation - 1e-6
    assert probe.prompts == (30, 30, 30)


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
        read_streams(runtime, [[1, 2]], 1)


@needs_llama
def test_streams_are_those_of_the_residuals(tiny_gguf: Path) -> None:
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    with LlamaRuntime(tiny_gguf, n_ctx=16, layers=(1,)) as runtime:
        logits, streams = read_residuals(runtime, prompts, 2)
        assert logits.shape == (2, runtime.vocab_size) and streams.shape == (2, 1, 2, runtime.hidden)
        np.testing.assert_array_equal(read_streams(runtime, prompts, 2), streams)


@needs_llama
def test_manifest_of_a_random_model_is_whole(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    chance = np.random.default_rng(0)
    part = {kind: chance.integers(3, 300, (9, 6)).tolist() for kind in ("harmful", "harmless", "twin")}
    steps: list[tuple[int, int]] = []
    canaries = CanarySet("demo", part["harmful"] + part["twin"], "r" * 9 + "c" * 9, 4)
    manifest = make_manifest(path, {"seed": 0}, part, part, canaries, lambda *step: steps.append(step))
    assert manifest.probe is not None and manifest.probe.layers == (1,) and len(manifest.probe.weight) == 6 * 32
    assert manifest.canaries is not None and len(manifest.canaries.alarms) == len(manifest.canaries.classes) == 18
    assert steps[-1] == (54, 54)
    seal(path, manifest)
    assert read_manifest(read_structure(path)) == manifest


@needs_llama
def test_no_more_is_kept_than_promised(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of 20 prompts, to find and to validate together; and of no prompt the logits."""
    monkeypatch.setattr("aird_mlx.guard.record.PROBE_NUMBERS", 20 * 6 * 32)
    real, kept, alive = LlamaRuntime.residuals, [], []

    def residuals(runtime: LlamaRuntime, ids: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        logits, layers = real(runtime, ids)
        logits = logits.copy()
        kept.append(weakref.ref(logits))
        alive.append(sum(one() is not None for one in kept))
        return logits, layers

    monkeypatch.setattr(LlamaRuntime, "residuals", residuals)
    chance = np.random.default_rng(0)
    find, validate = (
        {kind: chance.integers(3, 300, (count, 6)).tolist() for kind in ("harmful", "harmless", "twin")}
        for count in (9, 2)
    )
    steps: list[tuple[int, int]] = []
    canaries = CanarySet("demo", [[1, 2, 3, 4, 5, 6]], "r", 2)
    manifest = make_manifest(tiny_gguf, {}, find, validate, canaries, lambda *step: steps.append(step))
    assert manifest.probe is not None and manifest.probe.prompts == (2, 2, 2)
    assert steps[-1] == (18, 18), "4 of each kind to find, 2 to validate"
    assert len(alive) == 19 and max(alive) == 1


@needs_llama
def test_file_whose_streams_are_not_finite_gets_no_probe(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LlamaRuntime.residuals

    def overflown(runtime: LlamaRuntime, ids: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        logits, layers = real(runtime, ids)
        return logits, {layer: np.full_like(rows, np.nan) for layer, rows in layers.items()}

    monkeypatch.setattr(LlamaRuntime, "residuals", overflown)
    part = {kind: [[3, 4, 5], [6, 7, 8], [9, 10, 11]] for kind in ("harmful", "harmless", "twin")}
    manifest = make_manifest(tiny_gguf, {}, part, part, CanarySet("demo", [[1, 2]], "r", 2))
    assert manifest.probe is None and "finite numbers are needed" in manifest.no_probe
    assert manifest.canaries is not None and len(manifest.canaries.classes) == 1


def test_without_llama_cpp_the_manifest_says_so(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird_mlx.guard.record.is_available", lambda: False)
    manifest = make_manifest(tiny_gguf, {}, {}, {}, CanarySet("demo", [], "", 4))
    assert manifest.probe is None and "not installed" in manifest.no_probe and manifest.canaries is None
