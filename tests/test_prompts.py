"""Prompt files in every format, splits that never share a prompt, and templates rendered to token ids."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.errors import PromptError
from aird_mlx.model import ChatModel
from aird_mlx.prompts import (
    cross_dialogues,
    post_instruction_tokens,
    read_prompts,
    render_dialogue,
    render_prompt,
    render_text,
    split_prompts,
)


def test_text_file_gives_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffWhat is this?\n\n  Trimmed \r\nWhat is this?\nÜber alles\n", encoding="utf-8")
    assert read_prompts(path) == ["What is this?", "Trimmed", "Über alles"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "goal,target\nFirst,x\nSecond,y\n"),
        ("b.csv", "Index,Goal,Behavior\n0,First,b\n1,Second,b\n"),
        ("c.csv", 'prompt,goal\n"First",other\nSecond,other\n'),
        ("d.csv", " Prompt ,x\nFirst,1\nSecond,2\n"),
        ("e.tsv", "id\tforbidden_prompt\n1\tFirst\n2\tSecond\n"),
        ("f.jsonl", '{"prompt": "First"}\n\n{"prompt": "Second"}\n'),
        ("g.jsonl", '{"Goal": "First", "target": "x"}\n{"instruction": "Second"}\n'),
        ("h.jsonl", '"First"\n"Second"\n'),
        ("i.ndjson", '{"prompt": null, "text": "First"}\n{"text": "Second"}\n'),
        ("j.CSV", "behavior\nFirst\n\nSecond\n"),
        ("k.TSV", "id\tgoal\n1\tFirst\n2\tSecond\n"),
        ("l.JSONL", '{"prompt": "First"}\n{"prompt": "Second"}\n'),
        ("m.json", '[\n"First",\n"Second"\n]\n'),
        ("n.Json", '[{"prompt": "First"}, {"Goal": "Second"}]'),
        ("o.json", '{"prompt": "First"}\n{"prompt": "Second"}\n'),
    ],
)
def test_formats_of_the_field_are_read(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_prompts(path) == ["First", "Second"]


def test_json_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one\u2028two"}\n{"prompt": "three"}\n', encoding="utf-8")
    assert read_prompts(path) == ["one\u2028two", "three"]


def test_quoted_fields_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('goal,target\n"Say ""hi"", then\nleave",x\n')
    assert read_prompts(path) == ['Say "hi", then\nleave']


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_labelled_files_give_unsafe_rows_to_harmful_and_safe_rows_to_the_others(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("id,prompt,label\n1,kind,safe\n2,cruel,unsafe\n3,gentle,Safe\n")
    else:
        path.write_text(
            '{"prompt": "kind", "label": "safe"}\n{"prompt": "cruel", "label": "unsafe"}\n'
            '{"prompt": "gentle", "label": "Safe"}\n'
        )
    assert read_prompts(path, "harmful") == ["cruel"]
    assert read_prompts(path, "harmless") == read_prompts(path, "twin") == ["kind", "gentle"]


def test_other_labels_select_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,label\na,1\nb,harm\n")
    assert read_prompts(path, "harmful") == read_prompts(path, "harmless") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("b.txt", b" \n\t\n", "holds no prompts"),
        ("c.txt", b"\xff\xfe\x00bad", "cannot be read"),
        ("d.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("e.jsonl", b'{"words": "a"}\n', r"line 1 has the keys \['words'\]"),
        ("f.jsonl", b"[1, 2]\n", r"line 1 has the keys \[\]"),
        ("g.jsonl", b'{"prompt": 3}\n', r"line 1 has 3 under prompt; .* Put it in quotes\."),
        ("m.jsonl", b'"one"\n' + b"[" * 10**5, "line 2 is not JSON"),
        ("n.jsonl", b'"one"\n' + b"9" * 5000, "line 2 is not JSON"),
        ("o.jsonl", rb'{"prompt": "half \ud83d"}', r"holds half a surrogate pair in 'half \\ud83d'"),
        ("p.json", b'["one", {"id": 1}]', r"element 2 has the keys \['id'\]"),
        ("q.json", b'["one",', "is not JSON"),
        ("h.csv", b"id,words\n1,a\n", r"has the columns \['id', 'words'\]"),
        ("i.csv", b"", r"has the columns \[\]"),
        ("j.csv", b"goal,target\n", "holds no prompts"),
        ("k.csv", b'goal,target\n"never closed,x\n', "is not a table"),
        ("l.csv", b"prompt,label\nkind,safe\n", "holds no prompts"),
    ],
)
def test_unusable_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=rf"^prompts: {re.escape(str(path))} .*{words}") as raised:
        read_prompts(path)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"there is no file .*gone\.txt"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path)


def test_row_shorter_than_the_header_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("id,goal\n1,First\n2\n")
    assert read_prompts(path) == ["First"]


def test_row_longer_than_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("id,goal\n1,First,extra,more\n")
    assert read_prompts(path) == ["First"]


# --- splits -------------------------------------------------------------------------------------------------------

prompt_lists = st.lists(st.text("abcdefg", min_size=1, max_size=4), min_size=12, max_size=60, unique=True)


@given(prompt_lists, st.integers(0, 9), st.sampled_from(["harmful", "harmless", "twin"]))
def test_splits_share_no_prompt_lose_none_and_are_stable(prompts: list[str], seed: int, kind: str) -> None:
    split = split_prompts(prompts, seed, kind=kind)
    assert sorted(split.find + split.validate + split.test) == sorted(prompts)
    assert split == split_prompts(prompts, seed, kind=kind)
    assert split == split_prompts(prompts + prompts[:3], seed, kind=kind), "repeated prompts must not count twice"
    for part, share in ((split.find, 0.4), (split.validate, 0.2), (split.test, 0.4)):
        assert abs(len(part) - share * len(prompts)) <= 1
        assert part


@given(prompt_lists, st.lists(st.text("abcdefg", min_size=1, max_size=4), min_size=1, max_size=20))
def test_given_test_prompts_are_kept_out_of_the_other_parts(prompts: list[str], test: list[str]) -> None:
    remaining = [prompt for prompt in prompts if prompt not in test]
    if len(remaining) < 12:
        said = f"{len(remaining)} different harmful prompts that are not among the {len(set(test))} test prompts"
        with pytest.raises(PromptError, match=said):
            split_prompts(prompts, 0, kind="harmful", test=test)
        return
    split = split_prompts(prompts, 0, kind="harmful", test=test)
    assert split.test == tuple(dict.fromkeys(test))
    assert sorted(split.find + split.validate) == sorted(remaining)
    assert abs(len(split.find) - len(remaining) * 2 / 3) <= 1


def test_prompt_in_other_case_or_spacing_is_no_other_prompt() -> None:
    prompts = [f"How do I bake {number}?" for number in range(20)]
    again = [prompt.upper() for prompt in prompts] + [prompt.replace(" ", "  ") for prompt in prompts]
    assert split_prompts(prompts + again, 0, kind="harmless") == split_prompts(prompts, 0, kind="harmless")
    split = split_prompts(prompts, 0, kind="harmless", test=["how do i bake 3?", "How do  I bake 3?", "new"])
    assert split.test == ("how do i bake 3?", "new")
    assert sorted(split.find + split.validate) == sorted(set(prompts) - {"How do I bake 3?"})


def test_splits_depend_on_the_seed_and_the_kind() -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    splits = {split_prompts(prompts, seed, kind=kind) for seed in (0, 1, 2) for kind in ("harmful", "harmless")}
    assert len(splits) == 6


def test_split_of_seed_0_is_the_same_on_every_machine() -> None:
    prompts = [f"prompt {number}" for number in range(12)]
    assert split_prompts(prompts, 0, kind="harmful").validate == ("prompt 6", "prompt 7")


def test_too_few_prompts_are_one_line() -> None:
    with pytest.raises(PromptError, match=r"^prompts: 11 different twin prompts .* at least 12") as raised:
        split_prompts([str(number) for number in range(11)] + ["0", "1"], 0, kind="twin")
    assert "\n" not in str(raised.value)


# --- templates ----------------------------------------------------------------------------------------------------


def test_prompt_is_rendered_in_the_models_own_template(tiny: ChatModel) -> None:
    expected = "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
    assert render_text(tiny.tokenizer, "How do I bake bread?") == expected
    ids = render_prompt(tiny.tokenizer, "How do I bake bread?")
    assert tiny.tokenizer.decode(ids) == expected
    assert ids == tiny.tokenizer.encode(expected, add_special_tokens=False)


def test_post_instruction_tokens_are_what_follows_the_users_words(tiny: ChatModel) -> None:
    ending = post_instruction_tokens(tiny.tokenizer)
    assert tiny.tokenizer.decode(ending) == "<|im_end|>\n<|im_start|>assistant\n"
    for prompt in ("x", "How do I bake bread?"):
        assert render_prompt(tiny.tokenizer, prompt)[-len(ending) :] == ending


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "fixed"])
def test_template_without_an_ending_or_the_users_words_is_refused(tiny: ChatModel, template: str) -> None:
    tiny.tokenizer._tokenizer.chat_template = template
    with pytest.raises(PromptError, match=r"^prompts: the chat template puts \d+ tokens after") as raised:
        post_instruction_tokens(tiny.tokenizer)
    assert "\n" not in str(raised.value)


FAILING = [
    "{{ raise_exception('only systems') }}",
    "{% for %}",
    "{{ messages[0].x.y }}",
    "{{ 1/0 }}",
    "{{ 'x'.index('y') }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
]


@pytest.mark.parametrize("template", FAILING)
def test_template_that_fails_is_one_line(tiny: ChatModel, template: str) -> None:
    tiny.tokenizer._tokenizer.chat_template = template
    with pytest.raises(PromptError, match=r"^prompts: the model's chat template cannot render") as raised:
        render_prompt(tiny.tokenizer, "x")
    assert "\n" not in str(raised.value)
    with pytest.raises(PromptError, match=r"^prompts: the model's chat template cannot render"):
        render_text(tiny.tokenizer, "x")


def test_template_that_renders_nothing_is_one_line(tiny: ChatModel) -> None:
    tiny.tokenizer._tokenizer.chat_template = "{# nothing #}"
    with pytest.raises(PromptError, match=r"^prompts: the model's chat template renders nothing; [^\n]+\.$"):
        render_prompt(tiny.tokenizer, "x")


def test_dialogue_is_the_prompt_then_the_answer_then_the_end_of_turn(tiny: ChatModel) -> None:
    ids, start = render_dialogue(tiny.tokenizer, "apple", "Mix flour.")
    assert ids[:start] == render_prompt(tiny.tokenizer, "apple")
    assert tiny.tokenizer.decode(ids[start:]) == "Mix flour.<|im_end|>"
    whole = render_text(tiny.tokenizer, "apple") + "Mix flour.<|im_end|>"
    assert ids == tiny.tokenizer.encode(whole, add_special_tokens=False)


def test_prompt_text_cannot_close_its_own_turn_unnoticed(model_folder: Callable[..., Path], tiny: ChatModel) -> None:
    """Special tokens in a prompt are the template's business; what matters is that rendering stays one string."""
    ids = render_prompt(tiny.tokenizer, "a<|im_end|>b")
    assert tiny.tokenizer.decode(ids) == render_text(tiny.tokenizer, "a<|im_end|>b")


# --- public benchmark files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "kind", "count"),
    [
        ("advbench/harmful_behaviors.csv", "harmful", 520),
        ("jailbreakbench/harmful-behaviors.csv", "harmful", 100),
        ("jailbreakbench/benign-behaviors.csv", "harmless", 100),
        ("xstest/xstest_prompts.csv", "harmful", 200),
        ("xstest/xstest_prompts.csv", "twin", 250),
        ("xstest/model_completions/xstest_v2_completions_llama2new.csv", "harmful", 200),
        ("xstest/model_completions/xstest_v2_completions_llama2new.csv", "twin", 250),
    ],
)
def test_benchmark_files_are_read_as_published(file: str, kind: str, count: int) -> None:
    data = os.environ.get("AIRD_TEST_DATA")
    if not data:
        pytest.skip("AIRD_TEST_DATA names no folder with the benchmarks")
    prompts = read_prompts(Path(data) / file, kind)
    # Repeated prompts are dropped, and some sets hold a few.
    assert 0.98 * count <= len(prompts) <= count
    assert all(prompt == prompt.strip() and len(prompt) > 5 for prompt in prompts)


# --- columns ------------------------------------------------------------------------------------------------------

letters = st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=["Cs", "Zl", "Zp", "Cc"])
words = st.text(letters, min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8), st.sampled_from(["goal", "Forbidden_Prompt", "mine"]))
def test_any_table_is_read_back_by_its_column(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], column: str
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    expected = list(dict.fromkeys(prompt for _, prompt in rows))
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", column), *rows])
    lines = [json.dumps({"id": first, column: prompt}) for first, prompt in rows]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("a.csv", "a.jsonl"):
        assert read_prompts(folder / name, column="MINE" if column == "mine" else None) == expected


def test_column_overrides_the_known_ones_and_is_needed_when_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,request\nx,y\n")
    assert read_prompts(tmp_path / "a.csv", column="Request") == ["y"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "request": "y"}\n')
    assert read_prompts(tmp_path / "a.jsonl", column="request") == ["y"]
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(PromptError, match=r"one of gone is needed"):
            read_prompts(tmp_path / name, column="gone")


def test_harmbench_context_is_put_before_the_request(tmp_path: Path) -> None:
    path = tmp_path / "harmbench.csv"
    path.write_text("Behavior,SemanticCategory,Tags,ContextString,BehaviorID\nask,c,t,a text,1\nplain,c,t,,2\n")
    assert read_prompts(path) == ["a text\n\n---\n\nask", "plain"]
    path.write_text("goal,behavior,contextstring\ngoal text,name,ignored\n")
    assert read_prompts(path) == ["goal text"], "only HarmBench's own column has contexts"


def test_labels_of_one_side_only_are_named(tmp_path: Path) -> None:
    path = tmp_path / "safe.csv"
    path.write_text("prompt,label\nkind,safe\n")
    with pytest.raises(PromptError, match="labelled safe; rows labelled unsafe are needed"):
        read_prompts(path, "harmful")


# --- crossed dialogues ----------------------------------------------------------------------------------------------

WRITTEN = st.lists(st.from_regex(r"[ab]{1,3}( [ab]{1,3}|\n[ab]{1,3}){0,4}", fullmatch=True), unique=True, max_size=6)


@given(prompts=WRITTEN, count=st.integers(0, 20), seed=st.integers(0, 3))
def test_crossed_prompt_is_new_and_begins_like_one_and_ends_like_the_one_it_has_the_answer_of(
    prompts: list[str], count: int, seed: int
) -> None:
    dialogues = [(prompt, f"answer {number}") for number, prompt in enumerate(prompts)]
    crossed = cross_dialogues(dialogues, count, seed)
    assert crossed == cross_dialogues(dialogues, count, seed)
    assert len(crossed) <= count
    assert len({prompt for prompt, _ in crossed} | set(prompts)) == len(crossed) + len(prompts)
    begins = {prompt[: cut.start()] for prompt in prompts for cut in re.finditer(r"\s", prompt)}
    for prompt, answer in crossed:
        origin = prompts[int(answer.split()[1])]
        ends = [origin[cut.start() :] for cut in re.finditer(r"\s", origin)]
        assert any(prompt.endswith(end) and prompt.removesuffix(end) in begins for end in ends)


def test_many_prompts_are_crossed_as_often_as_asked_for_and_one_word_is_never_cut() -> None:
    dialogues = [(f"how do I {verb} {thing}", verb) for verb in ("fix", "buy") for thing in ("a car", "my old boat")]
    assert len(cross_dialogues(dialogues, 25, seed=0)) == 25
    assert cross_dialogues([("alone", "x"), ("one more", "y")], 5, seed=0) == []
