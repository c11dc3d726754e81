"""What a run is asked to do: the options of the command line as one frozen object, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import UsageError
from aird_mlx.pruning import METHODS, parse_pattern
from aird_mlx.repair import RULES

GGUF_TYPES = ("f32", "f16", "q8_0")


@dataclass(frozen=True)
class RepairSettings:
    """What to do; the names are the command line's. Files are prompt files, see `aird_mlx.prompts.read_prompts`.

    Attributes:
        model: ``"demo"``, a folder, or a hub id.
        sparsity: fraction of each pruned row to remove, in [0, 1); an ``N:M`` pattern rules over it.
        prune_method: ``wanda``, ``magnitude`` or ``none``.
        pattern: ``unstructured`` or ``N:M``.
        rule: ``auto``, ``paper``, ``restore``, ``least-squares``, ``refit`` or ``reconstruct``.
        allow_dense: let one-direction rules write over pruned weights (costs sparsity).
        gguf: types to export, of ``f32``, ``f16``, ``q8_0``; empty for none.
        out: output folder; default: a new one in the current folder, named after the model and the pruning.
        mlx_path: where the MLX folder goes; default ``out/mlx``.
        max_new_tokens: answers are judged on this many tokens.
        limit: at most this many test prompts of each kind.
        resume: go on from an interrupted run with the same settings.
    """

    model: str
    sparsity: float = 0.5
    prune_method: str = "wanda"
    pattern: str = "unstructured"
    rule: str = "auto"
    allow_dense: bool = False
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
    resume: bool = False
    dry_run: bool = False


def check_settings(settings: RepairSettings) -> None:
    """Refuse what no model could be repaired with.

    Raises:
        UsageError: an unknown rule, method, pattern or type, or a sparsity outside [0, 1).
    """
    if settings.rule not in ("auto", *RULES):
        raise UsageError(f"repair: rule is {settings.rule!r}; auto, {', '.join(RULES)} is needed. Choose one of them.")
    if settings.prune_method not in (*METHODS, "none"):
        raise UsageError(
            f"prune: method is {settings.prune_method!r}; {', '.join(METHODS)} or none is needed. Choose one of them."
        )
    for kind in settings.gguf:
        if kind not in GGUF_TYPES:
            raise UsageError(f"export: GGUF type is {kind!r}; one of {', '.join(GGUF_TYPES)} is needed. Choose one.")
    if not 0 <= settings.sparsity < 1:
        raise UsageError(
            f"prune: sparsity is {settings.sparsity}; a fraction with 0 <= sparsity < 1 is needed. Use for example 0.5."
        )
    parse_pattern(settings.pattern)


def output_folder(settings: RepairSettings) -> Path:
    """``settings.out``, or the first free folder named after the model and the pruning."""
    if settings.out is not None:
        return settings.out
    name = Path(settings.model).name or "model"
    pruning = (
        "" if settings.prune_method == "none" else f"-{settings.prune_method}-{pruning_words(settings, short=True)}"
    )
    base = Path(f"{name}{pruning}-repaired")
    number = 1
    out = base
    while out.exists():
        number += 1
        out = base.with_name(f"{base.name}-{number}")
    return out


def pruning_words(settings: RepairSettings, *, short: bool = False) -> str:
    """How much is pruned, for people (``sparsity 0.5``) or, short, for file names (``0.5``)."""
    if settings.pattern != "unstructured":
        return settings.pattern.replace(":", "of") if short else f"pattern {settings.pattern}"
    return f"{settings.sparsity:g}" if short else f"sparsity {settings.sparsity:g}"
