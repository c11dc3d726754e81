"""One row of the result: what a model in MLX, or an exported file in llama.cpp, does on the held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from aird_mlx.activations import TokenBatch
from aird_mlx.direction import Direction, Measurement, compare_directions, measure_direction, refusal_subspace
from aird_mlx.evaluation import (
    REFUSAL,
    decode,
    judge_answer,
    judge_prompts,
    measure_utility,
    paired_change,
    refusal_rates,
)
from aird_mlx.gguf_export import NOT_INSTALLED, PROBE_TEXTS, GgufFile, Parity, check_parity, is_available
from aird_mlx.gguf_export.behaviour import run_exported
from aird_mlx.inputs import held_out_sequences
from aird_mlx.model import ChatModel, exact_logits
from aird_mlx.prompts import KINDS, post_instruction_tokens, render_text
from aird_mlx.reference import Reference
from aird_mlx.repair import TOKENS
from aird_mlx.report import (
    Control,
    DirectionFigures,
    ParityFigures,
    RefusalRates,
    Stage,
    StageChange,
    Utility,
)
from aird_mlx.search import Validation
from aird_mlx.search.spaces import MOST_DIRECTIONS
from aird_mlx.search.validation import ANSWER_TOKENS
from aird_mlx.settings import Progress

# Prompts the means are taken over, and candidates are scored on (Arditi et al. 2024).
DIRECTION_PROMPTS, SELECTION_PROMPTS = 128, 32


def measure_on_reference(model: ChatModel, reference: Reference, progress: Callable[[int, int], None]) -> Measurement:
    """The refusal direction of ``model``, dense or not, on the same prompts and refusal tokens."""
    return measure_direction(
        model,
        harmful=reference.prompts("harmful", "find", DIRECTION_PROMPTS),
        harmless=reference.prompts("harmless", "find", DIRECTION_PROMPTS),
        select_harmful=reference.prompts("harmful", "validate", SELECTION_PROMPTS),
        select_harmless=reference.prompts("harmless", "validate", SELECTION_PROMPTS),
        tokens=reference.refusal_tokens,
        positions=len(post_instruction_tokens(reference.model.tokenizer)),
        progress=progress,
    )


def refusal_directions(reference: Reference, direction: Direction) -> mx.array:
    """``[k, hidden]``: the dense model's refusal direction, and what else sets its harmful prompts apart there."""
    harmful, harmless = (reference.prompts(kind, "find", DIRECTION_PROMPTS) for kind in ("harmful", "harmless"))
    return refusal_subspace(reference.model, direction, harmful, harmless, MOST_DIRECTIONS)


def calibrations(reference: Reference, kinds: Sequence[str] = KINDS) -> dict[str, list[TokenBatch]]:
    """The calibration tokens of the kinds, by what plans call them."""
    return {tokens: reference.calibration(kinds, tokens) for tokens in TOKENS}


def validation_of(reference: Reference, *, batch_size: int) -> Validation:
    """The validation prompts with the dense model's answers to them."""
    return Validation(
        reference.model,
        {kind: reference.dialogues([kind], "validate") for kind in KINDS},
        {kind: reference.inputs.contrast.part(kind, "validate") for kind in KINDS},
        refusal_rates(*reference.judged("validate", ANSWER_TOKENS)),
        reference.refusal_tokens,
        batch_size=batch_size,
    )


def evaluate_dense(reference: Reference, direction: Direction) -> Stage:
    """The row of the dense model, from the answers it has already given."""
    model = reference.model
    judged = reference.judged("test")
    utility = measure_utility(model, reference.held_out, dense=model)
    figures = direction_figures(direction, 1.0)
    return Stage(
        "dense",
        refusal_rates(*judged),
        utility,
        model.sparsity(),
        model.bits_per_weight,
        figures,
        classes=class_letters(*judged),
    )


def evaluate_stage(
    name: str,
    model: ChatModel,
    reference: Reference,
    direction: Direction,
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
) -> Stage:
    """The row of a compressed or repaired model: new answers, likelihoods, and its own direction."""
    judged, utility = _asked(
        model, reference, max_new_tokens, batch_size, lambda done, total: progress(f"evaluate {name}", done, total)
    )
    measured = measure_on_reference(model, reference, lambda done, total: progress(f"direction of {name}", done, total))
    calibrated = _calibrated_cosine(model, reference, direction)
    figures = direction_figures(measured.direction, measured.cosine_with(direction), calibrated)
    return Stage(
        name,
        refusal_rates(*judged),
        utility,
        model.sparsity(),
        model.bits_per_weight,
        figures,
        classes=class_letters(*judged),
    )


def evaluate_control(
    name: str,
    meaning: str,
    model: ChatModel,
    reference: Reference,
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
) -> Control:
    """The row of a control: its answers to the test prompts, and likelihoods."""
    judged, utility = _asked(
        model, reference, max_new_tokens, batch_size, lambda done, total: progress(f"control {name}", done, total)
    )
    return Control(name, meaning, refusal_rates(*judged), utility)


def _asked(
    model: ChatModel,
    reference: Reference,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> tuple[tuple[list[str], list[str]], Utility]:
    """Kinds and classes of a model's answers to the test prompts, and likelihoods."""
    judged = judge_prompts(
        model,
        {kind: reference.inputs.contrast.part(kind, "test") for kind in KINDS},
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    return judged, measure_utility(model, reference.held_out, dense=reference.model)


def evaluate_exported(
    exported: GgufFile, written: ChatModel, reference: Reference, *, max_new_tokens: int, progress: Progress
) -> Stage:
    """The row of an exported file, run by llama.cpp; without llama-cpp-python it says what was not checked."""
    name = f"exported:{exported.outtype}"
    bits = 8 * exported.size_bytes / exported.parameters
    if not is_available():
        return Stage(
            name,
            RefusalRates(None, None),
            None,
            exported.sparsity,
            bits,
            not_checked=f"{NOT_INSTALLED}, so the file was not run",
            notes=list(exported.notes),
        )
    ids = [tokens for kind in KINDS for tokens in reference.prompts(kind, "test")]
    texts = [
        render_text(written.tokenizer, prompt)
        for kind in KINDS
        for prompt in reference.inputs.contrast.part(kind, "test")
    ]
    behaviour = run_exported(
        exported.path,
        ids,
        held_out_sequences(written.tokenizer, reference.inputs),
        max_new_tokens=max_new_tokens,
        stop_ids=sorted(written.tokenizer.eos_token_ids),
        progress=lambda done, total: progress(f"run {exported.outtype} in llama.cpp", done, total),
    )
    judged = (
        [kind for kind in KINDS for _ in reference.inputs.contrast.part(kind, "test")],
        [judge_answer(decode(written, tokens)) for tokens in behaviour.answers],
    )
    parity = check_parity(
        exported.path,
        texts=texts,
        token_ids=ids,
        mlx_logits=lambda tokens: exact_logits(written, tokens),
        corpus=probe_corpus(written),
    )
    return Stage(
        name,
        refusal_rates(*judged),
        Utility(behaviour.perplexity, None, None, behaviour.tokens),
        exported.sparsity,
        bits,
        parity=parity_figures(parity),
        notes=list(exported.notes),
        classes=class_letters(*judged),
    )


def probe_corpus(model: ChatModel) -> list[tuple[str, list[int]]]:
    """Texts that tokenizers cut in different ways, with the token ids the model's own makes of them."""
    return [(text, model.tokenizer.encode(text, add_special_tokens=False)) for text in PROBE_TEXTS]


def parity_figures(parity: Parity) -> ParityFigures:
    """How closely llama.cpp follows MLX, as the report has it."""
    return ParityFigures(parity.token_ids_equal, parity.argmax_agreement, parity.mean_kl, parity.tokens_compared)


def _calibrated_cosine(model: ChatModel, reference: Reference, direction: Direction) -> float | None:
    """At the dense model's place, across halves of the prompts; None where it is undefined."""
    place = direction.layer, direction.position
    compared = compare_directions(
        reference.model,
        model,
        *(reference.prompts(kind, "find", DIRECTION_PROMPTS) for kind in ("harmful", "harmless")),
        positions=len(post_instruction_tokens(reference.model.tokenizer)),
        across=(place, place),
        layers=direction.layer + 1,
    )
    calibrated = compared.across.splits.calibrated_cosine()
    return None if calibrated is None else calibrated.value


def direction_figures(
    direction: Direction, cosine_to_dense: float, calibrated_cosine: float | None = None
) -> DirectionFigures:
    """A direction as the report shows it."""
    return DirectionFigures(
        layer=direction.layer,
        position=direction.position,
        cosine_to_dense=cosine_to_dense,
        norm=direction.norm,
        bypass=direction.bypass,
        induce=direction.induce,
        kl=direction.kl,
        survived=direction.survived,
        calibrated_cosine=calibrated_cosine,
    )


def class_letters(kinds: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """By kind, one letter per prompt: r, c or i.

    >>> class_letters(["harmful", "twin", "harmful"], ["refusal", "compliance", "incoherent"])
    {'harmful': 'ri', 'harmless': '', 'twin': 'c'}
    """
    pairs = list(zip(kinds, classes, strict=True))
    return {kind: "".join(judged[0] for asked, judged in pairs if asked == kind) for kind in KINDS}


def stage_changes(stages: Sequence[Stage]) -> list[StageChange]:
    """Refusals prompt by prompt, from the compressed and from the dense model to the repaired one (McNemar's test)."""
    by_name = {stage.name: stage for stage in stages}
    changes = []
    for before in ("compressed", "dense"):
        for kind in KINDS:
            pair = [by_name[name].classes.get(kind, "") for name in (before, "repaired")]
            if pair[0] and pair[1]:
                refused = [[letter == REFUSAL[0] for letter in letters] for letters in pair]
                changes.append(StageChange(kind, before, "repaired", paired_change(*refused)))
    return changes


def gguf_path(folder: Path, stem: str, outtype: str) -> Path:
    """Where an exported file lies under the output folder."""
    return folder / "gguf" / f"{stem}-{outtype.upper()}.gguf"
