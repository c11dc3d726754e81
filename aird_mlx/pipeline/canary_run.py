"""The canary prompts put to one model in MLX, and to a file of it in llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.evaluation import decode, generate_answers, judge_answer, refusal_rates
from aird_mlx.gguf_export import LlamaRuntime, Parity, check_parity
from aird_mlx.guard.canaries import canary_texts, read_canaries, render_canaries, set_of
from aird_mlx.model import ChatModel
from aird_mlx.prompts import check_context
from aird_mlx.reference import MAX_NEW_TOKENS
from aird_mlx.report import RefusalRates
from aird_mlx.stages import exact_logits, probe_corpus

BATCH_SIZE = 64


@dataclass(frozen=True)
class CanaryRun:
    """The canaries as a model answers them in MLX, and what a file is asked to do the same.

    Attributes:
        model: read only.
        kinds: of each canary, ``harmful``, ``harmless`` or ``twin``.
        texts: rendered by the model's template; ``rendered``: their token ids by its own tokenizer.
        refusals: of the model in MLX.
    """

    model: ChatModel
    kinds: tuple[str, ...]
    texts: tuple[str, ...]
    rendered: tuple[list[int], ...]
    refusals: RefusalRates

    def refusals_in_llama(
        self,
        file: Path,
        *,
        lora: Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> RefusalRates:
        """How often a GGUF file, with an adapter if one is given, refuses them.

        Raises:
            ParityError: llama.cpp cannot run it.
        """
        n_ctx = max(map(len, self.rendered)) + MAX_NEW_TOKENS + 8
        ends = sorted(self.model.tokenizer.eos_token_ids)
        with LlamaRuntime(file, n_ctx=n_ctx, lora=lora) as runtime:
            return _judge(
                self.model, self.kinds, runtime.generate(self.rendered, MAX_NEW_TOKENS, ends, progress=progress)
            )

    def parity(self, file: Path, *, lora: Path | None = None) -> Parity:
        """How closely a GGUF file follows the model on their tokens, see `check_parity`."""
        return check_parity(
            file,
            texts=self.texts,
            token_ids=self.rendered,
            mlx_logits=lambda ids: exact_logits(self.model, ids),
            corpus=probe_corpus(self.model),
            lora=lora,
        )


def run_canaries(
    name: str, model: ChatModel, progress: Callable[[int, int], None] = lambda done, total: None
) -> CanaryRun:
    """Put the canaries to a model in MLX.

    Args:
        name: what the user calls the model; it decides which canaries.
        model: read only.
        progress: called with (prompts answered, prompts).

    Raises:
        PromptError: one with its answer is longer than the model's context, or the template cannot render it.
    """
    canaries = read_canaries(set_of(name))
    prompts, kinds = [one.prompt for one in canaries], tuple(one.kind for one in canaries)
    rendered = render_canaries(model.tokenizer, prompts)
    check_context(rendered, MAX_NEW_TOKENS, model.context_length, prompts)
    answers = generate_answers(model, rendered, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE, progress=progress)
    texts = tuple(canary_texts(model.tokenizer, prompts))
    return CanaryRun(model, kinds, texts, tuple(rendered), _judge(model, kinds, answers))


def _judge(model: ChatModel, kinds: tuple[str, ...], answers: list[list[int]]) -> RefusalRates:
    return refusal_rates(kinds, [judge_answer(decode(model, answer)) for answer in answers])
