"""The model card as the hub's own library reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from aird_mlx.gguf_export.general import read_card
from aird_mlx.report import Gate, PruningReport
from aird_mlx.report_page import to_model_card, write_front_matter
from aird_mlx.report_page.card import is_hub_id
from test_report import full_report, gate

SOURCE = {"license": "other", "license_name": "tiny", "license_link": "https://example.org/l", "language": ["en"]}


def test_card_has_origin_licence_and_results_with_n_and_interval() -> None:
    dense, *others = full_report().stages
    stages = [dense, dataclasses.replace(dense, name="repaired", sparsity=0.5), *others]
    report = dataclasses.replace(full_report(gate("safety", True)), model="org/Tiny-3B", stages=stages)
    card = ModelCard(to_model_card(report, SOURCE))
    data = card.data.to_dict()
    assert {key: data[key] for key in ("library_name", "base_model", "base_model_relation", *SOURCE)} == {
        "library_name": "mlx", "base_model": "org/Tiny-3B", "base_model_relation": "finetune", **SOURCE,
    }  # fmt: skip
    assert data["tags"] == ["mlx", "refusals-repaired"], "this one was not pruned"
    assert "All gates passed." in card.text
    results = card.data.eval_results
    harmful = report.stage("repaired").refusal.harmful
    assert harmful is not None
    found = next(result for result in results if result.dataset_type == "aird-mlx-harmful")
    assert found.metric_value == pytest.approx(100 * harmful.rate, abs=0.05)
    assert found.metric_args["n"] == harmful.n
    assert f"n = {harmful.n}" in found.dataset_name
    assert f"{100 * harmful.low:.1f} to {100 * harmful.high:.1f}" in found.metric_name
    assert "## Refusals" in card.text
    assert "Made with aird-mlx" in card.text


def test_card_claims_no_repair_that_failed_and_no_pruning_that_was_not_done() -> None:
    pruning = PruningReport("wanda", "2:4", "row", "uniform", 0.5, 0.5, [])
    for gates, pruned, tags in (
        ((gate("safety", True), gate("utility", False)), pruning, ["mlx", "pruned", "refusals-repaired"]),
        ((gate("safety", False),), pruning, ["mlx", "pruned"]),
        ((gate("safety", False),), None, ["mlx"]),
        ((), None, ["mlx"]),
    ):
        report = full_report(*gates)
        repaired = dataclasses.replace(report.stages[0], name="repaired", sparsity=0.5)
        report = dataclasses.replace(report, stages=[*report.stages, repaired], pruning=pruned)
        card = ModelCard(to_model_card(report))
        assert card.data.to_dict()["tags"] == tags
        assert ("1 of 1 gates failed: name (safety)." in card.text) == (len(gates) == 1)
        assert "Unstructured" not in card.text, "these zeros may be a pattern's"


def test_card_claims_no_repair_where_the_compressed_model_passes_as_well() -> None:
    report = full_report(Gate("refusals", "safety", True, 0.5, 0.3))
    stages = [dataclasses.replace(report.stages[0], name=name) for name in ("compressed", "repaired")]
    card = ModelCard(to_model_card(dataclasses.replace(report, stages=[*report.stages, *stages])))
    assert card.data.to_dict()["tags"] == ["mlx"]
    assert "50.0 % of 12 harmful prompts, reach the bar of the safety gate as well" in card.text


def test_card_of_a_local_model_keeps_what_its_own_card_says(tmp_path: Path) -> None:
    for source, expected in (({}, {}), ({"base_model": "org/Parent"}, {"base_model": "org/Parent"})):
        (tmp_path / "README.md").write_text(write_front_matter(str(tmp_path), source))
        values = read_card(tmp_path).values
        assert {key: value for key, value in values.items() if key == "base_model"} == expected
        assert ("base_model_relation" in values) == bool(expected)
        assert "model-index" not in values


def test_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_hub_id("org/name")
