"""Does a repair hold on prompts that nothing was chosen on?

The demo's repair rules were tuned while their answers to the 300 test prompts were looked at. This asks models the next
prompts of the held-out part of the demo's language, 500 of each kind, and prints how many they refuse.

    python benchmarks/fresh_prompts.py demo build/demo/mlx
"""

from __future__ import annotations

import argparse

from aird_mlx.blas import use_openblas

use_openblas()

from aird_mlx.demo.language import prompts  # noqa: E402
from aird_mlx.evaluation import measure_refusals  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import load  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.report_page import interval  # noqa: E402

DRAWN, BATCH = 2, 64  # times as many are drawn as asked for, since some are test prompts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="demo, or folders made from it")
    parser.add_argument("--limit", type=int, default=500, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=991)
    options = parser.parse_args()
    test = gather_inputs("demo", 0).contrast
    fresh = {}
    for kind in KINDS:
        seen = set(test.part(kind, "test"))
        drawn = prompts(kind, "test", DRAWN * options.limit, options.seed)
        fresh[kind] = [prompt for prompt in drawn if prompt not in seen][: options.limit]
    for name in options.models:
        rates = measure_refusals(load(name), fresh, max_new_tokens=64, batch_size=BATCH)
        found = ((kind, getattr(rates, kind)) for kind in KINDS)
        print(f"{name}: " + ", ".join(f"{kind} {interval(rate)} of {rate.n}" for kind, rate in found), flush=True)


if __name__ == "__main__":
    main()
