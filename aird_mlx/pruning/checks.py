"""What can be pruned how: words that exclude each other, and models that a method cannot work on."""

from __future__ import annotations

from aird_mlx.errors import PromptError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.pruning.allocation import ALLOCATIONS
from aird_mlx.pruning.masks import SCOPES, check_pattern_width, check_sparsity, check_word, parse_pattern
from aird_mlx.pruning.reap import check_experts

METHODS = ("wanda", "sparsegpt", "magnitude", "random", "reap")
# Those that look at what the model computes.
CALIBRATED = ("wanda", "sparsegpt", "reap")


def check_pruning(
    model: ChatModel, method: str, sparsity: float, pattern: str, scope: str = "row", allocation: str = "uniform"
) -> None:
    """Refuse settings that cannot work on this model before anything is computed.

    Raises:
        UsageError: see `check_words`, a pattern that does not divide a linear's width, or ``reap`` on a streamed model.
    """
    check_words(method, sparsity, pattern, scope, allocation)
    groups = parse_pattern(pattern)
    if method == "reap":
        check_experts(model, sparsity)
        if model.stream is not None:
            raise UsageError(
                "prune: method reap with --streaming; it cuts experts out of a model that is in memory. Use another "
                "method, or a machine that holds the model."
            )
    if groups:
        for block, name, linear in model.linears():
            check_pattern_width(linear.weight.shape[-1], *groups, of=f"{name} in block {block}")


def check_words(method: str, sparsity: float, pattern: str, scope: str, allocation: str) -> None:
    """Refuse settings that no model could be pruned with.

    Raises:
        UsageError: unknown method, pattern, scope or allocation, sparsity outside [0, 1), or words that exclude
            each other.
    """
    check_word("method", method, METHODS)
    check_word("scope", scope, SCOPES)
    check_word("allocation", allocation, ALLOCATIONS)
    check_sparsity(sparsity)
    if parse_pattern(pattern) is not None and (scope != "row" or allocation != "uniform"):
        other = f"scope {scope}" if scope != "row" else f"allocation {allocation}"
        raise UsageError(
            f"prune: pattern {pattern} with {other}; each M consecutive inputs of every row lose N, so scope row and "
            "allocation uniform are needed. Leave one of the two out."
        )
    if method == "reap" and (pattern != "unstructured" or scope != "row" or allocation != "uniform"):
        raise UsageError(
            f"prune: method reap with pattern {pattern}, scope {scope}, allocation {allocation}; it removes whole "
            "experts, so none of these can be chosen. Leave them out."
        )
    if method == "sparsegpt" and scope != "row":
        raise UsageError(
            "prune: scope matrix with sparsegpt, whose weights compete in blocks of 128 columns, all rows together; "
            "magnitude, wanda or random is needed for it. Leave --scope out."
        )


def check_calibration(method: str, tokens: int, widest: int) -> None:
    """Refuse a method without what it looks at.

    Args:
        method: of `CALIBRATED`.
        tokens: how many there are.
        widest: most inputs that a linear of the model has.

    Raises:
        PromptError: there are none.
    """
    if tokens == 0:
        raise PromptError(
            f"calibration: 0 tokens; {method} needs some, best {widest} or more, the most inputs a linear has. Give "
            "texts or dialogues to calibrate on."
        )
