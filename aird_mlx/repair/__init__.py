"""AIRD: solve for a `Patch` that brings a compressed model's refusals back.

Rules (r: the dense model's unit refusal direction; W_o, W_c: original and compressed weight; x, x': a linear's inputs
in the dense and in the compressed model, on the same tokens):

- ``paper``: ``W_c + alpha r r^T W_c`` on the writers of the source block (reconstructed from arXiv:2504.04215).
- ``restore``: ``W_c + r r^T (W_o - W_c)``: what the original wrote along r is written again.
- ``least-squares``: ``W_c + r delta^T`` with delta chosen so that ``r^T W' x'`` meets ``r^T W_o x``; inside the mask
  its weights are chosen so that what is written across r stays.
- ``refit``: the surviving weights of each linear chosen again so that ``W' x'`` meets ``W_o x``.
- ``reconstruct``: the surviving weights of each block chosen together so that its output meets the dense block's.
- ``distill``: from there, all of them chosen together so that the next-token distribution meets the dense model's.

The last three are not low-rank, and keep the mask by construction.
Choosing among rules is not done here (see ``search``).
"""

from aird_mlx.repair.closed_form import (
    least_squares_change,
    least_squares_inside_mask,
    refit_weight,
    restore_change,
    spread_inside_mask,
)
from aird_mlx.repair.distillation import distill, fits_in_memory, needed_bytes
from aird_mlx.repair.moments import before_norm, paired_expert_moments, paired_moments
from aird_mlx.repair.plan import RULES, STARTS_FROM, TOKENS, RepairPlan, goes_on_from, start_of
from aird_mlx.repair.reconstruction import reconstruct_block, reconstruction_error, token_weights
from aird_mlx.repair.solve import solve_blocks, solve_patch
from aird_mlx.repair.streaming import STREAMED_RULES, repair_blocks

__all__ = [
    "RULES",
    "STARTS_FROM",
    "STREAMED_RULES",
    "TOKENS",
    "RepairPlan",
    "before_norm",
    "distill",
    "fits_in_memory",
    "goes_on_from",
    "least_squares_change",
    "least_squares_inside_mask",
    "needed_bytes",
    "paired_expert_moments",
    "paired_moments",
    "reconstruct_block",
    "reconstruction_error",
    "refit_weight",
    "repair_blocks",
    "restore_change",
    "solve_blocks",
    "solve_patch",
    "spread_inside_mask",
    "start_of",
    "token_weights",
]
