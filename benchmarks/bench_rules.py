"""Every repair rule on the same pruned demo model, chosen on validation prompts, reported on test prompts.

Prints one table per sparsity: refusals of harmful, harmless and twin prompts, perplexity, KL to the dense model,
share of zeros, seconds. Rows after the rules are controls: `refit` calibrated without harmful prompts, and
`least-squares` along a random direction.

    python benchmarks/bench_rules.py --sparsity 0.5 --sparsity 0.6
"""

from __future__ import annotations

import argparse
import time

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402

from aird_mlx.evaluation import measure_refusals, measure_utility  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import ChatModel, load  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.pruning import prune_model  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402
from aird_mlx.repair import RULES  # noqa: E402
from aird_mlx.search import choose_repair, patched, plans_for  # noqa: E402
from aird_mlx.stages import measure_on_reference  # noqa: E402

TOKENS = 64
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
    reference = Reference(dense, inputs, ask_reference(dense, inputs, max_new_tokens=TOKENS, batch_size=64))
    direction = measure_on_reference(dense, reference, lambda done, total: None).direction
    test = {kind: inputs.contrast.part(kind, "test") for kind in KINDS}
    print(", ".join(f"{len(prompts)} {kind}" for kind, prompts in test.items()), "test prompts;", options.method)

    def show(name: str, model: ChatModel, seconds: float) -> None:
        rates = measure_refusals(model, test, max_new_tokens=TOKENS)
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
        random = mx.random.normal(direction.vector.shape, key=mx.random.key(options.seed))
        runs = [
            (f"{rule}, {mask}", rule, KINDS, direction.vector, mask == "in the mask")
            for rule in RULES
            for mask in _masks(rule)
        ]
        runs.append(("refit, harmless prompts only", "refit", ("harmless",), direction.vector, True))
        runs.append(("least-squares, random direction", "least-squares", KINDS, random / mx.linalg.norm(random), True))
        for name, rule, kinds, vector, inside_mask in runs:
            began = time.monotonic()
            choice = choose_repair(
                model,
                dense,
                plans_for(rule, source_layer=direction.layer, blocks=len(model.blocks), inside_mask=inside_mask),
                reference.calibration(kinds),
                vector,
                validation={kind: inputs.contrast.part(kind, "validate") for kind in KINDS},
                validation_text=reference.validation,
                batch_size=64,
            )
            seconds = time.monotonic() - began
            with patched(model, choice.patch):
                show(name, model, seconds)


def _masks(rule: str) -> tuple[str, ...]:
    return ("in the mask",) if rule == "refit" else ("in the mask", "dense")


if __name__ == "__main__":
    main()
