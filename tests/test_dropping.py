"""Whole blocks are dropped by their influence, and what is written is a model to mlx-lm and to llama.cpp."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from aird_mlx.activations import Walk, batch_sequences, run_head
from aird_mlx.errors import PromptError, UsageError
from aird_mlx.gguf_export import export_gguf
from aird_mlx.model import ChatModel, save
from aird_mlx.pruning import drop_blocks, measure_influence
from aird_mlx.pruning.fewer_blocks import block_traits, check_described, describe_fewer
from aird_mlx.report import PruningReport, from_json
from aird_mlx_cli.main import main
from families import CHANGES
from test_architectures import make_model, write_family

CALIBRATION = [[5, 6, 7, 8, 9], [10, 11, 12]]


def silence(model: ChatModel, block: int) -> None:
    """Let a block write nothing, so that its output is its input."""
    for name in model.layout(0).writers:
        linear = model.linear(block, name)
        linear.weight = mx.zeros_like(linear.weight)


def test_influence_is_one_minus_the_mean_cosine(tiny: ChatModel) -> None:
    silence(tiny, 1)
    found = measure_influence(tiny, batch_sequences(CALIBRATION))
    walk, wanted = Walk(tiny, batch_sequences(CALIBRATION)), []
    while not walk.is_done:
        before = [np.array(hidden, dtype=np.float64) for hidden in walk.hidden]
        walk.advance()
        cosines = []
        for one, other, batch in zip(before, walk.hidden, walk.batches, strict=True):
            after = np.array(other, dtype=np.float64)
            for row, length in enumerate(batch.lengths):  # padding does not count
                for token in range(length):
                    a, b = one[row, token], after[row, token]
                    cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        wanted.append(1 - np.mean(cosines))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-6)
    assert min(found[0], found[2], found[3]) > 1e-4


def test_block_that_does_nothing_is_dropped_and_nothing_changes(tiny: ChatModel, tmp_path: Path) -> None:
    silence(tiny, 2)
    tiny.config |= {"layer_types": ["full_attention"] * 4, "four": [1, 2, 3, 4]}
    ids = mx.array([[5, 6, 7, 8]])
    wanted = np.array(tiny.network(ids))
    report = drop_blocks(tiny, batch_sequences(CALIBRATION), 0.3)
    assert report.dropped == [2]
    assert tiny.config["layer_types"] == ["full_attention"] * 3
    assert tiny.config["four"] == [1, 2, 3, 4]
    del tiny.config["layer_types"]
    save(tiny, tmp_path / "out")
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    assert len(network.layers) == 3
    np.testing.assert_array_equal(np.array(network(ids)), wanted)
    exported = export_gguf(tmp_path / "out", tmp_path / "out.gguf", "f32")
    reader = gguf.GGUFReader(exported.path)
    assert reader.fields["llama.block_count"].contents() == 3
    names = {tensor.name for tensor in reader.tensors}
    assert "blk.2.ffn_down.weight" in names and "blk.3.ffn_down.weight" not in names


# Which of four blocks cannot be dropped where a number tells a block's kind; gpt_oss has no list of kinds here.
UNSAID: dict[str, set[int]] = {
    **{one: {0, 1, 2} for one in ("gemma3_text", "smollm3", "cohere2", "exaone4", "jamba", "qwen3_next")},
    "recurrent_gemma": {0, 1, 2},
    "gpt_oss": {0, 1, 2, 3},
    "rwkv7": {0},
}


@pytest.mark.parametrize("gone", range(4))
@pytest.mark.parametrize("model_type", CHANGES)
def test_config_says_which_blocks_are_left_or_the_drop_is_refused(model_type: str, gone: int) -> None:
    kept, ids = [block for block in range(4) if block != gone], [*range(10, 30)]
    whole, fewer = make_model(model_type), make_model(model_type)
    fewer.config = copy.deepcopy(fewer.config)
    traits = block_traits(fewer)
    fewer.keep_blocks(kept)
    describe_fewer(fewer.config, 4, kept)
    if gone in UNSAID.get(model_type, ()):
        with pytest.raises(UsageError, match=f"{model_type} tells the kind of a block by its number"):
            check_described(fewer, kept, traits)
        return
    check_described(fewer, kept, traits)
    network = type(fewer.network)(type(fewer.network.args).from_dict(fewer.config))
    network.load_weights([one for one in tree_flatten(fewer.network.parameters()) if isinstance(one[1], mx.array)])
    walk = Walk(whole, batch_sequences([ids]))
    hidden = walk.hidden[0]
    for block in kept:  # as the whole model calls them
        hidden = walk.run_block(0, hidden, block)
    np.testing.assert_allclose(np.array(network(mx.array([ids]))), np.array(run_head(whole, hidden)), atol=1e-4)


def test_nothing_is_written_of_a_model_whose_config_cannot_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_family(tmp_path / "model", "gpt_oss"), tmp_path / "out"
    words = ["prune", str(source), "--prune-method", "blocks", "--sparsity", "0.25", "--out", str(out)]
    assert main(words) == 2
    assert "tells the kind of a block by its number" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("sparsity", "said"), [(0.2, "is 0 blocks"), (0.0, "is 0 blocks")])
def test_fraction_that_drops_nothing_is_refused(tiny: ChatModel, sparsity: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        drop_blocks(tiny, batch_sequences(CALIBRATION), sparsity)
    with pytest.raises(PromptError, match="blocks needs some"):
        drop_blocks(tiny, [], 0.5)
    assert len(tiny.blocks) == 4


def test_blocks_are_dropped_by_command(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(model_folder()), tmp_path / "out"
    words = ["prune", source, "--prune-method", "blocks", "--out", str(out)]
    for more, said in (
        (["--pattern", "2:4"], "pattern, scope or allocation"),
        (["--streaming"], "--streaming"),
        (["--sparsity", "1.5"], "sparsity"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*words, "--sparsity", "0.5", "--json"]) == 0
    report = from_json(PruningReport, capsys.readouterr().out)
    assert len(report.dropped) == 2
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    assert report.sizes["mlx"] < 0.8 * (Path(source) / "model.safetensors").stat().st_size
    assert not any("no smaller" in note for note in report.notes)


def test_repair_does_not_drop_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "demo", "--prune-method", "blocks", "--out", str(tmp_path / "out")]) == 2
    assert "blocks" in capsys.readouterr().err
