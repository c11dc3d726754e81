"""What a GGUF file says about its tokenizer, and writing it.

Knows the five kinds that decoders use: ``gpt2`` (byte-level BPE), ``llama`` (sentencepiece BPE, where scores take the
place of merges), ``t5`` (sentencepiece unigram), ``bert`` (WordPiece) and ``rwkv``. Knows no tokenizer file.
Source: ``llama_vocab::impl::load`` in llama.cpp's ``src/llama-vocab.cpp``; ``gguf-py/gguf/vocab.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import gguf

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.added import Added

NORMAL = int(gguf.TokenType.NORMAL)
UNKNOWN = int(gguf.TokenType.UNKNOWN)
CONTROL = int(gguf.TokenType.CONTROL)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
UNUSED = int(gguf.TokenType.UNUSED)
BYTE = int(gguf.TokenType.BYTE)
SPACE = "\u2581"  # sentencepiece's visible space
SCORE_OF_ADDED = -1000.0  # as llama.cpp's converter writes it; added tokens are matched before scores count
SCORE_OF_UNUSED = -10000.0
DRAGON = "\U0001f409"  # what llama.cpp's converter writes for the zero character, a token of InternLM 2


@dataclass(frozen=True)
class Vocabulary:
    """Everything a GGUF file says about its tokenizer.

    Attributes:
        model: ``gpt2``, ``llama``, ``t5``, ``bert`` or ``rwkv``.
        pre: llama.cpp's name of the pre-tokenizer; None for all but ``gpt2``, which have none.
        tokens: one text per row of the embedding.
        types: one number of ``gguf.TokenType`` per token.
        scores: one per token for ``llama`` (highest merges first) and ``t5`` (log probabilities); else None.
        merges: ``"left right"``, best first, for ``gpt2``; else None.
        special_ids: role (bos, eos, unk, pad, sep, mask, eot, eom, fim_pre, ...) -> id, those that exist.
        add_bos, add_eos: what llama.cpp puts around a text.
        add_space_prefix: whether a space goes before it; None leaves that to the kind.
        chat_templates: ``default`` and others by name.
        options: further flags under ``tokenizer.ggml.``, such as ``remove_extra_whitespaces``.
        precompiled_charsmap: sentencepiece's table of normalizations, for ``t5``.
        strips_as_phi_3: its special tokens take away the spaces behind them; llama.cpp does so by the model's name.
        notes: what llama.cpp cannot be told about this tokenizer, one sentence each.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    options: dict[str, bool] = field(default_factory=dict)
    precompiled_charsmap: bytes | None = None
    strips_as_phi_3: bool = False
    notes: list[str] = field(default_factory=list)


def lay_out(
    texts: Mapping[int, str], kinds: Mapping[int, int], added: Mapping[int, Added], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Texts and types for every row of the embedding; rows without a token are unused.

    Args:
        texts: the model's own tokens by id.
        kinds: types of those that are not normal.
        added: tokens matched in the text before the model sees it; they replace the model's.
        vocab_size: rows of the embedding.

    Raises:
        ExportError: more tokens than rows, or two tokens with the same text.
    """
    highest = max([*texts, *added], default=-1)
    if highest >= vocab_size:
        raise ExportError(
            f"tokenizer: token id {highest}; the embedding has {vocab_size} rows. "
            "Use the tokenizer that belongs to these weights."
        )
    tokens, types = [], []
    for index in range(vocab_size):
        if index in added:
            tokens.append(added[index].text)
            types.append(CONTROL if added[index].is_control else USER_DEFINED)
        elif texts.get(index):
            tokens.append(DRAGON if texts[index] == "\0" else texts[index])
            types.append(kinds.get(index, NORMAL))
        else:  # llama.cpp asserts that no two are alike, and older versions that none is empty
            tokens.append(f"[EMPTY_{index}]" if index in texts else f"[PAD{index}]")
            types.append(UNUSED)
    seen: dict[str, int] = {}
    for index, text in enumerate(tokens):
        if not text or "\0" in text or seen.setdefault(text, index) != index:
            raise ExportError(
                f"tokenizer: token {index} is {text!r}, as is {seen.get(text, 'no other')}; every token needs its own "
                "non-empty text. Repair the tokenizer files."
            )
    return tokens, types


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the tokenizer's keys and its chat templates."""
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model != "rwkv":
        writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for role, token_id in vocabulary.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{_KEYS.get(role, role)}_token_id", token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for name, value in vocabulary.options.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    if vocabulary.precompiled_charsmap:
        writer.add_precompiled_charsmap(vocabulary.precompiled_charsmap)
    others = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in vocabulary.chat_templates.items()}
    default = others.pop("default", None)
    if default is not None:
        writer.add_string("tokenizer.chat_template", default)
    for name, template in sorted(others.items()):
        writer.add_string(f"tokenizer.chat_template.{name}", template)
    if others:
        writer.add_array("tokenizer.chat_templates", sorted(others))


_KEYS = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # GGUF's own spelling
