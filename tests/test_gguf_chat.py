"""A file asked as a chat model: its template as transformers renders it, its end tokens, its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.utils.chat_template_utils import render_jinja_template

from aird_mlx.errors import PromptError
from aird_mlx.evaluation import MlxChat
from aird_mlx.gguf_export import LlamaRuntime, export_gguf, is_available
from aird_mlx.gguf_export.chat import GgufChat, compile_template, statements_unknown_to_llama

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")

TEMPLATES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "{% for message in messages %}\n    {{- message.role }}: {{ message['content'] | trim }}\n{% endfor %}\n",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m | tojson }}"
    "{% endfor %}",
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}{{ messages | tojson(indent=2) }}",
]
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": st.text(max_size=20)}), min_size=1
)


@given(messages, st.sampled_from(TEMPLATES))
def test_templates_render_as_in_transformers(conversation: list[dict[str, str]], template: str) -> None:
    options: dict[str, Any] = {"bos_token": "<s>", "add_generation_prompt": True}
    expected, _ = render_jinja_template([conversation], chat_template=template, **options)
    assert compile_template(template, "here").render(messages=conversation, **options) == expected[0]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{% with a = 1 %}{% endwith %}", {"with": 1}),
        ("{% import 'x' as y %}{% from 'x' import y %}", {"import": 1, "from": 1}),
        ("{% extends 'x' %}\n{%- block a -%}{% endblock %}", {"extends": 1, "block": 2}),
        ("{% autoescape false %}{% endautoescape %}{% print 1 %}", {"autoescape": 1, "print": 1}),
        ("\n{% raw %}{% with %}{% endraw %}", {"raw": 2}),
        ("{% for m in messages recursive %}{% endfor %}", {"for ... recursive": 1}),
        ("{% for a in b %}{% break %}{% continue %}{% else %}{% for c in a if c %}{% endfor %}{% endfor %}", {}),
        ("{% macro f(a) %}{{ caller() }}{% endmacro %}{% call f(1) %}{% endcall %}", {}),
        ("{% filter trim %}{% endfilter %}{% generation %}{% endgeneration %}{% set a %}{% endset %}", {}),
        ("{% if a %}{% elif b %}{% else %}{{ '{% with %}' }}{# {% with %} #}{% endif %}", {}),
    ],
)
def test_statements_that_llama_cpp_does_not_know_are_found(template: str, found: dict[str, int]) -> None:
    compile_template(template, "here")
    assert statements_unknown_to_llama(template) == found


def test_template_cannot_leave_the_sandbox() -> None:
    template = compile_template("{{ messages.__class__.__mro__[1].__subclasses__() }}", "here")
    with pytest.raises(Exception, match="unsafe"):
        template.render(messages=[])


@needs_llama
def test_prompts_have_the_token_ids_of_the_model_they_were_exported_from(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model_folder()
    written = export_gguf(folder, tmp_path / "m.gguf", "f32")
    mlx = MlxChat.load(str(folder))
    with closing(GgufChat(written.path)) as gguf:
        assert gguf.context_length == mlx.context_length == 256
        for conversation in (
            [{"role": "user", "content": "How do I bake bread? \u00dc\n"}],
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "apple"}],
        ):
            for prefill in ("", "Sure, here is"):
                assert gguf.render(conversation, prefill) == mlx.render(conversation, prefill)
        assert gguf.encode("Seven <|im_end|> 7")[:3] == mlx.tokenizer.encode("Seven <|", add_special_tokens=False)[:3]
        assert gguf.runtime.end_tokens == [0, 2], "llama.cpp counts <|endoftext|> among them by its name"
        ids = mlx.tokenizer.encode("Hello \u00dc bread", add_special_tokens=False)
        assert gguf.runtime.detokenize([1, *ids, 2]) == "Hello \u00dc bread"
        assert gguf.runtime.detokenize([]) == ""
        assert gguf.runtime.detokenize(ids * 50) == "Hello \u00dc bread" * 50
        prompts = [gguf.render([{"role": "user", "content": word}]) for word in ("apple", "bread", "words")]
        assert gguf.answers(prompts, max_new_tokens=9) == mlx.answers(prompts, max_new_tokens=9)


@needs_llama
def test_drawn_tokens_follow_the_softmax(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    written = export_gguf(model_folder(), tmp_path / "m.gguf", "f32")
    with LlamaRuntime(written.path, n_ctx=16, parallel=64) as runtime:
        logits = runtime.logits([5, 6, 7])[-1].astype(np.float64)
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        drawn = runtime.generate([[5, 6, 7]] * 1500, 1, [], temperature=1.0, seed=3)
        assert runtime.generate([[5, 6, 7]] * 1500, 1, [], temperature=1.0, seed=3) == drawn
    counts = np.bincount([answer[0] for answer in drawn], minlength=320)
    bins = np.array_split(np.argsort(expected), 12)
    observed = [counts[one].sum() for one in bins]
    assert chisquare(observed, [1500 * expected[one].sum() for one in bins]).pvalue > 0.001


@needs_llama
def test_unusable_template_is_one_line(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    for number, (template, said) in enumerate(
        [
            (None, "has no tokenizer.chat_template"),
            ("{% for %}", "is no jinja"),
            ("{{ raise_exception('no') }}", "no"),
            ("{{ 1/0 }}", "division by zero"),
        ]
    ):
        folder = model_folder(seed=number)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        written = export_gguf(folder, tmp_path / f"{number}.gguf", "f32")
        with pytest.raises(PromptError, match=said) as raised, closing(GgufChat(written.path)) as chat:
            chat.render([{"role": "user", "content": "x"}])
        assert "\n" not in str(raised.value)
