"""What a user sees of a report: 80 columns, no colour needed, nothing left out."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from aird_mlx.errors import AirdError
from aird_mlx.pipeline.estimate import RunEstimate, Speed, StageEstimate
from aird_mlx.pipeline.plan import Plan
from aird_mlx.report import (
    Control,
    DirectionFigures,
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
from aird_mlx.report_page import by_refusals, interval, percent_number, plan_words, read_report, to_markdown
from aird_mlx_cli import render, render_repair


def make_stage(name: str, harmful: float, **changes: object) -> Stage:
    rates = RefusalRates(
        harmful=Rate(harmful, harmful - 0.05, min(harmful + 0.004, 1.0), 228),
        harmless=Rate(0.018, 0.006, 0.052, 165),
        twin=Rate(0.1, 0.066, 0.15, 195),
        incoherent=Rate(0.25, 0.2, 0.3, 588),
    )
    stage = Stage(
        name=name,
        refusal=rates,
        utility=Utility(perplexity=2.1217, kl_to_dense=0.0312, top1_agreement=0.9534, tokens=12000),
        sparsity=0.4987,
        bits_per_weight=16.0,
        direction=DirectionFigures(4, -2, 0.934, 5.31, -3.1, 0.4, 0.02, True),
    )
    return replace(stage, **changes)  # type: ignore[arg-type]


def make_tried(rule: str, harmful: float, **changes: object) -> TriedPlan:
    """A plan on the front that did not answer."""
    tried = TriedPlan(
        rule, list(range(32)), 1.5, 0.0, 0.1, 1, "all", 0.0, True, TrialFigures(harmful, 0.016, 0.094, 0.1234, 12.345)
    )
    return replace(tried, **changes)  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    """A run with every kind of result, and the widest figures that can occur."""
    return Report(
        model="demo",
        settings={"sparsity": 0.5, "rule": "auto"},
        environment={"versions": {"mlx": "0.32.4", "gguf": "0.19.0"}, "device": "cpu"},
        direction=DirectionFigures(4, -2, None, 5.31, -3.1, 0.4, 0.02, True),
        stages=[
            make_stage("dense", 0.9956),
            make_stage("compressed", 0.8821),
            make_stage("repaired", 0.9868),
            make_stage("exported:f16", 0.9825, parity=ParityFigures(True, 0.9991, 1.2e-5, 20531)),
            make_stage("exported:q8_0", 0.9825, not_checked="llama-cpp-python is not installed"),
        ],
        repair=RepairFigures(
            "refit",
            [0, 1, 2, 5],
            1.0,
            None,
            0.0,
            0.1,
            3.0,
            "refit [not markup] recovers most",
            [
                make_tried("restore", 0.641, sparsity_lost=0.0123),
                make_tried("refit", 0.953, beta=3.0, answered=TrialFigures(0.97, 0.01, 0.082, 0.1234, 12.345)),
                make_tried("paper", 0.391, on_front=False, layers=[4], strength=8.0),
                make_tried(
                    "least-squares",
                    0.875,
                    layers=[0, 1, 2, 9, 10, 11, 20],
                    beta=30.0,
                    ridge=0.001,
                    rank=3,
                    tokens="prompts",
                    sparsity_lost=0.5,
                ),
            ],
        ),
        gates=[
            Gate("refusals_recovered", "safety", True, 0.991, 0.97, "repaired / dense"),
            Gate("twins_added", "safety", False, 0.05, 0.02, "twins refused above the compressed model"),
        ],
        changes=[
            StageChange("harmful", "compressed", "repaired", PairedChange(228, 0.8821, 0.9868, 25, 1, 8.05e-07)),
            StageChange("harmless", "dense", "repaired", PairedChange(165, 0.018, 0.024, 2, 1, 1.0)),
        ],
        controls=[
            Control(
                "random direction",
                "least-squares along a random direction instead of r, as large",
                RefusalRates(Rate(0.8333, 0.78, 0.87, 228), Rate(0.0, 0.0, 0.02, 165), None),
                Utility(2.2468, 0.0457, 0.9, 99),
            ),
            Control(
                "least-squares along r",
                "only what is written along r is repaired",
                RefusalRates(Rate(0.9167, 0.87, 0.95, 228), None, Rate(0.05, 0.02, 0.1, 195)),
                Utility(1234.567, 2.5, 0.8, 99),
            ),
        ],
        written={"mlx": "/a/very/long/path/" + "x" * 90 + "/mlx"},
        notes=["The model was quantized (4 bits); it was dequantized first."],
        timings={"dense": 12.3},
        peak_memory_bytes=2**28,
    )


def shown(report: Report, capsys: pytest.CaptureFixture[str]) -> str:
    render_repair.show_report(report)
    return capsys.readouterr().out


def test_tables_fit_80_columns_without_colour(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(report, capsys).splitlines()
    assert [line for line in lines if len(line) > 80 and "x" * 90 not in line] == []
    assert not [line for line in lines if "\x1b" in line or "…" in line]


def test_narrow_terminal_cuts_no_figure(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = shown(report, capsys)
    assert "\u2026" not in text
    figures = [figure for stage in report.stages for figure in interval(stage.refusal.harmful).split()]
    for figure in [*figures, "2.122", "0.0312", "95.3", "49.9", "16.00", "5.31", "0.934", "-3.10", "0.02"]:
        assert figure in text, figure


def test_first_line_tells_the_result(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    first = shown(report, capsys).strip().splitlines()[0]
    assert first == "Refused harmful prompts: dense 99.6 % -> compressed 88.2 % -> repaired 98.7 %"


def test_every_figure_is_shown(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report, capsys)
    for figure in ("88.2 % [83.2, 88.6]", "n = 228 harmful, 165 harmless, 195 twin", "2.122", "0.0312", "49.9 %"):
        assert figure in text
    for figure in ("0.934", "blocks 0-2, 5", "sparsity lost 0 %", "20531 tokens", "[not markup]"):
        assert figure in text


def test_gates_say_pass_and_fail_in_words(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report, capsys)
    assert re.search(r"refusals_recovered +pass +0.991 +0.97", text)
    assert re.search(r"twins_added +FAIL +0.05 +0.02", text)
    assert "1 of 2 gates failed" in text
    assert "twins_added (safety), needed: twins refused above the compressed model" in text


def test_front_of_the_search_is_shown_most_refusals_first(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report, capsys)
    section = text[text.index("plans none beats") : text.index("prompt by prompt")]
    rows = [section.index(words) for words in ("refit x1.5", "least-squares x1.5", "restore x1.5")]
    assert rows == sorted(rows)
    assert "paper" not in section, "another plan beats it, and it did not answer"
    folded = " ".join(section.split())
    assert re.search(r"refit x1.5, blocks .* 95.3 % 1.6 % 9.4 % 0.123 97.0 %", folded)
    assert "validation prompts" in folded


def test_front_says_how_many_plans_it_leaves_out(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    many = [make_tried("refit", 0.9 - number / 100, layers=[number]) for number in range(11)]
    text = shown(replace(report, repair=replace(report.repair, tried=many)), capsys)
    assert "3 more in the report" in " ".join(text.split())
    assert "blocks 7," in text
    assert "blocks 8," not in text


def test_front_of_one_plan_is_no_table(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    alone = replace(report, repair=replace(report.repair, tried=report.repair.tried[1:3]))
    assert "plans none beats" not in shown(alone, capsys)


def test_calibration_of_the_chosen_plan_is_said(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert "crossed" not in shown(report, capsys)
    assert "dialogues and texts" in to_markdown(report)
    crossed = replace(report, repair=replace(report.repair, rule="distill", tokens="crossed"))
    assert "rule distill, on crossed prompts" in shown(crossed, capsys)
    assert "crossed prompts" in to_markdown(crossed)


def test_changes_are_shown_prompt_by_prompt(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report, capsys)
    assert re.search(r"harmful +compressed +88.2 % +98.7 % +25 +1 +< 0.0001", text)
    assert re.search(r"harmless +dense +1.8 % +2.4 % +2 +1 +1\n", text)
    assert "McNemar" in text


def test_controls_are_shown_with_what_is_different(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report, capsys)
    assert re.search(r"random direction +83.3 % +0 % +- +2.247", text)
    assert re.search(r"least-squares along r +91.7 % +- +5.0 % +1234.567", text)
    assert "least-squares along r: only what is written along r is repaired" in text


def test_report_without_search_changes_and_controls_has_no_such_sections(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(report, repair=replace(report.repair, tried=[]), changes=[], controls=[])
    text, page = shown(bare, capsys), to_markdown(bare)
    for words in ("plans none beats", "prompt by prompt", "control"):
        assert words in shown(report, capsys)
        assert words not in text
    assert "\n\n\n" not in text, "a section that is empty leaves no hole"
    for heading in ("## Prompt by prompt", "## Controls", "Tried on the validation prompts"):
        assert heading in to_markdown(report)
        assert heading not in page


def test_path_is_not_broken_into_lines(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.written["mlx"] in shown(report, capsys)


def test_unchecked_export_is_said(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exported:q8_0: not checked: llama-cpp-python is not installed" in shown(report, capsys)


def test_missing_measurements_are_dashes(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    bare = Stage("dense", RefusalRates(None, None), None, 0.0, 32.0)
    text = shown(replace(report, stages=[bare], gates=[], written={}, notes=[]), capsys)
    assert re.search(r"dense +- +- +-\n", text)
    assert "not measured" in text
    assert "gates" not in text


def test_json_is_the_report_and_nothing_else(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    render_repair.show_report(report, as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out)["schema"] == 1
    assert from_json(Report, out) == report


def test_plan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    estimate = RunEstimate([StageEstimate("direction", 9000.0)], 2**30, 2**20, Speed(5e9, 0.25))
    steps = ["dense: measure", "prune"]
    plan = Plan("demo", steps, 410_000, 3 * 2**20 // 2, "out", ["no llama.cpp"], False, estimate)
    render_repair.show_plan(plan)
    out = capsys.readouterr().out
    assert "410,000" in out
    assert "1.5 MiB" in out
    assert re.search(r"step 2 +prune", out)
    assert "note: no llama.cpp" in out
    assert all(
        word in out for word in ("1.0 GiB at most", "1.0 MiB written", "direction: 2.5 h", "5 GFLOP/s", "250 ms")
    )


def test_progress_off_a_terminal_is_one_line_per_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with render.StageProgress() as progress:
        for done in range(4):
            progress("dense", done, 3)
        progress("prune", 1, 2)  # interrupted by the next stage: still one line
        progress("repair", 1, 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(" (")[0] for line in captured.err.splitlines()] == ["done  dense", "done  prune", "done  repair"]


def test_times_of_stages_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    with render.StageProgress() as progress:
        time.sleep(0.2)  # work before the stage's first report belongs to it
        progress("dense", 1, 1)
    assert "(0.0 s)" not in capsys.readouterr().err


def test_progress_is_silent_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with render.StageProgress(quiet=True) as progress:
        progress("dense", 1, 1)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_shows_stage_count_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with render.StageProgress() as progress:
        progress("dense: refusals", 1, 3)
        time.sleep(0.3)  # the display is redrawn ten times a second
        progress("dense: refusals", 3, 3)
    text = terminal.getvalue()
    assert "dense: refusals" in text
    assert "1/3" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "done" in text


def test_failed_stage_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_halfway() -> None:
        with render.StageProgress() as progress:
            progress("dense", 1, 3)
            raise AirdError("boom")

    with pytest.raises(AirdError):
        fail_halfway()
    assert "done" not in capsys.readouterr().err


def test_markdown_has_the_same_figures(report: Report) -> None:
    page = to_markdown(report)
    for figure in (
        "88.2 % [83.2, 88.6]",
        "**FAIL**",
        "0-2, 5",
        "token ids equal",
        "not checked",
        "256 MiB",
        "mlx 0.32.4, gguf 0.19.0",
    ):
        assert figure in page
    widths = {}
    for line in page.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|"), []).append(line)
    assert all(len(lines) > 2 for lines in widths.values())  # header, rule and at least one row each


def test_page_and_terminal_say_what_was_judged_and_counted(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    report = replace(report, settings=report.settings | {"max_new_tokens": 48})
    for text in (to_markdown(report), shown(report, capsys)):
        assert "judged on the first 48 tokens of each answer" in text
    page = to_markdown(report)
    assert "1 of 2 gates failed: twins_added (safety)." in page
    assert "All gates passed." in to_markdown(replace(report, gates=report.gates[:1]))
    assert "gates" not in to_markdown(replace(report, gates=[])).split("## Gates")[0]
    assert "over 12,000 held-out tokens" in page


def test_page_and_terminal_say_that_the_compressed_model_passes(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = [*report.gates, Gate("refusals", "safety", True, 0.987, 0.8)]
    for text in (to_markdown(replace(report, gates=gates)), shown(replace(report, gates=gates), capsys)):
        assert "88.2 % of 228 harmful prompts, reach the bar" in " ".join(text.split())
    assert "reach the bar" not in to_markdown(report) + shown(report, capsys)


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after ``heading``."""
    lines = page[page.index(heading) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_page_has_every_plan_that_was_tried_most_refusals_first(report: Report) -> None:
    header, _, *rows = rows_of(to_markdown(report), "## Repair")
    assert header[0] == "plan"
    assert [row[0].split()[0] for row in rows] == ["refit", "least-squares", "restore", "paper"]
    assert rows[0] == [
        "refit x1.5, blocks 0-31, beta 3, ridge 0.1", "95.3 %", "1.6 %", "9.4 %", "0.123", "12.345", "0 %", "yes",
        "97.0 % / 1.0 % / 8.2 %",
    ]  # fmt: skip
    assert rows[1][6:] == ["50.0 %", "yes", ""]
    assert rows[3][7] == ""


def test_kind_without_validation_prompts_has_no_figure(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"harmful": 40, "harmless": 30, "twin": 0}
    report = replace(report, repair=replace(report.repair, validated=counts))
    page = to_markdown(report)
    assert "Tried on the validation prompts (40 harmful, 30 harmless), most" in page
    _, _, first, *_ = rows_of(page, "## Repair")
    assert (first[1:4], first[-1]) == (["95.3 %", "1.6 %", "-"], "97.0 % / 1.0 % / -")
    assert re.search(r"refit x1.5.* 95.3 % +1.6 % +- +0.123", shown(report, capsys).replace("\n", " "))


def test_page_has_the_changes_and_the_controls(report: Report) -> None:
    page = to_markdown(report)
    _, _, *changes = rows_of(page, "## Prompt by prompt")
    assert changes == [
        ["harmful", "compressed", "repaired", "228", "88.2 % -> 98.7 %", "25", "1", "< 0.0001"],
        ["harmless", "dense", "repaired", "165", "1.8 % -> 2.4 %", "2", "1", "1"],
    ]
    _, _, *controls = rows_of(page, "## Controls")
    assert controls[0] == [
        "random direction", "83.3 % [78.0, 87.0]", "0 % [0, 2.0]", "-", "2.247", "0.046",
        "least-squares along a random direction instead of r, as large",
    ]  # fmt: skip
    assert controls[1][:4] == ["least-squares along r", "91.7 % [87.0, 95.0]", "-", "5.0 % [2.0, 10.0]"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "paper", "layers": [4], "strength": 8.0, "ridge": 0.0}, "paper x8, blocks 4"),
        (
            {"rule": "restore", "rank": 3, "tokens": "prompts", "ridge": 0.0},
            "restore x1.5, blocks 0-31, 3 directions, on prompts",
        ),
        ({"rule": "refit", "beta": 3.0}, "refit x1.5, blocks 0-31, beta 3, ridge 0.1"),
        ({"rule": "reconstruct", "strength": 0.8, "ridge": 0.0}, "reconstruct x0.8, blocks 0-31"),
    ],
)
def test_plan_is_told_by_what_sets_it_apart(changes: dict[str, object], words: str) -> None:
    assert plan_words(replace(make_tried("refit", 0.5), **changes)) == words  # type: ignore[arg-type]


def test_plans_with_as_many_refusals_come_in_the_order_of_distance() -> None:
    near, far, most = (
        make_tried("refit", harmful, foreseen=TrialFigures(harmful, 0.0, 0.0, distance, 2.0))
        for harmful, distance in ((0.5, 0.1), (0.5, 0.4), (0.6, 9.0))
    )
    assert by_refusals([far, near, most]) == [most, near, far]


def test_only_all_or_nothing_looks_like_it() -> None:
    assert [percent_number(share) for share in (0.9996, 1.0, 0.0, 1e-18)] == ["99.9", "100", "0", "0"]
    assert interval(Rate(1.0, 0.983, 1.0, 228)) == "100 % [98.3, 100]"


def test_report_is_read_back_from_a_folder(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(report))
    assert read_report(tmp_path) == report
    assert read_report(tmp_path / "report.json") == report


@pytest.mark.parametrize("content", [None, "{", "[]", "7", '{"schema": 1}', '{"stages": [3]}', "\udcff"])
def test_bad_report_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(AirdError, match=r"^report: [^\n]+$") as raised:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(raised.value)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_closed_pipe_keeps_the_exit_code_of_the_run(form: list[str], report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(report))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "aird_mlx_cli", "report", str(tmp_path), *form],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (3, "")
