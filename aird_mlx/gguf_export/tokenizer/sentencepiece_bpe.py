"""Sentencepiece BPE (``llama`` in GGUF): whole texts with visible spaces, merged by the scores of what comes out.

llama.cpp merges any two neighbours that make a token, the best score first. ``tokenizer.json`` lists merges instead,
so it must be such a list: every way to make a token, in an order that scores can express.
Source: ``llm_tokenizer_spm`` in llama.cpp's ``src/llama-vocab.cpp``; sentencepiece's ``bpe_model.cc``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import models

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.added import Added, notes_on_added
from aird_mlx.gguf_export.tokenizer.pre_tokenizer import list_steps, read_merges
from aird_mlx.gguf_export.tokenizer.vocabulary import (
    BYTE,
    SCORE_OF_ADDED,
    SCORE_OF_UNUSED,
    SPACE,
    UNKNOWN,
    UNUSED,
    Vocabulary,
    lay_out,
)

_ELSEWHERE = "Use llama.cpp's convert_hf_to_gguf.py for this model."
LATE_SCORE = -1e9  # of pieces that sentencepiece merges after all others
_PROBES = ("a", "ab cd  ef", "a\nb\t c", "1 23 (x)")


def read_sentencepiece_json(
    content: Mapping[str, Any], added: Mapping[int, Added], vocab_size: int, *, chat_begins_with_token: bool = False
) -> Vocabulary:
    """The vocabulary of a BPE with ``byte_fallback`` in ``tokenizer.json``.

    Args:
        content: the parsed file.
        added: its added tokens.
        vocab_size: rows of the embedding.
        chat_begins_with_token: rendered chats begin with an added token. Then a space prefix that stands only at the
            start of a text never stands in a chat, and llama.cpp, which would put one behind every token, is told not
            to put any.

    Raises:
        ExportError: merges that no scores can express, or a normalizer or pre-tokenizer llama.cpp has no equal for.
    """
    model = content["model"]
    texts = {int(token_id): text for text, token_id in model["vocab"].items()}
    texts |= _bytes_as_characters(model["vocab"])
    kinds = {token_id: BYTE for token_id, text in texts.items() if is_byte_token(text)}
    if len(kinds) != 256:
        raise ExportError(f"tokenizer: {len(kinds)} byte tokens; byte_fallback needs 256. {_ELSEWHERE}")
    notes = notes_on_added(added)
    add_space_prefix = _space_prefix(content, model["vocab"], notes, chat_begins_with_token)
    merges = read_merges(model)
    scores = _scores(model["vocab"], merges, {index for index in texts if index not in kinds and index not in added})
    runs = _scores_of_runs(model["vocab"], merges, added)
    scores |= runs
    added = {index: one for index, one in added.items() if index not in runs}
    ids: dict[str, int] = {}
    if model.get("unk_token") in model["vocab"]:
        ids["unk"] = model["vocab"][model["unk_token"]]
        kinds[ids["unk"]] = UNKNOWN
    tokens, types = lay_out(texts, kinds, added, vocab_size)
    return Vocabulary(
        "llama", None, write_spaces(tokens, added), types,
        scores=fill_scores(scores, types),
        special_ids=ids, add_bos=True, add_space_prefix=add_space_prefix, notes=notes,
    )  # fmt: skip


def _bytes_as_characters(vocab: Mapping[str, int]) -> dict[int, str]:
    """Byte tokens that stand as their character, as the tab of Gemma 2 does: to llama.cpp they are bytes again."""
    written = {f"<0x{value:02X}>": chr(value) for value in range(128)}
    return {vocab[letter]: text for text, letter in written.items() if text not in vocab and letter in vocab}


def write_spaces(tokens: Sequence[str], added: Mapping[int, Added]) -> list[str]:
    """Added tokens are looked for before spaces are made visible, so llama.cpp needs them with real ones."""
    plain = {index for index, one in added.items() if not one.is_control}
    return [text.replace(SPACE, " ") if index in plain else text for index, text in enumerate(tokens)]


def fill_scores(scores: Mapping[int, float], types: Sequence[int]) -> list[float]:
    """One score per row: those given, and for the others what llama.cpp's converter writes; they do not count."""
    others = {BYTE: 0.0, UNUSED: SCORE_OF_UNUSED}
    return [scores.get(index, others.get(kind, SCORE_OF_ADDED)) for index, kind in enumerate(types)]


def is_byte_token(text: str) -> bool:
    """Whether a token stands for one byte, as ``<0x0A>`` does."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]], own: set[int]) -> dict[int, float]:
    """Scores that make llama.cpp merge as the list of merges does.

    Sentencepiece gives ids in the order of the merges, but for a few pieces of spaces that come last: then these are
    its own scores.
    """
    order: dict[str, int] = {}
    previous = ""
    for left, right in pairs:
        piece = left + right
        if vocab.get(piece) not in own:  # an added token, cut out of the text before any merge
            continue
        if piece in order and piece != previous:
            raise ExportError(
                f"tokenizer: merges for {piece!r} are not adjacent; sentencepiece's order is needed to turn ranks "
                "into scores. Put the original tokenizer.model in the folder in place of tokenizer.json."
            )
        order.setdefault(piece, len(order))
        previous = piece
    known, parts = set(pairs), {piece for piece, index in vocab.items() if index in own}
    for piece in parts:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in parts and pair[1] in parts and pair not in known:
                raise ExportError(
                    f"tokenizer: {pair[0]!r} and {pair[1]!r} are not merged, though {piece!r} is a token; llama.cpp "
                    f"merges whatever makes a token where byte_fallback is on. {_ELSEWHERE}"
                )
    merged = [vocab[piece] for piece in order]
    first = min(own, default=0)
    ascending = next((at for at in range(1, len(merged)) if merged[at] < merged[at - 1]), len(merged))
    scores = {index: -float(index - first) for index in own}
    late = {index: LATE_SCORE - 128.0 * at for at, index in enumerate(merged[ascending:])}  # apart in float32 too
    return scores | late


def _scores_of_runs(
    vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]], added: Mapping[int, Added]
) -> dict[int, float]:
    """Scores of the runs of visible spaces that are added tokens, where text has them by merging only.

    The tokenizers of Gemma look for them before spaces are made visible, so only written-out ones are found, and cut a
    run longer than any of these otherwise than the longest first.

    Returns:
        Nothing where merges are not all that makes them, or where scores cut some run otherwise.
    """
    runs = {
        one.text: index
        for index, one in added.items()
        if not one.text.strip(SPACE) and not one.is_control and not one.normalized and vocab.get(one.text) == index
    }
    merges = [pair for pair in pairs if "".join(pair) in runs]
    order = list(dict.fromkeys("".join(pair) for pair in merges))
    ahead = [pair for pair in pairs if vocab.get("".join(pair)) not in added or "".join(pair) in runs]
    held = any(2 * SPACE in text for text, index in vocab.items() if index not in added)
    if not runs or set(order) != set(runs) or ahead[: len(merges)] != merges or held or SPACE not in vocab:
        return {}
    scores = {len(text): float(len(order) - at) for at, text in enumerate(order)}
    bpe = models.BPE(vocab={text: vocab[text] for text in (SPACE, *order)}, merges=merges)
    for length in range(2, 2 * max(scores) + 2):
        if [len(token.value) for token in bpe.tokenize(length * SPACE)] != _merge_run(length, scores):
            return {}
    return {runs[text]: scores[len(text)] for text in order}


def _merge_run(length: int, scores: Mapping[int, float]) -> list[int]:
    """The lengths into which llama.cpp cuts a run: the two neighbours with the best score become one, again and again.

    >>> _merge_run(7, {2: 2.0, 4: 1.0}), _merge_run(7, {2: 1.0, 3: 2.0})
    ([4, 2, 1], [3, 3, 1])
    """
    parts = [1] * length
    while True:
        pairs = [
            (scores[one + two], -at) for at, (one, two) in enumerate(itertools.pairwise(parts)) if one + two in scores
        ]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _space_prefix(content: Mapping[str, Any], texts: Collection[str], notes: list[str], chat: bool) -> bool:
    """Whether a space is put before the text, found by running normalizer and pre-tokenizer on a few texts.

    Raises:
        ExportError: they do something else to it than making spaces visible.
    """
    pieces = [_run(content, probe) for probe in _PROBES]
    prefixed = "".join(pieces[0]).startswith(SPACE)
    for probe, parts in zip(_PROBES, pieces, strict=True):
        if "".join(parts) != (SPACE if prefixed else "") + probe.replace(" ", SPACE):
            raise ExportError(
                f"tokenizer: {probe!r} becomes {''.join(parts)!r} before it is cut into tokens; nothing but a space "
                f"prefix and spaces as {SPACE} is known to llama.cpp with byte_fallback. {_ELSEWHERE}"
            )
        if any(not part.startswith(SPACE) for part in parts[1:]):
            raise ExportError(
                f"tokenizer: {probe!r} is split into {parts} before it is cut into tokens; llama.cpp splits nothing "
                f"with byte_fallback. {_ELSEWHERE}"
            )
        if len(parts) > 1 and any(SPACE in text[1:] for text in texts):
            raise ExportError(
                "tokenizer: texts are split at spaces, but some tokens hold inner ones; llama.cpp would use them. "
                + _ELSEWHERE
            )
    schemes = {step.get("prepend_scheme") for step in list_steps(content.get("pre_tokenizer"))}
    if prefixed and "first" in schemes and chat:
        notes.append(
            "the tokenizer puts a space before a text only at its very start, llama.cpp behind every special token or "
            "nowhere: nowhere here, as chats need it, so the first word of other text gets another id"
        )
        return False
    if prefixed and "first" in schemes:
        notes.append("llama.cpp adds the space prefix after special tokens too, the tokenizer only at the start")
    if prefixed and "".join(_run(content, " a")) == f"{SPACE}a":
        notes.append("llama.cpp adds the space prefix to text that starts with a space too, the tokenizer does not")
    return prefixed


def _run(content: Mapping[str, Any], text: str) -> Sequence[str]:
    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    tokenizer = tokenizers.Tokenizer.from_str(
        json.dumps({**empty, "normalizer": content.get("normalizer"), "pre_tokenizer": content.get("pre_tokenizer")})
    )
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
