"""Compression and repair of a model that does not fit: folders written block by block instead of models in memory."""

from __future__ import annotations

from collections.abc import Callable

from aird_mlx.compress import prune_on_reference
from aird_mlx.direction import Direction
from aird_mlx.model import ChatModel, ShardFolder
from aird_mlx.prompts import KINDS
from aird_mlx.reference import Reference
from aird_mlx.repair import repair_blocks
from aird_mlx.report import RepairFigures
from aird_mlx.search import spaces_for
from aird_mlx.settings import RepairSettings
from aird_mlx.stages import refusal_directions
from aird_mlx.workspace import Workspace, read_record, write_record

# What rule auto means where plans cannot be searched: of the rules that go block by block, what the search takes most.
STREAMED_RULE = "reconstruct"


def compress_blocks(
    settings: RepairSettings,
    workspace: Workspace,
    model: ChatModel,
    reference: Reference,
    direction: Direction,
    progress: Callable[[int, int], None],
) -> None:
    """Prune ``model``, a streamed copy of the dense one, into the workspace's folder ``compressed``."""
    shards = ShardFolder(workspace.folder / "compressed", model)
    if shards.is_complete:
        return
    with workspace.block_stage("compress"):
        pruned = prune_on_reference(
            model, reference, settings.pruning, direction, seed=settings.seed, shards=shards, progress=progress
        )
        workspace.write("pruning.json", pruned, write_record)
        shards.finish()


def repair_by_block(
    settings: RepairSettings,
    workspace: Workspace,
    compressed: ChatModel,
    reference: Reference,
    direction: Direction,
    progress: Callable[[int, int], None],
) -> RepairFigures:
    """Repair ``compressed``, which is streamed, into the workspace's folder ``mlx``, by the first plan of one rule."""
    shards = ShardFolder(workspace.folder / "mlx", compressed)
    if not shards.is_complete:
        plan = spaces_for(
            STREAMED_RULE if settings.rule == "auto" else settings.rule,
            source_layer=direction.layer,
            blocks=len(compressed.blocks),
            inside_mask=not settings.allow_dense,
        )[0].first
        with workspace.block_stage("repair"):
            folded = repair_blocks(
                compressed,
                reference.model,
                reference.calibration(KINDS, plan.tokens),
                refusal_directions(reference, direction),
                plan,
                shards,
                progress=progress,
            )
            figures = RepairFigures(
                rule=plan.rule,
                layers=list(plan.blocks),
                strength=plan.strength,
                rank=None if plan.inside_mask else plan.rank,
                sparsity_lost=folded.sparsity_lost,
                ridge=plan.ridge,
                beta=plan.beta,
                tokens=plan.tokens,
                why="the first plan of its rule; plans are searched only where whole models fit",
            )
            workspace.write("repair.json", figures, write_record)
            shards.finish()
    return read_record(RepairFigures, workspace.folder / "repair.json")
