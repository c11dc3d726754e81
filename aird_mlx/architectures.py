"""The table: model type -> where its blocks are, what reads the residual stream, and what writes to it.

A row names things as mlx-lm's model files do. ``linears`` lists the prunable linears of one block in the order in
which data passes them, grouped by shared input: the members of one group read the same activations. ``writers``
are those whose output is added to the residual stream. This module knows names only; it imports no model.

Source: mlx_lm/models/*.py (each row was checked against the running model by ``tests/test_model.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from aird_mlx.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        blocks: dotted path from the network to its list of blocks.
        embedding: dotted path to the token embedding.
        linears: groups of linears of one block, in data order; members of a group share their input.
        writers: the linears whose output enters the residual stream.
    """

    blocks: str
    embedding: str
    linears: tuple[tuple[str, ...], ...]
    writers: tuple[str, ...]

    @property
    def linear_names(self) -> tuple[str, ...]:
        """All prunable linears of one block, in data order."""
        return tuple(name for group in self.linears for name in group)


_LLAMA = Architecture(
    blocks="model.layers",
    embedding="model.embed_tokens",
    linears=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
    writers=("self_attn.o_proj", "mlp.down_proj"),
)

TABLE: dict[str, Architecture] = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}


def architecture_of(model_type: str) -> Architecture:
    """The row for ``model_type`` (the word in config.json).

    Raises:
        ModelError: there is no row; the message names the supported types.

    >>> architecture_of("qwen2").writers
    ('self_attn.o_proj', 'mlp.down_proj')
    """
    try:
        return TABLE[model_type]
    except KeyError:
        raise ModelError(
            f"model: model type {model_type!r} is not supported yet; one of {', '.join(TABLE)} is needed. "
            "Choose a model of these families."
        ) from None
