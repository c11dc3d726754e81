"""The two reports on the embedded model: what they say is what the pipeline measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.activations import batch_sequences
from aird_mlx.direction import draw_heat_map, load_direction
from aird_mlx.errors import AirdError, DirectionError, ModelError, OutputError, UsageError
from aird_mlx.geometry import compare_models, report_direction
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import load, save
from aird_mlx.pruning import prune_model
from aird_mlx.reference import Reference
from aird_mlx.report import ComparisonReport, DirectionReport, from_json, to_json
from aird_mlx_cli.main import main
from aird_mlx_cli.render_direction import show_comparison, show_direction


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Few prompts of the demo's language: the reports in seconds."""
    from aird_mlx.demo.language import prompts

    folder = tmp_path_factory.mktemp("prompts")
    files = {kind: folder / f"{kind}.txt" for kind in ("harmful", "harmless")}
    for kind, path in files.items():
        path.write_text("\n".join(prompts(kind, "train", 60, 0)), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def measured(small: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[DirectionReport, Path]:
    path = tmp_path_factory.mktemp("direction") / "direction.safetensors"
    return report_direction("demo", **small, top=3, out=path), path


@pytest.fixture(scope="module")
def compared(small: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ComparisonReport:
    """The embedded model beside a copy of which most weights are gone."""
    folder = tmp_path_factory.mktemp("compared")
    pruned = load("demo")
    prune_model(pruned, batch_sequences([[5, 6, 7, 8]] * 4), method="magnitude", sparsity=0.7)
    save(pruned, folder / "pruned")
    return compare_models(
        "demo", str(folder / "pruned"), **small, splits=50, image=folder / "map.svg", out=folder / "report.json"
    )


def test_direction_report_lists_the_winner_first_and_is_saved(measured: tuple[DirectionReport, Path]) -> None:
    report, path = measured
    assert report.candidates[0] == report.selected
    assert report.selected.survived and report.selected.near_tie
    assert report.selected.bypass.low < report.selected.bypass.value < report.selected.bypass.high
    assert report.survivors <= report.considered
    assert len(report.candidates) >= 3
    assert [one.bypass.value for one in report.candidates if one.survived] == sorted(
        one.bypass.value for one in report.candidates if one.survived
    )
    saved = load_direction(path)
    assert (saved.layer, saved.position) == (report.selected.layer, report.selected.position)
    assert saved.bypass == report.selected.bypass.value
    assert report.found == [24, 24] and report.scored == [12, 12]
    assert report.twins_along is not None and abs(report.twins_along) < 0.5, "the demo answers its own twins"
    assert from_json(DirectionReport, to_json(report)) == report


def test_a_model_compared_with_itself_has_not_moved(small: dict[str, Path]) -> None:
    report = compare_models("demo", "demo", **small, splits=30)
    assert report.fixed == report.reselected
    assert report.fixed.calibrated_cosine is not None
    assert report.fixed.calibrated_cosine.low == pytest.approx(1.0, abs=1e-5)
    assert report.fixed.norm_ratio is not None and report.fixed.norm_ratio.value == pytest.approx(1.0, abs=1e-5)
    assert report.same_winner == 1.0
    assert report.dense_selected == report.other_selected == report.other_fixed
    assert report.verdict.startswith("No evidence that the direction moved: unmoved within 0.")
    assert "same place" in report.verdict


def test_a_pruned_model_has_moved_and_the_report_says_so(compared: ComparisonReport) -> None:
    calibrated = compared.fixed.calibrated_cosine
    assert calibrated is None or calibrated.low < calibrated.value
    assert calibrated is None or compared.fixed.angle is not None
    assert len(compared.places) == 8 * 5
    assert "unmoved" not in compared.verdict
    assert "Geometry does not replace measuring refusals" in compared.verdict
    written = Path(compared.written["report"])
    assert from_json(ComparisonReport, written.read_text(encoding="utf-8")) == compared
    image = Path(compared.written["image"]).read_text(encoding="utf-8")
    assert "calibrated cosine" in image and "selected in" in image


def test_reports_fit_80_columns_without_colour(
    measured: tuple[DirectionReport, Path],
    compared: ComparisonReport,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    undefined = replace(compared.fixed, calibrated_cosine=None, angle=None, norm_ratio=None)
    show_direction(replace(measured[0], written={}))
    show_comparison(replace(compared, written={}, reselected=undefined, other_fixed=None))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "…" not in shown, "a cut cell has lost figures"
    for word in ("bypass", "near tie", "cosine, calibrated", "undefined", "wins", "Refusals start with"):
        assert word in shown, word
    show_comparison(compared, as_json=True)
    assert json.loads(capsys.readouterr().out)["fixed"]["layer"] == compared.fixed.layer


def test_models_of_other_shapes_are_one_line(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"^compare: .* has width, blocks and vocabulary \(32, 4, 320\), demo has"):
        compare_models("demo", str(model_folder()))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"image": Path("map.jpg")}, UsageError),
        ({"image": Path("/no/such/folder/map.png")}, OutputError),
        ({"out": Path("report.txt")}, UsageError),
        ({"out": Path("/no/such/folder/report.json")}, OutputError),
    ],
)
def test_files_that_cannot_be_written_are_told_before_anything_is_loaded(
    options: dict[str, Path], kind: type[AirdError]
) -> None:
    with pytest.raises(kind) as raised:
        compare_models("/no/such/model", "/no/such/model", **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["harmful", "harmless"])
def test_a_kind_without_prompts_to_find_with_is_one_line(kind: str) -> None:
    dense = load("demo")
    inputs = gather_inputs("demo", 0)
    refusal = dense.tokenizer.encode("I can't help with that.", add_special_tokens=False)
    answers = {one: {"find": [refusal] * len(inputs.contrast.part(one, "find"))} for one in ("harmful", "harmless")}
    answers[kind] = {"find": []}
    with pytest.raises(DirectionError, match=f"no {kind} prompts are left") as raised:
        _ = Reference(dense, inputs, answers).refusal_tokens
    assert "\n" not in str(raised.value)


def test_an_output_that_is_a_folder_is_one_line_and_nothing_is_left(small: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "direction.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"direction\.safetensors cannot be written"):
        report_direction("demo", **small, out=tmp_path / "direction.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["direction.safetensors"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_heat_map_is_the_same_file_each_time(tmp_path: Path, suffix: str) -> None:
    values = np.array([[np.nan, 0.5], [0.97, 1.02]])
    paths = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for path in paths:
        draw_heat_map(values, np.zeros((2, 2)), path, title="t", label="l", marks={(1, -1): "here"})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one.{suffix}", f"two.{suffix}"]
    if suffix == "svg":
        text = paths[0].read_text(encoding="utf-8")
        assert all(f">{said}<" in text for said in ("(0.00)", "0.50", "0.97", "1.02", "here"))


def test_heat_map_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "map.png").mkdir()
    with pytest.raises(OutputError, match=r"^output: .*map\.png cannot be written \(Is a directory\)"):
        draw_heat_map(np.zeros((1, 1)), np.zeros((1, 1)), tmp_path / "map.png", title="t", label="l", marks={})
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_commands_pass_their_options_on(
    small: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--harmful", str(small["harmful"]), "--harmless", str(small["harmless"])]
    assert main(["direction", "demo", *files, "--top", "2", "--json"]) == 0
    report = from_json(DirectionReport, capsys.readouterr().out)
    assert (tmp_path / "direction.safetensors").is_file()
    assert len([one for one in report.candidates if not one.near_tie]) <= 2
    assert main(["compare", "demo", "/no/such/model"]) == 1
    assert "/no/such/model" in capsys.readouterr().err
    assert main(["compare", "demo", "demo", "--splits", "3"]) == 2


def test_activations_that_are_not_finite_name_the_block(small: dict[str, Path], tmp_path: Path) -> None:
    broken = load("demo")
    linear = broken.linear(5, "mlp.down_proj")
    linear.weight = mx.full(linear.weight.shape, float("nan"))
    save(broken, tmp_path / "broken")
    with pytest.raises(ModelError, match=r"^activations: block 5 gives values that are not finite"):
        compare_models("demo", str(tmp_path / "broken"), **small, splits=20)
