"""A model streamed block by block: the same bytes as in memory, after a kill as well, and never more than a block."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from aird_mlx.activations import TokenBatch, Walk, batch_sequences
from aird_mlx.architectures.table import TABLE
from aird_mlx.compress import write_pruned
from aird_mlx.errors import OutputError, ResumeError, UsageError
from aird_mlx.evaluation import generate_answers, measure_utility
from aird_mlx.model import ChatModel, ShardFolder, exact_logits, load, needs_streaming, save
from aird_mlx.patch import fold
from aird_mlx.pipeline import RepairSettings, repair_model
from aird_mlx.pruning import prune_model
from aird_mlx.quantization import quantize_model
from aird_mlx.repair import RepairPlan, reconstruct_block, repair_blocks, solve_patch
from aird_mlx.settings import PruningSettings
from aird_mlx.workspace import check_space
from aird_mlx_cli.main import main
from conftest import write_model
from test_architectures import write_family

ROOT = Path(__file__).parent.parent


def calibration_of(model: ChatModel, sequences: int = 40) -> list[TokenBatch]:
    generator = random.Random(0)
    most = min(300, model.vocabulary)
    drawn = [[generator.randrange(3, most) for _ in range(generator.randrange(5, 40))] for _ in range(sequences)]
    return batch_sequences(drawn, tokens_per_batch=500)


def direction_of(model: ChatModel) -> mx.array:
    vector = mx.random.normal((1, model.hidden_size), key=mx.random.key(1))
    return vector / mx.linalg.norm(vector)


def weights_of(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(model.network.parameters())}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("family", "method", "rule"),
    [
        ("demo", "wanda", "refit"),
        ("demo", "sparsegpt", "reconstruct"),
        ("demo", "magnitude", "restore"),
        ("demo", "random", "paper"),
        ("demo", "wanda", "least-squares"),
        ("mixtral", "sparsegpt", "refit"),  # fused experts
        ("qwen3_next", "random", "least-squares"),  # blocks of several kinds
        ("rwkv7", "wanda", "reconstruct"),  # hands values from block to block
    ],
)
def test_streamed_prune_and_repair_equal_those_in_memory(family: str, method: str, rule: str, tmp_path: Path) -> None:
    source = family if family == "demo" else write_family(tmp_path / "source", family, dtype=mx.bfloat16)
    dense, model = load(source), load(source)
    calibration, direction = calibration_of(dense), direction_of(dense)
    plan = RepairPlan(rule, (0, 1, len(model.blocks) - 1), steps=3)
    pruned = prune_model(model, calibration, method=method, sparsity=0.6)
    compressed = weights_of(model)
    repaired = fold(model, solve_patch(model, dense, calibration, direction, plan))

    streamed = load(source, streaming=True)
    shards = ShardFolder(tmp_path / "compressed", streamed)
    assert prune_model(streamed, calibration, method=method, sparsity=0.6, shards=shards) == pruned
    shards.finish()
    assert_same(weights_of(load(tmp_path / "compressed")), compressed)

    dense, streamed = load(source, streaming=True), load(tmp_path / "compressed", streaming=True)
    shards = ShardFolder(tmp_path / "repaired", streamed)
    assert repair_blocks(streamed, dense, calibration, direction, plan, shards) == repaired
    shards.finish()
    assert_same(weights_of(streamed), weights_of(model))
    assert_same(weights_of(load(tmp_path / "repaired")), weights_of(model))
    mlx_lm.load(str(tmp_path / "repaired"))


def test_steps_that_lead_away_leave_a_streamed_block_as_it_is_stored(tmp_path: Path) -> None:
    streamed, whole = load("demo", streaming=True), load("demo")
    walk = Walk(streamed, calibration_of(streamed, 8))
    wanted = [0.9 * walk.run_block(index) for index in range(len(walk.batches))]
    mx.eval(wanted)
    found = reconstruct_block(walk, wanted, steps=2, learning_rate=100.0)
    for name, weight in found.items():
        original = whole.linear(0, name).weight
        assert mx.array_equal(weight, original).item()
        assert mx.array_equal(streamed.linear(0, name).weight, original).item()


def test_streamed_model_answers_as_in_memory() -> None:
    whole, streamed = load("demo"), load("demo", streaming=True)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    assert generate_answers(streamed, prompts, max_new_tokens=5) == generate_answers(whole, prompts, max_new_tokens=5)
    batches = calibration_of(whole)
    assert measure_utility(streamed, batches, dense=whole) == measure_utility(whole, batches, dense=whole)
    np.testing.assert_array_equal(exact_logits(streamed, [5, 6, 7]), exact_logits(whole, [5, 6, 7]))
    assert streamed.sparsity() == whole.sparsity()


def test_streamed_model_keeps_one_block(tmp_path: Path) -> None:
    """Whatever runs it, what stays in memory is what is outside the blocks; of a walk, the block where it stands."""
    folder = write_model(tmp_path / "wide", num_hidden_layers=6, hidden_size=256, intermediate_size=512)
    gc.collect()  # models of earlier tests hold themselves in circles
    before = mx.get_active_memory()
    model = load(folder, streaming=True)
    blocks = [sum(array.nbytes for _, array in tree_flatten(block.parameters())) for block in model.blocks]
    outside = sum(array.nbytes for _, array in tree_flatten(model.network.parameters())) / blocks[0] - len(blocks)
    assert outside > 0.1

    def kept() -> float:
        return (mx.get_active_memory() - before) / blocks[0]

    mx.eval(model.network(mx.array([[1, 2, 3]])))
    assert outside - 0.01 < kept() < outside + 0.05
    exact_logits(model, [1, 2, 3])
    model.sparsity()
    assert kept() < outside + 0.05
    walk = Walk(model, batch_sequences([[1, 2, 3]]))
    assert kept() < 0.05
    walk.move_to(3)
    mx.eval(walk.run_block(0))
    assert 0.95 < kept() < 1.05
    mx.reset_peak_memory()
    shards = ShardFolder(tmp_path / "out", model)
    prune_model(model, [], method="magnitude", shards=shards)
    assert (mx.get_peak_memory() - before) / blocks[0] < 3
    assert kept() < 0.05


@pytest.mark.parametrize(("rule", "most"), [("reconstruct", 7.0), ("least-squares", 7.5)])
def test_streamed_repair_holds_a_few_blocks(rule: str, most: float, tmp_path: Path) -> None:
    """What reconstruction needs beside activations: weights, two moments, and one linear's gradient and step."""
    source = write_model(tmp_path / "wide", num_hidden_layers=3, hidden_size=256, intermediate_size=1024)
    model = load(source, streaming=True)
    prune_model(model, [], method="magnitude", shards=ShardFolder(tmp_path / "pruned", model))
    ShardFolder(tmp_path / "pruned", model).finish()
    dense, model = load(source, streaming=True), load(tmp_path / "pruned", streaming=True)
    block = sum(array.nbytes for _, array in tree_flatten(model.blocks[0].parameters()))
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    plan, calibration = RepairPlan(rule, (0, 1, 2), steps=3), batch_sequences([[1, 2, 3, 4, 5]] * 4)
    repair_blocks(model, dense, calibration, direction_of(model), plan, ShardFolder(tmp_path / "repaired", model))
    assert (mx.get_peak_memory() - before) / block < most
    gc.collect()
    assert (mx.get_active_memory() - before) / block < 0.2


def test_quantized_model_is_dequantized_block_by_block(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    quantized = load(model_folder())
    quantize_model(quantized, group_size=32)
    save(quantized, tmp_path / "quantized")
    whole, streamed = load(tmp_path / "quantized"), load(tmp_path / "quantized", streaming=True)
    assert streamed.notes == whole.notes
    prune_model(whole, [], method="magnitude")
    shards = ShardFolder(tmp_path / "out", streamed)
    prune_model(streamed, [], method="magnitude", shards=shards)
    shards.finish()
    assert_same(weights_of(load(tmp_path / "out")), weights_of(whole))


def test_quantized_block_by_block_as_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(tmp_path / "source")
    pruned = load(source)
    prune_model(pruned, [], method="magnitude")
    save(pruned, tmp_path / "pruned")
    for flag in ("--streaming", "--no-streaming"):
        words = ["quantize", str(tmp_path / "pruned"), "--q-bits", "3", "--q-group-size", "32", flag]
        assert main([*words, "--out", str(tmp_path / flag), "--json"]) == 0
    networks = [mlx_lm.load(str(tmp_path / flag))[0] for flag in ("--streaming", "--no-streaming")]
    found, wanted = ({name: np.array(array) for name, array in tree_flatten(one.parameters())} for one in networks)
    assert_same(found, wanted)
    assert any(name.endswith("scales") for name in found)
    assert (tmp_path / "--streaming" / "config.json").read_bytes() == (
        tmp_path / "--no-streaming" / "config.json"
    ).read_bytes()
    assert main(["quantize", str(source), "--streaming", "--method", "gptq", "--out", str(tmp_path / "never")]) == 2
    assert "learns on a whole model" in capsys.readouterr().err


# Runs a command, but dies by SIGKILL where it would give its nth file its name.
KILLED = """
import os, signal, sys
from pathlib import Path
left, replace = int(sys.argv[1]), Path.replace
def counted(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = counted
sys.argv = sys.argv[2:]
exec(Path(sys.argv[0]).read_text())
"""
CHAIN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_streaming import *
source, out = Path(sys.argv[1]), Path(sys.argv[2])
model = load(source, streaming=True)
calibration, direction = calibration_of(model, 8), direction_of(model)
shards = ShardFolder(out / "compressed", model)
if not shards.is_complete:
    prune_model(model, calibration, method="wanda", shards=shards)
    shards.finish()
model, dense = load(out / "compressed", streaming=True), load(source, streaming=True)
plan = RepairPlan("refit", (0, 1, 2))
shards = ShardFolder(out / "repaired", model)
print(repair_blocks(model, dense, calibration, direction, plan, shards))
shards.finish()
"""
COMMAND = "from aird_mlx_cli.main import main; raise SystemExit(main(sys.argv[1:]))"


def run_killed(tmp_path: Path, script: str, files: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script until it has given ``files`` files their names."""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-c", KILLED, str(files), str(tmp_path / "script.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_killed_walk_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    whole = run_killed(tmp_path, CHAIN, 99, str(source), str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    written = []
    for files in (2, 6):  # in the pruning; in the repair
        killed = run_killed(tmp_path, CHAIN, files, str(source), str(tmp_path / "killed"))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        written.append({path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("model-*")})
    assert [len(paths) for paths in written] == [2, 6]
    assert list((tmp_path / "killed").rglob(".writing-*"))
    assert not (tmp_path / "killed" / "repaired" / "config.json").exists()
    resumed = run_killed(tmp_path, CHAIN, 99, str(source), str(tmp_path / "killed"))
    assert resumed.stdout == whole.stdout
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in written[1]} == written[1]  # nothing was done twice


def test_killed_prune_is_resumed_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_model(tmp_path / "source"), tmp_path / "out"
    words = ["prune", str(source), "--streaming", "--prune-method", "magnitude", "--seed", "3", "--out"]
    killed = run_killed(tmp_path, COMMAND, 4, *words, str(out))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    assert main([*words, str(out), "--resume", "--sparsity", "0.7"]) == 1
    assert "started with other settings" in capsys.readouterr().err
    assert main([*words, str(out), "--resume", "--json"]) == 0
    resumed = capsys.readouterr().out
    assert main([*words, str(tmp_path / "whole"), "--json"]) == 0
    assert capsys.readouterr().out == resumed.replace(str(out), str(tmp_path / "whole"))
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert main([*words, str(tmp_path / "never"), "--resume"]) == 1
    assert "there is no" in capsys.readouterr().err


def test_run_killed_before_it_began_is_resumed(tmp_path: Path) -> None:
    source, out = write_model(tmp_path / "source"), tmp_path / "out"
    killed = run_killed(tmp_path, COMMAND, 0, "prune", str(source), "--streaming", "--out", str(out))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    report = write_pruned(str(source), out, PruningSettings(method="magnitude"), resume=True)
    assert report.sparsity == pytest.approx(0.5)


def test_damaged_shard_is_one_line(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = load(model_folder(), streaming=True)
    shards = ShardFolder(tmp_path / "out", model)
    prune_model(model, [], method="magnitude", shards=shards)
    path = tmp_path / "out" / "model-00003-of-00005.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResumeError, match="model-00003-of-00005") as raised:
        shards.take(1)
    assert "\n" not in str(raised.value)


def test_what_streaming_cannot_do_is_said_before_it_starts(tmp_path: Path) -> None:
    for changes in ({"rule": "distill"}, {"controls": True}, {"quantize": True}):
        with pytest.raises(UsageError, match="--streaming"):
            repair_model(RepairSettings("demo", streaming=True, out=tmp_path / "out", **changes))
    model = load("demo", streaming=True)
    plan = RepairPlan("paper", (0,), strength=2.0)
    with pytest.raises(UsageError, match="strength"):
        repair_blocks(model, model, [], direction_of(model), plan, ShardFolder(tmp_path / "out", model))
    assert list(tmp_path.iterdir()) == []
    mixture = write_family(tmp_path / "mixtral", "mixtral")
    with pytest.raises(UsageError, match="reap with --streaming"):
        write_pruned(str(mixture), tmp_path / "out", PruningSettings(method="reap"), streaming=True)
    assert list(tmp_path.iterdir()) == [mixture]


def test_streamed_type_without_a_row_is_discovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(tmp_path / "source")
    whole = load(source)
    monkeypatch.delitem(TABLE, "llama")
    before = mx.get_active_memory()
    streamed = load(source, streaming=True)
    block = sum(array.nbytes for _, array in tree_flatten(whole.blocks[0].parameters()))
    outside = sum(array.nbytes for _, array in tree_flatten(whole.network.parameters())) - 4 * block
    assert streamed.layout(3).groups == whole.layout(3).groups
    assert any("discovered" in note for note in streamed.notes)
    assert mx.get_active_memory() - before < outside + 0.5 * block


def test_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path / "not" / "there", 1, "--out")
    with pytest.raises(OutputError, match=r"GB free; 1000000000\.0 GB are needed"):
        check_space(tmp_path / "not" / "there", 1e18, "--out")
    source = write_model(tmp_path / "source")
    monkeypatch.setattr("aird_mlx.compress.prune.loaded_bytes", lambda folder: 10**18)
    with pytest.raises(OutputError, match="are needed"):
        write_pruned(str(source), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_model_is_streamed_where_it_does_not_fit(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_folder()
    assert not needs_streaming(source, 4)
    monkeypatch.setattr(
        "aird_mlx.model.memory.usable_memory", lambda: 3 * (source / "model.safetensors").stat().st_size
    )
    assert needs_streaming(source, 4)
    assert not needs_streaming(source, 2)
    monkeypatch.setattr("aird_mlx.model.memory.usable_memory", lambda: 100)
    write_pruned(str(source), tmp_path / "out", PruningSettings(method="magnitude"))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 5


def test_evaluation_says_what_it_measures_of_a_model_that_does_not_fit(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("How do I bake bread? Mix flour, water, salt and yeast, then wait for two hours and bake it. " * 20)
    words = ["eval", str(model_folder()), "--text", str(text), "--no-refusals", "--window", "64", "--json"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("aird_mlx.model.memory.usable_memory", lambda: 100)
    assert main(words) == 0
    streamed = json.loads(capsys.readouterr().out)
    assert streamed["utility"] == whole["utility"]
    assert whole["notes"] == []
    assert any("read from disk as they ran" in note for note in streamed["notes"])
    monkeypatch.setattr("aird_mlx.evaluate.check_evaluation", lambda settings: None)  # lm-eval may be missing
    assert main([*words, "--tasks", "boolq"]) == 2
    assert "--tasks needs the whole model" in capsys.readouterr().err


@pytest.mark.slow
def test_streamed_repair_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights as in memory, and the same rates."""
    words = ["repair", "demo", "--rule", "reconstruct", "--sparsity", "0.6", "--limit", "20", "--gguf", "none"]
    reports = []
    for flag, name in (("--streaming", "streamed"), ("--no-streaming", "whole")):
        assert main([*words, flag, "--out", str(tmp_path / name), "--json"]) in (0, 3, 4)
        reports.append(json.loads(capsys.readouterr().out))
    for streamed, whole in zip(*(report["stages"] for report in reports), strict=True):
        measured = ("name", "refusal", "utility", "direction", "sparsity")
        assert {key: streamed[key] for key in measured} == {key: whole[key] for key in measured}
    assert_same(*(weights_of(load(tmp_path / name / "mlx")) for name in ("streamed", "whole")))
    assert not (tmp_path / "streamed" / "compressed").exists()
