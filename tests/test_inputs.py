"""Which prompts belong to which model: the demo's own, the built-in set, the user's files, and never a mixture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aird_mlx.errors import PromptError
from aird_mlx.inputs import (
    DEMO_PROBE_COUNTS,
    NO_TWINS,
    TEXT_CHUNK,
    Inputs,
    gather_inputs,
    held_out_sequences,
    text_sequences,
)
from aird_mlx.model import ChatModel
from aird_mlx.prompts import KINDS, render_prompt


def parts_of(inputs: Inputs, kind: str) -> tuple[str, ...]:
    split = getattr(inputs.contrast, kind)
    return split.find + split.validate + split.test


def write(tmp_path: Path, name: str, word: str, count: int = 20) -> Path:
    path = tmp_path / name
    path.write_text("\n".join(f"{word} {number}" for number in range(count)))
    return path


@pytest.mark.parametrize("model", ["demo", "some/model"])
def test_sets_that_come_with_the_package_share_no_prompt(model: str) -> None:
    inputs = gather_inputs(model, 0)
    every = [prompt for kind in KINDS for prompt in parts_of(inputs, kind)]
    assert len(every) == len(set(every))
    for kind in KINDS:
        split = getattr(inputs.contrast, kind)
        assert min(len(split.find), len(split.validate), len(split.test)) >= 20
        assert inputs.contrast.part(kind, "test") == split.test


@pytest.mark.parametrize("model", ["demo", "some/model"])
def test_sets_that_come_with_the_package_follow_the_seed(model: str) -> None:
    assert gather_inputs(model, 0) == gather_inputs(model, 0)
    assert gather_inputs(model, 0).contrast.harmful != gather_inputs(model, 1).contrast.harmful


def test_the_probe_of_the_demo_sees_more_prompts_and_no_test_prompt() -> None:
    inputs = gather_inputs("demo", 0)
    for kind in KINDS:
        seen = inputs.probe.part(kind, "find") + inputs.probe.part(kind, "validate")
        assert len(inputs.probe.part(kind, "find")) == DEMO_PROBE_COUNTS[0] > 1000
        assert len(seen) == len(set(seen)) == sum(DEMO_PROBE_COUNTS)
        assert not set(seen) & set(inputs.contrast.part(kind, "test"))


def test_the_probe_of_another_model_sees_what_the_run_finds_and_validates_on(tmp_path: Path) -> None:
    inputs = gather_inputs("demo", 0, harmful=write(tmp_path, "bad.txt", "harm"))
    assert inputs.probe.harmful == inputs.contrast.harmful
    assert len(inputs.probe.harmless.find) == DEMO_PROBE_COUNTS[0], "the demo's own"
    other = gather_inputs("some/model", 0)
    assert other.probe == other.contrast


def test_demo_is_asked_in_its_own_language() -> None:
    inputs = gather_inputs("demo", 0)
    assert inputs.contrast.origin == "the demo's own language"
    assert inputs.texts == inputs.held_out_texts == ()
    assert len(inputs.held_out_dialogues) > 100


def test_other_models_are_asked_the_built_in_set() -> None:
    inputs = gather_inputs("some/model", 0)
    assert inputs.contrast.origin == "the built-in general set"
    assert inputs.held_out_dialogues == ()
    assert inputs.texts
    assert inputs.held_out_texts
    assert not set(inputs.texts) & set(inputs.held_out_texts)


def test_own_files_are_split_and_named_as_origin(tmp_path: Path) -> None:
    harmful, harmless = write(tmp_path, "bad.txt", "bad"), write(tmp_path, "good.txt", "good")
    inputs = gather_inputs("some/model", 0, harmful=harmful, harmless=harmless)
    assert sorted(parts_of(inputs, "harmful")) == sorted(harmful.read_text().splitlines())
    assert sorted(parts_of(inputs, "harmless")) == sorted(harmless.read_text().splitlines())
    assert parts_of(inputs, "twin") == (), "built-in twins may be about something else"
    assert inputs.notes == (f"prompts: {inputs.contrast.origin}", NO_TWINS)
    assert str(harmful) in inputs.contrast.origin
    assert str(harmless) in inputs.contrast.origin


def test_own_test_twins_are_asked_and_no_others_learned_from(tmp_path: Path) -> None:
    harmful, twins = write(tmp_path, "bad.txt", "bad"), write(tmp_path, "twins.txt", "twin")
    split = gather_inputs("some/model", 0, harmful=harmful, test_twins=twins).contrast.twin
    assert (split.find, split.validate, split.test) == ((), (), tuple(twins.read_text().splitlines()))


def test_own_test_files_are_used_whole_and_kept_out_of_the_rest(tmp_path: Path) -> None:
    harmful, test = write(tmp_path, "bad.txt", "bad", 30), write(tmp_path, "test.txt", "bad", 10)
    inputs = gather_inputs("some/model", 0, harmful=harmful, test_harmful=test)
    assert inputs.contrast.harmful.test == tuple(test.read_text().splitlines())
    assert not set(inputs.contrast.harmful.test) & set(inputs.contrast.harmful.find + inputs.contrast.harmful.validate)
    assert len(inputs.contrast.harmful.find + inputs.contrast.harmful.validate) == 20


def test_test_prompts_from_the_built_in_set_are_taken_out_of_find_and_validate(tmp_path: Path) -> None:
    plain = gather_inputs("some/model", 0).contrast.harmful
    test = tmp_path / "test.txt"
    test.write_text("\n".join([plain.find[0], plain.validate[0], "something new"]))
    split = gather_inputs("some/model", 0, test_harmful=test).contrast.harmful
    assert split.test == (plain.find[0], plain.validate[0], "something new")
    assert (split.find, split.validate) == (plain.find[1:], plain.validate[1:])


def test_test_prompts_are_taken_out_in_whatever_case_and_out_of_what_the_probe_sees(tmp_path: Path) -> None:
    plain = gather_inputs("demo", 0)
    known = plain.probe.harmful.find[0], plain.contrast.harmful.validate[0]
    assert known[0] in plain.contrast.harmful.find
    test = tmp_path / "test.txt"
    test.write_text(f"{known[0].upper()}\n{known[1]}\n")
    inputs = gather_inputs("demo", 0, test_harmful=test)
    seen = {*parts_of(inputs, "harmful")[:-2], *inputs.probe.harmful.find, *inputs.probe.harmful.validate}
    assert not {prompt.upper() for prompt in seen} & {prompt.upper() for prompt in known}
    assert inputs.probe.harmful.find == plain.probe.harmful.find[1:]


def test_own_twins_are_read(tmp_path: Path) -> None:
    inputs = gather_inputs("some/model", 0, twins=write(tmp_path, "twins.txt", "twin"))
    assert len(parts_of(inputs, "twin")) == 20
    assert len(inputs.notes) == 1


def test_limit_shortens_the_test_part_only() -> None:
    whole, short = gather_inputs("demo", 0), gather_inputs("demo", 0, limit=5)
    for kind in KINDS:
        before, after = getattr(whole.contrast, kind), getattr(short.contrast, kind)
        assert after.test == before.test[:5]
        assert (after.find, after.validate) == (before.find, before.validate)


def test_prompt_in_two_kinds_is_refused_in_one_line(tmp_path: Path) -> None:
    harmful, harmless = write(tmp_path, "bad.txt", "same"), write(tmp_path, "good.txt", "same", 15)
    with pytest.raises(PromptError, match="15 prompts are both harmful and harmless, for example 'same 0'") as raised:
        gather_inputs("some/model", 0, harmful=harmful, harmless=harmless)
    assert "\n" not in str(raised.value)


def test_prompt_in_two_kinds_is_found_beyond_the_limit_and_between_harmless_and_twin(tmp_path: Path) -> None:
    test = write(tmp_path, "test.txt", "own")
    (tmp_path / "good.txt").write_text((write(tmp_path, "good.txt", "good").read_text()) + "\nown 19")
    with pytest.raises(PromptError, match="1 prompts are both harmful and harmless, for example 'own 19'"):
        gather_inputs("some/model", 0, harmless=tmp_path / "good.txt", test_harmful=test, limit=1)
    with pytest.raises(PromptError, match="20 prompts are both harmless and twin"):
        gather_inputs("some/model", 0, harmless=test, twins=test)


def test_prompt_in_two_kinds_is_found_in_other_case(tmp_path: Path) -> None:
    harmful, harmless = write(tmp_path, "bad.txt", "same"), write(tmp_path, "good.txt", "SAME ", 15)
    with pytest.raises(PromptError, match="15 prompts are both harmful and harmless"):
        gather_inputs("some/model", 0, harmful=harmful, harmless=harmless)


def test_kinds_that_were_not_given_are_named_in_the_origin(tmp_path: Path) -> None:
    harmful = write(tmp_path, "bad.txt", "bad")
    origin = gather_inputs("some/model", 0, harmful=harmful).contrast.origin
    assert origin == f"{harmful}; harmless from the built-in general set"
    origin = gather_inputs("demo", 0, twins=harmful).contrast.origin
    assert origin == f"{harmful}; harmful and harmless from the demo's own language"
    good = write(tmp_path, "good.txt", "good")
    assert gather_inputs("some/model", 0, harmful=harmful, harmless=good).contrast.origin == f"{harmful}, {good}"


def test_too_few_prompts_in_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="5 different harmful prompts"):
        gather_inputs("demo", 0, harmful=write(tmp_path, "bad.txt", "bad", 5))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"one\n\ntwo\nthree\n", "holds 3 passages")],
)
def test_unusable_calibration_text_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError, match=rf"^calibration: .*{words}") as raised:
        gather_inputs("demo", 0, calibration=path)
    assert "\n" not in str(raised.value)


def test_own_calibration_text_is_split_without_overlap_and_rules_for_the_demo_too(tmp_path: Path) -> None:
    path = write(tmp_path, "text.txt", "passage", 20)
    inputs = gather_inputs("demo", 0, calibration=path)
    assert sorted(inputs.texts + inputs.held_out_texts) == sorted(path.read_text().splitlines())
    assert len(inputs.texts) == 14
    assert inputs.held_out_dialogues == ()


def test_passage_that_is_repeated_in_calibration_text_is_in_one_part_only(tmp_path: Path) -> None:
    path, passages = tmp_path / "text.txt", [f"passage {number}" for number in range(20)]
    path.write_text("\n".join(passages * 5 + [passage.title() for passage in passages]))
    inputs = gather_inputs("demo", 0, calibration=path)
    assert sorted(inputs.texts + inputs.held_out_texts) == sorted(passages)
    path.write_text("\n".join(["a", "b", "c", "A "]))
    with pytest.raises(PromptError, match="holds 3 passages; at least 4 different ones"):
        gather_inputs("demo", 0, calibration=path)


def test_texts_become_chunks_without_losing_a_token(tiny: ChatModel) -> None:
    text = "How do I bake bread? " * 60
    ids = list(tiny.tokenizer.encode(text))
    chunks = text_sequences(tiny.tokenizer, [text, "Mix flour"])
    assert len(ids) > TEXT_CHUNK
    assert [token for chunk in chunks[:-1] for token in chunk] == ids
    assert all(2 <= len(chunk) <= TEXT_CHUNK for chunk in chunks)


def test_chunk_of_a_single_token_is_left_out(tiny: ChatModel) -> None:
    assert text_sequences(tiny.tokenizer, ["a"]) == []


def test_held_out_dialogues_count_from_the_answer_on(tiny: ChatModel) -> None:
    contrast = gather_inputs("demo", 0).contrast
    inputs = Inputs(contrast, (), ("Mix flour, water, salt.",), (("apple", "Sorry"),), contrast)
    text, dialogue = held_out_sequences(tiny.tokenizer, inputs)
    assert text == (list(tiny.tokenizer.encode("Mix flour, water, salt.")), 0)
    start = len(render_prompt(tiny.tokenizer, "apple"))
    assert dialogue[1] == start
    assert tiny.tokenizer.decode(dialogue[0][start:]) == "Sorry<|im_end|>"


def test_benchmark_files_make_a_whole_set() -> None:
    data = os.environ.get("AIRD_TEST_DATA")
    if not data:
        pytest.skip("AIRD_TEST_DATA names no folder with the benchmarks")
    folder = Path(data)
    inputs = gather_inputs(
        "some/model",
        0,
        harmful=folder / "advbench" / "harmful_behaviors.csv",
        harmless=folder / "jailbreakbench" / "benign-behaviors.csv",
        twins=folder / "xstest" / "xstest_prompts.csv",
        test_harmful=folder / "jailbreakbench" / "harmful-behaviors.csv",
        calibration=folder / "wikitext2" / "valid.txt",
    )
    assert len(inputs.contrast.harmful.test) == 100
    assert len(parts_of(inputs, "twin")) == 250
    every = [prompt for kind in KINDS for prompt in parts_of(inputs, kind)]
    assert len(every) == len(set(every))
    assert len(inputs.texts) > 1000
