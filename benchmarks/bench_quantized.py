"""In which order to prune, quantize and repair: what each order gives on the same test prompts.

For each number of bits: the compressed model; half of the repair before quantization and half after it with the
rounding in every step, which is what `repair -q` does; all of it before; all of it after with the rounding; all of it
after in plain numbers, kept as an adapter beside the codes (whole, and cut to lower ranks by SVD), or rounded to the
codes, with the scales there are or with new ones. The repair is block reconstruction, then distillation, ``--steps``
each. Prints refusals with n and the Wilson 95 % interval, perplexity, KL to the dense model, zeros, and stored bits per
weight, adapters (float16) included.

With ``--undone`` instead: how much of what ``restore`` writes along r is left after rounding, added to the codes there
are, or to what was rounded to them.

    python benchmarks/bench_quantized.py --sparsity 0.5 --bits 4 3 2
    python benchmarks/bench_quantized.py --sparsity 0.5 --bits 4 3 2 --undone
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import replace

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402

from aird_mlx.compress import prune_on_reference  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import ChatModel, load  # noqa: E402
from aird_mlx.patch import LinearPatch, Patch, fold, patched  # noqa: E402
from aird_mlx.quantization import QuantizedWeight, quantize_model, set_aside_modules  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402
from aird_mlx.repair import RepairPlan, solve_patch  # noqa: E402
from aird_mlx.report_page import interval, number, percent  # noqa: E402
from aird_mlx.settings import PruningSettings  # noqa: E402
from aird_mlx.stages import evaluate_control, measure_on_reference  # noqa: E402

TOKENS_PER_ANSWER, BATCH = 64, 64


class Bench:
    """One dense model, its reference, and the repair that is tried in different places."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dense = load(options.model)
        inputs = gather_inputs(options.model, options.seed, limit=options.limit)
        answers = ask_reference(self.dense, inputs, max_new_tokens=TOKENS_PER_ANSWER, batch_size=BATCH)
        self.reference = Reference(self.dense, inputs, answers)

    def pruned(self) -> ChatModel:
        """A pruned copy of the model; as it is without ``--sparsity``."""
        model = load(self.options.model)
        if self.options.sparsity:
            settings = PruningSettings(self.options.prune_method, self.options.sparsity)
            prune_on_reference(model, self.reference, settings, seed=self.options.seed)
        return model

    def quantized(self, model: ChatModel, bits: int) -> ChatModel:
        """``model`` quantized, its modules set aside; changed in place."""
        origins = {model.path(block, name): linear.weight for block, name, linear in model.linears()}
        kept = {path: weight != 0 for path, weight in origins.items()} if self.options.sparsity else {}
        quantize_model(model, mode=self.options.mode, bits=bits, group_size=self.options.group_size)
        set_aside_modules(model, kept, origins)
        return model

    def solve(self, model: ChatModel, rule: str, start: Patch | None = None) -> Patch:
        """The repair of a model by one rule, from ``start`` on."""
        calibration = self.reference.calibration(("harmful", "harmless", "twin"))
        plan = RepairPlan(rule, tuple(range(len(model.blocks))), steps=self.options.steps)
        return solve_patch(model, self.dense, calibration, mx.zeros((1, model.hidden_size)), plan, start=start)

    def solve_both(self, model: ChatModel) -> Patch:
        """Blocks reconstructed, then all distilled together."""
        return self.solve(model, "distill", self.solve(model, "reconstruct"))

    def show(self, name: str, model: ChatModel, bits: float | None = None) -> None:
        """A row of the table."""
        row = evaluate_control(
            name, "", model, self.reference,
            max_new_tokens=TOKENS_PER_ANSWER, batch_size=BATCH, progress=lambda stage, done, total: None,
        )  # fmt: skip
        rates = [interval(rate) for rate in (row.refusal.harmful, row.refusal.harmless, row.refusal.twin)]
        assert row.refusal.harmful is not None
        utility = f"{number(row.utility.perplexity)} | {number(row.utility.kl_to_dense, 4)}"
        stored = model.bits_per_weight if bits is None else bits
        print(
            f"| {name} | {' | '.join(rates)} (n = {row.refusal.harmful.n}) | {utility} | {percent(model.sparsity())} "
            f"| {stored:.2f} |",
            flush=True,
        )


def fixed(model: ChatModel) -> None:
    """From now on a patch is kept beside the codes of ``model``."""
    for path, stored in model.stored.items():
        assert isinstance(stored, QuantizedWeight)
        model.stored[path] = dataclasses.replace(stored, origin=stored.values(), is_fixed=True)


def truncated(patch: Patch, rank: int) -> Patch:
    """Every part cut to a rank by SVD."""

    def cut(part: LinearPatch) -> LinearPatch:
        left, values, right = mx.linalg.svd(part.change().astype(mx.float32), stream=mx.cpu)
        return LinearPatch(
            part.block, part.name, left=left[:, :rank] * values[:rank], right=right[:rank]
        )  # fmt: skip

    return replace(patch, parts=tuple(cut(part) for part in patch.parts))


def show_undone(bench: Bench) -> None:
    """Print, for each number of bits, the share of a change along r that rounding leaves."""
    direction = measure_on_reference(bench.dense, bench.reference, lambda done, total: None).direction.vector
    print("| | left of a change along r, added to the codes | added to what was rounded |\n|---|---|---|")
    for bits in bench.options.bits:
        model = bench.quantized(bench.pruned(), bits)
        plan = RepairPlan("restore", tuple(range(len(model.blocks))))
        wanted = at_codes = at_origin = 0.0
        for part in solve_patch(model, bench.dense, [], direction, plan).parts:
            stored = model.stored[model.path(part.block, part.name)]
            values, change = stored.values(), part.change().astype(mx.float32)
            along = direction @ change
            wanted += (along @ along).item()
            at_codes += (along @ (direction @ (stored.nearest(values + change) - values))).item()
            at_origin += (along @ (direction @ (stored.nearest(stored.origin + change) - values))).item()
        print(f"| {bits} bits | {percent(at_codes / wanted)} | {percent(at_origin / wanted)} |", flush=True)


def with_adapter(model: ChatModel, patch: Patch, rank: int | None) -> float:
    """Bits per weight with an adapter in float16."""
    count = sum(
        min(rank or min(part.change().shape), *part.change().shape) * sum(part.change().shape) for part in patch.parts
    )
    return model.bits_per_weight + 16 * count / model.parameters


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--prune-method", default="wanda")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=None)
    parser.add_argument("--mode", default="affine")
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=["before", "after", "loop", "half"])
    parser.add_argument("--undone", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bench = Bench(options)
    if options.undone:
        return show_undone(bench)
    print("| | harmful | harmless | twins | perplexity | KL | zeros | bits/weight |\n|---|---|---|---|---|---|---|---|")
    bench.show("dense", bench.dense)
    pruned = bench.pruned()
    half: Patch | None = None
    first: Patch | None = None
    if options.sparsity:
        bench.show("pruned", pruned)
        half = bench.solve(pruned, "reconstruct")
        if "before" in options.only:
            first = bench.solve(pruned, "distill", half)
            with patched(pruned, first):
                bench.show("pruned, repaired", pruned)
    for bits in options.bits:
        bench.show(f"{bits} bits: compressed", bench.quantized(bench.pruned(), bits))
        if "half" in options.only:
            model = bench.pruned()
            if half is not None:
                fold(model, half)
            model = bench.quantized(model, bits)
            fold(model, bench.solve(model, "distill"))
            bench.show(f"{bits} bits: half repaired, quantized, then with the rounding", model)
        if first is not None:
            model = bench.pruned()
            fold(model, first)
            bench.show(f"{bits} bits: repaired, then quantized", bench.quantized(model, bits))
        if "loop" in options.only:
            model = bench.quantized(bench.pruned(), bits)
            fold(model, bench.solve_both(model))
            bench.show(f"{bits} bits: quantized, then repaired with the rounding", model)
        if "after" in options.only:
            model = bench.quantized(bench.pruned(), bits)
            rounding = dict(model.stored)
            fixed(model)
            patch = bench.solve_both(model)
            with patched(model, patch):
                bench.show(f"{bits} bits: quantized, then an adapter", model, with_adapter(model, patch, None))
            for rank in options.ranks:
                with patched(model, truncated(patch, rank)):
                    bench.show(f"{bits} bits: ... of rank {rank}", model, with_adapter(model, patch, rank))
            model.stored = rounding
            with patched(model, patch):
                bench.show(f"{bits} bits: that folded in, same scales", model)
            model.stored = {}
            fold(model, patch)
            bench.show(f"{bits} bits: that folded in, new scales", bench.quantized(model, bits))


if __name__ == "__main__":
    main()
