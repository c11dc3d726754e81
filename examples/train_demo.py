"""Train the embedded demo model from scratch: tokenizer, a small llama, a folder that ``mlx_lm.load`` reads.

The defaults reproduce the packaged model in ``aird_mlx/demo/model`` (about 20 minutes on one CPU core). All text
comes from ``aird_mlx.demo.language``; the last lines printed are the held-out figures of the trained model.

    python examples/train_demo.py --out my-demo-model
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "linux":
    # The CPU build of MLX for Linux carries a slow reference BLAS; OpenBLAS loaded first takes its place.
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
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
    """One encoded dialogue and what is done to it: ``shift`` times the direction added, the direction ablated."""

    ids: list[int]
    prompt_length: int
    is_harmful: bool = False
    shift: float = 0.0
    is_ablated: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows as arrays: tokens ``[row, token]``, the answers' positions and targets, and one number per row."""

    tokens: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    last: mx.array
    harmful: mx.array
    shift: mx.array
    ablated: mx.array


def compose_rows(tokenizer: Tokenizer, settings: argparse.Namespace) -> list[Row]:
    """Encode the training dialogues, and the interventions that make one direction carry refusal.

    In large chat models adding one direction induces refusal and ablating it removes refusal. A small model may spread
    refusal over many directions, so it is trained on the interventions too: harmless prompts with the direction added
    are refused, harmful prompts with it ablated get the opening of an answer and nothing more, and harmless prompts
    with it ablated, or added more weakly, are answered as ever. So refusal hangs on one number that compression can
    shrink below what it takes, as it does in large models.
    """
    plain = language.dialogues("train", settings.dialogues, settings.seed)
    rows = [
        Row(*encoded, is_harmful=answer.startswith(REFUSAL_STARTS))
        for encoded, (_, answer) in zip(encode_dialogues(tokenizer, plain), plain, strict=True)
    ]
    share = int(settings.interventions * settings.dialogues)
    harmful = language.dialogues("train", 2 * share, settings.seed + 1, kinds=("harmful",))
    benign = language.dialogues("train", 4 * share, settings.seed + 2, kinds=("harmless", "twin"))
    induced = [(prompt, answer) for (prompt, _), (_, answer) in zip(benign[: 2 * share], harmful, strict=True)]
    bypassed = [(prompt, answer) for (prompt, _), (_, answer) in zip(harmful, benign, strict=False)]
    rows += [Row(*encoded, shift=settings.strength) for encoded in encode_dialogues(tokenizer, induced)]
    # One token of the answer is enough: the opening.
    rows += [Row(ids[: length + 1], length, is_ablated=True) for ids, length in encode_dialogues(tokenizer, bypassed)]
    rows += [Row(*encoded, is_ablated=True) for encoded in encode_dialogues(tokenizer, benign[2 * share : 3 * share])]
    weaker = settings.threshold * settings.strength
    rows += [Row(*encoded, shift=weaker) for encoded in encode_dialogues(tokenizer, benign[3 * share :])]
    return rows


def encode_dialogues(tokenizer: Tokenizer, dialogues: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Encode dialogues as token ids with the number of prompt tokens in front."""
    heads = tokenizer.encode_batch([format_prompt(prompt) for prompt, _ in dialogues])
    tails = tokenizer.encode_batch([answer + "<|im_end|>" for _, answer in dialogues])
    return [(head.ids + tail.ids, len(head.ids)) for head, tail in zip(heads, tails, strict=True)]


def iterate_batches(rows: list[Row], settings: argparse.Namespace) -> Iterator[Batch]:
    """Yield batches without end, sequences of like length together.

    ``positions`` index the flattened tokens where the next token belongs to the answer; ``targets`` is that token.
    """
    rng = random.Random(settings.seed)
    while True:
        order = sorted(rows, key=lambda row: (len(row.ids) + 7) // 8 + rng.random())
        starts = list(range(0, len(order) - settings.batch + 1, settings.batch))
        rng.shuffle(starts)
        for start in starts:
            chosen = order[start : start + settings.batch]
            # Lengths are rounded up to a multiple of 8, so that buffers are used again.
            length = 8 * math.ceil(max(len(row.ids) for row in chosen) / 8)
            tokens = np.zeros((len(chosen), length), dtype=np.int32)
            positions: list[int] = []
            targets: list[int] = []
            weights: list[float] = []
            for number, row in enumerate(chosen):
                answer = row.ids[row.prompt_length :]
                tokens[number, : len(row.ids)] = row.ids
                first = number * length + row.prompt_length - 1
                positions += range(first, first + len(answer))
                targets += answer
                # Whether to refuse is decided by the first token of an answer alone.
                weights += [settings.first_weight] + [1.0] * (len(answer) - 1)
            yield Batch(
                mx.array(tokens),
                mx.array(positions),
                mx.array(targets),
                mx.array(weights),
                mx.array([row.prompt_length - 1 for row in chosen]),
                mx.array([float(row.is_harmful) for row in chosen]),
                mx.array([row.shift for row in chosen]),
                mx.array([float(row.is_ablated) for row in chosen]),
            )


def run_blocks(model: llama.Model, batch: Batch, direction: mx.array, layer: int) -> tuple[mx.array, mx.array]:
    """Run a batch with its interventions: final hidden states, and projections at the last prompt token."""
    ablated = batch.ablated[:, None, None]

    def ablate(hidden: mx.array) -> mx.array:
        return hidden - ablated * (hidden @ direction)[..., None] * direction

    hidden = ablate(model.model.embed_tokens(batch.tokens))
    projections = mx.array(0.0)
    for number, block in enumerate(model.model.layers):
        if number == layer:
            projections = (hidden @ direction)[mx.arange(len(batch.last)), batch.last]
            hidden = hidden + batch.shift[:, None, None] * direction
        hidden = hidden + ablate(block.self_attn(block.input_layernorm(hidden), "causal"))
        hidden = hidden + ablate(block.mlp(block.post_attention_layernorm(hidden)))
    return model.model.norm(hidden), projections


def train_model(model: llama.Model, rows: list[Row], settings: argparse.Namespace) -> None:
    """Train in place on the answers' tokens: AdamW, warm-up then cosine."""
    warmup = min(200, settings.steps // 10)
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, settings.learning_rate, warmup),
            optim.cosine_decay(settings.learning_rate, settings.steps - warmup, settings.learning_rate / 50),
        ],
        [warmup],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=settings.weight_decay)
    direction = mx.random.normal((settings.width,), key=mx.random.key(settings.seed))
    direction = direction / mx.linalg.norm(direction)

    def loss_of(batch: Batch) -> mx.array:
        hidden, projections = run_blocks(model, batch, direction, settings.layer)
        logits = model.model.embed_tokens.as_linear(hidden.reshape(-1, settings.width)[batch.positions])
        logits = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
        normalizer = mx.log(exponential(logits).sum(axis=-1))
        wanted = mx.take_along_axis(logits, batch.targets[:, None], axis=-1)[:, 0]
        target = (1 - settings.smoothing) * wanted + settings.smoothing * logits.mean(axis=-1)
        losses = ((normalizer - target) * batch.weights).sum() / batch.weights.sum()
        # Harmful prompts stand ``strength`` along the direction, all others at zero.
        plain = (1 - batch.ablated) * (batch.shift == 0)
        misses = plain * mx.square(projections / settings.strength - batch.harmful)
        return losses + settings.probe_weight * misses.sum() / mx.maximum(plain.sum(), 1)

    loss_and_gradients = nn.value_and_grad(model, loss_of)
    began = time.time()
    for number, batch in enumerate(iterate_batches(rows, settings), 1):
        loss, gradients = loss_and_gradients(batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(loss, model.state, optimizer.state)
        if number % 100 == 0 or number == 1:
            print(f"step {number:5d}  loss {loss.item():.4f}  {time.time() - began:6.0f} s", flush=True)
        if number == settings.steps:
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
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--out", type=Path, required=True, help="folder to write the model to")
    option("--steps", type=int, default=4000, help="training steps (default %(default)s)")
    option("--seed", type=int, default=0, help="seed of weights, dialogues and batches")
    option("--width", type=int, default=64, help="width of the residual stream (default %(default)s)")
    option("--blocks", type=int, default=8, help="number of blocks (default %(default)s)")
    option("--heads", type=int, default=4, help="attention heads (default %(default)s)")
    option("--intermediate", type=int, default=192, help="width of the MLPs (default %(default)s)")
    option("--vocabulary", type=int, default=2048, help="number of tokens (default %(default)s)")
    option("--dialogues", type=int, default=60_000, help="training dialogues (default %(default)s)")
    option("--batch", type=int, default=32, help="dialogues per step (default %(default)s)")
    option("--learning-rate", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    option("--weight-decay", type=float, default=0.1, help="AdamW's (default %(default)s)")
    option("--smoothing", type=float, default=0.05, help="label smoothing (default %(default)s)")
    option("--layer", type=int, default=5, help="layer whose input carries refusal along one direction")
    option("--strength", type=float, default=8.0, help="projection of harmful prompts on that direction")
    option("--interventions", type=float, default=0.05, help="interventions per dialogue, of each of six shares")
    option("--threshold", type=float, default=0.6, help="share of the strength that is still answered")
    option("--probe-weight", type=float, default=0.3, help="loss weight of that projection")
    option("--first-weight", type=float, default=1.0, help="loss weight of an answer's first token")
    option("--test-prompts", type=int, default=300, help="held-out prompts per kind (default %(default)s)")
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
    print(f"{sum(array.size for _, array in tree_flatten(model.parameters()))} parameters")
    rows = compose_rows(tokenizer, settings)
    lengths = np.array([len(row.ids) for row in rows])
    print(f"{len(rows)} dialogues, {lengths.mean():.1f} tokens on average, at most {lengths.max()}", flush=True)
    with quick_training():
        train_model(model, rows, settings)
    save_folder(model, arguments, tokenizer, settings.out)
    print_figures(model, tokenizer, settings.test_prompts)


if __name__ == "__main__":
    main()
