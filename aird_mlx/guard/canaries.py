"""Canary prompts: 16 harmful ones of different categories, 16 harmless, 8 benign twins, and what a file does with them.

They are no benchmark: so few are asked that it takes seconds, to notice that a file has lost what it had. The demo's
come from the held-out part of its language; all other models are asked the package's own, which are in none of its
other sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.errors import UsageError
from aird_mlx.evaluation import judge_answer
from aird_mlx.gguf_export import LlamaRuntime
from aird_mlx.gguf_export.chat import compile_template
from aird_mlx.gguf_export.likelihood import log_softmax
from aird_mlx.guard.manifest import CanaryRecord, Probe
from aird_mlx.guard.probe import project, read_residuals
from aird_mlx.prompts import DATA_FOLDER, render_prompt, render_text

COUNTS = {"harmful": 16, "harmless": 16, "twin": 8}
SETS = ("demo", "built-in")
# Templates that tell the date would give other tokens every day.
DATE = {"strftime_now": lambda form: "2025-01-01"}


@dataclass(frozen=True)
class Canary:
    """One prompt and its kind."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class CanaryAnswers:
    """What a file did with the canaries, one entry per prompt.

    Attributes:
        answers: texts; ``classes``: their letters, r for refusal, c for compliance, i for incoherent.
        log_probabilities: ``[prompt, vocab]`` float64 of the first token, nats.
        scores: ``[prompt]`` of the probe, None without one; ``alarms``: a where it is above the threshold, else -.
    """

    answers: list[str]
    classes: str
    log_probabilities: np.ndarray
    scores: np.ndarray | None
    alarms: str


def read_canaries(name: str) -> list[Canary]:
    """The prompts of a set: harmful, then harmless, then twins.

    Raises:
        UsageError: no set has that name.
    """
    if name == "demo":
        return [Canary(kind, prompt) for kind, count in COUNTS.items() for prompt in _demo_prompts(kind, count)]
    if name == "built-in":
        lines = (DATA_FOLDER / "canaries.jsonl").read_text(encoding="utf-8").splitlines()
        return [Canary(row["kind"], row["prompt"]) for row in map(json.loads, lines)]
    raise UsageError(f"canaries: the set is {name!r:.40}; {' or '.join(SETS)} is needed. Choose one.")


def set_of(model: str) -> str:
    """The set that goes with a model, by what the user called it."""
    return "demo" if model == "demo" else "built-in"


def _demo_prompts(kind: str, count: int) -> list[str]:
    """As many different actions of the language's held-out part as there are, by a seed of their own."""
    from aird_mlx.demo.language import prompts

    return prompts(kind, "test", count, seed=7)


def set_id(name: str) -> str:
    """The name of a set with a hash of its words: it changes when they do.

    >>> set_id("built-in").split("/")[0]
    'built-in'
    """
    words = json.dumps([[one.kind, one.prompt] for one in read_canaries(name)]).encode("utf-8")
    return f"{name}/{hashlib.sha256(words).hexdigest()[:12]}"


def hash_ids(ids: Sequence[int]) -> str:
    """A short hash of token ids, to compare them by.

    >>> hash_ids([1, 2]) == hash_ids([1, 2]) != hash_ids([12])
    True
    """
    return hashlib.sha256(",".join(map(str, ids)).encode("ascii")).hexdigest()[:12]


def render_canaries(tokenizer: TokenizerWrapper, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts by the model's own tokenizer and template; one that tells the date is told `DATE`.

    transformers lets nobody set its clock, so such a template is rendered as `GgufChat` does it.
    """
    if not _tells_date(tokenizer):
        return [render_prompt(tokenizer, prompt) for prompt in prompts]
    texts = canary_texts(tokenizer, prompts)
    return [[int(token) for token in tokenizer.encode(text, add_special_tokens=False)] for text in texts]


def canary_texts(tokenizer: TokenizerWrapper, prompts: Sequence[str]) -> list[str]:
    """The same as text, as a chat app would send it to a runtime."""
    if not _tells_date(tokenizer):
        return [render_text(tokenizer, prompt) for prompt in prompts]
    compiled = compile_template(tokenizer.chat_template, "the model")
    special = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token")}
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [compiled.render(messages=one, add_generation_prompt=True, **special, **DATE) for one in messages]


def _tells_date(tokenizer: TokenizerWrapper) -> bool:
    return isinstance(tokenizer.chat_template, str) and "strftime_now" in tokenizer.chat_template


def ask_canaries(
    runtime: LlamaRuntime, rendered: Sequence[Sequence[int]], max_new_tokens: int, probe: Probe | None
) -> CanaryAnswers:
    """Ask a file all canaries, greedily.

    Args:
        runtime: the file; opened with the probe's layers, or the first one without a probe.
        rendered: token ids of each prompt.
        max_new_tokens: longer answers are cut.
        probe: scores prompts on the way.
    """
    logits, streams = read_residuals(runtime, rendered, 0 if probe is None else probe.tokens)
    generated = runtime.generate(rendered, max_new_tokens, runtime.end_tokens)
    answers = [runtime.detokenize(ids) for ids in generated]
    scores = None if probe is None else project(streams, probe)
    return CanaryAnswers(
        answers,
        "".join(judge_answer(answer)[0] for answer in answers),
        log_softmax(logits.astype(np.float64)),
        scores,
        "" if scores is None or probe is None else "".join("-a"[int(score > probe.threshold)] for score in scores),
    )


def record_canaries(
    name: str, asked: CanaryAnswers, dense: str, rendered: Sequence[Sequence[int]], max_new_tokens: int
) -> CanaryRecord:
    """What a manifest keeps of the answers; ``dense`` has the class letters of the model the file was made from."""
    first = asked.log_probabilities.argmax(axis=-1)
    rows = np.arange(len(first))
    return CanaryRecord(
        set=set_id(name),
        max_new_tokens=max_new_tokens,
        classes=asked.classes,
        dense=dense,
        token_ids=tuple(map(hash_ids, rendered)),
        first=tuple(int(token) for token in first),
        alarms=asked.alarms,
        log_probability=tuple(round(float(x), 6) for x in asked.log_probabilities[rows, first]),
    )
