"""What a run will take: seconds per stage, peak memory, room on the disk; estimates, made before anything is done.

Seconds are tokens times the model's weights over the speed of its first block, timed here on a short text, and what a
pass takes whatever it carries, timed on one token (reading the block from disk, where blocks are streamed). Answers are
taken to run to their limit and solvers to take all their steps. Not counted: loading, the judge, and a machine that
does other work as well.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from aird_mlx.activations import Walk, batch_sequences
from aird_mlx.compress import calibration_kinds
from aird_mlx.direction.selection import LAST_LAYER_SHARE
from aird_mlx.inputs import Inputs, held_out_sequences, text_sequences
from aird_mlx.model import ChatModel
from aird_mlx.pipeline.streaming import STREAMED_RULE
from aird_mlx.prompts import KINDS, PARTS, post_instruction_tokens, render_prompt
from aird_mlx.pruning import CALIBRATED
from aird_mlx.reference import MAX_NEW_TOKENS
from aird_mlx.repair import RULES, RepairPlan, distillation, fits_in_memory, needed_bytes, reconstruction
from aird_mlx.repair.closed_form import REFIT_ITERATIONS
from aird_mlx.repair.descent import TOKENS_CHECKED
from aird_mlx.search import spaces_for
from aird_mlx.search.choose import COARSE_TOKENS, FINALISTS
from aird_mlx.settings import RepairSettings
from aird_mlx.stages import DIRECTION_PROMPTS, SELECTION_PROMPTS

# What Python and the libraries take.
PROCESS_BYTES = 300_000_000
# A descent holds, per weight of a block: itself, also as it is computed with, two moments and whether it survives. Then
# either what the backward pass does (float32 numbers per token and hidden width, measured), or one linear's gradient
# and step (per weight of a block, measured).
DESCENT_BYTES, BACKWARD_WIDTHS, STEP_BYTES = 15, 100, 12
PROMPTS_SAMPLED = 32
TIMED_TOKENS, TIMED_ROWS, TIMED_RUNS = 64, 8, 20


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a run, and the seconds it is expected to take at most."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Measured here.

    Attributes:
        flops: floating-point operations per second: two per weight of the first block and token.
        pass_seconds: what carrying anything through all blocks takes besides.
    """

    flops: float
    pass_seconds: float


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        stages: in order.
        peak_memory_bytes: at most in use.
        disk_bytes: written, what is removed at the end included.
        speed: what the seconds were computed with.
    """

    stages: list[StageEstimate]
    peak_memory_bytes: int
    disk_bytes: int
    speed: Speed


def measure_speed(model: ChatModel) -> Speed:
    """Time the first block of a model on some short texts and on one token, at its best of several times."""
    weights = sum(array.size for _, array in tree_flatten(model.blocks[0].parameters()))
    length = min(TIMED_TOKENS, model.context_length or TIMED_TOKENS)
    seconds = []
    for rows, tokens in ((1, 1), (TIMED_ROWS, length)):
        walk = Walk(model, batch_sequences([[0] * tokens] * rows))
        times = []
        for _ in range(TIMED_RUNS):
            model.release(0)  # a streamed block is read again
            began = time.perf_counter()
            mx.eval(walk.run_block(0))
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    one, many = seconds
    return Speed(2 * weights * TIMED_ROWS * length / max(many - one, many / 10), one * len(model.blocks))


def estimate_run(settings: RepairSettings, model: ChatModel, inputs: Inputs, speed: Speed) -> RunEstimate:
    """Estimate a run of these settings on ``model``, the dense one, which is not run."""
    return _Estimator(settings, model, inputs, speed).estimate()


def disk_bytes(settings: RepairSettings, model: ChatModel) -> int:
    """Room on the disk: the compressed and the repaired model, a patch or what is resumed from, and GGUF files.

    A GGUF file counts as two bytes a weight; most types take less.
    """
    folders = 2 if model.stream is not None else 3
    return folders * model.size_bytes + 2 * len(settings.gguf) * model.parameters


class _Estimator:
    def __init__(self, settings: RepairSettings, model: ChatModel, inputs: Inputs, speed: Speed) -> None:
        self.settings, self.model, self.inputs, self.speed = settings, model, inputs, speed
        self.stored = model.size_bytes
        inside = [array for block in model.blocks for _, array in tree_flatten(block.parameters())]
        self.weights, self.block_bytes = sum(array.size for array in inside), sum(array.nbytes for array in inside)
        self.head = model.hidden_size * model.vocabulary
        self.widths = {linear.weight.shape[-1] for _, _, linear in model.linears()}
        self.answer = settings.max_new_tokens or MAX_NEW_TOKENS
        prompts = [prompt for kind in KINDS for prompt in inputs.contrast.part(kind, "find")[:PROMPTS_SAMPLED]]
        self.prompt = sum(len(render_prompt(model.tokenizer, one)) for one in prompts) / len(prompts)
        texts = sum(map(len, text_sequences(model.tokenizer, inputs.texts)))
        self.calibration: dict[tuple[str, ...], float] = {
            kinds: texts + self.prompts("find", kinds) * (self.prompt + self.answer) for kinds in (KINDS, ("harmless",))
        }
        self.held_out = sum(len(ids) for ids, _ in held_out_sequences(model.tokenizer, inputs))

    def prompts(self, part: str, kinds: tuple[str, ...] = KINDS) -> int:
        return sum(len(self.inputs.contrast.part(kind, part)) for kind in kinds)

    def estimate(self) -> RunEstimate:
        settings = self.settings
        kinds = calibration_kinds(settings.pruning)
        evaluated = self.answers(self.prompts("test")) + self.utility() + self.direction()
        stages = [
            StageEstimate("dense answers", self.answers(sum(self.prompts(part) for part in PARTS))),
            StageEstimate("direction", self.direction()),
            StageEstimate("compress", self.compression(self.calibration[kinds])),
            StageEstimate("evaluate dense and compressed", self.utility() + evaluated),
            StageEstimate("repair", self.repair()),
            StageEstimate("evaluate repaired", evaluated),
        ]
        return RunEstimate(stages, self.memory(), disk_bytes(settings, self.model), self.speed)

    def forward(self, tokens: float, passes: float = 1.0) -> float:
        """Seconds to carry tokens through all blocks, in so many passes."""
        return passes * self.speed.pass_seconds + 2 * self.weights * tokens / self.speed.flops

    def answers(self, prompts: int) -> float:
        steps = math.ceil(prompts / self.settings.batch_size) * self.answer
        heads = 2 * self.head * prompts * self.answer / self.speed.flops
        return self.forward(prompts * (self.prompt + self.answer), steps) + heads

    def direction(self) -> float:
        blocks = len(self.model.blocks)
        positions = len(post_instruction_tokens(self.model.tokenizer))
        shares = [2 + (blocks - layer) / blocks for layer in range(math.ceil(LAST_LAYER_SHARE * blocks))]
        scored = sum(shares) * positions * min(SELECTION_PROMPTS, self.prompts("validate", ("harmful",)))
        means = 2 * min(DIRECTION_PROMPTS, self.prompts("find", ("harmful",)))
        heads = 2 * self.head * 3 * len(shares) * positions * SELECTION_PROMPTS / self.speed.flops
        return self.forward((scored + means) * self.prompt, 2 + sum(shares)) + heads

    def utility(self) -> float:
        return 2 * self.forward(self.held_out) + 4 * self.head * self.held_out / self.speed.flops

    def moments(self, tokens: float) -> float:
        """Second moments of the inputs of every block's linears, four groups of them, and their factorization."""
        each = sum(2 * width * width * (tokens + width) for width in self.widths) * 4 / max(len(self.widths), 1)
        return len(self.model.blocks) * each / self.speed.flops

    def compression(self, tokens: float) -> float:
        if self.settings.prune_method not in CALIBRATED:
            return self.speed.pass_seconds
        solved = 0.0
        if self.settings.prune_method == "sparsegpt":
            solved = self.moments(tokens) + 2 * self.weights * max(self.widths) / self.speed.flops
        return self.forward(tokens, 2) * 2 + solved

    def repair(self) -> float:
        """The rule's first plan; of ``auto`` every rule's, closed forms on fewer tokens, and the finalists' answers.

        What is pruned and quantized is searched for twice. That distillation may have to go on is not counted.
        """
        streaming = self.model.stream is not None
        rule = STREAMED_RULE if streaming and self.settings.rule == "auto" else self.settings.rule
        halves = 2 if self.settings.quantize and self.settings.prune_method != "none" else 1
        spaces = spaces_for(
            rule, source_layer=len(self.model.blocks) // 2, blocks=len(self.model.blocks), inside_mask=True,
            distillable=fits_in_memory(self.model),
        )  # fmt: skip
        tokens = self.calibration[KINDS]
        if streaming:
            return self.solve(spaces[0].first, tokens)
        total = 0.0
        for space in spaces:
            plans = 1 + sum(len(values) for _, values in space.axes)
            judged = plans * len(space.strengths) * self.forward(self.prompts("validate") * (self.prompt + self.answer))
            seen = tokens if RULES[space.first.rule].descends else min(tokens, COARSE_TOKENS)
            total += judged + plans * self.solve(space.first, seen)
        return halves * (total + min(FINALISTS, len(spaces)) * self.answers(self.prompts("validate")))

    def solve(self, plan: RepairPlan, tokens: float) -> float:
        share = len(plan.blocks) / len(self.model.blocks)
        of_step = plan.tokens_per_step if plan.rule == "reconstruct" else distillation.TOKENS_PER_STEP
        descent = 3 * self.forward(plan.steps * of_step, plan.steps) + 2 * self.forward(TOKENS_CHECKED)
        if plan.rule == "reconstruct":
            return 5 * self.forward(tokens) + descent
        if plan.rule == "distill":
            return self.forward(tokens) + descent + 8 * self.head * plan.steps * of_step / self.speed.flops
        if not RULES[plan.rule].sees_activations:
            return share * self.speed.pass_seconds
        steps = REFIT_ITERATIONS * 2 * self.weights * max(self.widths) / self.speed.flops
        return share * (10 * self.forward(tokens) + self.moments(tokens) + steps)

    def memory(self) -> int:
        """Models and the tokens carried along; what a descent or a least squares holds besides."""
        element = self.stored / max(self.weights, 1)
        tokens = max(self.calibration[KINDS], self.held_out)
        carried = 3 * tokens * self.model.hidden_size * element
        squares = 4 * 5 * max(self.widths) ** 2
        logits = 4 * 4 * max(32 << 20, self.head // self.model.hidden_size * 256)
        blocks = len(self.model.blocks)
        backward = 4 * BACKWARD_WIDTHS * reconstruction.TOKENS_PER_STEP * self.model.hidden_size
        descent = DESCENT_BYTES * self.weights / blocks + max(backward, STEP_BYTES * self.weights / blocks)
        if self.model.stream is not None:
            block, outside = self.block_bytes / blocks, self.stored - self.block_bytes
            needed = max(2 * block + squares, descent, block + 2 * outside + logits)
        else:
            weights = 4.0 * self.stored
            if fits_in_memory(self.model) and self.settings.rule in ("auto", "distill"):
                weights = max(weights, 2 * self.stored + needed_bytes(self.model))
            needed = weights + max(squares, descent, logits)
        return int(PROCESS_BYTES + carried + needed)
