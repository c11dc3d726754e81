"""A chat model in MLX as the evaluation asks it: conversations in, answers and log-likelihoods out.

Any family that mlx-lm runs, quantized as its files are. `gguf_export.chat` offers the same for a file in llama.cpp;
the evaluation does not know which of the two it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.activations import batch_sequences
from aird_mlx.evaluation.generation import BATCH_SIZE, decode, generate_answers
from aird_mlx.evaluation.utility import sequence_log_likelihoods, utility_batch_tokens
from aird_mlx.model import ChatModel, context_length, find_folder, load, needs_streaming, read_config, read_network
from aird_mlx.prompts import render_messages


@dataclass(frozen=True)
class MlxChat:
    """A model in MLX, asked in its own chat template. Read only.

    Attributes:
        network: from ids to logits.
        tokenizer: with a chat template.
        config: the model's config.json.
        batch_size: answers generated side by side.
        streamed: the same model where its blocks do not all fit and are read as they run.
    """

    network: nn.Module
    tokenizer: TokenizerWrapper
    config: Mapping[str, Any]
    batch_size: int = BATCH_SIZE
    streamed: ChatModel | None = None

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = BATCH_SIZE,
        chat: bool = True,
    ) -> MlxChat:
        """Load ``demo``, a folder, or a hub id; blocks are read as they run where they do not all fit.

        A model that is not going to be asked (``chat`` False) needs no chat template.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        folder = find_folder(model, revision=revision)
        if needs_streaming(folder):
            streamed = load(model, revision=revision, trust_remote_code=trust_remote_code, streaming=True, chat=chat)
            return cls(streamed.network, streamed.tokenizer, streamed.config, batch_size, streamed)
        read = read_network(folder, read_config(folder), trust_remote_code=trust_remote_code, chat=chat)
        return cls(*read, batch_size)

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together, None if the config names no limit."""
        return context_length(self.config)

    @property
    def tokens_per_batch(self) -> int:
        """How many tokens may be scored at once so that their logits stay small."""
        nested = self.config.get("text_config") or {}
        return utility_batch_tokens(
            int(self.config.get("vocab_size") or nested.get("vocab_size") or len(self.tokenizer.vocab))
        )

    def render(self, messages: Sequence[Mapping[str, str]], prefill: str = "") -> list[int]:
        """Token ids up to where the model goes on writing: the answer's start, or the end of ``prefill``.

        Raises:
            PromptError: the template cannot render the conversation.
        """
        ids = render_messages(self.tokenizer, messages)
        return ids + (self.tokenizer.encode(prefill, add_special_tokens=False) if prefill else [])

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, behind the token the tokenizer puts first."""
        return [int(token) for token in self.tokenizer.encode(text)]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """The text the model writes after each prompt, in their order; see `generate_answers`."""
        generated = generate_answers(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
        return [decode(self, tokens) for tokens in generated]

    def log_likelihoods(
        self,
        sequences: Sequence[Sequence[int]],
        first_counted: Sequence[int],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[float]:
        """Per sequence the log-likelihood (nats) of its tokens from the first that counts; see the kernel."""
        batches = batch_sequences(sequences, first_counted=first_counted, tokens_per_batch=self.tokens_per_batch)
        return sequence_log_likelihoods(self, batches, progress=progress)

    def close(self) -> None:
        """Nothing to free; a file in llama.cpp has something."""
