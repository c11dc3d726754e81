"""What does each quantization do to refusals? Uniform and mixed bits, bits by refusal, and mlx-lm's learned methods.

Each is applied to the demo in memory and asked held-out prompts; bits per weight are as stored, scales included (the
demo's are float32, which costs as much as the codes). Rates are shares of prompts refused.

    python benchmarks/bench_quantization.py --bits 3 2 --limit 150
"""

from __future__ import annotations

import argparse
import random
import time

from aird_mlx.blas import use_openblas

use_openblas()

from mlx_lm.convert import mixed_quant_predicate_builder  # noqa: E402
from mlx_lm.utils import dequantize_model  # noqa: E402

from aird_mlx.evaluation import judge_prompts, measure_utility, refusal_rates  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import ChatModel, load  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.quantization import favour_writers, learn_quantization, quantize_model  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402
from aird_mlx.stages import measure_on_reference  # noqa: E402

LEARNED = {2: ("gptq", "dynamic", "dwq", "awq"), 3: ("dynamic", "dwq", "awq"), 4: ("gptq", "dynamic", "dwq", "awq")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", choices=sorted(LEARNED), default=[3, 2])
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=150, help="test prompts of each kind")
    parser.add_argument("--chats", type=int, default=240, help="the learned methods learn from")
    parser.add_argument("--without", nargs="*", default=(), help="methods left out")
    options = parser.parse_args()
    dense = load("demo")
    inputs = gather_inputs("demo", 0, limit=options.limit)
    answers = ask_reference(dense, inputs, max_new_tokens=64, batch_size=64, parts=("find",))
    reference = Reference(dense, inputs, answers)
    layer = measure_on_reference(dense, reference, lambda done, total: None).direction.layer
    chats = [ids for ids, _ in reference.dialogues(KINDS)]
    random.Random(0).shuffle(chats)
    print(f"demo, direction at layer {layer}, {options.limit} prompts of each kind, group {options.group_size}")
    print(
        f"{'quantization':22s} {'bits/weight':>11s} {'harmful':>8s} {'harmless':>9s} {'twins':>6s} {'perplexity':>11s}"
    )
    _show("dense", dense, reference, 0.0)
    size = options.group_size
    for bits in options.bits:
        mixed = {2: ("mixed_2_6",), 3: ("mixed_3_4", "mixed_3_6"), 4: ("mixed_4_6",)}[bits]
        for name in ("uniform", "refusal", *mixed, *LEARNED[bits]):
            if name in options.without:
                continue
            model = load("demo")
            began = time.perf_counter()
            if name in LEARNED[bits]:
                learn_quantization(model, name, chats[: options.chats], bits=bits, group_size=size)
            else:
                recipe = None
                if name == "refusal":
                    recipe = favour_writers(model, layer, bits, size)
                elif name in mixed:
                    recipe = mixed_quant_predicate_builder(name, model.network, size)
                quantize_model(model, bits=bits, group_size=size, recipe=recipe)
            _show(f"{bits} bits {name}", model, reference, time.perf_counter() - began)


def _show(name: str, model: ChatModel, reference: Reference, seconds: float) -> None:
    stored = model.bits_per_weight
    dequantize_model(model.network)  # the same weights, in products that CPUs are quick at
    asked = {kind: reference.inputs.contrast.part(kind, "test") for kind in KINDS}
    rates = refusal_rates(*judge_prompts(model, asked, max_new_tokens=64, batch_size=64))
    utility = measure_utility(model, reference.held_out)
    shares = [f"{rate.rate:.1%}" for rate in (rates.harmful, rates.harmless, rates.twin) if rate is not None]
    print(f"{name:22s} {stored:11.2f} {shares[0]:>8s} {shares[1]:>9s} {shares[2]:>6s} {utility.perplexity:11.3f} "
          f"{seconds:.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
