"""A model folder's tokenizer as llama.cpp needs it: which kind it is, and what all kinds share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export.hyperparameters import read_json
from aird_mlx.gguf_export.tokenizer.added import Added, read_added, strips_as_phi_3
from aird_mlx.gguf_export.tokenizer.byte_level import read_byte_level
from aird_mlx.gguf_export.tokenizer.pre_names import name_of
from aird_mlx.gguf_export.tokenizer.rwkv import read_rwkv
from aird_mlx.gguf_export.tokenizer.sentencepiece_bpe import read_sentencepiece_json
from aird_mlx.gguf_export.tokenizer.sentencepiece_model import read_sentencepiece_model
from aird_mlx.gguf_export.tokenizer.special import (
    find_added_around,
    find_special_ids,
    notes_on_plain_ends,
    token_text,
)
from aird_mlx.gguf_export.tokenizer.templates import chat_begins_with, read_chat_templates
from aird_mlx.gguf_export.tokenizer.unigram import read_unigram_json
from aird_mlx.gguf_export.tokenizer.vocabulary import Vocabulary
from aird_mlx.gguf_export.tokenizer.wordpiece import read_wordpiece
from aird_mlx.model import RWKV_VOCABULARY, TOKENIZERS


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read a model folder's tokenizer as llama.cpp needs it.

    Args:
        folder: with ``tokenizer.json`` (preferred: it is what MLX tokenizes with), ``tokenizer.model`` or RWKV's file.
        vocab_size: rows of the embedding. Rows without a token become unused ``[PAD<row>]``.

    Raises:
        ModelError: no tokenizer, or a file that cannot be parsed.
        ExportError: llama.cpp has no equal for this tokenizer, or it has more tokens than ``vocab_size``.
        DependencyError: only ``tokenizer.model`` is there and sentencepiece is not installed.
    """
    settings = read_json(folder / "tokenizer_config.json")
    content = read_json(folder / "tokenizer.json")
    if not content and not any((folder / name).is_file() for name in TOKENIZERS[1:]):
        raise ModelError(
            f"tokenizer: {folder} has no {' nor '.join(TOKENIZERS)}; one of them is needed. "
            "Copy the tokenizer files into the folder."
        )
    templates = read_chat_templates(folder)
    tokenizer = _load(folder / "tokenizer.json") if content else None
    try:
        if tokenizer is not None:
            around = _ids_around(tokenizer)
            added = read_added(content, settings, {})
            vocabulary = _read_json(content, added, vocab_size, settings, templates.get("default"))
            if vocabulary.pre is not None:
                prefix = False if settings.get("add_prefix_space") is False else None  # as it is anyway, once said
                vocabulary = dataclasses.replace(vocabulary, add_space_prefix=prefix)
            if _parts_pairs(content):
                vocabulary.options["add_sep_token"] = False  # of two texts; a decoder gets one
        else:
            around = None
            others = read_json(folder / "added_tokens.json")
            added = read_added({}, settings, others)
            if (folder / RWKV_VOCABULARY).is_file():
                vocabulary = read_rwkv(folder / RWKV_VOCABULARY, added, settings, vocab_size)
            else:
                vocabulary = read_sentencepiece_model(folder / "tokenizer.model", added, vocab_size)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
        raise _damaged(folder, error) from error
    ids, missed = find_special_ids(folder, settings, vocabulary.tokens, around, vocabulary.special_ids)
    usual = vocabulary.add_bos, vocabulary.add_eos
    add_bos, add_eos, unlike = find_added_around(around, ids, settings, usual)
    pre = vocabulary.pre
    if pre is not None and tokenizer is not None:
        pre = name_of(pre, tokenizer, ids["bos"] if add_bos else None)
    return dataclasses.replace(
        vocabulary,
        pre=pre,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_templates=templates,
        strips_as_phi_3=strips_as_phi_3(added),
        notes=[*vocabulary.notes, *missed, *unlike, *notes_on_plain_ends(vocabulary.tokens, vocabulary.types, ids)],
    )


def _read_json(
    content: Mapping[str, Any],
    added: Mapping[int, Added],
    vocab_size: int,
    settings: Mapping[str, Any],
    template: str | None,
) -> Vocabulary:
    model = content.get("model") or {}  # of which early files do not say the type
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else None)
    if kind == "BPE":
        if not model.get("byte_fallback"):
            return read_byte_level(content, added, vocab_size)
        bos = token_text(settings, "bos") or ""
        begins = chat_begins_with(template, [one.text for one in added.values()], bos)
        return read_sentencepiece_json(content, added, vocab_size, chat_begins_with_token=begins)
    if kind == "Unigram":
        return read_unigram_json(content, added, vocab_size)
    if kind == "WordPiece":
        return read_wordpiece(content, added, vocab_size)
    raise ExportError(
        f"tokenizer: tokenizer.json is of type {kind!r}; BPE, Unigram or WordPiece is needed. "
        "Use llama.cpp's convert_hf_to_gguf.py for this model."
    )


def _load(file: Path) -> tokenizers.Tokenizer:
    """``tokenizer.json``, ready to be run.

    Raises:
        ModelError: the library cannot read the file.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        if type(error) is not Exception:
            raise
        raise _damaged(file.parent, error) from error
    tokenizer.no_padding()  # files may be saved with what a training run set
    tokenizer.no_truncation()
    return tokenizer


def _ids_around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


def _parts_pairs(content: Mapping[str, Any]) -> bool:
    """Whether the post-processor puts a token between two texts."""
    post = content.get("post_processor") or {}
    for processor in post.get("processors") or [post]:
        if processor.get("type") == "TemplateProcessing":
            kinds = ["Sequence" in part for part in processor.get("pair") or []]
            if sum(kinds) == 2 and kinds.index(True) + 1 < len(kinds) - 1 - kinds[::-1].index(True):
                return True
    return False


def _damaged(folder: Path, error: Exception) -> ModelError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ModelError(
        f"tokenizer: the tokenizer files in {folder} cannot be used ({reason:.200}); intact ones are needed. "
        "Copy them again."
    )
