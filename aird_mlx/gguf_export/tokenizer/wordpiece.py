"""WordPiece (``bert`` in GGUF): words cut greedily, whole words with a visible space where BERT marks the rest.

Source: ``llm_tokenizer_wpm`` in llama.cpp's ``src/llama-vocab.cpp``; Hugging Face's ``BertNormalizer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.pre_tokenizer import list_steps, step_types
from aird_mlx.gguf_export.tokenizer.vocabulary import SPACE, UNKNOWN, Vocabulary, lay_out


def read_wordpiece(content: Mapping[str, Any], added: Mapping[int, Added], vocab_size: int) -> Vocabulary:
    """The vocabulary of a ``WordPiece`` model in ``tokenizer.json``.

    Args:
        content: the parsed file.
        added: its added tokens.
        vocab_size: rows of the embedding.

    Raises:
        ExportError: text is prepared otherwise than BERT does, which is all llama.cpp knows.
    """
    model = content["model"]
    steps = list_steps(content.get("normalizer"))
    usual = {"clean_text": True, "handle_chinese_chars": True}
    if (
        [step.get("type") for step in steps] != ["BertNormalizer"]
        or step_types(content.get("pre_tokenizer")) != ["BertPreTokenizer"]
        or any(steps[0].get(key, value) != value for key, value in usual.items())
    ):
        raise ExportError(
            "tokenizer: WordPiece without BERT's usual normalizer and pre-tokenizer; llama.cpp knows only those. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    prefix = str(model.get("continuing_subword_prefix") or "##")
    texts = {
        int(index): text.removeprefix(prefix) if text.startswith(prefix) else SPACE + text
        for text, index in model["vocab"].items()
    }
    unknown = int(model["vocab"][model["unk_token"]])
    lowercase = bool(steps[0].get("lowercase"))
    accents = steps[0].get("strip_accents")
    texts[unknown] = str(model["unk_token"])
    tokens, types = lay_out(texts, {unknown: UNKNOWN}, added, vocab_size)
    return Vocabulary(
        "bert", None, tokens, types,
        special_ids={"unk": unknown}, add_bos=True, add_eos=False,
        options={
            "normalizer.lowercase": lowercase,
            "normalizer.strip_accents": lowercase if accents is None else bool(accents),
        },
        notes=notes_on_added(added),
    )  # fmt: skip
