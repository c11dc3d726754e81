"""What a user has to know about a pruning, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aird_mlx.pruning.moments import LEAST_TOKENS
from aird_mlx.pruning.sparsegpt import DAMPING
from aird_mlx.report import TensorSparsity, zeros_among


def notes_on_zeros(tensors: Sequence[TensorSparsity]) -> list[str]:
    """What was zero before."""
    before = zeros_among([replace(one, sparsity=one.before) for one in tensors])
    if before <= 0.01:
        return []
    return [f"{before:.1%} of the pruned linears' weights were zero already; they are removed again first"]


def notes_on_calibration(method: str, tokens: int, widest: int) -> list[str]:
    """Fewer tokens than SparseGPT needs for linears of so many inputs."""
    if method != "sparsegpt" or tokens >= widest:
        return []
    return [
        f"sparsegpt: {tokens} calibration tokens are fewer than the {widest} inputs of the widest linear, so its "
        f"Hessian is singular but for the damping; {widest} or more are needed for a sound one"
    ]


def notes_on_unseen(tensors: Sequence[TensorSparsity], method: str) -> list[str]:
    """Experts that hardly any token reached."""
    unseen = list(dict.fromkeys(f"{expert} of block {one.block}" for one in tensors for expert in one.unseen))
    if not unseen:
        return []
    more = f" and {len(unseen) - 8} more" if len(unseen) > 8 else ""
    return [
        f"{method}: fewer than {LEAST_TOKENS} calibration tokens are routed to expert {', '.join(unseen[:8])}{more}; "
        "pruned by the size of their weights alone. More calibration text reaches more experts"
    ]


def notes_on_damping(tensors: Sequence[TensorSparsity]) -> list[str]:
    """Hessians that had to be damped more than usual."""
    return [
        f"sparsegpt: the Hessian of {one.name} in block {one.block} is singular; it was damped by {one.damping:g} of "
        f"its mean diagonal instead of {DAMPING:g}"
        for one in tensors
        if one.damping is not None and one.damping > DAMPING
    ]
