"""Every repair rule on the same pruned demo model, chosen on validation prompts, reported on test prompts.

Prints one table per sparsity: refusals of harmful, harmless and twin prompts, perplexity, KL to the dense model,
share of zeros, seconds. Rows after the rules are controls: `reconstruct` calibrated without harmful prompts,
`reconstruct` with the error along the refusal direction weighted more, and `least-squares` along random directions.

    python benchmarks/bench_rules.py --sparsity 0.5 --sparsity 0.6
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402

from aird_mlx.evaluation import measure_refusals, measure_utility  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import ChatModel, load  # noqa: E402
from aird_mlx.patch import patched  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.pruning import prune_model  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402
from aird_mlx.repair import RULES  # noqa: E402
from aird_mlx.search import PlanSpace, choose_repair, spaces_for  # noqa: E402
from aird_mlx.stages import calibrations, measure_on_reference, refusal_directions, validation_of  # noqa: E402

NEW_TOKENS, BATCH = 64, 64
RANK_ONE = ("paper", "restore", "least-squares")
HEADER = (
    f"{'':34s} {'harmful':>8s} {'harmless':>9s} {'twin':>7s} {'perplexity':>11s} {'KL':>7s} {'zeros':>7s} {'s':>5s}"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sparsity", type=float, action="append")
    parser.add_argument("--method", default="wanda", choices=["wanda", "magnitude"])
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    inputs = gather_inputs(options.model, options.seed)
    dense = load(options.model)
    reference = Reference(dense, inputs, ask_reference(dense, inputs, max_new_tokens=NEW_TOKENS, batch_size=BATCH))
    direction = measure_on_reference(dense, reference, lambda done, total: None).direction
    directions = refusal_directions(reference, direction)
    validation = validation_of(reference, batch_size=BATCH)
    random = mx.random.normal(directions.shape, key=mx.random.key(options.seed))
    random = mx.linalg.qr(random.T, stream=mx.cpu)[0].T
    test = {kind: inputs.contrast.part(kind, "test") for kind in KINDS}
    print(", ".join(f"{len(prompts)} {kind}" for kind, prompts in test.items()), "test prompts;", options.method)

    def show(name: str, model: ChatModel, seconds: float) -> None:
        rates = measure_refusals(model, test, max_new_tokens=NEW_TOKENS)
        utility = measure_utility(model, reference.held_out, dense=dense)
        shares = [0.0 if rate is None else rate.rate for rate in (rates.harmful, rates.harmless, rates.twin)]
        print(
            f"{name:34s} {shares[0]:8.1%} {shares[1]:9.1%} {shares[2]:7.1%} {utility.perplexity:11.3f} "
            f"{utility.kl_to_dense:7.4f} {model.sparsity():7.2%} {seconds:5.1f}",
            flush=True,
        )

    for sparsity in options.sparsity or [0.5, 0.6]:
        print(f"\nsparsity {sparsity}\n{HEADER}")
        model = load(options.model)
        prune_model(
            model,
            reference.calibration(["harmless"]),
            method=options.method,
            sparsity=sparsity,
            pattern=options.pattern,
        )
        show("dense", dense, 0.0)
        show("pruned", model, 0.0)
        spaces = partial(spaces_for, source_layer=direction.layer, blocks=len(model.blocks))
        reconstruct = spaces("reconstruct", inside_mask=True)
        along = [PlanSpace(replace(space.first, beta=3.0)) for space in reconstruct]
        runs = [
            *((f"{rule}, in the mask", spaces(rule, inside_mask=True), KINDS, directions) for rule in RULES),
            *((f"{rule}, dense", spaces(rule, inside_mask=False), KINDS, directions) for rule in RANK_ONE),
            ("reconstruct, harmless prompts only", reconstruct, ("harmless",), directions),
            ("reconstruct, beta 3 along r", along, KINDS, directions),
            ("least-squares, random directions", spaces("least-squares", inside_mask=True), KINDS, random),
        ]
        for name, searched, kinds, along_which in runs:
            began = time.monotonic()
            choice = choose_repair(
                model,
                dense,
                searched,
                calibrations(reference, kinds),
                along_which,
                validation,
            )
            seconds = time.monotonic() - began
            with patched(model, choice.patch):
                show(name, model, seconds)


if __name__ == "__main__":
    main()
