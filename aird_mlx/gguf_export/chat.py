"""A GGUF file in llama.cpp as the evaluation asks it: its own chat template, tokenizer and weights.

Offers what `aird_mlx.evaluation.chat` offers for MLX. The template comes from a file that may be anybody's, so it runs
in jinja's sandbox, with the few functions that chat templates rely on.
Source: the environment of ``transformers.utils.chat_template_utils``; llama.cpp's ``common/jinja``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aird_mlx.errors import PromptError
from aird_mlx.gguf_export.likelihood import log_likelihoods
from aird_mlx.gguf_export.runtime import LlamaRuntime
from aird_mlx.prompts import TEMPLATE_ERRORS

# What llama.cpp's own jinja reads, without their ends: common/jinja/parser.cpp.
_LLAMA_STATEMENTS = frozenset(
    ("set", "if", "elif", "else", "for", "macro", "call", "filter", "break", "continue", "generation")
)


class GgufChat:
    """A file opened in llama.cpp; `close` frees it.

    Args:
        path: the GGUF file.
        parallel: most answers generated side by side.
        layers: where the residual stream is read, see `LlamaRuntime`.
        gpu_layers: blocks computed on the GPU, see there.

    Raises:
        DependencyError: llama-cpp-python is not installed.
        ParityError: llama.cpp refuses the file.
        PromptError: the file has no chat template, or one that is no jinja.
    """

    def __init__(self, path: Path, *, parallel: int = 16, layers: Collection[int] = (), gpu_layers: int = 0) -> None:
        self.runtime = LlamaRuntime(path, parallel=parallel, layers=layers, gpu_layers=gpu_layers)
        template = self.runtime.metadata("tokenizer.chat_template")
        try:
            if template is None:
                raise PromptError(
                    f"prompts: {path} has no tokenizer.chat_template, so it cannot be asked as a chat model; a file "
                    "with one is needed. Export it again from the instruct version."
                )
            self._template = compile_template(template, str(path))
        except PromptError:
            self.runtime.close()
            raise
        self._special = {f"{name}_token": self.runtime.special_text(name) for name in ("bos", "eos")}

    def close(self) -> None:
        """Free the file; safe to call twice."""
        self.runtime.close()

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together, None if the file names no limit."""
        found = self.runtime.metadata(f"{self.runtime.metadata('general.architecture')}.context_length")
        return None if found is None else int(found)

    def render(
        self, messages: Sequence[Mapping[str, str]], prefill: str = "", options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids up to where the model goes on writing: the answer's start, or the end of ``prefill``.

        Args:
            messages: each with ``role`` and ``content``.
            prefill: how the answer begins.
            options: what the template itself understands.

        Raises:
            PromptError: the template cannot render the conversation.
        """
        text = self.render_text(messages, options)
        ids = self.runtime.tokenize(text)
        return ids + (self.runtime.tokenize(prefill, parse_special=False) if prefill else [])

    def render_text(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any] | None = None) -> str:
        """The conversation as text, special tokens written out, up to the answer's start.

        Raises:
            PromptError: the template cannot render it.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._special,
                **(options or {}),
            )
        except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
            raise PromptError(
                f"prompts: the chat template in {self.runtime.path} cannot render the conversation ({error}); a "
                "working jinja template is needed. Check the model it was exported from."
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, behind the token the file says comes first."""
        return self.runtime.tokenize(text, parse_special=False, add_special=True)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """The text the file writes after each prompt, in their order; see `LlamaRuntime.generate`."""
        self._make_room(prompts, max_new_tokens)
        answers = self.runtime.generate(
            prompts, max_new_tokens, self.runtime.end_tokens, temperature=temperature, seed=seed, progress=progress
        )
        return [self.runtime.detokenize(answer) for answer in answers]

    def log_likelihoods(
        self,
        sequences: Sequence[Sequence[int]],
        first_counted: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[float]:
        """Per sequence the log-likelihood (nats) of its tokens from the first that counts."""
        self._make_room(sequences, 0)
        return log_likelihoods(self.runtime.logits, sequences, first_counted, progress)

    def _make_room(self, sequences: Sequence[Sequence[int]], new_tokens: int) -> None:
        """Let contexts be as long as these sequences need, not as the model could take: that is memory."""
        self.runtime.n_ctx = max((len(ids) for ids in sequences), default=0) + new_tokens + 1


def compile_template(template: str, where: str) -> jinja2.Template:
    """A chat template, ready to render.

    Raises:
        PromptError: it is no jinja.

    >>> compile_template("{{ messages[0].content | trim }}", "here").render(messages=[{"content": " Hi "}])
    'Hi'
    """
    try:
        return _environment().from_string(template)
    except (jinja2.TemplateError, RecursionError) as error:
        raise PromptError(
            f"prompts: the chat template of {where} is no jinja ({error}); a working template is needed. Export the "
            "file again."
        ) from error


def statements_unknown_to_llama(template: str) -> dict[str, int]:
    """The statements of a chat template at which llama.cpp's own jinja gives up, each with the line of its first.

    Args:
        template: one that compiles.

    >>> statements_unknown_to_llama("{% if a %}{% endif %}\\n{%- with b = 1 %}{% endwith %}{% import 'x' as y %}")
    {'with': 2, 'import': 2}
    """
    environment = _environment()
    found: list[tuple[int, str]] = []
    begun = False
    for line, kind, text in environment.lex(template):
        if kind == "raw_begin":  # a kind of its own in jinja2
            found.append((line, "raw"))
        elif begun and kind == "name" and text not in _LLAMA_STATEMENTS and not text.startswith("end"):
            found.append((line, text))
        begun = kind == "block_begin" or (begun and kind == "whitespace")
    loops = environment.parse(template).find_all(nodes.For)
    found += [(loop.lineno, "for ... recursive") for loop in loops if loop.recursive]
    first: dict[str, int] = {}
    for line, word in sorted(found, key=lambda one: one[0]):
        first.setdefault(word, line)
    return first


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja's own extensions have it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Not jinja's own filter, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
