"""Files for local chat programs: templates rendered beside their originals, scripts run, trees looked at."""

from __future__ import annotations

import configparser
import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.chat_apps import check_new_chat_apps, place_in_lm_studio, write_chat_apps
from aird_mlx.chat_apps.go_template import quote_text, render
from aird_mlx.chat_apps.llama_server import write_preset, write_run_script
from aird_mlx.chat_apps.ollama import render_ollama, translate, write_modelfile
from aird_mlx.errors import OutputError
from aird_mlx.gguf_export import export_gguf
from aird_mlx.gguf_export.chat import compile_template
from aird_mlx.gguf_export.chat_facts import ChatFacts, gather_chat_facts
from aird_mlx.gguf_export.tokenizer import Vocabulary
from aird_mlx_cli.main import main

DATA = Path(os.environ.get("AIRD_TEST_DATA", "/nonexistent")) / "tokenizers"
FACTS = ChatFacts(None, "<s>", "</s>", True, ("</s>", "<|end|>"), 4096, {"temperature": 0.6, "top_k": 20.0})
SAID = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bake?\nNow")]

# By family: the template as models ship it, shortened to what it does with text, and what it makes of SAID.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBake?\nNow<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "chatml-with-its-own-system-prompt": (
        "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
        "{% else %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{{ '<|im_start|>assistant\n' }}",
        "<|im_start|>system\nYou are Tiny.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
        "<|im_end|>\n"
        "<|im_start|>user\nBake?\nNow<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Hello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBake?\nNow<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content }}<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' }}",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBake?\nNow"
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma3": (
        "{{ bos_token }}{% set first = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
        "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% endif %}{% for m in rest %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
        "{{ m.content }}<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' }}",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBake?\nNow"
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": (
        "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else none %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ s + '\n\n' if s is not none and loop.last else '' }}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST] Hi[/INST] Hello</s>[INST] Bake?\nNow[/INST]",
    ),
    "phi3": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}{{ '<|assistant|>\n' }}",
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBake?\nNow<|end|>\n<|assistant|>\n",
    ),
    "vicuna": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}USER: {{ m.content }}\n{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}"
        "{{ eos_token }}\n{% endif %}{% endfor %}ASSISTANT:",
        "USER: Hi\nASSISTANT: Hello</s>\nUSER: Bake?\nNow\nASSISTANT:",
    ),
    "braces": ("{{ '{{x}}' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>", None),
}  # fmt: skip


TRANSLATED = {family: translate(replace(FACTS, template=template)).template or "" for family, (template, _) in
              TEMPLATES.items()}  # fmt: skip


def render_jinja(template: str, conversation: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": text} for role, text in conversation]
    rendered = compile_template(template, "here").render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return rendered.removeprefix("<s>")


@pytest.mark.parametrize("family", list(TEMPLATES))
def test_translated_template_renders_like_the_original(family: str) -> None:
    template, expected = TEMPLATES[family]
    translation = translate(replace(FACTS, template=template))
    assert translation.template is not None, translation.reason
    if expected is not None:
        assert render_ollama(translation.template, SAID) == expected
    with_system = [("system", "Be kind."), *SAID]
    if family == "gemma":
        assert any("takes no system message" in note for note in translation.notes)
    else:
        assert "Be kind." in render_ollama(translation.template, with_system)
        assert render_ollama(translation.template, with_system) == render_jinja(template, with_system)
    assert any("trims" in note for note in translation.notes) == (family == "llama3")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text == text.strip()
)


@given(st.lists(texts, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1), st.none() | texts,
       st.sampled_from([family for family in TEMPLATES if family != "gemma"]))  # fmt: skip
def test_any_conversation_renders_like_the_original(said: list[str], system: str | None, family: str) -> None:
    template = TEMPLATES[family][0]
    conversation = [("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(said)]
    if system is not None:
        conversation = [("system", system), *conversation]
    assert render_ollama(TRANSLATED[family], conversation) == render_jinja(template, conversation)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{% for %}", "is no jinja"),
        ("{{ messages[-1].content }}", "otherwise|not at all"),
        ("{{ messages | tojson }}", "more than once|otherwise|not at all"),
        ("{{ raise_exception('never') }}", "refuses a conversation"),
        ("{% for m in messages %}{{ m.role }}{{ m.content | upper }}{% endfor %}", "not at all"),
        ("{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}", "otherwise|longer"),
        ('{% for m in messages %}"""{{ m.role }}{{ m.content }}{% endfor %}', "ends a text"),
        ("{% for m in messages %}{{ m.role }}{{ m.content | replace('bread', 'cake') }}{% endfor %}", "otherwise"),
    ],
)
def test_template_that_cannot_be_translated_says_why(template: str | None, said: str) -> None:
    translation = translate(replace(FACTS, template=template))
    assert translation.template is None
    assert any(part in translation.reason for part in said.split("|"))
    modelfile = write_modelfile("m", "m.gguf", FACTS, translation)
    assert f"# No TEMPLATE, so Ollama guesses one: {translation.reason}." in modelfile.splitlines()


@pytest.mark.parametrize(
    ("made_of_it", "said"),
    [
        ("s", None),
        ("s | trim", "the model's template trims system messages, Ollama's does not"),
        (
            "s | replace('/no_think', '') ~ ('!' if '/no_think' in s else '')",
            "the model's template reads /think and /no_think in system messages, Ollama's does not",
        ),
    ],
)
def test_system_message_that_ollama_renders_otherwise_is_noted(made_of_it: str, said: str | None) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% set s = m.content %}"
        f"{{{{ ({made_of_it}) if m.role == 'system' else s }}}}\n{{% endfor %}}<assistant>"
    )
    translation = translate(replace(FACTS, template=template))
    assert translation.template is not None, translation.reason
    assert translation.notes == (() if said is None else (said,))


@pytest.mark.skipif(not DATA.is_dir(), reason="AIRD_TEST_DATA is not set")
def test_templates_that_models_ship_are_translated() -> None:
    files = sorted((DATA / "llama.cpp" / "templates").glob("*.jinja"))
    assert len(files) == 6
    for file in files:
        template = file.read_text(encoding="utf-8")
        translation = translate(replace(FACTS, template=template))
        assert translation.template, f"{file.name}: {translation.reason}"
        assert render_ollama(translation.template, SAID) == render_jinja(template, SAID)
        assert any("/no_think in system messages" in note for note in translation.notes) == ("SmolLM3" in file.name)


def test_modelfile_has_template_stops_and_parameters() -> None:
    template, _ = TEMPLATES["phi3"]
    facts = replace(FACTS, template=template)
    lines = write_modelfile("tiny-Q4_1", "tiny-Q4_1.gguf", facts, translate(facts)).splitlines()
    assert "FROM ./tiny-Q4_1.gguf" in lines
    assert {line for line in lines if line.startswith("PARAMETER")} == {
        'PARAMETER stop "</s>"', 'PARAMETER stop "<|end|>"', "PARAMETER num_ctx 4096", "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
    }  # fmt: skip
    assert len([line for line in lines if line.startswith('TEMPLATE """')]) == 1


def test_every_token_that_ends_an_answer_stops_ollama(tmp_path: Path) -> None:
    """As of Phi 3: more ends than a GGUF file has keys for; those it names come first."""
    tokens = ["<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "word"]
    vocabulary = Vocabulary("llama", None, tokens, [3] * len(tokens), special_ids={"bos": 0, "eos": 1, "eot": 2})
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 1, 3, 99]}))
    facts = gather_chat_facts(tmp_path, vocabulary, 512)
    assert facts.stops == ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>")
    lines = write_modelfile("m", "m.gguf", facts, translate(facts)).splitlines()
    assert [line for line in lines if line.startswith("PARAMETER stop")] == [
        f'PARAMETER stop "{stop}"' for stop in facts.stops
    ]


def test_go_templates_mean_what_go_means_by_them() -> None:
    values: dict[str, Any] = {"A": "", "B": "b", "L": [{"X": 1}, {"X": 2}]}
    for template, expected in [
        ("{{ if .A }}1{{ else if .B }}2{{ else }}3{{ end }}4", "24"),
        ("{{ if .A }}1{{ if .B }}2{{ end }}{{ else }}{{ if not .A }}3{{ end }}{{ end }}", "3"),
        ("{{ range $i, $m := .L }}{{ $i }}{{ $m.X }}{{ if eq $m.X 2 }}!{{ end }},{{ end }}", "01,12!,"),
        ("{{ range $i, $m := .L }}{{ len (slice $.L $i) }}{{ end }}{{ .Missing }}", "21"),
        ('{{ $x := eq .B "b" }}{{ if and $x .B }}{{ "}}" }}{{ end }}', "}}"),
    ]:
        assert render(template, values) == expected, template
    for broken in ("{{ end }}", "{{ if .A }}", "{{ range .L }}{{ end }}", "{{ nonsense .A }}"):
        with pytest.raises(ValueError, match=r"end|range|known|beginning"):
            render(broken, values)


@given(st.text("{}%\"'a \n", max_size=12))
def test_any_text_can_be_quoted(text: str) -> None:
    assert render(quote_text(text) + "{{ if .A }}{{ end }}", {"A": ""}) == text


def test_preset_is_an_ini_that_llama_server_reads() -> None:
    text = write_preset("org/Tiny model", "/models/tiny.gguf", FACTS)
    ini = configparser.ConfigParser()
    ini.read_string("[top]\n" + text)
    assert ini.sections() == ["top", "org-Tiny-model"]
    assert dict(ini["org-Tiny-model"]) == {
        "model": "/models/tiny.gguf", "ctx-size": "4096", "jinja": "true", "temp": "0.6", "top-k": "20",
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["c# models", "a;b", "a\nb"])
def test_preset_that_would_cut_its_path_is_left_out(tmp_path: Path, folder: str) -> None:
    """common/preset.cpp: a value ends at ; or #, and has no quotes."""
    (tmp_path / folder).mkdir()
    made = write_chat_apps(tmp_path / folder / "m.gguf", FACTS)
    assert set(made.files) == {"Modelfile", "run.sh"}
    assert sorted((tmp_path / folder).iterdir()) == sorted(made.files.values())
    (note,) = made.notes
    assert note.startswith("no preset.ini: ") and "\n" not in note
    moved = write_chat_apps(tmp_path / folder / "m.gguf", FACTS, final=Path("/elsewhere/m.gguf"))
    assert "model = /elsewhere/m.gguf" in moved.files["preset.ini"].read_text() and moved.notes == ()


@pytest.mark.parametrize(("verified", "code", "said"), [("0", 0, "served"), ("5", 5, ""), (None, 0, "served")])
def test_run_script_verifies_before_it_serves(tmp_path: Path, verified: str | None, code: int, said: str) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    programs = {"llama-server": 'echo served "$@"', "dirname": '/usr/bin/dirname "$@"'}
    if verified is not None:
        programs["aird-mlx"] = f'echo "$@" >&2; exit {verified}'
    for name, text in programs.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    script = tmp_path / "my model.run.sh"
    script.write_text(write_run_script("my model", "my model.gguf", FACTS))
    done = subprocess.run(
        ["/bin/sh", str(script), "--port", "81"], capture_output=True, text=True, check=False, cwd="/",
        env={"PATH": str(commands)},
    )  # fmt: skip
    assert (done.returncode, done.stdout[:6]) == (code, said)
    if said:
        assert done.stdout.split() == [
            "served", "--model", "./my", "model.gguf", "--ctx-size", "4096", "--jinja", "--temp", "0.6", "--top-k",
            "20", "--port", "81",
        ]  # fmt: skip
    assert ("verify ./my model.gguf" if verified else "without being verified") in done.stderr


def test_files_stand_beside_the_gguf(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    written = export_gguf(model_folder(), tmp_path / "out" / "tiny-F16.gguf", "f16")
    assert (written.chat.stops, written.chat.context_length) == (("<|im_end|>",), 256)
    for _ in range(2):  # again: an interrupted run's own files
        made = write_chat_apps(written.path, written.chat, final=Path("/elsewhere/tiny-F16.gguf"))
    files = list(made.files.values())
    assert made.notes == ()
    assert [file.name for file in files] == ["tiny-F16.Modelfile", "tiny-F16.preset.ini", "tiny-F16.run.sh"]
    assert sorted(written.path.parent.iterdir()) == sorted([written.path, *files])
    assert "<|im_start|>assistant" in files[0].read_text()
    assert "model = /elsewhere/tiny-F16.gguf" in files[1].read_text()
    assert stat.S_IMODE(files[2].stat().st_mode) & 0o111


def test_own_preset_stays_where_none_is_written(tmp_path: Path) -> None:
    (tmp_path / "#").mkdir()
    (tmp_path / "#" / "m.preset.ini").write_text("the user's")
    check_new_chat_apps(tmp_path / "#" / "m.gguf")
    write_chat_apps(tmp_path / "#" / "m.gguf", FACTS)
    assert (tmp_path / "#" / "m.preset.ini").read_text() == "the user's"
    with pytest.raises(OutputError, match=r"Modelfile exists already; a new file is needed"):
        check_new_chat_apps(tmp_path / "#" / "m.gguf")


def test_file_in_parts_is_merged_for_ollama_and_served_as_it_is(
    model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(model_folder()), "--no-check", "--chat-apps", "--outfile", str(tmp_path / "my m.gguf")]
    assert main([*command, "--split-max-tensors", "9"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    first, *others = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert others
    merge = f"llama-gguf-split --merge '{first}' 'my m.gguf'"
    assert f"note: Ollama does not import a file in parts: before its Modelfile, {merge}" in shown
    lines = (tmp_path / "my m.Modelfile").read_text().splitlines()
    assert lines[:4] == [
        "# Ollama does not import a file in parts, so merge them first:",
        f"# {merge}",
        "# ollama create NAME -f 'my m.Modelfile'",
        "FROM ./my m.gguf",
    ]
    preset = (tmp_path / "my m.preset.ini").read_text()
    assert "[my-m]\n" in preset and f"model = {tmp_path / first}\n" in preset
    assert f"exec llama-server --model './{first}'" in (tmp_path / "my m.run.sh").read_text()


def test_names_follow_the_file_whatever_it_is_called(tmp_path: Path) -> None:
    """No two of ``m.f16`` and ``m.q8_0`` share a Modelfile; a single part is a whole file."""
    made = write_chat_apps(tmp_path / "m.f16", FACTS)
    assert {path.name for path in made.files.values()} == {"m.f16.Modelfile", "m.f16.preset.ini", "m.f16.run.sh"}
    assert "FROM ./m.f16\n" in made.files["Modelfile"].read_text()
    part = tmp_path / "m-00001-of-00001.gguf"
    made = write_chat_apps(tmp_path / "m.gguf", FACTS, parts=[part])
    assert f"FROM ./{part.name}\n" in made.files["Modelfile"].read_text() and made.notes == ()


def test_lm_studio_finds_the_file_under_its_publisher(tmp_path: Path) -> None:
    file = tmp_path / "tiny-F16.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "my-model").mkdir()
    tree = tmp_path / "models"
    for model, place in (
        ("org/Tiny", "org/Tiny-GGUF"), ("demo", "aird-mlx/demo-GGUF"),
        (str(tmp_path / "my-model"), "aird-mlx/my-model-GGUF"),
    ):  # fmt: skip
        target = place_in_lm_studio(file, tree, model)
        assert target == tree / place / "tiny-F16.gguf"
        assert os.path.samefile(target, file)
        with pytest.raises(OutputError, match="exists already"):
            place_in_lm_studio(file, tree, model)
        assert list(target.parent.iterdir()) == [target]
    link = tmp_path / "models" / "org" / "Tiny-GGUF" / ".writing-other.gguf"
    os.link(file, link)  # of a run that was killed between link and rename
    (tmp_path / "other.gguf").write_bytes(b"GGUF and more")
    assert place_in_lm_studio(tmp_path / "other.gguf", tree, "org/Tiny").read_bytes() == b"GGUF and more"
    assert file.read_bytes() == b"GGUF" and not link.exists()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        place_in_lm_studio(file, tmp_path / "file", "demo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("can_link", [True, False])
def test_lm_studios_file_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    def another_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not can_link:
        monkeypatch.setattr(os, "link", another_disk)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    target = place_in_lm_studio(file, tmp_path / "models", "org/Tiny")
    assert target.read_bytes() == b"GGUF" and os.path.samefile(target, file) == can_link
    assert list(target.parent.iterdir()) == [target]


def test_chat_apps_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write_chat_apps(tmp_path / "file" / "m.gguf", FACTS)
    assert "\n" not in str(caught.value)
