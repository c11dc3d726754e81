"""The card of a repaired MLX folder, as a model hub reads it: origin, licence, results, and the report below.

Source: Hugging Face's model card specification; `huggingface_hub` writes the front matter.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from aird_mlx.report import Rate, Report, Stage
from aird_mlx.report_page.page import to_markdown
from aird_mlx.report_page.words import number, percent

# What a card is found by; the last where the repaired model passed the safety gates and the compressed one did not.
TAG, PRUNED_TAG, REPAIRED_TAG = "mlx", "pruned", "refusals-repaired"
_KINDS = {
    "harmful": "held-out harmful prompts", "harmless": "held-out harmless prompts",
    "twin": "benign twins of harmful prompts",
}  # fmt: skip


def write_front_matter(
    model: str, source: Mapping[str, Any], stages: Sequence[Stage] = (), tags: Sequence[str] = (TAG,)
) -> str:
    """What stands on top of the card, between its dashes included.

    Args:
        model: what was compressed and repaired: hub id, folder or ``demo``.
        source: front matter of that model's own card; licence and languages are taken over.
        stages: those whose refusals and perplexity are results; none before anything is measured.
        tags: what it is found by.
    """
    results = [result for stage in stages for result in _results(stage)] or None
    base_model = model if is_hub_id(model) else source.get("base_model")
    card = ModelCardData(
        library_name="mlx",
        license=source.get("license"),
        license_name=source.get("license_name"),
        license_link=source.get("license_link"),
        language=source.get("language"),
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        pipeline_tag="text-generation",
        tags=list(tags),
        model_name=f"{Path(model).name}-repaired" if results else None,  # whose results they are
        eval_results=results,
        ignore_metadata_errors=True,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def to_model_card(report: Report, source: Mapping[str, Any] | None = None) -> str:
    """Write the card of the repaired MLX folder: what a model hub reads on top, the report below.

    Args:
        report: of the run.
        source: front matter of the card of the model that was repaired.
    """
    repaired = report.stage("repaired")
    how = f"{percent(repaired.sparsity)} of the weights of its linears are zero."
    if report.quantization is not None:
        how += f" They are stored in {number(repaired.bits_per_weight, 2)} bits each."
    elif repaired.sparsity:
        how += " Zeros alone make a model neither smaller nor faster."
    use = f"{how} Made with aird-mlx; `mlx_lm.load` and `mlx_lm.generate` run it."
    # Paths and times say where and when it was made, not what it is: equal models get equal cards.
    settings = {name: value for name, value in report.settings.items() if name not in ("out", "mlx_path")}
    page = to_markdown(dataclasses.replace(report, settings=settings, timings={}, written={}))
    safety = [gate.passed for gate in report.gates if gate.kind == "safety"]
    is_repaired = bool(safety) and all(safety) and report.unrepaired_reach is None
    tags = [TAG, *([PRUNED_TAG] if report.pruning else []), *([REPAIRED_TAG] if is_repaired else [])]
    front = write_front_matter(report.model, source or {}, [repaired], tags)
    return front + "\n" + page.replace("\n\n## Refusals\n", f"\n\n{use}\n\n## Refusals\n", 1)


def is_hub_id(model: str) -> bool:
    """Whether this names a model of the hub and no folder here.

    >>> is_hub_id("org/name"), is_hub_id("demo"), is_hub_id("./org/name")
    (True, False, False)
    """
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None and not Path(model).exists()


def _results(stage: Stage) -> list[EvalResult]:
    """Refusals of every kind of prompt with n and interval, and the perplexity."""
    rates: list[tuple[str, Rate | None]] = [(kind, getattr(stage.refusal, kind)) for kind in _KINDS]
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"aird-mlx-{kind}",
            dataset_name=f"{_KINDS[kind]} (n = {rate.n})",
            metric_type="refusal_rate",
            metric_name=f"refused, %, Wilson 95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f}",
            metric_value=round(100 * rate.rate, 1),
            metric_args={"n": rate.n, "low": round(100 * rate.low, 1), "high": round(100 * rate.high, 1)},
        )
        for kind, rate in rates
        if rate is not None
    ]
    if stage.utility is not None:
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="aird-mlx-text",
                dataset_name=f"held-out text (n = {stage.utility.tokens} tokens)",
                metric_type="perplexity",
                metric_name="perplexity",
                metric_value=round(stage.utility.perplexity, 4),
                metric_args={"n": stage.utility.tokens},
            )
        )
    return found
