"""Does choosing and solving a repair cost less than evaluating it?

Runs the stages of `aird-mlx repair` on one model, in one process: the search of ``--rule auto``, and the evaluation the
report rests on, which is answers to all test prompts, perplexity and KL, and the refusal direction, of the dense, the
compressed and the repaired model. Prints seconds of both, their ratio, and the ratio to the repaired model's alone.
With ``--find`` the repair has fewer prompts to learn from, and is asked the same test prompts.

    python benchmarks/bench_repair.py --sparsity 0.6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from aird_mlx.blas import use_openblas

use_openblas()

from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import load  # noqa: E402
from aird_mlx.patch import fold  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.pruning import prune_model  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402
from aird_mlx.repair import fits_in_memory  # noqa: E402
from aird_mlx.report_page import interval  # noqa: E402
from aird_mlx.search import choose_repair, spaces_for  # noqa: E402
from aird_mlx.stages import (  # noqa: E402
    calibrations,
    evaluate_dense,
    evaluate_stage,
    measure_on_reference,
    refusal_directions,
    validation_of,
)

TOKENS_PER_ANSWER, BATCH = 64, 64
T = TypeVar("T")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--inputs", help="demo: its prompts, for another model of examples/train_demo.py")
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--find", type=int, help="find prompts of each kind (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - began
        print(f"{name:24s} {seconds[name]:7.1f} s", flush=True)
        return result

    inputs = gather_inputs(options.inputs or options.model, options.seed)
    fewer = {kind: getattr(inputs.contrast, kind) for kind in KINDS}
    fewer = {kind: replace(split, find=split.find[: options.find]) for kind, split in fewer.items()}
    inputs = replace(inputs, contrast=replace(inputs.contrast, **fewer))
    dense, model = load(options.model), load(options.model)
    answers = timed(
        "dense answers", lambda: ask_reference(dense, inputs, max_new_tokens=TOKENS_PER_ANSWER, batch_size=BATCH)
    )
    reference = Reference(dense, inputs, answers)
    direction = timed(
        "dense direction", lambda: measure_on_reference(dense, reference, lambda done, total: None)
    ).direction
    rows = [timed("dense utility", lambda: evaluate_dense(reference, direction))]
    prune_model(model, reference.calibration(["harmless"]), sparsity=options.sparsity)

    def evaluate(name: str) -> None:
        rows.append(
            timed(
                f"evaluate {name}",
                lambda: evaluate_stage(
                    name, model, reference, direction,
                    max_new_tokens=TOKENS_PER_ANSWER, batch_size=BATCH, progress=lambda stage, done, total: None,
                ),
            )
        )  # fmt: skip

    evaluate("compressed")
    spaces = spaces_for(
        "auto",
        source_layer=direction.layer,
        blocks=len(model.blocks),
        inside_mask=True,
        distillable=fits_in_memory(dense),
    )
    choice = timed(
        "repair (auto)",
        lambda: choose_repair(
            model,
            dense,
            spaces,
            calibrations(reference),
            refusal_directions(reference, direction),
            validation_of(reference, batch_size=BATCH),
        ),
    )
    fold(model, choice.patch)
    evaluate("repaired")
    evaluation = sum(spent for name, spent in seconds.items() if name != "repair (auto)")
    alone = seconds["evaluate repaired"]
    print(f"\nchosen: {choice.plan.rule} on {choice.plan.tokens}; {len(choice.trials)} plans tried")
    for trial in choice.trials:
        if found := trial.answered:
            shares = ", ".join(f"{kind} {getattr(found, kind):.1%}" for kind in KINDS)
            print(f"{trial.plan.rule} on {trial.plan.tokens}, validation prompts refused: {shares}")
    for row in rows:
        found = ((kind, getattr(row.refusal, kind)) for kind in KINDS)
        print(f"{row.name:12s} refuses " + ", ".join(f"{kind} {interval(rate)}" for kind, rate in found))
    repair = seconds["repair (auto)"]
    ratio = f"{repair:.1f} s / {evaluation:.1f} s = {repair / evaluation:.2f}"
    print(f"repair / evaluation of dense, compressed and repaired: {ratio}")
    print(f"repair / evaluation of the repaired model alone: {repair / alone:.2f}")


if __name__ == "__main__":
    main()
