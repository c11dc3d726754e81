"""Reports survive JSON, keep the contract's keys, and turn gates into an exit code."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from aird_mlx.errors import AirdError
from aird_mlx.report import (
    ComparisonReport,
    Control,
    DirectionFigures,
    DirectionReport,
    Evaluation,
    Gate,
    PairedChange,
    ParityFigures,
    Rate,
    RefusalRates,
    RepairFigures,
    Report,
    Stage,
    StageChange,
    TrialFigures,
    TriedPlan,
    Utility,
    from_json,
    to_json,
)

RATE = Rate(0.5, 0.25, 0.75, 12)


def full_report(*gates: Gate) -> Report:
    dense = Stage(
        "dense",
        RefusalRates(RATE, Rate(0.0, 0.0, 0.3, 9), None, RATE),
        Utility(5.25, 0.0, 1.0, 1000),
        0.0,
        16.0,
        DirectionFigures(3, -1, 1.0, 2.5, -3.0, 0.5, 0.01, True, None),
        classes={"harmful": "rric", "harmless": "", "twin": "c"},
    )
    foreseen, answered = TrialFigures(0.9, 0.02, 0.1, 0.05, 3.5), TrialFigures(0.8, 0.0, 0.0, 0.05, 3.5)
    tried = [
        TriedPlan("refit", [0, 1], 1.0, 3.0, 0.01, 1, "all", 0.0, True, foreseen, answered),
        TriedPlan("restore", [0], 2.0, 0.0, 0.01, 3, "prompts", 0.25, False, foreseen),
    ]
    exported = Stage(
        "exported:f16",
        RefusalRates(RATE, None),
        None,
        0.5,
        16.2,
        parity=ParityFigures(True, 0.99, 1e-5, 77),
        not_checked="because “so”",
    )
    return Report(
        model="demo",
        settings={"seed": 0, "out": "x", "gguf": ["f16"]},
        environment={"versions": {"mlx": "1"}, "seed": 0},
        direction=DirectionFigures(3, -1, None, 2.5),
        stages=[dense, exported],
        repair=RepairFigures("refit", [0, 1], 1.0, None, 0.0, 0.01, 3.0, "why", tried),
        gates=list(gates),
        changes=[StageChange("harmful", "compressed", "repaired", PairedChange(12, 0.5, 0.75, 3, 0, 0.25))],
        controls=[Control("beta 0", "without beta", RefusalRates(RATE, None), Utility(5.5, 0.1, 0.9, 1000))],
        written={"mlx": "out/mlx"},
        notes=["a note"],
        timings={"direction": 1.5},
        peak_memory_bytes=1 << 33,
    )


def test_gate_that_the_compressed_model_reaches_is_told() -> None:
    report = full_report(Gate("refusals", "safety", True, 0.75, 0.5))
    compressed = dataclasses.replace(report.stages[0], name="compressed")
    for limit, reached in ((0.5, RATE), (0.51, None)):
        bar = dataclasses.replace(report.gates[0], limit=limit)
        found = dataclasses.replace(report, stages=[*report.stages, compressed], gates=[bar])
        assert found.unrepaired_reach == reached
    assert report.unrepaired_reach is None, "nothing compressed was measured"
    assert dataclasses.replace(report, gates=[]).unrepaired_reach is None


def gate(kind: str, passed: bool) -> Gate:
    return Gate("name", kind, passed, 0.1, 0.2, "meaning")


def test_report_read_back_equals_what_was_written() -> None:
    report = full_report(gate("safety", True))
    assert from_json(Report, to_json(report)) == report


def test_report_json_has_the_keys_scripts_read() -> None:
    written = json.loads(to_json(full_report(gate("safety", True))))
    assert set(written) >= {
        "schema", "model", "settings", "environment", "direction", "stages", "repair", "gates", "timings",
        "peak_memory_bytes",
    }  # fmt: skip
    assert written["schema"] == 1
    assert set(written["direction"]) >= {"layer", "position", "norm", "bypass", "induce", "kl"}
    stage = written["stages"][0]
    assert set(stage) >= {"name", "refusal", "utility", "sparsity", "bits_per_weight", "direction"}
    assert set(stage["refusal"]["harmful"]) == {"rate", "low", "high", "n"}
    assert set(stage["refusal"]) >= {"harmful", "harmless", "twin"}
    assert set(stage["utility"]) >= {"perplexity", "kl_to_dense"}
    assert set(stage["direction"]) >= {"layer", "position", "cosine_to_dense", "calibrated_cosine"}
    assert stage["classes"] == {"harmful": "rric", "harmless": "", "twin": "c"}
    assert set(written["repair"]) >= {"rule", "layers", "strength", "beta", "rank", "sparsity_lost", "why", "tried"}
    tried = written["repair"]["tried"]
    assert set(tried[0]) >= {
        "rule", "layers", "strength", "beta", "ridge", "rank", "tokens", "sparsity_lost", "on_front", "foreseen",
        "answered",
    }  # fmt: skip
    assert set(tried[0]["foreseen"]) >= {"harmful", "harmless", "twin", "kl_to_dense", "perplexity"}
    assert (tried[0]["answered"]["harmful"], tried[1]["answered"]) == (0.8, None)
    assert set(written["changes"][0]) == {"kind", "before", "after", "change"}
    assert set(written["controls"][0]) >= {"name", "meaning", "refusal", "utility"}
    assert set(written["gates"][0]) >= {"name", "passed", "value", "limit"}


def test_json_keeps_typographic_characters_and_ends_with_a_newline() -> None:
    text = to_json(full_report())
    assert "because “so”" in text
    assert text.endswith("}\n")


def test_keys_of_a_later_version_are_skipped() -> None:
    written = json.loads(to_json(RATE)) | {"new_key": 1}
    assert from_json(Rate, json.dumps(written)) == RATE


@pytest.mark.parametrize(
    "text", ["", "no json", '{"rate": 1}', "[]", "3", "null", '{"schema": 1, "stages": 5}', "[" * 10**5]
)
def test_text_that_is_no_report_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(AirdError, match=r"^report: not a Report \(.*schema 1 is needed") as raised:
        from_json(Report, text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": "1"}, "schema '1'"),
        ({"model": 3}, "model is of type int, not str"),
        ({"model": None}, "model is of type NoneType, not str"),
        ({"stages": None}, "stages is of type NoneType, not list"),
        ({"stages": {}}, "stages is of type dict, not list"),
        ({"gates": [None]}, "gates is of type NoneType, not dict"),
        ({"changes": [[]]}, "changes is of type list, not dict"),
        ({"controls": ["beta"]}, "controls is of type str, not dict"),
        ({"notes": [1]}, "notes is of type int, not str"),
        ({"timings": {"direction": "fast"}}, "timings.direction is of type str, not float"),
        ({"timings": {"direction": True}}, "timings.direction is of type bool, not float"),
        ({"peak_memory_bytes": 1.5}, "peak_memory_bytes is of type float, not int"),
        ({"direction": {"layer": True, "position": -1, "cosine_to_dense": None, "norm": 1}}, "layer is of type bool"),
        ({"direction": {"layer": 1, "position": -1, "cosine_to_dense": None, "norm": None}}, "norm is of type None"),
    ],
)
def test_report_with_a_value_of_another_type_is_refused_and_named(changes: dict[str, object], said: str) -> None:
    text = json.dumps(json.loads(to_json(full_report())) | changes)
    with pytest.raises(AirdError, match=rf"^report: here.json is not a Report \({re.escape(said)}") as raised:
        from_json(Report, text, Path("here.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [Report, Evaluation, DirectionReport, ComparisonReport, Stage, Rate])
def test_every_kind_of_report_refuses_another_and_names_the_command(kind: type) -> None:
    with pytest.raises(AirdError, match=rf"not a {kind.__name__} ") as raised:
        from_json(kind, '{"schema": 1}')
    command = {Evaluation: "eval", DirectionReport: "direction", ComparisonReport: "compare"}.get(kind, "repair")
    assert f"`aird-mlx {command}`" in str(raised.value)


def test_whole_numbers_are_read_as_floats_are() -> None:
    assert from_json(Rate, '{"rate": 1, "low": 0, "high": 1, "n": 3}') == Rate(1.0, 0.0, 1.0, 3)


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        ([], 0),
        ([gate("safety", True), gate("utility", True)], 0),
        ([gate("utility", False)], 4),
        ([gate("parity", False), gate("safety", True)], 4),
        ([gate("utility", False), gate("safety", False)], 3),
    ],
)
def test_exit_code_is_3_for_safety_and_4_for_any_other_gate(gates: list[Gate], code: int) -> None:
    assert full_report(*gates).exit_code == code


def test_stage_is_found_by_name() -> None:
    report = full_report()
    assert report.stage("exported:f16").bits_per_weight == 16.2
    with pytest.raises(KeyError):
        report.stage("compressed")


def test_reports_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RATE.rate = 1.0  # type: ignore[misc]
