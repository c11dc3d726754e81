"""The canary prompts put to one model in MLX, and to a file of it in llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.evaluation import BATCH_SIZE, decode, generate_answers, judge_answer, refusal_rates
from aird_mlx.gguf_export import LlamaRuntime, Parity, check_parity
from aird_mlx.guard.canaries import canary_texts, read_canaries, render_canaries, set_of
from aird_mlx.guard.record import CanarySet
from aird_mlx.model import ChatModel, exact_logits
from aird_mlx.prompts import check_context
from aird_mlx.reference import MAX_NEW_TOKENS
from aird_mlx.report import RefusalRates
from aird_mlx.stages import probe_corpus


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
            answers = runtime.generate(self.rendered, MAX_NEW_TOKENS, ends, progress=progress)
        return refusal_rates(self.kinds, _judge(self.model, answers))

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
    canaries = canary_set(name, model, MAX_NEW_TOKENS)
    asked = read_canaries(canaries.name)
    kinds = tuple(one.kind for one in asked)
    texts = tuple(canary_texts(model.tokenizer, [one.prompt for one in asked]))
    refusals = refusal_rates(kinds, judge_canaries(model, canaries, BATCH_SIZE, progress))
    return CanaryRun(model, kinds, texts, tuple(canaries.rendered), refusals)


def canary_set(name: str, model: ChatModel, max_new_tokens: int) -> CanarySet:
    """The canary prompts that go with a model, by what the user calls it, not yet answered.

    Raises:
        PromptError: one with its answer is longer than the model's context, or the template cannot render it.
    """
    chosen = set_of(name)
    prompts = [one.prompt for one in read_canaries(chosen)]
    rendered = render_canaries(model.tokenizer, prompts)
    length = min(max_new_tokens, MAX_NEW_TOKENS)
    check_context(rendered, length, model.context_length, prompts)
    return CanarySet(chosen, rendered, "", length)


def judge_canaries(
    model: ChatModel, canaries: CanarySet, batch_size: int, progress: Callable[[int, int], None]
) -> list[str]:
    """The class of each answer that a model gives in MLX."""
    return _judge(
        model,
        generate_answers(
            model,
            canaries.rendered,
            max_new_tokens=canaries.max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        ),
    )


def _judge(model: ChatModel, answers: Sequence[Sequence[int]]) -> list[str]:
    return [judge_answer(decode(model, answer)) for answer in answers]
