"""What a model is made of, and which stages can be run on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aird_mlx.report.figures import SCHEMA


@dataclass(frozen=True)
class BlockKind:
    """The blocks of a model that are built alike.

    Attributes:
        kind: their parts in words (``attention + experts``).
        blocks: their indices.
        writers: the linears whose output enters the residual stream.
        norms: by writer, the norm between it and the stream.
        linears: how many linears are pruned in each block.
        weights: how many weights these have together, in one block.
        experts: how many a mixture has, 0 without one.
        kept: linears that are never pruned.
    """

    kind: str
    blocks: list[int]
    writers: list[str]
    norms: dict[str, str]
    linears: int
    weights: int
    experts: int
    kept: list[str]


@dataclass(frozen=True)
class StageSupport:
    """Whether a stage can be run; ``why`` says why not, or what is special."""

    stage: str
    supported: bool
    why: str = ""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        model: as it was named.
        model_type: the word in config.json.
        origin: ``table``, or ``discovered`` for a model type without a row.
        parameters: how many weights.
        bits_per_weight: as stored.
        hidden_size: width of the residual stream.
        context_length: tokens, None if the config names no limit.
        embedding, head: dotted paths; the head is the embedding where they are tied.
        kinds: its blocks.
        writer_error: by how much the writers fail to explain what blocks change, relative; a rounding error.
        stages: what can be run.
        notes: what loading did.
    """

    model: str
    model_type: str
    origin: str
    parameters: int
    bits_per_weight: float
    hidden_size: int
    context_length: int | None
    embedding: str
    head: str
    kinds: list[BlockKind]
    writer_error: float
    stages: list[StageSupport]
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA
