"""The commands, and the one place where an error becomes a line and an exit code.

Each command parses, calls the library once, and renders; those on a written file are in `file_commands`. The library is
imported inside the commands, so that ``aird-mlx --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from aird_mlx import __version__
from aird_mlx.errors import AirdError

from .boundary import INTERRUPTED, TERMINATED, Terminated, drop_output, fail, show, start_library, termination
from .file_commands import chat, selftest, serve, sign, verify
from .option_sets import (
    compare_options,
    direction_options,
    eval_options,
    export_options,
    inspect_options,
    prune_options,
    quantize_options,
    repair_options,
)
from .options import (
    FILE,
    check_lora_options,
    choose_model,
    json_option,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="aird-mlx")
def aird_mlx() -> None:
    """Compress a chat model, measure what that did to its refusals, and repair them in the weights.

    Exit codes: 0 all gates passed; 1 error; 2 usage; 3 a safety gate failed; 4 a utility or parity gate
    failed; 5 a file is not what was written; 130 interrupted; 143 terminated.
    """


@aird_mlx.command()
@repair_options
@click.pass_context
def repair(
    context: click.Context,
    /,
    model_argument: str | None,
    model: str | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Compress MODEL, repair its refusals, export it, and prove it.

    MODEL is a hub id, a local folder, or `demo` (embedded, no network).
    """
    chosen = choose_model(context, model_argument, model)
    start_library()
    from aird_mlx.pipeline import RepairSettings, plan_repair, repair_model

    from . import render, render_repair

    settings = RepairSettings(model=chosen, dry_run=dry_run, **options)
    if dry_run:
        return show(0, render_repair.show_plan, plan_repair(settings), as_json)
    with render.StageProgress(quiet=as_json) as progress:
        report = repair_model(settings, progress=progress)
    return show(report.exit_code, render_repair.show_report, report, as_json)


@aird_mlx.command()
@prune_options
@click.pass_context
def prune(
    context: click.Context,
    /,
    model_argument: str | None,
    model: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Prune MODEL and write it as an MLX folder; nothing is repaired or judged."""
    chosen = choose_model(context, model_argument, model)
    start_library()
    from aird_mlx.compress import write_pruned
    from aird_mlx.settings import PruningSettings

    from . import render, render_compress

    words = ("sparsity", "pattern", "scope", "allocation", "calibration_kinds")
    how = PruningSettings(options.pop("prune_method"), **{word: options.pop(word) for word in words})
    with render.StageProgress(quiet=as_json) as progress:
        pruned = write_pruned(chosen, settings=how, progress=progress, **options)
    return show(0, render_compress.show_pruning, pruned, as_json)


@aird_mlx.command()
@inspect_options
@click.pass_context
def inspect(
    context: click.Context, /, model_argument: str | None, model: str | None, as_json: bool, **options: Any
) -> int:
    """Say what MODEL is made of: its blocks, what writes to the residual stream, and what each stage can do."""
    chosen = choose_model(context, model_argument, model)
    start_library()
    from aird_mlx.inspection import inspect_model

    from . import render_inspection

    found = inspect_model(chosen, **options)
    return show(0, render_inspection.show_inspection, found, as_json)


@aird_mlx.command()
@quantize_options
@click.pass_context
def quantize(
    context: click.Context, /, model_argument: str | None, model: str | None, as_json: bool, **options: Any
) -> int:
    """Quantize MODEL and write it as an MLX folder; weights that pruning removed stay zero."""
    chosen = choose_model(context, model_argument, model)
    start_library()
    from aird_mlx.compress import write_quantized
    from aird_mlx.settings import QuantizationSettings

    from . import render, render_compress

    how = QuantizationSettings(**{word: options.pop(word) for word in ("mode", "bits", "group_size", "mixed")})
    with render.StageProgress(quiet=as_json) as progress:
        quantized = write_quantized(chosen, settings=how, progress=progress, **options)
    return show(0, render_compress.show_quantization, quantized, as_json)


@aird_mlx.command(name="eval")
@eval_options
@click.pass_context
def evaluate(
    context: click.Context, /, model_argument: str | None, model: str | None, as_json: bool, **options: Any
) -> int:
    """Measure refusals, over-refusals and utility of MODEL: a hub id, a folder, `demo`, or a .gguf file."""
    chosen = choose_model(context, model_argument, model)
    start_library()
    from aird_mlx.evaluate import EvaluationSettings, evaluate_model

    from . import render, render_evaluation

    given = {name: value for name, value in options.items() if value is not None}
    with render.StageProgress(quiet=as_json) as progress:
        evaluation = evaluate_model(EvaluationSettings(model=chosen, **given), progress=progress)
    return show(0, render_evaluation.show_evaluation, evaluation, as_json)


@aird_mlx.command()
@export_options
@click.pass_context
def export(
    context: click.Context,
    /,
    model_argument: str | None,
    model: str | None,
    outfile: str | None,
    outtype: tuple[str, ...],
    as_lora: bool,
    lora_rank: int | None,
    base: Path | None,
    control_vector: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Write MODEL as GGUF files: a hub id, a folder (MLX or Hugging Face format), or `demo`.

    With --as-lora MODEL is the output folder of `repair`, and its repair is written as adapters of the compressed
    model, for `llama-server --lora` and `mlx_lm.generate --adapter-path`.
    """
    chosen = choose_model(context, model_argument, model)
    check_lora_options(context)
    start_library()
    from . import exporting

    if as_lora:
        given = {"rank": lora_rank, "base": base, "control_vector": control_vector}
        return exporting.export_adapters(
            Path(chosen), as_json, outfile=None if outfile is None else Path(outfile), **given
        )
    return exporting.export_files(chosen, outfile, outtype, **how)


@aird_mlx.command()
@click.argument("folder", metavar="DIR", type=FILE)
@json_option
def report(folder: Path, as_json: bool) -> int:
    """Show the report of an earlier run; the exit code is that run's."""
    from aird_mlx.report_page import read_report

    from . import render_repair

    found = read_report(folder)
    return show(found.exit_code, render_repair.show_report, found, as_json)


@aird_mlx.command()
@direction_options
def direction(model: str, as_json: bool, **options: Any) -> int:
    """Measure the refusal direction of MODEL, say how sure its selection is, and save it."""
    start_library()
    from aird_mlx.geometry import report_direction

    from . import render, render_direction

    with render.StageProgress(quiet=as_json) as progress:
        found = report_direction(model, progress=progress, **options)
    return show(0, render_direction.show_direction, found, as_json)


@aird_mlx.command()
@compare_options
def compare(dense: str, other: str, as_json: bool, **options: Any) -> int:
    """Say whether the refusal direction moved from DENSE to OTHER, a model made from it.

    Both are measured on the same prompts, and every figure has an interval.
    """
    start_library()
    from aird_mlx.geometry import compare_models

    from . import render, render_direction

    with render.StageProgress(quiet=as_json) as progress:
        found = compare_models(dense, other, progress=progress, **options)
    return show(0, render_direction.show_comparison, found, as_json)


for command in (verify, sign, selftest, serve, chat):
    aird_mlx.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr, never a traceback.

    Args:
        arguments: as on the command line, without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller; click and rich need something to write to
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        with termination():
            code: int = aird_mlx.main(arguments, prog_name="aird-mlx", standalone_mode=False)
            sys.stdout.flush()
            return code or 0
    except AirdError as error:
        return fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "aird-mlx"
        return fail(f"{error.format_message()} See `{where} --help`.", error.exit_code)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        word, code = ("terminated", TERMINATED) if isinstance(cause, Terminated) else ("interrupted", INTERRUPTED)
        return fail(f"{word}: {cause}" if str(cause or "") else f"{word}.", code)
    except BrokenPipeError:
        drop_output()
        return 1
    except OSError as error:
        about = f": {error.filename}" if error.filename else ""
        return fail(f"system: {error.strerror or error}{about}. Free space or change permissions, then run again.", 1)
