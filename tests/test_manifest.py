"""The manifest: written into a file, it comes back, and the file still opens in PyPI's gguf and in llama.cpp."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aird_mlx.errors import IntegrityError
from aird_mlx.gguf_export import LlamaRuntime, is_available
from aird_mlx.gguf_export.writer import _carries
from aird_mlx.guard.hashes import ROOT_KEY, TENSORS_KEY
from aird_mlx.guard.manifest import Manifest, manifest_keys, read_manifest
from aird_mlx.guard.seal import seal, sidecar_of
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from conftest import make_manifest

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


@pytest.fixture
def plain(tiny_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_gguf, tmp_path / "m.gguf"))


def seal_keys(path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal with whatever keys, which `manifest_keys` would never give."""
    monkeypatch.setattr("aird_mlx.guard.seal.manifest_keys", lambda _: keys)
    seal(path, Manifest())


def test_manifest_comes_back(plain: Path) -> None:
    root = seal(plain, make_manifest())
    structure = read_structure(plain)
    assert read_manifest(structure) == make_manifest()
    assert structure.text(ROOT_KEY) == root and len((structure.text(TENSORS_KEY) or "").split()) == 20


def test_manifest_without_probe_says_why(plain: Path) -> None:
    seal(plain, Manifest(facts={"version": "1"}, no_probe="llama-cpp-python was not installed"))
    found = read_manifest(read_structure(plain))
    assert found == Manifest(facts={"version": "1"}, no_probe="llama-cpp-python was not installed")


def test_plain_file_has_no_manifest(tiny_gguf: Path) -> None:
    assert read_manifest(read_structure(tiny_gguf)) is None


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["version", "source.model", "sparsity", "seed", "evaluation.harmful.n"]),
        st.one_of(st.text(max_size=50), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
    )
)
def test_any_facts_come_back_and_pass(tiny_gguf: Path, tmp_path: Path, facts: dict[str, Any]) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path / "m.gguf"))
    manifest = dataclasses.replace(make_manifest(), facts=facts)
    seal(path, manifest)
    assert read_manifest(read_structure(path)) == manifest
    assert verify_file(path).exit_code == 0


def test_sealed_file_keeps_every_key_and_weight(tiny_gguf: Path, sealed_gguf: Path) -> None:
    before, after = gguf.GGUFReader(tiny_gguf), gguf.GGUFReader(sealed_gguf)
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.fields[name].contents() == field.contents()
    added = {name for name in after.fields if name not in before.fields}
    assert added == {*manifest_keys(make_manifest()), ROOT_KEY, TENSORS_KEY}
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert one.name == other.name and (one.data == other.data).all()


@needs_llama
def test_sealed_file_runs_in_llama_cpp_as_before(tiny_gguf: Path, sealed_gguf: Path) -> None:
    with LlamaRuntime(tiny_gguf, n_ctx=16) as before, LlamaRuntime(sealed_gguf, n_ctx=16) as after:
        assert (before.logits([3, 4, 5]) == after.logits([3, 4, 5])).all()
        assert after.metadata(ROOT_KEY) == read_structure(sealed_gguf).text(ROOT_KEY)
        assert after.metadata("aird.probe.layers") == "[1]"
        assert after.metadata("aird.probe.weight") == manifest_keys(make_manifest())["aird.probe.weight"]


def test_file_is_sealed_once(sealed_gguf: Path, plain: Path) -> None:
    with pytest.raises(IntegrityError, match=r"has aird\..* already"):
        seal(sealed_gguf, dataclasses.replace(make_manifest(), no_probe="x"))
    before = plain.read_bytes()
    change = dataclasses.replace(make_manifest(), facts={"version": "\ud800"})
    with pytest.raises(UnicodeEncodeError):
        seal(plain, change)
    assert plain.read_bytes() == before
    assert [path.name for path in plain.parent.iterdir()] == ["m.gguf"]


def test_damaged_file_is_not_sealed(plain: Path) -> None:
    plain.write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="structure"):
        seal(plain, make_manifest())
    assert not sidecar_of(plain).exists()


def test_interrupted_runs_own_file_is_known_once_it_is_sealed(plain: Path) -> None:
    extra = {"aird.version": "0.1.0", "aird.seed": 0}
    seal(plain, make_manifest())
    assert _carries(plain, extra)
    assert not _carries(plain, extra | {"aird.seed": 1})
    assert not _carries(plain, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aird.probe.weight", "!!!"),
        ("aird.probe.weight", "AAAA"),
        ("aird.probe.weight", "AAAAAA=="),
        ("aird.probe.weight", "AACAf" * 8 + "==="),
        ("aird.probe.weight", 3),
        ("aird.probe.layers", "[]"),
        ("aird.probe.layers", "[0]"),
        ("aird.probe.layers", "[2]"),
        ("aird.probe.layers", "[1, 1]"),
        ("aird.probe.layers", "1"),
        ("aird.probe.layers", 1),
        ("aird.probe.tokens", 0),
        ("aird.probe.tokens", 3),
        ("aird.probe.offset", float("inf")),
        ("aird.probe.threshold", float("nan")),
        ("aird.probe.threshold", "0.5"),
        ("aird.probe.auc", 1.5),
        ("aird.probe.prompts", "[1, 2]"),
        ("aird.canary.classes", "rrr"),
        ("aird.canary.classes", "rx"),
        ("aird.canary.dense", "r"),
        ("aird.canary.alarms", "ab"),
        ("aird.canary.first", '["a", "b"]'),
        ("aird.canary.first", "[" * 5000),
        ("aird.canary.max_new_tokens", 10**9),
        ("aird.template", 1.5),
    ],
)
def test_broken_manifest_is_one_line(plain: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any) -> None:
    seal_keys(plain, manifest_keys(make_manifest()) | {key: value}, monkeypatch)
    with pytest.raises(IntegrityError, match="manifest: ") as raised:
        read_manifest(read_structure(plain))
    assert "\n" not in str(raised.value)
    assert verify_file(plain).exit_code == 5


MAY_BE_MISSING = {"aird.template", "aird.canary.set", *(f"aird.{name}" for name in make_manifest().facts)}


@pytest.mark.parametrize("missing", sorted(set(manifest_keys(make_manifest())) - MAY_BE_MISSING))
def test_manifest_without_one_of_its_keys_is_broken(plain: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    keys = manifest_keys(make_manifest())
    seal_keys(plain, {name: value for name, value in keys.items() if name != missing}, monkeypatch)
    with pytest.raises(IntegrityError, match="manifest: "):
        read_manifest(read_structure(plain))


def test_weights_are_float32(plain: Path) -> None:
    vector = tuple(float(x) for x in np.random.default_rng(0).standard_normal(64).astype(np.float32))
    probe = make_manifest().probe
    assert probe is not None
    seal(plain, dataclasses.replace(make_manifest(), probe=dataclasses.replace(probe, weight=vector)))
    found = read_manifest(read_structure(plain))
    assert found is not None and found.probe is not None and found.probe.weight == vector
