"""RWKV's own vocabulary (``rwkv`` in GGUF): byte strings, the longest that fits taken each time.

Source: ``llm_tokenizer_rwkv`` in llama.cpp's ``src/llama-vocab.cpp``, and what its converter makes of the file.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.special import ROLES, token_text
from aird_mlx.gguf_export.tokenizer.vocabulary import CONTROL, Vocabulary, lay_out

END = 0  # no line of the file has it: it ends a text, and stands before one
END_TEXT = "<s>"  # as llama.cpp's converter calls it, where no added token does


def read_rwkv(file: Path, added: Mapping[int, Added], settings: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """The vocabulary of `RWKV_VOCABULARY`.

    Args:
        file: a line for each token: id, Python literal, number of bytes.
        added: tokens that are matched before.
        settings: ``tokenizer_config.json``.
        vocab_size: rows of the embedding.

    Raises:
        ValueError, SyntaxError: a line is none of these, or its number of bytes is another.
    """
    pieces: dict[int, bytes] = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            index, literal, length = read_line(line)
            if len(literal) != length:
                raise ValueError(f"token {index} has {len(literal)} bytes, not {length}")
            pieces[index] = literal
    ids = {piece: index for index, piece in pieces.items()}
    # Hugging Face cuts texts at tokens with a role before anything else, though they may be as plain as an empty line.
    named = (text for role in ROLES if (text := token_text(settings, role)))
    added = {ids[text.encode()]: Added(text) for text in named if text.encode() in ids} | dict(added)
    texts = {END: END_TEXT, **{index: escape(piece) for index, piece in pieces.items()}}
    tokens, types = lay_out(texts, {END: CONTROL}, added, vocab_size)
    return Vocabulary("rwkv", None, tokens, types, special_ids={"bos": END, "eos": END}, notes=notes_on_added(added))


def read_line(line: str) -> tuple[int, bytes, int]:
    r"""Id, bytes and how many there should be.

    >>> read_line("261 '\\n\\n' 2"), read_line("130 b'\\x81' 1")
    ((261, b'\n\n', 2), (130, b'\x81', 1))
    """
    index, _, rest = line.strip().partition(" ")
    literal, _, length = rest.rpartition(" ")
    value = ast.literal_eval(literal)
    if not isinstance(value, str | bytes):
        raise ValueError(f"token {index} is {literal:.40}, not a string")
    return int(index), value.encode() if isinstance(value, str) else value, int(length)


def escape(piece: bytes) -> str:
    r"""How a GGUF file writes a token's bytes: as Python does.

    >>> escape("\n\u00e9".encode()), escape(b"it's \"so\"")
    ('\\n\\xc3\\xa9', 'it\\\'s "so"')
    """
    return repr(piece)[2:-1]
