"""Does an exported file behave like the model it was made from? Token ids and logits, llama.cpp beside MLX.

Compares what can be compared exactly or in bands: ids of rendered prompts, and the next-token distribution at every
token. Never compares generated text, which differs between backends for good reasons. Knows MLX only as a function
from token ids to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx.errors import ParityError
from aird_mlx.gguf_export.likelihood import log_softmax
from aird_mlx.gguf_export.runtime import LlamaRuntime

# Words that tokenizers cut in different ways: an exported file has to cut them as the model's own does.
PROBE_TEXTS = (
    "It's 12345.678 o'clock, WE'LL see 3 of 1000000 cats; don't panic!",
    "def f(x, y):\n    return x**2 + y  # tab:\t\tend\n\n\nif a != b:\r\n\tpass\n",
    "na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f "
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u20ac5",
    "\U0001f600\U0001f44d\U0001f3fd \ub300\ud55c\ubbfc\uad6d "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05dc\u05d5\u05dd",
    "   leading, trailing   and     runs of spaces \n \n  \t \n ",
    'http://a.b/c?d=e&f=g#h x_y-z <tag attr="v"/> \\n 100% ~`!@#$^&*()+={}[]|;:\'",.<>/?',
    "XMLHttpRequest getURLForID parseJSON2XML aBbCcC \\frac{a}{b} \\sum_{i=1}^{n} x_i^2",
    "User: what is 7*8?\n\nAssistant: 56.\n",
)


@dataclass(frozen=True)
class Parity:
    """How closely llama.cpp follows MLX.

    Attributes:
        tokens_compared: positions whose logits were compared.
        token_ids_equal: every text got the same ids.
        first_difference: the first text and place where ids differ, None if nowhere.
        argmax_agreement: share of positions with the same most likely token.
        max_logit_difference: largest absolute difference over positions and vocabulary.
        mean_kl: mean over positions of KL(MLX || llama.cpp), nats.
    """

    tokens_compared: int
    token_ids_equal: bool
    first_difference: str | None
    argmax_agreement: float
    max_logit_difference: float
    mean_kl: float


def check_parity(
    gguf: Path,
    *,
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    mlx_logits: Callable[[Sequence[int]], np.ndarray],
    corpus: Sequence[tuple[str, Sequence[int]]] = (),
    n_threads: int | None = None,
    lora: Path | None = None,
) -> Parity:
    """Run an exported file on the given prompts and measure its distance to MLX.

    Args:
        gguf: the exported file.
        texts: rendered prompts, special tokens written out.
        token_ids: the same prompts as the model's own tokenizer encodes them, without added tokens.
        mlx_logits: from token ids to ``[token, vocab]`` float32 of the MLX model.
        corpus: further texts with their ids; of these only the ids are compared.
        n_threads, lora: of llama.cpp; see `LlamaRuntime`.

    Raises:
        ParityError: nothing to compare, lists of different length, logits of different shape or not finite, or
            llama.cpp cannot run the file.
        DependencyError: llama-cpp-python is not installed.
    """
    if not token_ids or len(texts) != len(token_ids):
        raise ParityError(
            f"parity: {len(texts)} texts and {len(token_ids)} lists of ids; one list for each of at least one text is "
            "needed. Give both for every prompt."
        )
    agreed, compared, largest, divergence = 0, 0, 0.0, 0.0
    n_ctx = max(64, *(len(ids) for ids in token_ids))
    with LlamaRuntime(gguf, n_ctx=n_ctx, n_threads=n_threads, lora=lora) as runtime:
        pairs = enumerate([*zip(texts, token_ids, strict=True), *corpus])
        found = (_describe_difference(index, list(ids), runtime.tokenize(text)) for index, (text, ids) in pairs)
        difference = next(filter(None, found), None)
        for index, ids in enumerate(token_ids):
            ours, theirs = (
                np.asarray(mlx_logits(ids), dtype=np.float64),
                runtime.logits(ids).astype(np.float64),
            )
            if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                raise ParityError(
                    f"parity: text {index}: MLX gives logits of shape {ours.shape}, llama.cpp {theirs.shape}, or some "
                    "are not finite; equal shapes and finite values are needed. Check the exported model."
                )
            agreed += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
            compared += len(ids)
            largest = max(largest, float(np.abs(ours - theirs).max()))
            log_ours, log_theirs = log_softmax(ours), log_softmax(theirs)
            divergence += float((np.exp(log_ours) * (log_ours - log_theirs)).sum())
    return Parity(
        tokens_compared=compared,
        token_ids_equal=difference is None,
        first_difference=difference,
        argmax_agreement=agreed / compared,
        max_logit_difference=largest,
        mean_kl=max(0.0, divergence / compared),
    )


def _describe_difference(index: int, expected: list[int], found: list[int]) -> str | None:
    if expected == found:
        return None
    place = next(
        (at for at, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    return (
        f"text {index}, token {place}: the model's tokenizer gives {expected[place : place + 4]} "
        f"(of {len(expected)}), llama.cpp {found[place : place + 4]} (of {len(found)})"
    )
