"""Raw text as windows of tokens, the way language models are compared by perplexity on WikiText.

The text is tokenized in one piece and cut into windows that do not overlap; the first token of a window is context
only. Perplexities are comparable for the same text, window and tokenizer. Source: Frantar et al. 2023,
arXiv:2210.17323, whose windows are 2048 tokens long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aird_mlx.errors import PromptError


def read_text(path: Path) -> str:
    """The whole file.

    Raises:
        PromptError: missing, unreadable or blank.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"text: {path} cannot be read ({error}); UTF-8 text is needed. Check the path.") from error
    if not text.strip():
        raise PromptError(f"text: {path} is empty; text to measure perplexity on is needed. Use another file.")
    return text


def cut_windows(ids: Sequence[int], window: int, most: int | None = None) -> list[list[int]]:
    """The first ``most`` consecutive windows of ``window`` tokens; a shorter rest counts only if it is all there is.

    Raises:
        PromptError: fewer than two tokens.

    >>> cut_windows([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4]]
    """
    if len(ids) < 2:
        raise PromptError(f"text: {len(ids)} tokens; at least two are needed to predict one. Use a longer text.")
    whole = [list(ids[start : start + window]) for start in range(0, len(ids) - window + 1, window)]
    return (whole or [list(ids)])[:most]
