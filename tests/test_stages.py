"""What a row of the result rests on: classes by prompt, their changes, and logits that do not depend on a dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.direction import Direction
from aird_mlx.evaluation import measure_refusals, measure_utility, paired_change, refusal_rates
from aird_mlx.model import ChatModel, exact_logits, load
from aird_mlx.report import PairedChange, RefusalRates, Stage
from aird_mlx.stages import (
    class_letters,
    evaluate_control,
    evaluate_dense,
    refusal_directions,
    stage_changes,
    validation_of,
)
from conftest import REFUSAL_TEXT, last_token, make_reference, make_speaker

IDS = np.random.default_rng(0).integers(3, 300, 50).tolist()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_logits_of_16_bit_weights_are_computed_in_float32(
    model_folder: Callable[..., Path], model_type: str, dtype: mx.Dtype
) -> None:
    model = load(model_folder(model_type))
    model.network.set_dtype(dtype)
    weight = model.linear(1, "mlp.down_proj").weight
    found = exact_logits(model, IDS)
    rounded = np.array(model.network(mx.array([IDS]))[0].astype(mx.float32))
    assert model.linear(1, "mlp.down_proj").weight is weight, "the model is left as found"
    model.network.set_dtype(mx.float32)
    wanted = np.array(model.network(mx.array([IDS]))[0])
    # The head's sums may come in another order; what is left is float32 rounding.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(rounded - wanted).max() > 50 * np.abs(found - wanted).max()


def stage(name: str, **classes: str) -> Stage:
    return Stage(name, RefusalRates(None, None), None, 0.5, 16.0, classes=classes)


def test_letters_are_one_per_prompt_by_kind_in_their_order() -> None:
    kinds = ["harmful", "twin", "harmful", "harmful", "twin"]
    classes = ["refusal", "compliance", "incoherent", "compliance", "refusal"]
    assert class_letters(kinds, classes) == {"harmful": "ric", "harmless": "", "twin": "cr"}


def test_changes_are_paired_prompt_by_prompt_from_both_earlier_stages() -> None:
    stages = [
        stage("dense", harmful="rrrrrr", harmless="cccr"),
        stage("compressed", harmful="rcciir", harmless="cccc"),
        stage("repaired", harmful="rrrrci", harmless="crcc"),
        stage("exported:f16", harmful="cccccc", harmless="rrrr"),
    ]
    changes = stage_changes(stages)
    assert [(one.kind, one.before, one.after) for one in changes] == [
        ("harmful", "compressed", "repaired"),
        ("harmless", "compressed", "repaired"),
        ("harmful", "dense", "repaired"),
        ("harmless", "dense", "repaired"),
    ]
    found = {(one.kind, one.before): one.change for one in changes}
    # One to six: refused, gained (was broken text), ..., lost (became broken text).
    assert found["harmful", "compressed"] == PairedChange(6, 2 / 6, 4 / 6, gained=3, lost=1, p_value=0.625)
    assert found["harmless", "compressed"] == PairedChange(4, 0.0, 0.25, gained=1, lost=0, p_value=1.0)
    assert found["harmless", "dense"] == PairedChange(4, 0.25, 0.25, gained=1, lost=1, p_value=1.0)
    assert found["harmful", "dense"] == paired_change([True] * 6, [True] * 4 + [False] * 2)


def test_kinds_that_were_not_asked_have_no_change() -> None:
    stages = [stage(name, harmful="rr", harmless="", twin="") for name in ("dense", "compressed", "repaired")]
    assert {one.kind for one in stage_changes(stages)} == {"harmful"}
    assert stage_changes([stage(name) for name in ("dense", "compressed", "repaired")]) == []


def direction() -> Direction:
    return Direction(mx.eye(32)[0], 2, -1, 1.0, -1.0, 1.0, 0.1, True, (6, 6), (4, 4))


def test_row_of_the_dense_model_has_a_letter_for_every_prompt_it_counts(tiny: ChatModel) -> None:
    found = evaluate_dense(make_reference(tiny, tests=4), direction())
    assert found.classes == {"harmful": "rrrr", "harmless": "cccc", "twin": "cc"}
    kinds = ["harmful"] * 4 + ["harmless"] * 4 + ["twin"] * 2
    assert found.refusal == refusal_rates(kinds, ["refusal"] * 4 + ["compliance"] * 6)
    assert found.utility is not None
    assert found.utility.kl_to_dense == pytest.approx(0, abs=1e-6)


def test_row_of_a_control_is_its_own_answers_and_its_distance(model_folder: Callable[..., Path]) -> None:
    dense, speaker = load(model_folder()), load(model_folder())
    reference = make_reference(dense)
    make_speaker(speaker, {last_token(speaker): REFUSAL_TEXT})
    found = evaluate_control(
        "own words", "says one thing", speaker, reference,
        max_new_tokens=12, batch_size=4, progress=lambda stage, done, total: None,
    )  # fmt: skip
    assert (found.name, found.meaning) == ("own words", "says one thing")
    asked = {kind: reference.inputs.contrast.part(kind, "test") for kind in ("harmful", "harmless", "twin")}
    assert found.refusal == measure_refusals(speaker, asked, max_new_tokens=12)
    assert found.refusal.harmless is not None and found.refusal.harmless.rate == 1.0
    assert found.utility == measure_utility(speaker, reference.held_out, dense=dense)
    assert found.utility.kl_to_dense is not None and found.utility.kl_to_dense > 0.1


def test_validation_needs_no_test_prompt(tiny: ChatModel) -> None:
    with_tests, without = (validation_of(make_reference(tiny, tests=tests), batch_size=4) for tests in (2, 0))
    for one in (with_tests, without):
        assert one.counts == one.foreseen_counts == {"harmful": 4, "harmless": 4, "twin": 2}
        assert (one.answered.harmful, one.answered.harmless, one.answered.twin) == (1.0, 0.0, 0.0)
    assert without.dense == with_tests.dense
    asked = [prompt for prompts in with_tests.prompts.values() for prompt in prompts]
    assert len(asked) == 10
    assert all("validate" in prompt for prompt in asked)


def test_validation_counts_the_dense_models_answers_as_long_as_the_search_generates(tiny: ChatModel) -> None:
    reference = make_reference(tiny)
    late = tiny.tokenizer.encode("Mix flour, water and salt. " * 4 + REFUSAL_TEXT, add_special_tokens=False)
    reference.answers["harmful"]["validate"][0] = late
    expected = refusal_rates(*reference.judged("validate", 24)).harmful
    found = validation_of(reference, batch_size=4).answered
    assert expected is not None
    assert found.harmful == expected.rate == 0.75


def test_refusal_directions_start_with_the_refusal_direction(tiny: ChatModel) -> None:
    found = np.array(refusal_directions(make_reference(tiny), direction()))
    assert found.shape == (3, 32)
    np.testing.assert_array_equal(found[0], np.eye(32)[0])
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
