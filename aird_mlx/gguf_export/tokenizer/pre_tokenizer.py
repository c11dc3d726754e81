"""Which of llama.cpp's pre-tokenizers a byte-level BPE uses, found by running both.

llama.cpp knows a fixed set by name (`pre_types`), and a wrong name gives plausible but wrong ids. So the model's own
pre-tokenizer and each known one split the same probe lines; the name is the one that splits all alike, and a model
that fits none is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.tokenizer.pre_types import PRE_TOKENIZERS

# One line per way in which pre-tokenizers are known to differ.
PROBES = (
    "I'm sure they'll say it's what WE'VE done, DON'T you? O'Neil's 'quoted' words",
    "1 12 123 1234 12345 1234567 12345678901 3.14159 v2.0 x86_64"
    " \u0663\u0664\u0665\u0666 \u00bd\u00bc x\u00b2\u00b3 \u2167",
    "  two   three    four\ttab\t\ttabs \n newline\n\n\nthree \r\n crlf\r\n\r\n end  ",
    "def f(x):\n    return x**2  # comment\n\tif (a&&b)||!c { y+=1; }\n",
    "http://example.com/a/b?c=d&e=f#g /usr/bin/env //\n/* x */ a/b",
    "!!! ... ?!?\n\n(;;) $5.00 <tag/> ~`^|+= @user #hash %d\n\u2014 \u201cquoted\u201d \u20ac9 \u00a77",
    "camelCase PascalCase HTTPServer iOS ABCdef \u0391\u0392\u03b3\u0391 \u01c5x \u00c9t\u00e9"
    " na\u00efve e\u0301te\u0301",
    "\u4f60\u597d\u4e16\u754c\u3002"
    "\u3053\u3093\u306b\u3061\u306f\u3001\u30ab\u30bf\u30ab\u30ca\uff01"
    " \ud55c\uad6d\uc5b4 abc\u4e2d\u6587def\u3005\u3007 \u3105\u3106x",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940"
    " \u0e44\u0e17\u0e22abc \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd"
    " \u0440\u0443\u0441\u0441\u043a\u0438\u0439\u0420\u0423\u0441",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467"
    " ok\u00a0nbsp\u3000wide\u2009x \u200bzero",
    "_under_score __init__ -dash- a-b 's 'S 're\n'll don\u2019t x'y z.w ,v",
    "   \n  \n\n\t\n x" + " " * 7 + "y" + " " * 21 + "z\n" + " " * 13 + "\n" + "\n" * 5 + " ",
    "a\nb \n c  d e (f) [g] {h} | ! i? j... k\u2026l \u0964m",
    "x'tis l'mer'veil q'S  12   345 (  6)\n\n 7 8\n9",
    "<sentinel:12> IMGIMGABZ [x] 'tis 1,234.5 12ab34 \uff11\uff12\uff13\uff14 a1\u0661b",
)

_KNOWN_PARTS = {"ByteLevel", "Digits", "Sequence", "Split", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace",
                "BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts", "FixedLength"}  # fmt: skip


def identify_pre_tokenizer(content: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Find llama.cpp's name for the pre-tokenizer of a byte-level BPE, by running both over `PROBES`.

    Args:
        content: the parsed ``tokenizer.json``.

    Returns:
        A key of `PRE_TOKENIZERS` that splits every probe the same and treats whole-word tokens the same; and, where
        llama.cpp's own pre-tokenizer for these models splits unusual text otherwise, a sentence that says so.

    Raises:
        ExportError: none does; the message names the nearest and the first place where they differ.
    """
    definition = content.get("pre_tokenizer")
    steps = list_steps(definition)
    unknown = set(step_types(definition)) - _KNOWN_PARTS
    if definition is None or unknown:
        raise ExportError(
            f"tokenizer: pre_tokenizer is {', '.join(sorted(unknown)) or 'null'}; a byte-level one is needed. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    if any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") for step in steps):
        raise ExportError(
            "tokenizer: ByteLevel puts a space before every text; llama.cpp's byte-level BPE puts none, so first words "
            "would get other ids. Use a model whose tokenizer has add_prefix_space false."
        )
    own = _split_probes(_load_pre_tokenizer(definition))
    done = _known_splits()
    same = [name for name, pieces in done.items() if pieces == own]
    if same:
        return _with_merges(same, content), []
    meant = [
        name
        for name, known in PRE_TOKENIZERS.items()
        if known.meant is not None and _split_probes(build_pre_tokenizer(known.meant)) == own
    ]
    if not meant:
        raise _unknown(own, done)
    name = _with_merges(meant, content)
    return name, [_note_on_difference(name, own, done[name], content)]


@functools.cache
def _known_splits() -> dict[str, list[list[str]]]:
    """How each of llama.cpp's pre-tokenizers splits the probes: the same for every model, so worked out once."""
    return {name: _split_probes(build_pre_tokenizer(known.expressions)) for name, known in PRE_TOKENIZERS.items()}


def build_pre_tokenizer(steps: Iterable[str | Mapping[str, Any]]) -> pre_tokenizers.PreTokenizer:
    """What llama.cpp does with a list of expressions: split by each in turn, then map bytes to letters.

    Args:
        steps: expressions; among them may be steps as ``tokenizer.json`` has them, the one that maps bytes included.
    """
    parts = [
        pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else _load_pre_tokenizer(step)
        for step in steps
    ]
    if not any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts):
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(parts)


def list_steps(definition: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences opened."""
    if not definition:
        return []
    inner = definition.get("pretokenizers") or definition.get("normalizers")
    if definition.get("type") != "Sequence":
        return [definition]
    return [step for part in inner or [] for step in list_steps(part)]


def step_types(definition: Mapping[str, Any] | None) -> list[str]:
    """The types of those steps, such as ``["Digits", "ByteLevel"]``."""
    return [str(part.get("type")) for part in list_steps(definition)]


def read_merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model, best first; files hold them as ``"left right"`` or as ``["left", "right"]``.

    Raises:
        ExportError: an entry is not two parts.
    """
    pairs: list[tuple[str, str]] = []
    for entry in model["merges"]:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if len(parts) != 2:
            raise ExportError(
                f"tokenizer: merge {entry!r} has {len(parts)} parts; two are needed. Repair the tokenizer files."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _with_merges(names: Sequence[str], content: Mapping[str, Any]) -> str:
    """The first of these names that treats tokens which are whole pieces as the model does."""
    ignores = bool(content["model"].get("ignore_merges"))
    for name in names:
        if PRE_TOKENIZERS[name].ignore_merges == ignores:
            return name
    if not _every_token_is_merged(content):
        raise ExportError(
            f"tokenizer: splits like {names[0]}, but ignore_merges is {ignores} here and {not ignores} in llama.cpp, "
            "and some tokens depend on it. Use a model whose tokenizer llama.cpp supports."
        )
    return names[0]


def _note_on_difference(name: str, own: list[list[str]], others: list[list[str]], content: Mapping[str, Any]) -> str:
    """That llama.cpp splits otherwise, with an example, of other ids if these splits give any."""
    model = content["model"]
    ignores = PRE_TOKENIZERS[name].ignore_merges
    bpe = models.BPE(vocab=model["vocab"], merges=read_merges(model), ignore_merges=ignores)
    probes = list(zip(own, others, strict=True))
    told = [[[token.id for piece in pieces for token in bpe.tokenize(piece)] for pieces in probe] for probe in probes]
    apart = [probe for probe, (ours, theirs) in zip(probes, told, strict=True) if ours != theirs]
    ours, theirs = _first_difference(*map(list, zip(*(apart or probes), strict=True)))
    return (
        f"llama.cpp's pre-tokenizer for this kind of model, {name}, splits some unusual text otherwise, for example "
        f"{theirs} for {ours}: "
        + ("such words get other ids" if apart else "none of the lines tried got other ids by it, but some may")
    )


def _unknown(own: list[list[str]], done: Mapping[str, list[list[str]]]) -> ExportError:
    counts = {
        name: sum(_difference(pieces, others) for pieces, others in zip(own, probes, strict=True))
        for name, probes in done.items()
    }
    nearest = min(counts, key=lambda name: counts[name])
    ours, theirs = _first_difference(own, done[nearest])
    return ExportError(
        f"tokenizer: the pre-tokenizer splits like none that llama.cpp knows; the nearest is {nearest}, which "
        f"differs in {counts[nearest]} pieces, first {ours} against {theirs}. "
        "Use a model whose tokenizer llama.cpp supports."
    )


def _load_pre_tokenizer(definition: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    """Build it through a whole tokenizer: the library reads definitions only as part of one."""
    empty = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": definition,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(empty)).pre_tokenizer


def _split_probes(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[list[str]]:
    return [[piece for piece, _ in pre_tokenizer.pre_tokenize_str(probe)] for probe in PROBES]


def _first_difference(own: list[list[str]], other: list[list[str]]) -> tuple[list[str], list[str]]:
    """Two pieces of each from where the splits of a probe part, as text."""
    ours, theirs = next((a, b) for a, b in zip(own, other, strict=True) if a != b)
    place = next(at for at, (a, b) in enumerate(zip([*ours, ""], [*theirs, ""], strict=False)) if a != b)
    return _as_text(ours[place : place + 2]), _as_text(theirs[place : place + 2])


def _as_text(pieces: list[str]) -> list[str]:
    """Byte letters as the text they stand for."""
    return [tokenizers.decoders.ByteLevel().decode([piece]) for piece in pieces]


def _difference(own: list[str], other: list[str]) -> int:
    """How many piece boundaries only one of two splits of the same text has; texts that differ count whole."""
    if "".join(own) != "".join(other):
        return max(len(own), len(other))
    ends: list[set[int]] = []
    for pieces in (own, other):
        position, found = 0, set()
        for piece in pieces:
            position += len(piece)
            found.add(position)
        ends.append(found)
    return len(ends[0] ^ ends[1])


def _every_token_is_merged(content: Mapping[str, Any]) -> bool:
    """Whether the merges alone make every token of the vocabulary, so that ignoring them changes nothing."""
    model = content["model"]
    bpe = models.BPE(vocab=model["vocab"], merges=read_merges(model))
    added = {entry["content"] for entry in content.get("added_tokens") or []}
    return all(len(bpe.tokenize(text)) == 1 for text in model["vocab"] if text not in added)
