"""mlx-lm's learned quantization as called here, and more bits for the writers of the refusal direction."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from aird_mlx.activations import batch_sequences
from aird_mlx.errors import PromptError, UsageError
from aird_mlx.evaluation import measure_utility
from aird_mlx.model import ChatModel, load, save
from aird_mlx.pruning import prune_model
from aird_mlx.quantization import favour_writers, learn_quantization, quantize_model
from aird_mlx.quantization.refusal import stored_bits
from aird_mlx_cli.main import main


def chats(count: int = 100) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(3, 300) for _ in range(24)] for _ in range(count)]


@pytest.mark.parametrize(("method", "bits"), [("gptq", 4), ("awq", 3), ("dynamic", 3), ("dwq", 3)])
def test_learned_quantization_is_written_as_mlx_lm_reads_it(
    model_folder: Callable[..., Path], tmp_path: Path, method: str, bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(model_folder(context_length=64, max_position_embeddings=64))
    prune_model(model, [], method="magnitude")
    weights = {path: np.array(array) for path, array in tree_flatten(model.network.parameters())}
    report = learn_quantization(model, method, chats(40), bits=bits, group_size=32)
    assert capsys.readouterr() == ("", "")
    assert {one.name for one in report.tensors} == {
        path.removesuffix(".weight") for path in weights if "norm" not in path
    }
    stored = dict(tree_flatten(model.network.parameters()))
    for one in report.tensors:
        parts = [stored[f"{one.name}.{key}"] for key in ("weight", "scales", "biases")]
        found = np.array(mx.dequantize(*parts, group_size=one.group_size, bits=one.bits))
        zeros = weights[f"{one.name}.weight"] == 0
        assert one.zeros == pytest.approx(zeros.mean())
        if zeros.any():
            assert one.zeros_kept == pytest.approx((found[zeros] == 0).mean())
        if method != "awq":
            assert one.error is not None and 0 < one.error < 0.5
    assert any("pruning mask" in note for note in report.notes)
    save(model, tmp_path / "out")
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    ids = mx.array([[5, 6, 7]])
    np.testing.assert_allclose(np.array(network(ids)), np.array(model.network(ids)), rtol=1e-4, atol=1e-4)


def test_learning_beats_rounding_on_its_own_objective() -> None:
    """GPTQ's linears give outputs nearer to the dense ones than plain rounding's, on the chats it saw."""
    batches = batch_sequences(chats())
    dense, rounded, learned = load("demo"), load("demo"), load("demo")
    recipe = {"model.embed_tokens": {"bits": 6, "group_size": 32}}
    quantize_model(rounded, bits=2, group_size=32, recipe=lambda path, module: recipe.get(path, True))
    learn_quantization(learned, "gptq", chats(90), bits=2, group_size=32)
    assert learned.bits_per_weight == rounded.bits_per_weight
    far, near = (measure_utility(model, batches, dense=dense).kl_to_dense for model in (rounded, learned))
    assert near is not None and far is not None
    assert near < 0.9 * far


def test_dynamic_gives_more_bits_to_some() -> None:
    model = load("demo")
    report = learn_quantization(model, "dynamic", chats(90), bits=3, group_size=32)
    assert {one.bits for one in report.tensors} == {3, 4}
    assert 5.2 < report.bits_per_weight < 5.8  # 3 or 4, and 2 for float32 scales and biases of groups of 32


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_refusal_writers_get_more_bits_at_no_more_size(bits: int) -> None:
    uniform, favoured = load("demo"), load("demo")
    layer = 4
    quantize_model(uniform, bits=bits, group_size=32)
    report = quantize_model(favoured, bits=bits, group_size=32, recipe=favour_writers(favoured, layer, bits, 32))
    assert uniform.bits_per_weight - 0.1 < favoured.bits_per_weight <= uniform.bits_per_weight
    more = {one.name for one in report.tensors if one.bits > bits}
    writers = {f"model.layers.{block}.{name}" for block in (1, 2, 3) for name in favoured.layout(block).writers}
    assert more == writers
    paying = [int(one.name.split(".")[2]) for one in report.tensors if one.bits < bits or one.group_size > 32]
    assert paying and 3 not in paying


def test_size_of_a_recipe_is_what_is_stored(tiny: ChatModel) -> None:
    weight = tiny.linear(0, "mlp.down_proj").weight
    parts = mx.quantize(weight, group_size=32, bits=3)
    assert stored_bits(weight.shape, 3, 32, weight.dtype) == 8 * sum(part.nbytes for part in parts)


def test_refusal_recipe_that_nobody_can_pay_is_refused(tiny: ChatModel) -> None:
    with pytest.raises(UsageError, match="8 bits"):
        favour_writers(tiny, 2, 8, 32)
    with pytest.raises(UsageError, match="to pay for more"):
        favour_writers(load("demo"), 2, 2, 128)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gptq", "--q-bits", "3"], "gptq in mlx-lm has 2, 4, 8"),
        (["--method", "dynamic", "--q-mode", "mxfp4"], "mode mxfp4 with method dynamic"),
        (["--method", "dwq", "--quant-predicate", "refusal"], "recipe refusal with method dwq"),
        (["--method", "awq", "--q-bits", "7"], "bits is 7"),
        (["--quant-predicate", "refusal", "--q-mode", "mxfp8"], "mode mxfp8"),
    ],
)
def test_bad_learning_is_one_line_and_writes_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "demo", *arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_too_few_chats_and_wide_groups_are_said(tiny: ChatModel) -> None:
    with pytest.raises(PromptError, match="24 tokens; 2048 or more"):
        learn_quantization(tiny, "gptq", chats(1), group_size=32)
    with pytest.raises(UsageError, match="does not divide the 32 inputs"):
        learn_quantization(tiny, "gptq", chats(), group_size=64)


def test_method_that_nobody_knows_is_one_line(tiny: ChatModel) -> None:
    with pytest.raises(UsageError, match="method is 'gpqt'; one of gptq, awq, dwq, dynamic is needed"):
        learn_quantization(tiny, "gpqt", chats(), group_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--method", "gptq"], ["--quant-predicate", "refusal", "--q-bits", "3"]])
def test_quantize_the_demo_by_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "demo", *words, "--q-group-size", "32", "--out", str(tmp_path / "out")]) == 0
    assert "bits per weight" in capsys.readouterr().out
    mlx_lm.load(str(tmp_path / "out"))
