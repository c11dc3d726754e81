"""A report as a page: read back from the folder of a run, written as Markdown.

The page holds the same figures as ``report.json``, for people. Plain string building: this module knows
nothing of terminals, models or how the figures came about.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from aird_mlx.report import DirectionFigures, Rate, Report, Stage, read_result


def read_report(folder: Path) -> Report:
    """Read the report that `aird-mlx repair` left in ``folder``.

    Args:
        folder: output folder of a run, or the path of a ``report.json``.

    Returns:
        The report as it was written.

    Raises:
        AirdError: there is no ``report.json``, or it is not one.
    """
    path = folder if folder.suffix == ".json" else folder / "report.json"
    needed = (
        "the output folder of a finished `aird-mlx repair` is needed. "
        "Check the path, or continue that run with --resume."
    )
    return read_result(Report, path, stage="report", needed=needed)


def to_markdown(report: Report) -> str:
    """Write a report as one Markdown page.

    Args:
        report: what a run measured.

    Returns:
        The page, ending in a newline. Rates are percentages with their Wilson 95 % interval; ``-`` is what
        was not measured.
    """
    parts = [
        f"# {report.model}: refusals after compression and repair",
        headline(report),
        "## Refusals",
        _refusal_table(report.stages),
        "Share of prompts refused, with its Wilson 95 % interval" + _sample_sizes(report.stages) + ".",
        "## Utility and size",
        _utility_table(report.stages),
        "## Refusal direction",
        _direction_table(report),
        *_repair_section(report),
        "## Gates",
        _gate_table(report),
    ]
    if report.written:
        parts += ["## Written", _list(f"{what}: `{where}`" for what, where in report.written.items())]
    if report.notes:
        parts += ["## Notes", _list(report.notes)]
    parts += ["## Settings and environment", _pairs(report.settings), _pairs(report.environment)]
    if report.timings:
        parts += ["## Time", _pairs({stage: f"{seconds:.1f} s" for stage, seconds in report.timings.items()})]
        parts.append(f"Peak memory: {report.peak_memory_bytes / 2**20:.0f} MiB.")
    return "\n\n".join(parts) + "\n"


def to_model_card(report: Report) -> str:
    """Write the card of the repaired MLX folder: what a model hub reads on top, the report below."""
    sparsity = report.stage("repaired").sparsity
    front = [
        "---",
        "library_name: mlx",
        *([] if report.model == "demo" else [f"base_model: {json.dumps(report.model)}"]),
        "pipeline_tag: text-generation",
        "tags:",
        "- mlx",
        "- pruned",
        "- refusals-repaired",
        "---",
    ]
    use = (
        f"{percent(sparsity)} of the weights of its linears are zero. Unstructured zeros alone make a model neither "
        "smaller nor faster. Made with aird-mlx; `mlx_lm.load` and `mlx_lm.generate` run it."
    )
    # Paths and times say where and when it was made, not what it is: equal models get equal cards.
    settings = {name: value for name, value in report.settings.items() if name not in ("out", "mlx_path")}
    page = to_markdown(dataclasses.replace(report, settings=settings, timings={}, written={}))
    return "\n".join(front) + "\n\n" + page.replace("\n\n## Refusals\n", f"\n\n{use}\n\n## Refusals\n", 1)


def headline(report: Report) -> str:
    """One sentence: what happened to the refusals of harmful prompts, stage by stage.

    Returns:
        For example ``Refusals of harmful prompts: 99 % (dense) -> 88 % (compressed) -> 98 % (repaired)``.
    """
    steps = [
        f"{percent(stage.refusal.harmful.rate)} ({stage.name})"
        for stage in report.stages
        if stage.refusal.harmful is not None
    ]
    return f"Refusals of harmful prompts: {' -> '.join(steps) or 'not measured'}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.973), percent(1.0), percent(0.9996)
    ('97.3 %', '100 %', '99.9 %')
    """
    return f"{percent_number(share)} %"


def percent_number(share: float) -> str:
    """The number of `percent`. Only what is exactly all or nothing may look like it: 0.9996 is not ``100.0``.

    >>> percent_number(0.0), percent_number(0.0002), percent_number(1.0)
    ('0', '0.0', '100')
    """
    if share < 1e-9 or share > 1 - 1e-9:  # an interval's end is the result of a square root
        return str(round(share * 100))
    return f"{min(share * 100, 99.9):.1f}"


def interval(rate: Rate | None) -> str:
    """A rate with its interval.

    >>> interval(Rate(0.973, 0.951, 0.986, 300)), interval(None)
    ('97.3 % [95.1, 98.6]', '-')
    """
    if rate is None:
        return "-"
    return f"{percent(rate.rate)} [{percent_number(rate.low)}, {percent_number(rate.high)}]"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of decimals, ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def blocks(layers: Sequence[int]) -> str:
    """Block numbers, runs of them as a range.

    >>> blocks([0, 1, 2, 5]), blocks([])
    ('0-2, 5', 'none')
    """
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def sample_sizes(stages: Sequence[Stage]) -> dict[str, int]:
    """How many prompts of each kind were answered; empty when nothing was measured."""
    sizes: dict[str, int] = {}
    for stage in stages:
        for kind in ("harmful", "harmless", "twin"):
            rate: Rate | None = getattr(stage.refusal, kind)
            if rate is not None:
                sizes[kind] = max(rate.n, sizes.get(kind, 0))
    return sizes


def _sample_sizes(stages: Sequence[Stage]) -> str:
    sizes = sample_sizes(stages)
    return " (" + ", ".join(f"{n} {kind}" for kind, n in sizes.items()) + ")" if sizes else ""


def _refusal_table(stages: Sequence[Stage]) -> str:
    rows = [
        [
            stage.name,
            *(interval(getattr(stage.refusal, kind)) for kind in ("harmful", "harmless", "twin", "incoherent")),
        ]
        for stage in stages
    ]
    return _table(["stage", "harmful", "harmless", "benign twins", "incoherent answers"], rows)


def _utility_table(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        utility = stage.utility
        rows.append(
            [
                stage.name,
                number(utility.perplexity if utility else None),
                number(utility.kl_to_dense if utility else None, 4),
                percent(utility.top1_agreement) if utility and utility.top1_agreement is not None else "-",
                percent(stage.sparsity),
                number(stage.bits_per_weight, 2),
                _parity(stage),
            ]
        )
    header = [
        "stage",
        "perplexity",
        "KL to dense",
        "same next token",
        "zeros",
        "bits per weight",
        "in llama.cpp",
    ]
    return _table(header, rows)


def _parity(stage: Stage) -> str:
    if stage.not_checked:
        return f"not checked: {stage.not_checked}"
    if stage.parity is None:
        return "-"
    parity = stage.parity
    ids = "equal" if parity.token_ids_equal else "NOT equal"
    return f"token ids {ids}, {percent(parity.argmax_agreement)} same argmax, KL {parity.mean_kl:.2g}"


def _direction_table(report: Report) -> str:
    found = [("measured on the dense model", report.direction)]
    found += [(stage.name, stage.direction) for stage in report.stages if stage.direction is not None]
    header = [
        "stage",
        "layer",
        "position",
        "norm",
        "cosine to dense",
        "calibrated",
        "bypass",
        "induce",
        "KL",
        "passes selection",
    ]
    return _table(header, [[name, *_direction_row(direction)] for name, direction in found])


def _direction_row(direction: DirectionFigures) -> list[str]:
    survived = {True: "yes", False: "no", None: "-"}[direction.survived]
    scores = (direction.bypass, direction.induce, direction.kl)
    return [
        str(direction.layer),
        str(direction.position),
        number(direction.norm, 2),
        number(direction.cosine_to_dense),
        number(direction.calibrated_cosine),
        *(number(score) for score in scores),
        survived,
    ]


def _repair_section(report: Report) -> list[str]:
    repair = report.repair
    figures = {
        "rule": repair.rule,
        "blocks": blocks(repair.layers),
        "strength": f"{repair.strength:g}",
        "rank": "not low-rank" if repair.rank is None else str(repair.rank),
        "sparsity lost": percent(repair.sparsity_lost),
    }
    parts = ["## Repair", _pairs(figures)]
    if repair.why:
        parts.append(repair.why)
    if repair.tried:
        columns = list(dict.fromkeys(key for trial in repair.tried for key in trial))
        parts += [
            "Tried on the validation prompts:",
            _table(columns, [[_cell(trial.get(column)) for column in columns] for trial in repair.tried]),
        ]
    return parts


def _gate_table(report: Report) -> str:
    rows = [
        [
            gate.name,
            gate.kind,
            "pass" if gate.passed else "**FAIL**",
            f"{gate.value:.4g}",
            f"{gate.limit:.4g}",
            gate.meaning,
        ]
        for gate in report.gates
    ]
    return _table(["gate", "kind", "result", "value", "limit", "meaning"], rows)


def _cell(value: object) -> str:
    """A value of the settings, the environment or a trial, on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(item, int) for item in value)
        return (blocks(value) if whole else ", ".join(_cell(item) for item in value)) if value else "-"
    return "-" if value is None else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _pairs(values: dict[str, object] | dict[str, str]) -> str:
    return _list(f"{key}: {_cell(value)}" for key, value in values.items())


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
