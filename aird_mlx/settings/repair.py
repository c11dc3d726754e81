"""What a run of the main job is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import UsageError
from aird_mlx.gguf_export.outtypes import AUTO, OUTTYPES
from aird_mlx.pruning import METHODS, check_words
from aird_mlx.repair import RULES, STREAMED_RULES
from aird_mlx.settings.compression import (
    CALIBRATION_KINDS,
    PruningSettings,
    QuantizationSettings,
    check_recipe,
    quantization_words,
)
from aird_mlx.workspace import check_new_folder, check_started, partial_of

GGUF_TYPES = tuple(OUTTYPES)


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
        limit: at most this many test prompts of each kind, the first of a test file.
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


def pruning_words(settings: RepairSettings, *, short: bool = False) -> str:
    """How much is pruned, for people (``sparsity 0.5``) or, short, for file names (``0.5``)."""
    if settings.pattern != "unstructured":
        return settings.pattern.replace(":", "of") if short else f"pattern {settings.pattern}"
    return f"{settings.sparsity:g}" if short else f"sparsity {settings.sparsity:g}"
