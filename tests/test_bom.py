"""The bill of materials: valid CycloneDX 1.6, and every figure in it is the sealed file's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from scipy.stats import binomtest

from aird_mlx.errors import IntegrityError
from aird_mlx.guard.bom import bom_of, make_bom, write_bom
from aird_mlx.guard.manifest import Manifest
from aird_mlx.guard.seal import seal
from aird_mlx.report import Report

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)

FACTS = {
    "version": "0.1.0",
    "source.model": "org/Base 1",
    "source.revision": "0a1b2c",
    "prune.method": "wanda",
    "prune.asked": "sparsity 0.5",
    "repair.rule": "distill",
    "evaluation.of": "exported:f16",
    "evaluation.harmful.refused": 289 / 300,
    "evaluation.harmful.n": 300,
    "evaluation.harmless.refused": 0.0,
    "evaluation.harmless.n": 40,
    "evaluation.perplexity": 1.2670185788047545,
    "evaluation.perplexity.n": 7188,
}


def write_sealed(path: Path, facts: Mapping[str, Any] = FACTS, **general: Any) -> Path:
    """A file of one tensor with these keys under ``general.`` (dots written ``__``), and a manifest."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in general.items():
        key = "general." + name.replace("__", ".")
        writer.add_uint32(key, value) if isinstance(value, int) else writer.add_string(key, value)
    writer.add_tensor("a", np.arange(8, dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    seal(path, Manifest(facts=dict(facts), no_probe="llama-cpp-python was not installed"))
    return path


def component_of(path: Path) -> dict[str, Any]:
    """The model in the bill that was written, once it is known to be valid."""
    text = write_bom(path).read_text(encoding="utf-8")
    assert VALIDATOR.validate_str(text) is None
    component: dict[str, Any] = json.loads(text)["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    return component


def test_figures_come_with_n_and_interval(tmp_path: Path) -> None:
    metrics = component_of(write_sealed(tmp_path / "m.gguf"))["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [metric["type"] for metric in metrics] == ["refusal rate", "refusal rate", "perplexity"]
    for metric, successes, n in zip(metrics, (289, 0), (300, 40), strict=False):
        interval = binomtest(successes, n).proportion_ci(0.95, "wilson")
        assert float(metric["value"]) == pytest.approx(successes / n, abs=1e-6)
        bounds = metric["confidenceInterval"]
        assert float(bounds["lowerBound"]) == pytest.approx(interval.low, abs=1e-6)
        assert float(bounds["upperBound"]) == pytest.approx(interval.high, abs=1e-6)
        assert f"n = {n}" in metric["slice"] and "exported:f16" in metric["slice"]
    assert metrics[2]["value"] == "1.26702" and "n = 7188 tokens" in metrics[2]["slice"]


def test_hashes_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_sealed(tmp_path / "m.gguf", name="Mine", version="2.1")
    component = component_of(path)
    assert component["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert (component["name"], component["version"]) == ("Mine", "2.1")
    properties = {one["name"]: one["value"] for one in component["properties"]}
    fields = gguf.GGUFReader(path).fields
    assert properties["aird.hash.root"] == fields["aird.hash.root"].contents()
    assert properties["aird.repair.rule"] == "distill" and len(properties) == len(FACTS) + 1


def test_base_model_is_an_ancestor_with_its_own(tmp_path: Path) -> None:
    parents = {
        "base_model__count": 3,
        "base_model__0__name": "Base 1",  # the source itself, as the exporter writes it for a model of the hub
        "base_model__0__repo_url": "https://huggingface.co/org/Base 1",
        "base_model__1__repo_url": "https://huggingface.co/other/Grand",
        "base_model__2__name": "Somebody's",
        "base_model__2__version": "v3",
    }
    (source,) = component_of(write_sealed(tmp_path / "m.gguf", **parents))["pedigree"]["ancestors"]
    assert (source["group"], source["name"], source["version"]) == ("org", "Base 1", "0a1b2c")
    assert source["purl"] == "pkg:huggingface/org/Base%201@0a1b2c"
    found = PackageURL.from_string(source["purl"])
    assert (found.type, found.namespace, found.version) == ("huggingface", "org", "0a1b2c")
    grand, somebody = source["pedigree"]["ancestors"]
    assert grand["purl"] == "pkg:huggingface/other/Grand"
    assert (somebody["name"], somebody["version"]) == ("Somebody's", "v3") and "purl" not in somebody


def test_local_model_has_a_name_and_no_place(tmp_path: Path) -> None:
    (source,) = component_of(write_sealed(tmp_path / "m.gguf", {"source.model": "mine"}))["pedigree"]["ancestors"]
    assert source == {"type": "machine-learning-model", "name": "mine"}
    assert "pedigree" not in component_of(write_sealed(tmp_path / "n.gguf", {}))


@pytest.mark.parametrize(
    ("keys", "licence"),
    [
        ({"license": "apache-2.0"}, {"expression": "Apache-2.0"}),
        ({"license": "mit or apache-2.0"}, {"expression": "MIT OR Apache-2.0"}),
        ({"license": "llama3.2"}, {"license": {"name": "llama3.2"}}),
        (
            {"license": "other", "license__name": "mine", "license__link": "https://a.example/my licence"},
            {"license": {"name": "mine", "url": "https://a.example/my%20licence"}},
        ),
        ({"license": "other", "license__link": "LICENSE"}, {"license": {"name": "other"}}),
    ],
)
def test_licence_is_spdx_where_spdx_knows_it(tmp_path: Path, keys: dict[str, str], licence: dict[str, Any]) -> None:
    assert component_of(write_sealed(tmp_path / "m.gguf", **keys))["licenses"] == [licence]


def test_file_without_manifest_has_none(tiny_gguf: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path / "m.gguf"))
    with pytest.raises(IntegrityError, match="no manifest"):
        write_bom(path)
    assert not bom_of(path).exists()


def test_equal_files_have_equal_bills(sealed_gguf: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sealed_gguf, tmp_path / sealed_gguf.name))
    assert make_bom(path) == make_bom(sealed_gguf)
    metrics = component_of(path)["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics == [
        {
            "type": "area under the ROC curve of the probe",
            "value": "0.99",
            "slice": "validation prompts, n = 4 harmful, 4 harmless, 2 twin",
        }
    ]


def test_repair_writes_one_with_its_figures(full_run: tuple[Path, Report]) -> None:
    out, report = full_run
    path = Path(report.written["bom f16"])
    assert path == bom_of(out / "gguf" / "demo-repaired-F16.gguf")
    text = path.read_text(encoding="utf-8")
    assert VALIDATOR.validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    digest = hashlib.sha256(Path(report.written["gguf f16"]).read_bytes()).hexdigest()
    assert component["hashes"][0]["content"] == digest
    exported = report.stage("exported:f16")
    measured = exported if exported.parity else report.stage("repaired")
    assert measured.refusal.harmful is not None
    harmful = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert float(harmful["value"]) == pytest.approx(measured.refusal.harmful.rate, abs=1e-6)
    assert float(harmful["confidenceInterval"]["lowerBound"]) == pytest.approx(measured.refusal.harmful.low, abs=1e-6)
