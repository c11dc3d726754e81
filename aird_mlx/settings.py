"""What a run is asked to do: the options of the command line as one frozen object, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird_mlx.errors import OutputError, PromptError, UsageError
from aird_mlx.evaluation import check_tasks_available
from aird_mlx.evaluation.attacks import PREFILL, SYSTEM_PROMPT
from aird_mlx.evaluation.judge_model import style_of
from aird_mlx.gguf_export.outtypes import AUTO, OUTTYPES
from aird_mlx.model import find_folder
from aird_mlx.pruning import METHODS, check_words
from aird_mlx.quantization import check_quantization
from aird_mlx.repair import RULES, STREAMED_RULES
from aird_mlx.workspace import check_new_folder, check_started, partial_of

GGUF_TYPES = tuple(OUTTYPES)
# The recipe of mixed bits that is ours, among mlx-lm's.
REFUSAL_RECIPE = "refusal"

# How a long job says how far it is: stage, steps done, steps.
Progress = Callable[[str, int, int], None]


CALIBRATION_KINDS = ("harmless", "all")


@dataclass(frozen=True)
class PruningSettings:
    """How to prune.

    Attributes:
        method: of `aird_mlx.pruning.METHODS`.
        sparsity: fraction to remove, in [0, 1); an ``N:M`` pattern rules over it.
        pattern: ``unstructured`` or ``N:M``.
        scope: whether weights compete by ``row`` or by ``matrix``.
        allocation: ``uniform``, or by block: ``owl``, ``safety``.
        calibration_kinds: dialogues it is calibrated on: ``harmless`` as by a stock compressor, or ``all``.
    """

    method: str = "wanda"
    sparsity: float = 0.5
    pattern: str = "unstructured"
    scope: str = "row"
    allocation: str = "uniform"
    calibration_kinds: str = "harmless"


@dataclass(frozen=True)
class QuantizationSettings:
    """How to quantize; see `aird_mlx.quantization.quantize_model`.

    Attributes:
        mode: of `aird_mlx.quantization.MODES`.
        bits, group_size: None for the mode's own.
        mixed: one of mlx-lm's recipes (``mixed_4_6``), which are affine and choose the bits; or `REFUSAL_RECIPE`, see
            `aird_mlx.quantization.favour_writers`, which takes no more room than ``bits``.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None
    mixed: str | None = None


@dataclass(frozen=True)
class RepairSettings:
    """What to do; the names are the command line's. Files are prompt files, see `aird_mlx.prompts.read_prompts`.

    Attributes:
        model: ``"demo"``, a folder, or a hub id.
        sparsity: fraction of each pruned row to remove, in [0, 1); an ``N:M`` pattern rules over it.
        prune_method: ``wanda``, ``sparsegpt``, ``magnitude``, ``random`` or ``none``.
        pattern, scope, allocation, calibration_kinds: see `PruningSettings`.
        quantize: also quantize; what is repaired and written is the quantized model.
        q_mode, q_bits, q_group_size, quant_predicate: see `QuantizationSettings`.
        rule: ``auto``, ``paper``, ``restore``, ``least-squares``, ``refit``,
            ``reconstruct`` or ``distill``.
        allow_dense: let one-direction rules write over pruned weights (costs sparsity).
        max_over_refusal: points by which harmless, and twin, prompts may be refused more often than by the dense model.
        max_perplexity: how many times the compressed model's perplexity the repaired one's may be.
        controls: also measure what the repair would be worth without its ingredients.
        gguf: types to export, of `GGUF_TYPES`, or ``auto``: what the written folder holds; empty for none.
        out: output folder; default: a new one in the current folder, named after the model and the pruning.
        mlx_path: where the MLX folder goes; default ``out/mlx``.
        max_new_tokens: answers are judged on this many tokens.
        limit: at most this many test prompts of each kind.
        streaming: have one block in memory at a time; None: if the model does not fit.
        resume: go on from an interrupted run with the same settings.
    """

    model: str
    sparsity: float = 0.5
    prune_method: str = "wanda"
    pattern: str = "unstructured"
    scope: str = "row"
    allocation: str = "uniform"
    calibration_kinds: str = "harmless"
    quantize: bool = False
    q_mode: str = "affine"
    q_bits: int | None = None
    q_group_size: int | None = None
    quant_predicate: str | None = None
    rule: str = "auto"
    allow_dense: bool = False
    max_over_refusal: float = 2.0
    max_perplexity: float = 1.01
    controls: bool = False
    harmful: Path | None = None
    harmless: Path | None = None
    twins: Path | None = None
    calibration: Path | None = None
    test_harmful: Path | None = None
    test_harmless: Path | None = None
    test_twins: Path | None = None
    gguf: tuple[str, ...] = ("f16",)
    out: Path | None = None
    mlx_path: Path | None = None
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    max_new_tokens: int | None = None
    batch_size: int = 64
    limit: int | None = None
    streaming: bool | None = None
    resume: bool = False
    dry_run: bool = False

    @property
    def pruning(self) -> PruningSettings:
        """How to prune, where that is not ``none``."""
        return PruningSettings(
            self.prune_method, self.sparsity, self.pattern, self.scope, self.allocation, self.calibration_kinds
        )

    @property
    def quantization(self) -> QuantizationSettings | None:
        """How to quantize; None where that is not asked for."""
        return self.rounding if self.quantize else None

    @property
    def rounding(self) -> QuantizationSettings:
        """How to quantize, were it asked for."""
        return QuantizationSettings(self.q_mode, self.q_bits, self.q_group_size, self.quant_predicate)


def check_settings(settings: RepairSettings) -> None:
    """Refuse what no model could be repaired with.

    Raises:
        UsageError: an unknown rule, method, pattern or type, or a sparsity outside [0, 1).
    """
    if settings.rule not in ("auto", *RULES):
        raise UsageError(f"repair: rule is {settings.rule!r}; auto, {', '.join(RULES)} is needed. Choose one of them.")
    if settings.streaming and (
        settings.controls or settings.quantize or settings.rule not in ("auto", *STREAMED_RULES)
    ):
        word = "--controls" if settings.controls else "-q" if settings.quantize else f"--rule {settings.rule}"
        raise UsageError(
            f"repair: {word} with --streaming; it needs whole models in memory. Leave it out, or use one of "
            f"{', '.join(STREAMED_RULES)}."
        )
    if settings.prune_method not in (*METHODS, "none"):
        raise UsageError(
            f"prune: method is {settings.prune_method!r}; {', '.join(METHODS)} or none is needed. Choose one of them."
        )
    for kind in settings.gguf:
        if kind not in (AUTO, *GGUF_TYPES):
            known = ", ".join((AUTO, *GGUF_TYPES))
            raise UsageError(f"export: GGUF type is {kind!r}; one of {known} is needed. Choose one.")
    check_words(
        "wanda" if settings.prune_method == "none" else settings.prune_method,
        settings.sparsity,
        settings.pattern,
        settings.scope,
        settings.allocation,
    )
    if settings.calibration_kinds not in CALIBRATION_KINDS:
        raise UsageError(
            f"prune: calibration_kinds is {settings.calibration_kinds!r}; one of {', '.join(CALIBRATION_KINDS)} is "
            "needed. Choose one of them."
        )
    if not settings.quantize and settings.rounding != QuantizationSettings():
        raise UsageError(
            "quantize: a mode, bits, a group size or a recipe without -q; both are needed. Add -q, or leave them out."
        )
    check_recipe(settings.rounding)
    if settings.quantize and settings.controls:
        raise UsageError(
            "repair: --controls with -q; a repair in plain numbers is needed, whose ingredients can be left out one by "
            "one. Run the controls without -q."
        )
    if not 0 <= settings.max_over_refusal <= 100:
        raise UsageError(
            f"repair: --max-over-refusal is {settings.max_over_refusal}; points from 0 to 100 are needed. Use 2."
        )
    if not settings.max_perplexity > 0:
        raise UsageError(
            f"repair: --max-perplexity is {settings.max_perplexity}; a factor above 0 is needed. Use for example 1.01."
        )


def check_recipe(how: QuantizationSettings) -> tuple[int, int]:
    """Bits and group size, the mode's own where they are None.

    Raises:
        UsageError: what MLX lacks, or a recipe beside bits or another mode than its own.
    """
    found = check_quantization(how.mode, how.bits, how.group_size)
    if how.mixed is not None and (how.mode != "affine" or (how.bits is not None and how.mixed != REFUSAL_RECIPE)):
        seen = f"mode {how.mode}" if how.mode != "affine" else f"{how.bits} bits"
        raise UsageError(
            f"quantize: {seen} with the recipe {how.mixed}; it is affine and chooses the bits itself. Leave one out."
        )
    return found


def output_folder(settings: RepairSettings) -> Path:
    """``settings.out``, or the first free folder named after the model, the pruning and the quantization."""
    if settings.out is not None:
        return settings.out
    name = Path(settings.model).name or "model"
    pruning = (
        "" if settings.prune_method == "none" else f"-{settings.prune_method}-{pruning_words(settings, short=True)}"
    )
    quantized = f"-{quantization_words(settings.quantization, short=True)}" if settings.quantization else ""
    base = Path(f"{name}{pruning}{quantized}-repaired")
    number = 1
    out = base
    while out.exists() or out.is_symlink():
        number += 1
        out = base.with_name(f"{base.name}-{number}")
    return out


def check_places(settings: RepairSettings) -> Path:
    """The output folder, once it is sure that it and the MLX folder can be made.

    Raises:
        UsageError: one of the two would be in the other.
        OutputError: one exists, or cannot be made.
        ResumeError: there is no interrupted run to resume.
    """
    out, mlx = output_folder(settings), settings.mlx_path
    check_new_folder(out, "--out")
    if settings.resume:
        check_started(out)
    if mlx is not None:
        check_new_folder(mlx, "--mlx-path")
        target = mlx.resolve()
        for folder in (out.resolve(), partial_of(out).resolve()):
            if target.is_relative_to(folder) or folder.is_relative_to(target):
                raise UsageError(
                    f"output: --mlx-path is {mlx}, and --out is {out}; two folders beside each other are needed. "
                    f"Choose another, or leave --mlx-path out for {out / 'mlx'}."
                )
    return out


def quantization_words(how: QuantizationSettings, *, short: bool = False) -> str:
    """How it is quantized, for people (``affine, 4 bits, group 64``) or, short, for file names (``4bit``).

    >>> quantization_words(QuantizationSettings(bits=3)), quantization_words(QuantizationSettings("mxfp4"), short=True)
    ('affine, 3 bits, group 64', 'mxfp4')
    """
    bits, group_size = check_quantization(how.mode, how.bits, how.group_size)
    if how.mixed == REFUSAL_RECIPE:
        return f"{bits}bit-{how.mixed}" if short else f"{how.mixed}, {bits} bits, group {group_size}"
    if how.mixed is not None:
        return how.mixed if short else f"{how.mixed}, group {group_size}"
    if short:
        return f"{bits}bit" if how.mode == "affine" else how.mode
    return f"{how.mode}, {bits} bits, group {group_size}"


def pruning_words(settings: RepairSettings, *, short: bool = False) -> str:
    """How much is pruned, for people (``sparsity 0.5``) or, short, for file names (``0.5``)."""
    if settings.pattern != "unstructured":
        return settings.pattern.replace(":", "of") if short else f"pattern {settings.pattern}"
    return f"{settings.sparsity:g}" if short else f"sparsity {settings.sparsity:g}"


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure; the names are the command line's.

    Attributes:
        model: ``"demo"``, a folder, a hub id, or a .gguf file.
        harmful, harmless, twins: files or hub data sets, each kept apart; all empty: the built-in test parts.
        column: where the prompts are in tables and JSON lines; None: a known column.
        limit: a seeded sample of so many prompts per set, and questions per file and task.
        attack: of `aird_mlx.evaluation.ATTACKS`, for harmful prompts; ``system`` for the other kinds too.
        system_prompt: the text, or a file that holds it.
        suffixes: file of suffixes, one a line.
        against: an earlier result, or the folder it lies in, to compare the same prompts with.
        window, windows: tokens per window of ``text``, and how many windows at most.
        dense: model whose next-token distributions ``text`` is compared with; MLX only.
        tasks: of lm-eval.
        refusals: whether prompts are asked at all.
        max_new_tokens: longer answers are cut; None: 512, or what the context leaves.
        out: file for the result. save_answers: JSON lines with the texts of prompts and answers.
    """

    model: str
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    column: str | None = None
    limit: int | None = None
    seed: int = 0
    attack: tuple[str, ...] = ("vanilla",)
    system_prompt: str = SYSTEM_PROMPT
    suffixes: Path | None = None
    samples: int = 5
    prefill: str = PREFILL
    judge_model: str | None = None
    judge_style: str | None = None
    against: Path | None = None
    text: Path | None = None
    window: int = 512
    windows: int | None = None
    dense: str | None = None
    multiple_choice: tuple[Path, ...] = ()
    tasks: tuple[str, ...] = ()
    refusals: bool = True
    max_new_tokens: int | None = None
    batch_size: int = 64
    out: Path | None = None
    save_answers: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp runs it instead of MLX."""
        return self.model.endswith(".gguf")


def check_evaluation(settings: EvaluationSettings) -> None:
    """Refuse what cannot be done, before a model is loaded.

    Raises:
        UsageError: options that do not go together.
        OutputError: a file to write is there already.
        ModelError: the dense or the judge model is not there. DependencyError: lm-eval is not.
    """
    if settings.is_gguf and (settings.dense or settings.tasks):
        word = "--dense" if settings.dense else "--tasks"
        raise UsageError(
            f"eval: {word} with the file {settings.model}; a model in MLX is needed for it. Leave it out, or evaluate "
            "the folder the file was exported from."
        )
    if settings.dense is not None and settings.text is None:
        raise UsageError("eval: --dense without --text; a text to compare on is needed. Give --text FILE.")
    if settings.window < 2:
        raise UsageError(f"eval: the window is {settings.window} tokens; at least 2 are needed. Use --window 512.")
    if not (settings.refusals or settings.text or settings.multiple_choice or settings.tasks):
        raise UsageError(
            "eval: nothing to measure; prompts, --text, --multiple-choice or --tasks are needed. Give one."
        )
    for path in (settings.out, settings.save_answers):
        if path is not None and path.exists():
            raise OutputError(f"output: {path} exists already; a new file is needed. Choose another name.")
    if settings.tasks:
        check_tasks_available()
    if settings.judge_model is not None:
        style_of(settings.judge_model, settings.judge_style)
        find_folder(settings.judge_model)
    if settings.dense is not None:
        find_folder(settings.dense)


def read_system_prompt(given: str) -> str:
    """The text itself, or what is in the file of that name.

    Raises:
        PromptError: the file cannot be read, or there is no text.
    """
    try:
        text = Path(given).read_text(encoding="utf-8-sig") if Path(given).is_file() else given
    except UnicodeDecodeError as error:
        raise PromptError(f"system prompt: {given} is not UTF-8 ({error}); text is needed. Check the file.") from error
    except OSError:  # a text too long for a file's name
        text = given
    if not text.strip():
        raise PromptError("system prompt: it is empty; some text is needed. Leave the option out for the default.")
    return text.strip()


def settings_record(settings: RepairSettings | EvaluationSettings) -> dict[str, Any]:
    """The settings as plain values, for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(settings).items()}
