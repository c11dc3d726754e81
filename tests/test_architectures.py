"""Every family: the table against the running model, and every stage on it."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import _get_classes

from aird_mlx.activations import TokenBatch, Walk, batch_sequences, run_head
from aird_mlx.architectures import REFUSED, TABLE, WRAPPERS, Architecture, architecture_of
from aird_mlx.direction.interventions import _intervene, last_logits
from aird_mlx.direction.scores import cosine
from aird_mlx.direction.selection import mean_differences
from aird_mlx.errors import ModelError, UsageError
from aird_mlx.inspection import families_page, inspect_model
from aird_mlx.model import ChatModel, check_writers, first_of_each_kind, is_linear, load, save, submodule
from aird_mlx.model.discovery import discover
from aird_mlx.patch import Patch, patched
from aird_mlx.pruning import expert_worth, prune_model
from aird_mlx.pruning.reap import mixture_of, routed_contributions
from aird_mlx.quantization import quantize_model
from aird_mlx.repair import RepairPlan, solve_patch
from conftest import write_tokenizer
from families import CHANGES, tiny_config

FAMILIES = pytest.mark.parametrize("model_type", CHANGES)
SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]


def make_model(model_type: str, seed: int = 0, row: Architecture | None = None) -> ChatModel:
    """A random tiny model in memory, without a tokenizer; every parameter random, norms and biases too."""
    config = tiny_config(model_type)
    mx.random.seed(seed)
    model_class, arguments = _get_classes(config)
    network = model_class(arguments.from_dict(config))
    network.update(tree_map(lambda array: array + 0.1 * mx.random.normal(array.shape), network.parameters()))
    mx.eval(network.parameters())
    return ChatModel(network, None, config, model_type, Path(), row or make_row(model_type))


def make_row(model_type: str) -> Architecture:
    row = architecture_of(tiny_config(model_type))
    assert row is not None
    return row


def parameters(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}


@FAMILIES
def test_writers_explain_what_every_block_changes(model_type: str) -> None:
    model = make_model(model_type)
    before = parameters(model)
    assert check_writers(model, range(len(model.blocks))) < 1e-6
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(value, before[name])
    assert len({model.layout(block).kind for block in range(len(model.blocks))}) >= len(first_of_each_kind(model)) / 2


@FAMILIES
def test_row_names_every_linear_of_every_block(model_type: str) -> None:
    model = make_model(model_type)
    for block, module in enumerate(model.blocks):
        layout = model.layout(block)
        named = [*layout.linear_names, *(name for part in layout.parts for name in part.kept)]
        found = {name for name, one in module.named_modules() if is_linear(one)}
        assert len(set(named)) == len(named)
        assert found <= set(named), found - set(named)
        assert set(layout.linear_names) <= found


@FAMILIES
def test_members_of_a_group_share_their_input(model_type: str) -> None:
    model = make_model(model_type)
    for block in first_of_each_kind(model):
        walk = Walk(model, batch_sequences(SEQUENCES))
        walk.move_to(block)
        for group in walk.layout.groups:
            if walk.layout.is_expert(group[0]):
                inputs = {name: one.values for name, one in walk.routed_inputs_of(0, group).items()}
            else:
                inputs = walk.inputs_of(0, group)
            assert inputs.keys() == set(group)
            assert all(mx.array_equal(inputs[name], inputs[group[0]]).item() for name in group)


@FAMILIES
def test_discovery_finds_the_writers_of_the_table(model_type: str) -> None:
    known = make_model(model_type)
    if known.architecture.carried:
        with pytest.raises(ModelError, match=rf"^model: model type '{model_type}' is not in the table, and its blocks"):
            discover(known.network, known.config)
        return
    found = make_model(model_type, row=discover(known.network, known.config))
    assert check_writers(found, range(len(found.blocks))) < 1e-6
    assert (found.architecture.blocks, found.architecture.embedding) == (
        known.architecture.blocks,
        known.architecture.embedding,
    )
    for block in range(len(known.blocks)):
        first, second = ({part.writer: part.norm for part in one.layout(block).parts} for one in (found, known))
        assert first == second


@FAMILIES
def test_walk_and_head_equal_the_networks_own_logits(model_type: str) -> None:
    model = make_model(model_type)
    walk = Walk(model, batch_sequences(SEQUENCES))
    walk.move_to(len(model.blocks))
    logits = run_head(model, walk.hidden[0])
    for row, (index, length) in enumerate(zip(walk.batches[0].order, walk.batches[0].lengths, strict=True)):
        expected = model.network(mx.array([SEQUENCES[index]]))[0]
        scale = float(mx.abs(expected).max().item())
        np.testing.assert_allclose(np.array(logits[row, :length]), np.array(expected), atol=1e-4 * max(scale, 1.0))


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [[int(token) for token in generator.integers(4, 300, length)] for length in lengths]


def calibration() -> list[TokenBatch]:
    return batch_sequences(random_prompts([20, 30, 30, 12, 30, 30, 30, 30]))


def unit(seed: int = 0) -> mx.array:
    vector = mx.random.normal((32,), key=mx.random.key(seed))
    return vector / mx.linalg.norm(vector)


def along(model: ChatModel, batches: list[TokenBatch], direction: mx.array) -> mx.array:
    """``r . h`` of every counted token after the last block."""
    walk = Walk(model, batches)
    walk.move_to(len(model.blocks))
    return mx.concatenate(
        [((h @ direction) * b.counted).reshape(-1) for h, b in zip(walk.hidden, batches, strict=True)]
    )


@FAMILIES
def test_logits_of_prompts_that_start_alike_are_the_networks_own(model_type: str) -> None:
    model = make_model(model_type)
    prompts = [[3, 9] * 6 + rest for rest in random_prompts([5, 7, 6])]
    expected = mx.stack([model.network(mx.array([ids]))[0, -1] for ids in prompts])
    scale = float(mx.abs(expected).max().item())
    np.testing.assert_allclose(np.array(last_logits(model, prompts)), np.array(expected), atol=1e-4 * max(scale, 1.0))


@FAMILIES
def test_ablation_leaves_nothing_along_the_direction_anywhere(model_type: str) -> None:
    model, r = make_model(model_type), unit()
    walk = Walk(model, batch_sequences(SEQUENCES))
    hidden, taps = _intervene(model, walk.hidden[0], 1, r[None], None)
    for block in range(len(model.blocks)):
        with model.linear_taps(block, taps(block)):
            hidden = walk.run_block(0, hidden, block)
        assert mx.abs(hidden @ r).max().item() < 1e-5 * mx.abs(hidden).max().item()


def plant(model: ChatModel, block: int, direction: mx.array, first: list[list[int]], second: list[list[int]]) -> None:
    """Make the writers of a block write along ``direction`` what tells two kinds of prompts apart at their last token.

    Each writer gets r v^T more, v the difference of its mean inputs; where a norm follows, r over its weights.
    """
    walk = Walk(model, batch_sequences([*first, *second]))
    walk.move_to(block)
    layout, batch = walk.layout, walk.batches[0]
    sign = np.array([1.0 if index < len(first) else -1.0 for index in batch.order])
    for part in layout.parts:
        last = np.array(batch.lengths) - 1
        linear = model.linear(block, part.writer)
        if layout.is_expert(part.writer):
            routed = walk.routed_inputs_of(0, [part.writer])[part.writer]
            values = np.array(routed.values).reshape(len(sign), -1, routed.chosen, routed.values.shape[-1]).mean(axis=2)
        else:
            values = np.array(walk.inputs_of(0, [part.writer])[part.writer])
        at = values[np.arange(len(sign)), last]
        difference = (sign[:, None] * at).sum(axis=0)
        written = np.array(direction)
        if part.norm is not None:
            norm = submodule(model.blocks[block], part.norm)
            gamma = np.array(norm(mx.full((1, 32), 1024.0))[0])
            written = written / np.where(np.abs(gamma) < 0.05, 0.05, gamma)
        scale = (40.0 if part.norm is None else 1000.0) / max(float(difference @ difference), 1e-9)
        linear.weight = linear.weight + mx.array((np.outer(written, difference) * scale).astype(np.float32))


@FAMILIES
def test_planted_direction_is_found_and_repaired(model_type: str) -> None:
    block, r = 1, unit(3)
    first, second = ([[*ids, kind, 5] for ids in random_prompts([6, 6, 6, 6])] for kind in (7, 11))
    dense = make_model(model_type)
    plain = mean_differences(dense, first, second, 1)[block + 1, 0]
    plant(dense, block, r, first, second)
    planted = mean_differences(dense, first, second, 1)[block + 1, 0]
    found = abs(cosine(planted, r))
    assert found > 0.9 > abs(cosine(plain, r)), found
    compressed = make_model(model_type)
    assert (ratio := abs((plain @ r).item()) / abs((planted @ r).item())) < 0.5, ratio
    batches = batch_sequences([*first, *second])
    patch = solve_patch(compressed, dense, batches, r, RepairPlan("restore", (block,), inside_mask=False))
    assert [part.name for part in patch.parts] == list(compressed.layout(block).writers)
    with patched(compressed, patch):
        repaired = mean_differences(compressed, first, second, 1)[block + 1, 0]
    np.testing.assert_allclose((repaired @ r).item(), (planted @ r).item(), rtol=0.35)


@FAMILIES
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
def test_pruning_removes_what_was_asked_and_nothing_else(model_type: str, method: str) -> None:
    model = make_model(model_type)
    before = parameters(model)
    report = prune_model(model, calibration(), method=method, pattern="2:4")
    assert abs(model.sparsity() - 0.5) < 1e-6
    assert report.linears == len(list(model.linears()))
    pruned = {f"{model.architecture.blocks}.{block}.{name}.weight" for block, name, _ in model.linears()}
    for name, value in parameters(model).items():
        if name in pruned:
            groups = (value == 0).reshape(-1, 4).sum(axis=1)
            assert groups.min() == groups.max() == 2, name
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)


@FAMILIES
def test_repairs_bring_the_stream_back_inside_the_mask(model_type: str) -> None:
    dense, model = make_model(model_type), make_model(model_type)
    batches, r = calibration(), unit()
    prune_model(model, batches, sparsity=0.5)
    wanted = along(dense, batches, r)
    lost = mx.square(wanted - along(model, batches, r)).sum().item()
    zeros = model.sparsity()
    blocks = tuple(range(len(model.blocks)))
    for rule, most in (("least-squares", 0.95), ("refit", 0.95), ("distill", 2.0)):
        # One step of distillation on one block only has to run and to leave the zeros: it minimizes something else.
        plan = RepairPlan(rule, blocks) if rule != "distill" else RepairPlan(rule, blocks[1:2], steps=1)
        patch = solve_patch(model, dense, batches, r, plan)
        with patched(model, patch):
            left = mx.square(wanted - along(model, batches, r)).sum().item()
        assert left < most * lost, (rule, left / lost)
        with patched(model, patch):
            assert model.sparsity() >= zeros - 1e-9


MIXTURES = [one for one in CHANGES if any(part.experts for part in make_row(one).parts)]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_reap_removes_the_experts_that_write_least_and_the_rest_runs_on(model_type: str, tmp_path: Path) -> None:
    dense, model = make_model(model_type), make_model(model_type)
    batches = calibration()
    walk = Walk(dense, batches)
    first = next(block for block in range(4) if mixture_of(dense, block))
    walk.move_to(first)
    part = mixture_of(dense, first)
    assert part is not None and part.experts is not None
    worth = np.array(expert_worth(walk, part))
    report = prune_model(model, batches, method="reap", sparsity=0.5)
    assert report.removed_experts[str(first)] == sorted(np.argsort(worth, kind="stable")[:2].tolist())
    assert report.asked == 0.5 and model.parameters < dense.parameters
    assert all(np.isfinite(value).all() for value in parameters(model).values())
    for block in range(len(model.blocks)):
        for name in model.layout(block).linear_names:
            if model.layout(block).is_expert(name):
                assert model.linear(block, name).weight.shape[0] == 2
                kept = dense.linear(block, name).weight[mx.array(model.kept_experts[block])]
                assert mx.array_equal(model.linear(block, name).weight, kept).item()
    # The config that goes with the weights builds the same network.
    model_class, arguments = _get_classes(model.config)
    again = model_class(arguments.from_dict(model.config))
    again.load_weights(list(tree_flatten(model.network.parameters())))
    ids = mx.array([SEQUENCES[0]])
    assert mx.array_equal(again(ids), model.network(ids)).item()
    assert check_writers(model, range(len(model.blocks))) < 1e-6
    # What is left can be repaired towards the dense model.
    walks = [Walk(one, batches) for one in (dense, model)]
    for one in walks:
        one.move_to(4)
    lost = sum(mx.square(a - b).sum().item() for a, b in zip(walks[0].hidden, walks[1].hidden, strict=True))
    plan = RepairPlan("refit", (0, 1, 2, 3)) if first < 3 else RepairPlan("reconstruct", (3,), steps=4)
    patch = solve_patch(model, dense, batches, unit(), plan)
    with patched(model, patch):
        walks[1] = Walk(model, batches)
        walks[1].move_to(4)
        left = sum(mx.square(a - b).sum().item() for a, b in zip(walks[0].hidden, walks[1].hidden, strict=True))
    assert left < lost


@pytest.mark.parametrize("model_type", MIXTURES)
def test_worth_of_experts_is_routing_weight_times_length_of_output(model_type: str) -> None:
    """Against the mixture's own output: with the experts' outputs all ones, it gives the sum of the weights."""
    model = make_model(model_type)
    walk = Walk(model, batch_sequences(SEQUENCES))
    block = next(block for block in range(4) if mixture_of(model, block))
    walk.move_to(block)
    part = mixture_of(model, block)
    assert part is not None and part.experts is not None
    choice, lengths, weights = routed_contributions(walk, 0, part)
    with model.linear_taps(block, {part.experts.module: lambda experts, value: mx.ones_like(experts(value))}):
        ones = walk.run_block(0)
    with model.linear_taps(block, {part.experts.module: lambda experts, value: mx.zeros_like(experts(value))}):
        nothing = walk.run_block(0)
    tokens = ones.shape[0] * ones.shape[1]
    summed = weights.reshape(tokens, -1).sum(axis=1)
    np.testing.assert_allclose(np.array((ones - nothing).mean(axis=-1)).reshape(-1), summed, atol=1e-4)
    assert (lengths > 0).all() and set(choice.tolist()) <= set(range(4))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_expert_that_sees_no_token_is_pruned_by_size_and_said_so(method: str) -> None:
    model = make_model("mixtral")
    gate = submodule(model.blocks[1], "block_sparse_moe.gate")
    gate.weight = mx.zeros_like(gate.weight)  # all experts tie, so that every token passes the same two
    before = model.linear(1, "block_sparse_moe.switch_mlp.down_proj").weight
    report = prune_model(model, calibration(), method=method, sparsity=0.5)
    (note,) = [note for note in report.notes if "routed to expert" in note]
    unseen = [int(one) for one in re.findall(r"(\d) of block 1", note)]
    assert unseen and note.startswith(f"{method}: fewer than 32 calibration tokens are routed to expert")
    after = model.linear(1, "block_sparse_moe.switch_mlp.down_proj").weight
    for expert in unseen:
        own = np.abs(np.array(before[expert]))
        removed = np.array(after[expert]) == 0
        assert (own[removed].reshape(32, -1).max(axis=1) <= own[~removed].reshape(32, -1).min(axis=1)).all()
    assert abs(model.sparsity() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("model_type", "sparsity", "words"),
    [
        ("llama", 0.5, "method reap on a model with no mixture of experts"),
        ("mixtral", 0.75, "removes 3 of 4 experts; at least one .* and 2 left that each token passes"),
        ("mixtral", 0.2, "removes 0 of 4 experts"),
    ],
)
def test_reap_refuses_what_it_cannot_do(model_type: str, sparsity: float, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        prune_model(make_model(model_type), calibration(), method="reap", sparsity=sparsity)
    assert "\n" not in str(raised.value)


def test_writer_that_the_row_lacks_is_an_error_that_names_the_block() -> None:
    row = make_row("llama")
    model = make_model("llama", row=replace(row, parts=row.parts[:1]))
    with pytest.raises(
        ModelError, match=r"^model: block 0 \(attention\) changes the stream with all its writers silent"
    ):
        check_writers(model)


def test_norm_that_the_row_lacks_is_an_error_that_names_the_block() -> None:
    with pytest.raises(ModelError, match=r"^model: block 0 .* changes the stream by more than its writers give"):
        check_writers(make_model("gemma2", row=make_row("llama")))


def test_norm_that_is_no_rms_norm_is_an_error() -> None:
    model = make_model("olmo2")
    model.blocks[2].post_attention_layernorm = nn.LayerNorm(32)
    with pytest.raises(ModelError, match=r"block 2 .* has a norm, post_attention_layernorm, that is no RMS norm"):
        check_writers(model, [2])


def test_model_types_that_cannot_be_done_say_why(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    for model_type, why in REFUSED.items():
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(ModelError) as raised:
            load(folder)
        assert why in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("model_type", ["mixtral", "gemma2", "mamba2", "qwen3_next", "mistral3"])
def test_checkpoint_in_shards_and_bfloat16_loads_and_is_inspected(model_type: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", model_type, dtype=mx.bfloat16, shards=3)
    found = inspect_model(str(folder))
    assert found.model_type == model_type and found.origin == "table"
    assert sorted(block for kind in found.kinds for block in kind.blocks) == [0, 1, 2, 3]
    stages = {one.stage: one for one in found.stages}
    assert stages["reap"].supported == any(kind.experts for kind in found.kinds)
    assert stages["reap"].supported or stages["reap"].why
    loaded = load(folder)
    assert loaded.network(mx.array([[5, 6, 7]])).shape == (1, 3, 320)
    save(loaded, tmp_path / "again")
    assert load(tmp_path / "again").parameters == found.parameters


def test_type_without_a_row_is_discovered_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path / "model", "lfm2_moe", dtype=mx.bfloat16)
    monkeypatch.delitem(TABLE, "lfm2_moe")
    found = inspect_model(str(folder))
    assert found.origin == "discovered"
    assert any("has no row in the table" in note for note in found.notes)
    assert not {one.stage: one.supported for one in found.stages}["reap"]


def test_config_that_lies_about_its_experts_is_one_line(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    with pytest.raises(ModelError, match=r"^model: the weights in .* cannot be read") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_mlx_lms_file_for_olmo_runs_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is refused; the day this fails it can have a row."""
    monkeypatch.setitem(sys.modules, "hf_olmo", types.ModuleType("hf_olmo"))
    config = tiny_config("llama") | {
        "model_type": "olmo",
        "d_model": 32,
        "n_layers": 2,
        "mlp_hidden_size": 128,
        "n_heads": 4,
        "embedding_size": 320,
        "weight_tying": False,
    }
    model_class, arguments = _get_classes(config)
    with pytest.raises(ValueError, match="array and str"):
        model_class(arguments.from_dict(config))(mx.array([[5, 6]]))


def test_type_whose_file_ends_the_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_family(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    monkeypatch.delitem(REFUSED, "olmo")
    monkeypatch.setitem(sys.modules, "hf_olmo", None)
    monkeypatch.delitem(sys.modules, "mlx_lm.models.olmo", raising=False)
    with pytest.raises(ModelError, match=r"^model: mlx-lm ends when it is to run model type 'olmo'"):
        load(folder)


def write_family(folder: Path, model_type: str, *, dtype: mx.Dtype = mx.float32, shards: int = 1) -> Path:
    """A tiny model with a tokenizer in the layout of the hub."""
    model = make_model(model_type)
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config(model_type)))
    weights = [(name, value.astype(dtype)) for name, value in tree_flatten(model.network.parameters())]
    names = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = dict(weights[shard::shards])
        mx.save_safetensors(str(folder / file), own, metadata={"format": "mlx"})
        names |= dict.fromkeys(own, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(value.nbytes for _, value in weights)}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_page_of_families_is_what_the_table_gives() -> None:
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == families_page()
    for model_type in CHANGES:
        assert f"\n| {model_type} |" in page or f"\n- {model_type}: " in page


def test_readme_counts_the_families() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"Families: {len(TABLE)} types of mlx-lm" in readme


def test_every_row_is_run() -> None:
    alike = {
        "iquestcoder",
        "xverse",
        "falcon_mamba",
        "kimi_k2",
        "joyai_llm_flash",
    }  # mlx-lm runs them with the file of another type
    assert set(TABLE) - alike <= set(CHANGES)


@pytest.mark.parametrize("model_type", ["mixtral", "mamba"])
def test_pruned_and_quantized_families_load_with_their_zeros(model_type: str, tmp_path: Path) -> None:
    """Fused experts have a weight of three axes, and the steps of a recurrence one that no group divides."""
    model = load(write_family(tmp_path / "model", model_type))
    prune_model(model, [], method="magnitude", sparsity=0.5)
    report = quantize_model(model, mode="affine", bits=4, group_size=32)
    assert any("dt_proj" in name for name in report.skipped) == (model_type == "mamba")
    save(model, tmp_path / "quantized")
    again = load(tmp_path / "quantized")
    assert again.sparsity() >= 0.5 - 1e-9
    assert any("was quantized" in note for note in again.notes)


def test_least_squares_through_a_norm_meets_what_the_stream_got() -> None:
    """The norm's weights turn the direction: solved for r itself, the stream would get something else along r."""
    dense, model, batches, r = make_model("olmo2"), make_model("olmo2"), calibration(), unit()
    prune_model(model, batches, sparsity=0.5)
    plan = RepairPlan("least-squares", (0,), inside_mask=False, ridge=1e-4)

    def left(patch: Patch) -> float:
        errors = []
        with patched(model, patch):
            for one, other in zip(Walk(dense, batches).hidden, Walk(model, batches).hidden, strict=True):
                assert mx.array_equal(one, other).item()
            walks = Walk(dense, batches), Walk(model, batches)
            for walk in walks:
                walk.advance()
            for one, other, batch in zip(walks[0].hidden, walks[1].hidden, batches, strict=True):
                errors.append(mx.square(((one - other) @ r) * batch.counted).sum().item())
        return sum(errors)

    through = solve_patch(model, dense, batches, r, plan)
    bare = replace(make_row("olmo2"), parts=tuple(replace(part, norm=None) for part in make_row("olmo2").parts))
    both = (replace(one, architecture=bare, _layouts={}) for one in (model, dense))
    ignoring = solve_patch(*both, batches, r, plan)
    nothing = left(Patch("least-squares", 1.0, 0.0, ()))
    assert left(through) < 0.9 * left(ignoring) < 0.9 * nothing


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_language_part_of_a_wrapper_is_used(wrapper: str) -> None:
    inner = WRAPPERS[wrapper][1]
    text = tiny_config(inner)
    config = text | {"model_type": wrapper, "text_config": text, "vision_config": {}}
    model_class, arguments = _get_classes(config)
    network = model_class(arguments.from_dict(config))
    row = architecture_of(config)
    assert row is not None
    model = ChatModel(network, None, config, wrapper, Path(), row)
    assert check_writers(model, range(len(model.blocks))) < 1e-6
    assert {model.layout(block).kind for block in range(4)} <= {"attention + mlp", "attention + experts"}
