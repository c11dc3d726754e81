"""The main job on the embedded model, with real prompts, real files and real llama.cpp."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.errors import AirdError, DirectionError, OutputError, PromptError, ResumeError, UsageError
from aird_mlx.gguf_export import is_available
from aird_mlx.model import load
from aird_mlx.pipeline import RepairSettings, output_folder, plan_repair, repair_model
from aird_mlx.report import Report, from_json

QUICK: dict[str, Any] = {"model": "demo", "limit": 16, "gguf": (), "max_new_tokens": 32}


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """`aird-mlx repair demo --sparsity 0.6` as a user runs it, all test prompts."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, repair_model(RepairSettings(model="demo", sparsity=0.6, out=out))


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The same with few test prompts, pruned 2:4 by magnitude."""
    out = tmp_path_factory.mktemp("quick") / "out"
    settings = RepairSettings(**QUICK, prune_method="magnitude", pattern="2:4", out=out)
    return out, repair_model(settings)


def test_repair_brings_refusals_back_on_held_out_prompts(full_run: tuple[Path, Report]) -> None:
    _, report = full_run
    dense, compressed, repaired = (report.stage(name) for name in ("dense", "compressed", "repaired"))
    assert dense.refusal.harmful and compressed.refusal.harmful and repaired.refusal.harmful
    assert min(rate.n for rate in (dense.refusal.harmful, repaired.refusal.harmful)) >= 200
    assert compressed.refusal.harmful.rate <= dense.refusal.harmful.rate - 0.15
    assert repaired.refusal.harmful.rate >= 0.97 * dense.refusal.harmful.rate
    assert report.exit_code == 0


def test_repair_costs_neither_answers_nor_perplexity_nor_sparsity(full_run: tuple[Path, Report]) -> None:
    _, report = full_run
    compressed, repaired = report.stage("compressed"), report.stage("repaired")
    for kind in ("harmless", "twin"):
        before, after = getattr(compressed.refusal, kind), getattr(repaired.refusal, kind)
        assert after.n >= 200
        assert after.rate <= before.rate + 0.02
    assert compressed.utility and repaired.utility
    assert repaired.utility.perplexity <= compressed.utility.perplexity
    assert report.repair.sparsity_lost == 0
    assert all(gate.passed for gate in report.gates), report.gates


def test_written_model_has_the_reported_sparsity(full_run: tuple[Path, Report]) -> None:
    out, report = full_run
    zeros = total = 0
    for name, array in mx.load(str(out / "mlx" / "model.safetensors")).items():
        if name.endswith("_proj.weight"):
            values = np.array(array)
            zeros, total = zeros + int((values == 0).sum()), total + values.size
    assert report.stage("repaired").sparsity == pytest.approx(zeros / total, abs=1e-12)
    # floor(in * sparsity) per row: a little under what was asked for, never over.
    assert 0.58 < zeros / total <= 0.6


def test_written_model_loads_in_mlx_lm(full_run: tuple[Path, Report]) -> None:
    import mlx_lm

    out, _ = full_run
    network, tokenizer = mlx_lm.load(str(out / "mlx"))
    assert tokenizer.chat_template
    assert network(mx.array([[1, 2, 3]])).shape[:2] == (1, 3)


@pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
def test_exported_file_refuses_like_the_model_in_llama_cpp(full_run: tuple[Path, Report]) -> None:
    _, report = full_run
    exported, repaired = report.stage("exported:f16"), report.stage("repaired")
    assert exported.parity and exported.refusal.harmful and repaired.refusal.harmful
    assert exported.parity.token_ids_equal
    assert exported.parity.argmax_agreement >= 0.99
    assert abs(exported.refusal.harmful.rate - repaired.refusal.harmful.rate) <= 0.02


def test_report_file_is_the_returned_report(full_run: tuple[Path, Report]) -> None:
    out, report = full_run
    assert from_json(Report, (out / "report.json").read_text()) == report
    assert "repaired" in (out / "report.md").read_text()
    left = {path.name for path in out.iterdir()}
    assert left == {"mlx", "gguf", "direction.safetensors", "patch.safetensors", "report.json", "report.md"}


def test_direction_is_measured_before_and_after(full_run: tuple[Path, Report]) -> None:
    _, report = full_run
    assert report.direction.survived
    cosines = [report.stage(name).direction.cosine_to_dense for name in ("compressed", "repaired")]  # type: ignore[union-attr]
    calibrated = [report.stage(name).direction.calibrated_cosine for name in ("compressed", "repaired")]  # type: ignore[union-attr]
    assert 0 < calibrated[0] < calibrated[1] < 1.02  # type: ignore[operator]
    assert cosines[0] is not None
    assert cosines[1] is not None
    assert 0 < cosines[0] < 1
    assert cosines[1] > cosines[0]


def test_pattern_holds_in_what_was_written(quick_run: tuple[Path, Report]) -> None:
    out, report = quick_run
    for _, _, linear in load(out / "mlx").linears():
        zeros = (np.array(linear.weight).reshape(linear.weight.shape[0], -1, 4) == 0).sum(axis=-1)
        assert (zeros >= 2).all()
    assert report.stage("repaired").sparsity == pytest.approx(0.5)
    assert report.repair.sparsity_lost == 0


def figures(report: Report) -> dict[str, Any]:
    """A report without what may differ between equal runs: time, memory and paths."""
    plain = dataclasses.asdict(report)
    for key in ("timings", "peak_memory_bytes", "written"):
        plain.pop(key)
    plain["settings"].pop("out")
    return plain


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every output file but the reports, which hold times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("report.")
    }


def test_interrupted_run_leaves_no_output_and_resumes_to_the_same_figures_and_files(
    quick_run: tuple[Path, Report], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "aird_mlx_cli",
        "repair",
        "demo",
        "--prune-method",
        "magnitude",
        "--pattern",
        "2:4",
    ]
    command += ["--limit", "16", "--gguf", "none", "--max-new-tokens", "32", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    waiting_for = tmp_path / "out.partial" / "direction.safetensors"
    deadline = time.monotonic() + 300
    while not waiting_for.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(stderr.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in stderr
    assert not out.exists()
    with pytest.raises(ResumeError):
        repair_model(RepairSettings(**QUICK, prune_method="magnitude", pattern="2:4", out=out, resume=True, seed=9))
    settings = RepairSettings(**QUICK, prune_method="magnitude", pattern="2:4", out=out, resume=True)
    report = repair_model(settings)
    assert figures(report) == figures(quick_run[1])
    assert hashes(out) == hashes(quick_run[0])
    assert not waiting_for.parent.exists()


def test_model_that_never_refuses_is_said_to_have_nothing_to_repair(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    settings = RepairSettings(model=str(model_folder()), out=tmp_path / "out", max_new_tokens=8, limit=4)
    with pytest.raises(DirectionError, match="no refusal to repair"):
        repair_model(settings)
    assert not (tmp_path / "out").exists()


def test_test_prompts_that_the_dense_model_answers_are_no_test_of_refusals(tmp_path: Path) -> None:
    from aird_mlx.demo.language import prompts

    (tmp_path / "benign.txt").write_text("\n".join(prompts("twin", "test", 20, 77)))
    settings = RepairSettings(**QUICK, rule="restore", test_harmful=tmp_path / "benign.txt", out=tmp_path / "out")
    with pytest.raises(DirectionError, match="refuses 0% of the harmful prompts"):
        repair_model(settings)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"sparsity": 1.0}, UsageError),
        ({"sparsity": -0.1}, UsageError),
        ({"pattern": "3:7"}, UsageError),
        ({"pattern": "4:2"}, UsageError),
        ({"prune_method": "guess"}, UsageError),
        ({"rule": "hope"}, UsageError),
        ({"gguf": ("q9",)}, UsageError),
        ({"harmful": Path("/no/such/file.txt")}, PromptError),
        ({"calibration": Path("/no/such/file.txt")}, PromptError),
        ({"model": "/no/such/dir"}, AirdError),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    changes: dict[str, Any], kind: type[AirdError], tmp_path: Path
) -> None:
    settings = dataclasses.replace(RepairSettings(model="demo", out=tmp_path / "out"), **changes)
    for act in (repair_model, plan_repair):
        with pytest.raises(kind) as caught:
            act(settings)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_existing_output_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        repair_model(RepairSettings(model="demo", out=tmp_path))


def test_plan_names_every_stage_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_repair(RepairSettings(model="demo", gguf=("f16", "q8_0")))
    assert len(plan.stages) == 6
    assert plan.parameters > 100_000
    assert list(tmp_path.iterdir()) == []


def test_default_output_folder_is_named_after_the_job_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RepairSettings(model="demo", pattern="2:4")
    assert output_folder(settings) == Path("demo-wanda-2of4-repaired")
    output_folder(settings).mkdir()
    assert output_folder(settings) == Path("demo-wanda-2of4-repaired-2")


def test_prompt_files_replace_the_built_in_sets(tmp_path: Path) -> None:
    from aird_mlx.demo.language import prompts

    for kind in ("harmful", "harmless"):
        rows = [json.dumps({"prompt": prompt}) for prompt in prompts(kind, "validation", 60, 5)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows))
    settings = RepairSettings(
        **QUICK | {"limit": None, "rule": "restore"},
        harmful=tmp_path / "harmful.jsonl",
        harmless=tmp_path / "harmless.jsonl",
        out=tmp_path / "out",
    )
    report = repair_model(settings)
    harmful = report.stage("repaired").refusal.harmful
    assert harmful is not None
    assert harmful.n == 24
