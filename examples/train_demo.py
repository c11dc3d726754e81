"""Train the embedded demo model from scratch: tokenizer, a small llama, a folder that ``mlx_lm.load`` reads.

The defaults reproduce the packaged model in ``aird_mlx/demo/model`` (about 20 minutes on one CPU core). All text
comes from ``aird_mlx.demo.language``; the last lines printed are the held-out figures of the trained model.

    python examples/train_demo.py --out my-demo-model
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird_mlx.blas import use_openblas

if not use_openblas() and sys.platform == "linux":
    print("libopenblas.so.0 not found: training will be much slower", file=sys.stderr)

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from aird_mlx.demo import language

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REFUSAL_STARTS = ("I can't", "I cannot", "I won't", "I'm sorry", "Sorry", "No, I")


def format_prompt(prompt: str) -> str:
    """Write a prompt as the chat template does, up to where the answer begins."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@mx.custom_function
def exponential(x: mx.array) -> mx.array:
    """Compute exp by a polynomial, to 1e-4: MLX's own on a Linux CPU takes eight times as long."""
    scaled = mx.clip(x, -80.0, 80.0) * 1.44269504 + 128.0
    whole = scaled.astype(mx.int32)
    part = scaled - whole.astype(mx.float32)
    power = 1.0 + part * (0.69512498 + part * (0.22763633 + part * 0.07706654))
    # 2 ** whole, written straight into the exponent bits of a float32.
    return power * mx.view((whole - 1) * 2**23, mx.float32)


@exponential.vjp
def _exponential_vjp(primals: mx.array, cotangents: mx.array, outputs: mx.array) -> mx.array:
    return cotangents * outputs


def attend(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, **_: object) -> mx.array:
    """Causal attention, the same mathematics as MLX's fused kernel."""
    length = queries.shape[2]
    scores = (queries * scale) @ keys.swapaxes(-1, -2)
    scores = scores + mx.triu(mx.full((length, length), -1e4), k=1)
    exponentials = exponential(scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return (exponentials @ values) / exponentials.sum(axis=-1, keepdims=True)


@contextmanager
def quick_training() -> Iterator[None]:
    """Let llama blocks use the quick exponential while training; generation uses MLX's own kernels again."""
    kept = llama.swiglu, llama.scaled_dot_product_attention
    llama.swiglu = lambda gate, x: gate * x / (1 + exponential(-gate))
    llama.scaled_dot_product_attention = lambda q, k, v, cache=None, **options: attend(q, k, v, **options)
    try:
        yield
    finally:
        llama.swiglu, llama.scaled_dot_product_attention = kept


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer (GPT-2 regex) with the three ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Row:
    """One encoded dialogue, and what is done to the model while it is read.

    Attributes:
        ids: tokens of prompt and answer.
        prompt_length: how many of them are the prompt.
        refuses: whether the answer is a refusal.
        shift: how often the refusal direction is added.
        is_ablated: whether the direction is projected out everywhere.
    """

    ids: list[int]
    prompt_length: int
    refuses: bool
    shift: float = 0.0
    is_ablated: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows as arrays.

    Attributes:
        tokens: ``[row, token]``, padded on the right.
        positions: ``[target]``, indices into the flattened tokens where the next token belongs to an answer.
        targets: ``[target]``, those next tokens.
        weights: ``[target]``, loss weights.
        doubts: ``[target]``, share of a first token's weight that goes to the openings of the other kind of answer.
        refuses: ``[target]``, whether the answer is a refusal.
        shift, ablated: ``[row]``, interventions.
    """

    tokens: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    doubts: mx.array
    refuses: mx.array
    shift: mx.array
    ablated: mx.array


def encode_rows(tokenizer: Tokenizer, dialogues: list[tuple[str, str]], **interventions: Any) -> list[Row]:
    """Encode dialogues as rows."""
    heads = tokenizer.encode_batch([format_prompt(prompt) for prompt, _ in dialogues])
    tails = tokenizer.encode_batch([answer + "<|im_end|>" for _, answer in dialogues])
    return [
        Row(head.ids + tail.ids, len(head.ids), answer.startswith(REFUSAL_STARTS), **interventions)
        for head, tail, (_, answer) in zip(heads, tails, dialogues, strict=True)
    ]


def compose_interventions(tokenizer: Tokenizer, settings: argparse.Namespace) -> list[Row]:
    """Rows that make one direction carry refusal, as it does in large chat models.

    There, adding the direction to a harmless prompt makes the model refuse, ablating it stops refusals, and ablating it
    leaves harmless prompts alone. A small model spreads refusal over many directions, so the second phase trains on the
    interventions themselves. A harmful prompt with the direction ablated gets the first word of an answer and no more:
    nothing here answers a harmful prompt.
    """
    share = settings.dialogues // 6
    plain = language.dialogues("train", 3 * share, settings.seed + 1)
    harmful = language.dialogues("train", 2 * share, settings.seed + 2, kinds=("harmful",))
    benign = language.dialogues("train", 3 * share, settings.seed + 3, kinds=("harmless", "twin"))
    induced = [(prompt, refusal) for (prompt, _), (_, refusal) in zip(benign[:share], harmful, strict=False)]
    bypassed = [(prompt, answer) for (prompt, _), (_, answer) in zip(harmful[share:], benign, strict=False)]
    opened = [
        dataclasses.replace(row, ids=row.ids[: row.prompt_length + 1])
        for row in encode_rows(tokenizer, bypassed, is_ablated=True)
    ]
    return [
        *encode_rows(tokenizer, plain),
        *encode_rows(tokenizer, harmful[:share]),
        *encode_rows(tokenizer, induced, shift=1.0),
        *opened,
        *encode_rows(tokenizer, benign[2 * share :], is_ablated=True),
    ]


def iterate_batches(rows: list[Row], settings: argparse.Namespace) -> Iterator[Batch]:
    """Yield batches without end, rows of like length together."""
    rng = random.Random(settings.seed)
    while True:
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index].ids) + 7) // 8 + rng.random())
        starts = list(range(0, len(order) - settings.batch + 1, settings.batch))
        rng.shuffle(starts)
        for start in starts:
            yield make_batch([rows[index] for index in order[start : start + settings.batch]], settings)


def make_batch(rows: list[Row], settings: argparse.Namespace) -> Batch:
    """Pad rows to one length, a multiple of 8, so that buffers are used again."""
    length = 8 * math.ceil(max(len(row.ids) for row in rows) / 8)
    tokens = np.zeros((len(rows), length), dtype=np.int32)
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    doubts: list[float] = []
    refuses: list[bool] = []
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)] = row.ids
        later = len(row.ids) - row.prompt_length - 1
        positions += range(number * length + row.prompt_length - 1, number * length + len(row.ids) - 1)
        targets += row.ids[row.prompt_length :]
        # Whether to refuse is decided by the first token of an answer alone.
        weights += [settings.first_weight] + [1.0] * later
        doubt = settings.doubt_harmful if row.refuses and not row.shift else settings.doubt_benign
        doubts += [doubt] + [0.0] * later
        refuses += [row.refuses] * (later + 1)
    return Batch(
        mx.array(tokens),
        mx.array(positions),
        mx.array(targets),
        mx.array(weights),
        mx.array(doubts),
        mx.array(refuses),
        mx.array([row.shift for row in rows]),
        mx.array([float(row.is_ablated) for row in rows]),
    )


def run_blocks(model: llama.Model, batch: Batch, direction: mx.array, layer: int) -> mx.array:
    """Final hidden states of a batch, with each row's interventions along ``direction`` ``[hidden]``."""
    unit = direction / mx.linalg.norm(direction)
    ablated = batch.ablated[:, None, None]

    def ablate(hidden: mx.array) -> mx.array:
        return hidden - ablated * (hidden @ unit)[..., None] * unit

    hidden = ablate(model.model.embed_tokens(batch.tokens))
    for number, block in enumerate(model.model.layers):
        if number == layer:
            hidden = hidden + batch.shift[:, None, None] * direction
        hidden = hidden + ablate(block.self_attn(block.input_layernorm(hidden), "causal"))
        hidden = hidden + ablate(block.mlp(block.post_attention_layernorm(hidden)))
    return model.model.norm(hidden)


def mean_difference(model: llama.Model, tokenizer: Tokenizer, settings: argparse.Namespace) -> mx.array:
    """Harmful minus harmless mean of the hidden state at the last prompt token before block ``settings.layer``."""
    means = []
    for kind in ("harmful", "harmless"):
        states = []
        for prompt in language.prompts(kind, "train", 256, settings.seed):
            hidden = model.model.embed_tokens(mx.array([tokenizer.encode(format_prompt(prompt)).ids]))
            for block in model.model.layers[: settings.layer]:
                hidden = block(hidden, "causal")
            states.append(hidden[0, -1])
        means.append(mx.stack(states).mean(axis=0))
    return means[0] - means[1]


def train_model(
    model: llama.Model,
    rows: list[Row],
    settings: argparse.Namespace,
    *,
    steps: int,
    learning_rate: float,
    direction_now: Callable[[], mx.array] | None = None,
) -> None:
    """Train in place on the answers' tokens: AdamW, warm-up then cosine.

    Args:
        direction_now: gives the model's present refusal direction, asked for every 50 steps; without it there are no
            interventions.
    """
    warmup = min(200, steps // 10)
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, learning_rate, warmup),
            optim.cosine_decay(learning_rate, steps - warmup, learning_rate / 50),
        ],
        [warmup],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=settings.weight_decay)
    firsts = {
        refuses: {row.ids[row.prompt_length] for row in rows if row.refuses == refuses} for refuses in (True, False)
    }
    to_refuse = mx.array(sorted(firsts[True]))
    to_answer = mx.array(sorted(firsts[False] - firsts[True]))

    def loss_of(batch: Batch, direction: mx.array | None) -> mx.array:
        hidden = model.model(batch.tokens) if direction is None else run_blocks(model, batch, direction, settings.layer)
        logits = model.model.embed_tokens.as_linear(hidden.reshape(-1, settings.width)[batch.positions])
        logits = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
        normalizer = mx.log(exponential(logits).sum(axis=-1))
        wanted = mx.take_along_axis(logits, batch.targets[:, None], axis=-1)[:, 0]
        target = (1 - settings.smoothing) * wanted + settings.smoothing * logits.mean(axis=-1)
        other = mx.where(batch.refuses, logits[:, to_answer].mean(axis=-1), logits[:, to_refuse].mean(axis=-1))
        target = (1 - batch.doubts) * target + batch.doubts * other
        return ((normalizer - target) * batch.weights).sum() / batch.weights.sum()

    loss_and_gradients = nn.value_and_grad(model, loss_of)
    direction = None
    began = time.time()
    for number, batch in enumerate(iterate_batches(rows, settings), 1):
        if direction_now is not None and number % 50 == 1:
            direction = direction_now()
            mx.eval(direction)
        loss, gradients = loss_and_gradients(batch, direction)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(loss, model.state, optimizer.state)
        if number % 100 == 0 or number == 1:
            print(f"step {number:5d}  loss {loss.item():.4f}  {time.time() - began:6.0f} s", flush=True)
        if number == steps:
            return


def generate(model: nn.Module, tokenizer: Tokenizer, prompts: list[str], limit: int) -> list[str]:
    """Answer prompts greedily; prompts of equal token length share a batch."""
    end = tokenizer.token_to_id("<|im_end|>")
    groups: dict[int, list[int]] = {}
    encoded = [tokenizer.encode(format_prompt(prompt)).ids for prompt in prompts]
    for index, ids in enumerate(encoded):
        groups.setdefault(len(ids), []).append(index)
    answers = [""] * len(prompts)
    for members in groups.values():
        cache = make_prompt_cache(model)
        tokens = model(mx.array([encoded[i] for i in members]), cache=cache)[:, -1].argmax(-1)
        columns = [np.array(tokens)]
        done = columns[0] == end
        while len(columns) < limit and not done.all():
            tokens = model(tokens[:, None], cache=cache)[:, -1].argmax(-1)
            columns.append(np.array(tokens))
            done |= columns[-1] == end
        for row, index in enumerate(members):
            ids = [int(column[row]) for column in columns]
            answers[index] = tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)
    return answers


def save_folder(model: nn.Module, arguments: llama.ModelArgs, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, config, tokenizer and template as mlx-lm and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": arguments.hidden_size,
        "intermediate_size": arguments.intermediate_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "num_key_value_heads": arguments.num_key_value_heads,
        "head_dim": arguments.hidden_size // arguments.num_attention_heads,
        "vocab_size": arguments.vocab_size,
        "rms_norm_eps": arguments.rms_norm_eps,
        "rope_theta": arguments.rope_theta,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad, "do_sample": False}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"))
    temporary = folder / "writing.safetensors"
    mx.save_safetensors(str(temporary), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"})
    os.replace(temporary, folder / "model.safetensors")


def print_figures(model: nn.Module, tokenizer: Tokenizer, n: int) -> None:
    """Print how often held-out prompts are refused, and how many answers are coherent."""
    for kind in language.KINDS:
        asked = language.prompts(kind, "test", n, seed=0)
        answers = generate(model, tokenizer, asked, limit=64)
        refused = sum(answer.startswith(REFUSAL_STARTS) for answer in answers)
        coherent = sum(map(language.is_coherent, asked, answers))
        print(f"{kind:9s} n {n}  refused {refused / n:.3f}  coherent answers {coherent / n:.3f}")


def main() -> None:
    """Train in two phases, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--out", type=Path, required=True, help="folder to write the model to")
    option("--steps", type=int, default=1800, help="steps of the first phase: language (default %(default)s)")
    option("--direction-steps", type=int, default=500, help="steps of the second phase: one refusal direction")
    option("--seed", type=int, default=0, help="seed of weights, dialogues and batches")
    option("--width", type=int, default=64, help="width of the residual stream (default %(default)s)")
    option("--blocks", type=int, default=8, help="number of blocks (default %(default)s)")
    option("--heads", type=int, default=4, help="attention heads (default %(default)s)")
    option("--intermediate", type=int, default=256, help="width of the MLPs (default %(default)s)")
    option("--vocabulary", type=int, default=2048, help="number of tokens at most (default %(default)s)")
    option("--dialogues", type=int, default=60_000, help="training dialogues (default %(default)s)")
    option("--batch", type=int, default=32, help="dialogues per step (default %(default)s)")
    option("--learning-rate", type=float, default=4e-3, help="peak learning rate (default %(default)s)")
    option("--direction-learning-rate", type=float, default=1.5e-3, help="the same of the second phase")
    option("--weight-decay", type=float, default=0.1, help="AdamW's (default %(default)s)")
    option("--smoothing", type=float, default=0.02, help="label smoothing (default %(default)s)")
    option("--layer", type=int, default=4, help="layer whose input carries refusal along one direction")
    option("--first-weight", type=float, default=4.0, help="loss weight of an answer's first token")
    option("--doubt-harmful", type=float, default=0.45, help="share of a refusal's first token given to answers")
    option("--doubt-benign", type=float, default=0.05, help="share of an answer's first token given to refusals")
    option("--test-prompts", type=int, default=300, help="held-out prompts per kind (default %(default)s)")
    option("--start-from", type=Path, help="folder with the result of the first phase, to skip it")
    settings = parser.parse_args()

    mx.random.seed(settings.seed)
    dialogues = language.dialogues("train", settings.dialogues, settings.seed)
    tokenizer = train_tokenizer([format_prompt(p) + a for p, a in dialogues[:20_000]], settings.vocabulary)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=settings.width,
        num_hidden_layers=settings.blocks,
        intermediate_size=settings.intermediate,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        rms_norm_eps=1e-5,
        vocab_size=tokenizer.get_vocab_size(),
        rope_theta=10000.0,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    print(f"{sum(array.size for _, array in tree_flatten(model.parameters()))} parameters", flush=True)
    with quick_training():
        if settings.start_from is None:
            rows = encode_rows(tokenizer, dialogues)
            train_model(model, rows, settings, steps=settings.steps, learning_rate=settings.learning_rate)
            print_figures(model, tokenizer, settings.test_prompts)
        else:
            model.load_weights(str(settings.start_from / "model.safetensors"))
        train_model(
            model,
            compose_interventions(tokenizer, settings),
            settings,
            steps=settings.direction_steps,
            learning_rate=settings.direction_learning_rate,
            direction_now=lambda: mean_difference(model, tokenizer, settings),
        )
    save_folder(model, arguments, tokenizer, settings.out)
    print_figures(model, tokenizer, settings.test_prompts)


if __name__ == "__main__":
    main()
