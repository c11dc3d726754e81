"""Scoring all direction candidates as the project does it, against one candidate at a time; the same scores, less time.

One candidate at a time means what a reference implementation with hooks does: for each candidate one ablated run over
the harmful prompts, one over the harmless ones, and one with the candidate added, each a full call of the model that
gives logits at every token, with prompts padded into batches of the size given (32 is that of Arditi et al.'s code).
The model is a random llama of 16 blocks; prompts share a template that opens with a system message, as those of
Llama 3.2 and Qwen 2.5 do (20 to 30 tokens); `--start 4` is a template without one. Every third layer is scored, since
it is ratios that count. CPU seconds are those of all threads, OpenBLAS's that wait for work too.

Also counted are the tokens that went through a block: their ratio is what sharing saves where computing is all that
costs. No exact method comes far below ours: an ablation changes a prompt from the embedding on, so each candidate needs
both kinds of prompts whole, but for the template's start, which is the same in all of them. The rest of the time that
is saved comes of candidates riding in one call, of logits at last tokens only and, on a CPU, of batches side by side.

    python benchmarks/bench_direction.py --hidden 64 --start 24
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from mlx_lm.tokenizer_utils import TokenizerWrapper  # noqa: E402

from aird_mlx.architectures import TABLE  # noqa: E402
from aird_mlx.direction import CandidateScores, kl_divergence, mean_differences, refusal_log_odds, score_candidates  # noqa: E402
from aird_mlx.model import ChatModel  # noqa: E402

T = TypeVar("T")

REFUSAL_TOKENS = [7, 8]
TEMPLATE_END = 5  # tokens after the user's words


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--start", type=int, default=24, help="tokens before the user's words")
    parser.add_argument("--prompts", type=int, default=32, help="of each kind")
    parser.add_argument("--batch-size", type=int, action="append", help="of the naive runs; default 1 and 32")
    options = parser.parse_args()

    model = random_llama(options.hidden, options.vocabulary)
    harmful, harmless = (random_prompts(options.prompts, options.start, options.vocabulary, seed) for seed in (1, 2))
    every_third = mx.arange(16)[:, None, None] % 3 == 0  # a difference of length 0 is no candidate
    differences = mx.where(every_third, mean_differences(model, harmful, harmless, TEMPLATE_END), 0.0)
    score_candidates(model, differences[:1], harmful, harmless, REFUSAL_TOKENS)  # warm
    ours, seconds, cpu, tokens = timed(lambda: score_candidates(model, differences, harmful, harmless, REFUSAL_TOKENS))
    print(
        f"16 blocks, width {options.hidden}, vocabulary {options.vocabulary}; {len(ours.candidates)} candidates, "
        f"{options.prompts} + {options.prompts} prompts of {min(map(len, harmful))}-{max(map(len, harmful))} tokens "
        f"({options.start} of them shared), {mx.default_device()}\n"
        f"shared walk: {seconds:.2f} s, CPU {cpu:.2f} s, {tokens} tokens through a block",
        flush=True,
    )
    for batch_size in options.batch_size or [1, 32]:
        scores, naive, naive_cpu, naive_tokens = timed(
            partial(score_naively, model, differences, ours, (harmful, harmless), batch_size)
        )
        for name, expected in scores.items():
            np.testing.assert_allclose(getattr(ours, name), expected, atol=1e-3, rtol=1e-3, err_msg=name)
        print(
            f"one at a time, batches of {batch_size}: {naive:.2f} s, CPU {naive_cpu:.2f} s; "
            f"{naive / seconds:.1f} times as long by the clock, {naive_cpu / cpu:.1f} times the CPU, "
            f"{naive_tokens / tokens:.1f} times the tokens; scores equal",
            flush=True,
        )


def timed(work: Callable[[], T]) -> tuple[T, float, float, int]:
    """What ``work`` gives, seconds by the clock, CPU seconds of this process, and tokens that went through a block."""
    tokens = 0
    run_block = llama.TransformerBlock.__call__

    def counted(block: nn.Module, hidden: mx.array, *given: Any, **options: Any) -> mx.array:
        nonlocal tokens
        tokens += hidden.shape[0] * hidden.shape[1]
        return run_block(block, hidden, *given, **options)

    llama.TransformerBlock.__call__ = counted
    began, spent = time.monotonic(), time.process_time()
    try:
        result = work()
        return result, time.monotonic() - began, time.process_time() - spent, tokens
    finally:
        llama.TransformerBlock.__call__ = run_block


def random_llama(hidden: int, vocabulary: int) -> ChatModel:
    """A llama of 16 blocks in memory, float32; nothing here asks for its tokenizer."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": 16,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    mx.random.seed(0)
    network = llama.Model(llama.ModelArgs.from_dict(config))
    mx.eval(network.parameters())
    tokenizer: TokenizerWrapper = None  # type: ignore[assignment]
    return ChatModel(network, tokenizer, config, "random", Path(), TABLE["llama"])


def random_prompts(count: int, opening: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Prompts of 8 to 24 random words between the template's tokens."""
    words = random.Random(seed)
    start, end = list(range(10, 10 + opening)), list(range(90, 90 + TEMPLATE_END))
    return [start + [words.randrange(100, vocabulary) for _ in range(words.randint(8, 24))] + end for _ in range(count)]


def score_naively(
    model: ChatModel,
    differences: mx.array,
    scored: CandidateScores,
    prompts: tuple[list[list[int]], list[list[int]]],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The scores of every candidate, one at a time: ``[candidate, prompt]`` each."""
    harmful, harmless = prompts
    plain = run(model, harmless, batch_size)
    scores: dict[str, list[np.ndarray]] = {"bypass": [], "induce": [], "kl": []}
    for candidate in scored.candidates:
        vector = differences[candidate.layer, candidate.position]
        with ablating(model, vector / mx.linalg.norm(vector)):
            scores["bypass"].append(np.array(refusal_log_odds(run(model, harmful, batch_size), REFUSAL_TOKENS)))
            scores["kl"].append(np.array(kl_divergence(plain, run(model, harmless, batch_size))))
        with adding(model, candidate.layer, vector):
            scores["induce"].append(np.array(refusal_log_odds(run(model, harmless, batch_size), REFUSAL_TOKENS)))
    return {name: np.stack(rows) for name, rows in scores.items()}


def run(model: ChatModel, prompts: list[list[int]], batch_size: int) -> mx.array:
    """Logits ``[prompt, vocab]`` at each prompt's last token, of full calls of the model."""
    rows = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        logits = model.network(mx.array([ids + [0] * (width - len(ids)) for ids in batch]))
        rows.append(logits[mx.arange(len(batch)), mx.array([len(ids) - 1 for ids in batch])])
        mx.eval(rows[-1])
    return mx.concatenate(rows)


@contextmanager
def ablating(model: ChatModel, unit: mx.array) -> Iterator[None]:
    """Project ``unit`` out of every block's input and every residual writer's output."""

    def project(value: mx.array) -> mx.array:
        return value - (value @ unit)[..., None] * unit

    def before_block(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        call: Callable[..., mx.array] = block
        return call(project(args[0]), *args[1:], **kwargs)

    def after_writer(linear: nn.Module, value: mx.array) -> mx.array:
        return project(linear(value))

    with ExitStack() as stack:
        for block in range(len(model.blocks)):
            stack.enter_context(model.linear_taps(block, dict.fromkeys(model.layout(block).exits, after_writer)))
        stack.enter_context(model.block_taps(before_block))
        yield


@contextmanager
def adding(model: ChatModel, layer: int, vector: mx.array) -> Iterator[None]:
    """Add ``vector`` to every token at the input of block ``layer``."""

    def before_block(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        call: Callable[..., mx.array] = block
        return call(args[0] + vector if index == layer else args[0], *args[1:], **kwargs)

    with model.block_taps(before_block):
        yield


if __name__ == "__main__":
    main()
