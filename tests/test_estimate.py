"""What a run is said to take, from fixed speeds: what it grows with, and what the dry run shows of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aird_mlx.errors import OutputError
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import load
from aird_mlx.pipeline import RepairSettings, repair_model
from aird_mlx.pipeline.estimate import RunEstimate, Speed, disk_bytes, estimate_run, measure_speed
from aird_mlx_cli.main import main
from conftest import write_model

SPEED = Speed(flops=1e9, pass_seconds=1e-3)


def estimate(settings: RepairSettings, *, streaming: bool = False, speed: Speed = SPEED) -> RunEstimate:
    model = load(settings.model, streaming=streaming)
    return estimate_run(settings, model, gather_inputs(settings.model, 0), speed)


def seconds(found: RunEstimate) -> dict[str, float]:
    return {one.name: one.seconds for one in found.stages}


def test_seconds_follow_speed_and_work() -> None:
    settings = RepairSettings("demo", rule="refit")
    base = seconds(estimate(settings))
    twice = seconds(estimate(settings, speed=Speed(5e8, 2e-3)))
    assert twice == pytest.approx({name: 2 * value for name, value in base.items()})
    longer = seconds(estimate(dataclasses.replace(settings, max_new_tokens=128)))
    assert longer["dense answers"] > 1.5 * base["dense answers"]
    assert longer["direction"] == base["direction"]
    magnitude = seconds(estimate(dataclasses.replace(settings, prune_method="magnitude")))
    sparsegpt = seconds(estimate(dataclasses.replace(settings, prune_method="sparsegpt")))
    assert magnitude["compress"] < base["compress"] < sparsegpt["compress"]
    assert seconds(estimate(dataclasses.replace(settings, rule="paper")))["repair"] < base["repair"]
    assert seconds(estimate(dataclasses.replace(settings, rule="auto")))["repair"] > base["repair"]


def test_answers_are_counted_as_passes_and_weights(model_folder: Callable[..., Path]) -> None:
    """By hand: 2 weights x tokens / speed, a pass per token of each batch, and the head at each token."""
    folder = str(model_folder())
    settings = RepairSettings(folder, max_new_tokens=16, batch_size=8)
    model, inputs = load(folder), gather_inputs(folder, 0)
    found = seconds(estimate_run(settings, model, inputs, Speed(1e9, 1.0)))
    prompts = sum(len(inputs.contrast.part(kind, part)) for kind in ("harmful", "harmless", "twin")
                  for part in ("find", "validate", "test"))  # fmt: skip
    passes = -(-prompts // 8) * 16
    weights = sum(block.size for one in model.blocks for block in _arrays(one))
    least = passes + (2 * weights * prompts * 16 + 2 * 320 * 32 * prompts * 16) / 1e9
    assert least < found["dense answers"] < least + 2 * weights * prompts * 256 / 1e9


def _arrays(block: object) -> list[object]:
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(block.parameters())]  # type: ignore[attr-defined]


def test_streaming_takes_less_memory_and_room(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "deep", num_hidden_layers=12, hidden_size=256, intermediate_size=1024)
    settings = RepairSettings(str(folder), rule="refit", gguf=())
    whole, streamed = estimate(settings), estimate(settings, streaming=True)
    stored = (folder / "model.safetensors").stat().st_size
    assert whole.peak_memory_bytes - streamed.peak_memory_bytes > 3 * stored
    assert whole.disk_bytes == pytest.approx(3 * stored, rel=0.01)
    assert streamed.disk_bytes == pytest.approx(2 * stored, rel=0.01)
    model = load(folder)
    with_files = disk_bytes(dataclasses.replace(settings, gguf=("f16", "q8_0")), model)
    assert with_files == whole.disk_bytes + 4 * model.parameters


def test_speed_of_a_streamed_model_is_measured() -> None:
    streamed = load("demo", streaming=True)
    speed = measure_speed(streamed)
    assert speed.flops > 0
    assert speed.pass_seconds > 0


def test_dry_run_shows_memory_room_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["repair", "demo", "--dry-run", "--streaming", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("one block in memory at a time", "written, what is removed", "timed now"))
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["streaming"] is True
    assert plan["estimate"]["stages"][0]["name"] == "dense answers"
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_run_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird_mlx.pipeline.run.disk_bytes", lambda settings, model: 10**18)
    with pytest.raises(OutputError, match="GB free"):
        repair_model(RepairSettings("demo", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
