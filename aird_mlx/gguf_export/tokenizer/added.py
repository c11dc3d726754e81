"""Added tokens: matched in the text before anything else happens to it. Source: Hugging Face's ``AddedToken``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What llama.cpp knows of a Phi-3: all of its special tokens take away the spaces behind them, but for these.
_PHI_3_KEEPS = {"<unk>", "<s>", "<|endoftext|>"}
# Tokens that models forgot to mark as special, as llama.cpp's converter knows them.
_LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)


@dataclass(frozen=True)
class Added:
    """One added token.

    Attributes:
        text: as it stands in the text.
        special: not shown to users.
        strips: takes neighbouring spaces away, or is matched only as a whole word.
        normalized: looked for in the text as the normalizer leaves it.
        strips_behind: takes away the spaces behind it, and does nothing else of what ``strips`` says.
    """

    text: str
    special: bool = False
    strips: bool = False
    normalized: bool = False
    strips_behind: bool = False

    @property
    def is_control(self) -> bool:
        """Whether a GGUF file calls it a control token: marked as special, or written like one.

        >>> Added("<|tool|>").is_control, Added("<think>").is_control
        (True, False)
        """
        return self.special or _LOOKS_SPECIAL.fullmatch(self.text) is not None


def read_added(content: Mapping[str, Any], settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[int, Added]:
    """Added tokens by id.

    Args:
        content: ``tokenizer.json``, or empty.
        settings: ``tokenizer_config.json``, which may add to the former and override it, but not the ids in it.
        others: ``added_tokens.json``, text -> id: the oldest form, which adds what the former two do not name.
    """
    entries: dict[int, dict[str, Any]] = {int(token_id): {"content": text} for text, token_id in others.items()}
    at = _ids_by_text(content)
    for entry in content.get("added_tokens") or []:
        entries[at.setdefault(entry["content"], int(entry["id"]))] = entry
    taken = set(at.values())
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        token_id = at.get(entry.get("content"))
        if token_id is None and int(number) not in taken:
            token_id = int(number)
        if token_id is not None:
            entries[token_id] = {**entries.get(token_id, {}), **entry}
    return {
        token_id: Added(
            str(entry["content"]),
            bool(entry.get("special")),
            any(entry.get(key) for key in ("lstrip", "rstrip", "single_word")),
            bool(entry.get("normalized")),
            bool(entry.get("rstrip")) and not entry.get("lstrip") and not entry.get("single_word"),
        )
        for token_id, entry in sorted(entries.items())
    }


def _ids_by_text(content: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the model's own tokens."""
    vocab = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, Mapping):
        return dict(vocab)
    return {text: index for index, (text, _) in enumerate(vocab)}


def strips_as_phi_3(added: Mapping[int, Added]) -> bool:
    """Whether they take spaces away just as llama.cpp does it for a model whose name holds ``phi-3``.

    >>> usual = [Added(text) for text in ("<unk>", "<s>", "<|endoftext|>")]
    >>> strips_as_phi_3(dict(enumerate([*usual, Added("</s>", strips=True, strips_behind=True)])))
    True
    >>> strips_as_phi_3(dict(enumerate([*usual, Added("</s>")])))
    False
    """
    texts = {one.text for one in added.values()}
    return _PHI_3_KEEPS | {"</s>"} <= texts and all(
        not one.strips if one.text in _PHI_3_KEEPS else one.strips_behind for one in added.values()
    )


def notes_on_added(added: Mapping[int, Added]) -> list[str]:
    """What llama.cpp does not do with them, in a sentence; empty if there is nothing."""
    stripping = [token.text for token in added.values() if token.strips]
    if not stripping or strips_as_phi_3(added):
        return []
    return [
        f"{len(stripping)} added tokens such as {stripping[0]} swallow neighbouring spaces; llama.cpp does not, "
        "so text with spaces beside them gets other ids"
    ]
