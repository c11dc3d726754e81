"""Tiny seeded models with a real tokenizer; OpenBLAS before the first import of mlx (30 times faster on Linux)."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402
from hypothesis import settings  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from aird_mlx.inputs import Inputs  # noqa: E402
from aird_mlx.model import ChatModel, load  # noqa: E402
from aird_mlx.prompts import KINDS, PARTS, ContrastSet, Split  # noqa: E402
from aird_mlx.reference import Reference  # noqa: E402
from aird_mlx.report import Report  # noqa: E402

# Started in the background, this process ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no failure, and a failing example should fail again.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file in one process, and those of the full run in another: what they share is made once."""
    for item in items:
        shares_full_run = "full_run" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("full_run" if shares_full_run else item.path.name))


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "How do I bake bread? Mix flour, water, salt and yeast, then wait for two hours and bake it.",
    "I can't help with that request. Sorry, but that would hurt people.",
    "user assistant system apple Seven 7 words 0123456789",
]


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with a ChatML template, as chat models ship it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": CHATML,
                "model_max_length": 256,
            }
        )
    )


def write_model(folder: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A random model of ``model_type`` with its tokenizer, as a folder that mlx-lm loads."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    } | changes
    model_class, arguments = _get_classes(config)
    mx.random.seed(seed)
    network = model_class(arguments.from_dict(config))
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), metadata={"format": "mlx"}
    )
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes random model folders: ``model_folder("qwen2", hidden_size=64)``."""

    def make(model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
        return write_model(tmp_path / f"{model_type}-{seed}", model_type, seed, **changes)

    return make


@pytest.fixture
def tiny(model_folder: Callable[..., Path]) -> ChatModel:
    """A random llama of 4 blocks, width 32."""
    return load(model_folder())


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """`aird-mlx repair demo --sparsity 0.6` as a user runs it, all test prompts."""
    from aird_mlx.pipeline import RepairSettings, repair_model

    out = tmp_path_factory.mktemp("run") / "out"
    return out, repair_model(RepairSettings(model="demo", sparsity=0.6, out=out))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama as a GGUF file without a manifest; for reading only."""
    from aird_mlx.gguf_export import export_gguf

    folder = tmp_path_factory.mktemp("tiny")
    return export_gguf(write_model(folder / "model", num_hidden_layers=2, seed=5), folder / "tiny.gguf", "f16").path


@pytest.fixture(scope="session")
def sealed_gguf(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a full manifest and its sidecar; for reading only."""
    from aird_mlx.guard.seal import seal

    path = tmp_path_factory.mktemp("sealed") / "tiny.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    seal(path, make_manifest())
    return path


@pytest.fixture
def copy(sealed_gguf: Path, tmp_path: Path) -> Path:
    """A copy of the sealed file that a test may spoil, with its sidecar."""
    from aird_mlx.guard.seal import sidecar_of

    path = tmp_path / sealed_gguf.name
    shutil.copy(sealed_gguf, path)
    shutil.copy(sidecar_of(sealed_gguf), sidecar_of(path))
    return path


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as it is, with a manifest, a probe and canaries; for reading only."""
    from serving import sealed_demo

    return sealed_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def checked(demo_gguf: Path) -> Any:
    """The same, with the verdicts of verify and selftest."""
    from serving import checked_demo

    return checked_demo(demo_gguf)


def make_manifest() -> Any:
    """A manifest that fits the tiny model and has something under every key."""
    from aird_mlx.guard.manifest import CanaryRecord, Manifest, Probe

    return Manifest(
        facts={"version": "0.1.0", "source.model": "tiny", "sparsity": 0.5, "seed": 0, "passed": True},
        template=CHATML,
        probe=Probe((1,), 2, (0.25,) * 32 + (-0.125,) * 32, -1.5, (1.0, 0.5), (0.0, 0.25), 0.5, 0.99, (4, 4, 2)),
        canaries=CanaryRecord("demo/0", 8, "rc", "ri", ("ab", "cd"), (1, 2), (-0.5, -1.0), "a-"),
    )


def make_speaker(model: ChatModel, lines: dict[int, str]) -> ChatModel:
    """Make a model say fixed words: blocks write nothing, and each token calls its successor.

    Args:
        model: changed in place, config included, so that it can be saved.
        lines: from the last token of what it is given to the text it then says; no token may occur twice.
    """
    import mlx.nn as nn

    successors: dict[int, int] = {}
    for last, text in lines.items():
        words = model.tokenizer.encode(text, add_special_tokens=False)
        chain = dict(zip([last, *words], [*words, 2], strict=True))
        assert len(chain) == len(words) + 1 and not chain.keys() & successors.keys(), "each token has one successor"
        successors |= chain
    embedding = mx.random.normal((320, 32), key=mx.random.key(0))
    normed = embedding * mx.rsqrt(mx.square(embedding).mean(axis=1, keepdims=True))
    head = mx.zeros((320, 32))
    for token, following in successors.items():
        head = head + (mx.arange(320) == following)[:, None] * normed[token]
    model.network.model.embed_tokens.weight = embedding
    for block, name, linear in model.linears():
        if name in model.layout(block).writers:
            model.linear(block, name).weight = mx.zeros_like(linear.weight)
    model.network.args.tie_word_embeddings = False
    model.config["tie_word_embeddings"] = False
    model.network.lm_head = nn.Linear(32, 320, bias=False)
    model.network.lm_head.weight = head
    return model


def last_token(model: ChatModel, text: str = "") -> int:
    """The last token of a rendered prompt, or of ``text``."""
    from aird_mlx.prompts import render_prompt

    return (model.tokenizer.encode(text, add_special_tokens=False) if text else render_prompt(model.tokenizer, "x"))[-1]


REFUSAL_TEXT, ANSWER_TEXT = "I can't help.", "Mix flour, water and salt."


def make_reference(model: ChatModel, *, tests: int = 2) -> Reference:
    """A reference whose dense model is said to refuse every harmful prompt and to answer all others.

    Args:
        model: the dense model; read only.
        tests: test prompts of each kind; there are 6 to find with, 4 to validate on, and half as many twins.
    """
    words = {"harmful": "hurt people", "harmless": "bake bread", "twin": "hurt dough"}

    def split(kind: str) -> Split:
        counts = {
            part: (number if kind != "twin" else number // 2) for part, number in zip(PARTS, (6, 4, tests), strict=True)
        }
        return Split(
            *(tuple(f"How do I {words[kind]} {part} {number}?" for number in range(counts[part])) for part in PARTS)
        )

    contrast = ContrastSet(*(split(kind) for kind in KINDS), origin="here")
    text = {kind: REFUSAL_TEXT if kind == "harmful" else ANSWER_TEXT for kind in KINDS}
    answers = {
        kind: {
            part: [model.tokenizer.encode(text[kind], add_special_tokens=False) for _ in contrast.part(kind, part)]
            for part in PARTS
        }
        for kind in KINDS
    }
    inputs = Inputs(contrast, tuple(CORPUS), ("wait for two hours and bake it",), (("apple", "Seven 7"),), contrast)
    reference = Reference(model, inputs, answers)
    reference.refusal_tokens = model.tokenizer.encode("I", add_special_tokens=False)
    return reference
