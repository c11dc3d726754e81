"""The stages one by one, each with the library call that does it: measure, prune, repair, fold, measure again.

Run it with ``python examples/stages.py``; it takes about a minute on two cores and writes nothing.
"""

from aird_mlx.blas import use_openblas

use_openblas()

from aird_mlx.activations import batch_sequences  # noqa: E402
from aird_mlx.demo.language import dialogues, prompts  # noqa: E402
from aird_mlx.direction import last_logits, measure_direction, refusal_tokens  # noqa: E402
from aird_mlx.evaluation import measure_refusals  # noqa: E402
from aird_mlx.model import load  # noqa: E402
from aird_mlx.patch import fold  # noqa: E402
from aird_mlx.prompts import post_instruction_tokens, render_dialogue, render_prompt  # noqa: E402
from aird_mlx.pruning import prune_model  # noqa: E402
from aird_mlx.repair import RepairPlan, solve_patch  # noqa: E402


def main() -> None:
    """Walk through the stages on the embedded model."""
    dense = load("demo")

    def rendered(kind: str, part: str, n: int) -> list[list[int]]:
        return [render_prompt(dense.tokenizer, prompt) for prompt in prompts(kind, part, n, seed=0)]

    # 1. What do this model's refusals start with? Look at what it deems likely.
    harmful, harmless = rendered("harmful", "train", 128), rendered("harmless", "train", 128)
    tokens = refusal_tokens(last_logits(dense, harmful), last_logits(dense, harmless))
    print("refusals start with", [dense.tokenizer.decode([token]) for token in tokens])

    # 2. The refusal direction: selected among all layers and post-instruction positions.
    direction = measure_direction(
        dense,
        harmful=harmful,
        harmless=harmless,
        select_harmful=rendered("harmful", "validation", 32),
        select_harmless=rendered("harmless", "validation", 32),
        tokens=tokens,
        positions=len(post_instruction_tokens(dense.tokenizer)),
    ).direction
    print(f"direction: input of block {direction.layer}, position {direction.position}, KL {direction.kl:.3f}")

    # 3. Prune a second copy with Wanda on harmless dialogues, as a user would.
    compressed = load("demo")
    harmless_dialogues = [
        render_dialogue(dense.tokenizer, *pair)[0] for pair in dialogues("train", 256, 0, kinds=("harmless",))
    ]
    pruned = prune_model(compressed, batch_sequences(harmless_dialogues), method="wanda", sparsity=0.6)
    print(f"pruned: {pruned.sparsity:.1%} of the weights are zero")

    # 4. Repair: choose the surviving weights again, on dialogues that hold harmful prompts too.
    pairs = dialogues("train", 512, 1) + dialogues("train", 256, 2, kinds=("harmful",))
    calibration = batch_sequences([render_dialogue(dense.tokenizer, *pair)[0] for pair in pairs])
    plan = RepairPlan("reconstruct", blocks=tuple(range(len(dense.blocks))))
    patch = solve_patch(compressed, dense, calibration, direction.vector, plan)

    # 5. Measure before and after on prompts nothing above has seen.
    test = {kind: prompts(kind, "test", 100, seed=0) for kind in ("harmful", "harmless", "twin")}
    before = measure_refusals(compressed, test, max_new_tokens=48)
    folded = fold(compressed, patch)
    after = measure_refusals(compressed, test, max_new_tokens=48)
    for kind in test:
        print(f"{kind:>8}: refused {getattr(before, kind).rate:.0%} pruned, {getattr(after, kind).rate:.0%} repaired")
    print(f"sparsity lost: {folded.sparsity_lost}")


if __name__ == "__main__":
    main()
