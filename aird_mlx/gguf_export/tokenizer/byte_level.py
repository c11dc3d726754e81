"""Byte-level BPE (``gpt2`` in GGUF): bytes as letters, merged by rank within what a pre-tokenizer cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.pre_tokenizer import identify_pre_tokenizer, read_merges, step_types
from aird_mlx.gguf_export.tokenizer.vocabulary import Vocabulary, lay_out

_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}


def read_byte_level(content: Mapping[str, Any], added: Mapping[int, Added], vocab_size: int) -> Vocabulary:
    """The vocabulary of a byte-level BPE.

    Args:
        content: the parsed ``tokenizer.json``.
        added: its added tokens.
        vocab_size: rows of the embedding.

    Raises:
        ExportError: llama.cpp splits, normalizes or merges otherwise.
    """
    model = content["model"]
    notes = notes_on_added(added)
    for part in step_types(content.get("normalizer")):
        if part in _UNICODE_FORMS:
            notes.append(
                f"llama.cpp does not apply the tokenizer's {part} normalization: text not in {part} gets other ids"
            )
        elif part != "Sequence":
            raise ExportError(
                f"tokenizer: normalizer {part}; none or a Unicode form is needed for byte-level BPE. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ExportError(
                f"tokenizer: {key} is {model[key]!r}; llama.cpp has no such rule. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    pre, differences = identify_pre_tokenizer(content)
    tokens, types = lay_out({int(index): text for text, index in model["vocab"].items()}, {}, added, vocab_size)
    # A merge with a raw space or newline can never happen, since those are written as letters; GGUF cannot hold it.
    merges = [f"{left} {right}" for left, right in read_merges(model) if not set(" \n") & set(left + right)]
    ids = {"unk": model["vocab"][model["unk_token"]]} if model.get("unk_token") in model["vocab"] else {}
    return Vocabulary("gpt2", pre, tokens, types, merges=merges, special_ids=ids, notes=notes + differences)
