"""``tokenizer.model``, as sentencepiece writes it: pieces with scores and types, and how text is normalized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird_mlx.errors import DependencyError, ExportError, ModelError
from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.sentencepiece_bpe import fill_scores, write_spaces
from aird_mlx.gguf_export.tokenizer.special import ROLES
from aird_mlx.gguf_export.tokenizer.unigram import build_unigram
from aird_mlx.gguf_export.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary, lay_out

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_USER_DEFINED = 4  # ModelProto.SentencePiece.Type; the other types have GGUF's numbers


def read_sentencepiece_model(file: Path, added: Mapping[int, Added], vocab_size: int) -> Vocabulary:
    """The vocabulary of a sentencepiece model, BPE or unigram.

    Args:
        file: ``tokenizer.model``.
        added: tokens that the files beside it add or override.
        vocab_size: rows of the embedding.

    Raises:
        ModelError: the file is no sentencepiece model.
        ExportError: a normalization that llama.cpp does not do.
        DependencyError: sentencepiece is not installed.
    """
    model = _parse(file)
    normalizer = model.normalizer_spec
    texts = {index: str(piece.piece) for index, piece in enumerate(model.pieces)}
    kinds = {index: int(piece.type) for index, piece in enumerate(model.pieces) if piece.type != NORMAL}
    # Symbols the trainer was given are matched before anything else, as added tokens are.
    symbols = {index: Added(texts[index]) for index, kind in kinds.items() if kind == _USER_DEFINED}
    kinds = {index: kind for index, kind in kinds.items() if kind in (UNKNOWN, CONTROL, UNUSED, BYTE)}
    others = {**symbols, **added}
    ids = {role: int(getattr(model.trainer_spec, f"{role}_id")) for role in ROLES}
    ids = {role: token_id for role, token_id in ids.items() if 0 <= token_id < len(texts)}
    if model.trainer_spec.model_type == _UNIGRAM and not model.trainer_spec.treat_whitespace_as_suffix:
        unigram = build_unigram(
            [(piece.piece, float(piece.score)) for piece in model.pieces],
            kinds,
            others,
            vocab_size,
            charsmap=bytes(normalizer.precompiled_charsmap) or None,
            merges_spaces=bool(normalizer.remove_extra_whitespaces),
            add_space_prefix=bool(normalizer.add_dummy_prefix),
        )
        unigram.special_ids.update(ids)
        return unigram
    if model.trainer_spec.model_type != _BPE or model.trainer_spec.treat_whitespace_as_suffix:
        raise ExportError(
            f"tokenizer: {file.name} is neither BPE nor unigram with spaces as prefixes; llama.cpp knows no other. "
            "Use a model with such a tokenizer."
        )
    if normalizer.remove_extra_whitespaces:
        raise ExportError(
            "tokenizer: tokenizer.model removes repeated spaces; llama.cpp keeps them. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    notes = notes_on_added(added)
    if normalizer.precompiled_charsmap:
        notes.append(
            f"llama.cpp does not apply the tokenizer's {normalizer.name} normalization: text it changes gets other ids"
        )
    tokens, types = lay_out(texts, kinds, others, vocab_size)
    scores = {index: float(piece.score) for index, piece in enumerate(model.pieces) if index not in others}
    return Vocabulary(
        "llama", None, write_spaces(tokens, others), types,
        scores=fill_scores(scores, types), special_ids=ids, add_bos=True,
        add_space_prefix=bool(normalizer.add_dummy_prefix), notes=notes,
    )  # fmt: skip


def _parse(file: Path) -> Any:
    """The file as sentencepiece's own message."""
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise DependencyError(
            "tokenizer: only tokenizer.model is there; sentencepiece and protobuf are needed to read it. "
            "Run `pip install sentencepiece protobuf`, or put tokenizer.json in the folder."
        ) from error
    try:
        SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise ModelError(f"tokenizer: {file} cannot be read ({str(error).splitlines()[0]}); a sentencepiece model is "
                         "needed. Copy it again.") from error  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(file.read_bytes())
    return model
