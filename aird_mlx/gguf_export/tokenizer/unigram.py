"""Sentencepiece unigram (``t5`` in GGUF): the likeliest way to cut a text, after a table of normalizations.

llama.cpp has no byte fallback here: what no token covers becomes the unknown token. Its ASCII part is put back by
giving those byte tokens their character, at the score sentencepiece gives an unknown one.
Source: ``llm_tokenizer_ugm`` in llama.cpp's ``src/llama-vocab.cpp``; sentencepiece's ``unigram_model.cc``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.pre_tokenizer import list_steps, step_types
from aird_mlx.gguf_export.tokenizer.sentencepiece_bpe import fill_scores, is_byte_token, write_spaces
from aird_mlx.gguf_export.tokenizer.vocabulary import BYTE, SPACE, UNKNOWN, Vocabulary, lay_out

UNKNOWN_PENALTY = 10.0  # below the least likely token


def read_unigram_json(content: Mapping[str, Any], added: Mapping[int, Added], vocab_size: int) -> Vocabulary:
    """The vocabulary of a ``Unigram`` model in ``tokenizer.json``.

    Args:
        content: the parsed file.
        added: its added tokens.
        vocab_size: rows of the embedding.

    Raises:
        ExportError: a normalizer or pre-tokenizer that llama.cpp has no equal for.
    """
    model = content["model"]
    pieces = [(str(text), float(score)) for text, score in model["vocab"]]
    if model.get("unk_id") is None:
        raise ExportError(
            "tokenizer: the unigram model has no unk_id; llama.cpp needs an unknown token. "
            "Use a model whose tokenizer has one."
        )
    kinds = {int(model["unk_id"]): UNKNOWN}
    if model.get("byte_fallback"):
        kinds |= {index: BYTE for index, (text, _) in enumerate(pieces) if is_byte_token(text)}
    charsmap, merges_spaces = _normalization(content)
    merges_spaces = merges_spaces or "WhitespaceSplit" in step_types(content.get("pre_tokenizer"))
    prefix = _prefix(content)
    return build_unigram(
        pieces, kinds, added, vocab_size, charsmap=charsmap, merges_spaces=merges_spaces, add_space_prefix=prefix
    )


def build_unigram(
    pieces: Sequence[tuple[str, float]],
    kinds: Mapping[int, int],
    added: Mapping[int, Added],
    vocab_size: int,
    *,
    charsmap: bytes | None,
    merges_spaces: bool,
    add_space_prefix: bool,
) -> Vocabulary:
    """The vocabulary of a unigram model from its pieces.

    Args:
        pieces: text and log probability by id.
        kinds: types of those that are not normal, the unknown one among them.
        added: added tokens.
        vocab_size: rows of the embedding.
        charsmap: sentencepiece's table of normalizations.
        merges_spaces: runs of spaces count as one, and those at the ends not at all.
        add_space_prefix: a space goes before the text.
    """
    unknown = next(index for index, kind in kinds.items() if kind == UNKNOWN)
    ignored = {*kinds, *added}
    least = min((score for index, (_, score) in enumerate(pieces) if index not in ignored), default=0.0)
    texts = {index: text for index, (text, _) in enumerate(pieces)}
    scores = {index: score for index, (_, score) in enumerate(pieces) if index not in added}
    own_kinds, notes = dict(kinds), notes_on_added(added)
    bytes_of = {index: int(texts[index][3:5], 16) for index, kind in kinds.items() if kind == BYTE}
    for index, value in bytes_of.items():
        if 0 < value < 128 and chr(value) not in texts.values():
            texts[index], scores[index] = chr(value), least - UNKNOWN_PENALTY
            del own_kinds[index]
    if bytes_of:
        notes.append("characters beyond ASCII that no token covers are the unknown token in llama.cpp, not bytes")
    tokens, types = lay_out(texts, own_kinds, added, vocab_size)
    return Vocabulary(
        "t5", None, write_spaces(tokens, added), types,
        scores=fill_scores(scores, types), special_ids={"unk": unknown}, add_space_prefix=add_space_prefix,
        options={"remove_extra_whitespaces": merges_spaces}, precompiled_charsmap=charsmap, notes=notes,
    )  # fmt: skip


def _normalization(content: Mapping[str, Any]) -> tuple[bytes | None, bool]:
    """Sentencepiece's table, and whether runs of spaces become one."""
    charsmap, merges_spaces = None, False
    for step in list_steps(content.get("normalizer")):
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if kind == "Precompiled" and charsmap is None:
            charsmap = base64.b64decode(step.get("precompiled_charsmap") or "")
        elif kind == "Replace" and pattern == {"Regex": " {2,}"} and step.get("content") in (" ", SPACE):
            merges_spaces = True
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == SPACE:
            continue  # spaces made visible, as llama.cpp does anyway
        elif kind == "Strip" and step.get("strip_right") and not step.get("strip_left"):
            continue  # sentencepiece drops trailing spaces when it merges runs
        else:
            raise ExportError(
                f"tokenizer: normalizer {kind} of a unigram model; only sentencepiece's table and its handling of "
                "spaces are known to llama.cpp. Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    return charsmap, merges_spaces


def _prefix(content: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text."""
    prefix = any(
        step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in list_steps(content.get("normalizer"))
    )
    for step in list_steps(content.get("pre_tokenizer")):
        if step.get("type") == "WhitespaceSplit":
            continue
        if step.get("type") != "Metaspace" or step.get("replacement", SPACE) != SPACE:
            raise ExportError(
                f"tokenizer: pre_tokenizer {step.get('type')}; none or Metaspace is needed for a unigram model. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        prefix = prefix or scheme in ("always", "first")
    return prefix
