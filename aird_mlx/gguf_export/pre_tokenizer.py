"""Which of llama.cpp's pre-tokenizers a byte-level BPE uses, found by running both.

llama.cpp knows a fixed set by name (``tokenizer.ggml.pre``), each a list of regular expressions, and a wrong name
gives plausible but wrong ids. So the model's own pre-tokenizer and each known one split the same probe lines; the
name is the one that splits all alike, and a model that fits none is refused.
Source: ``llm_tokenizer_bpe`` and ``ignore_merges`` in llama.cpp's ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from aird_mlx.errors import ExportError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _SLASH_TAIL
_GPT4O = _CASED % (_CONTRACTION + "?", _CONTRACTION + "?") + r"|\p{N}{1,3}" + _SLASH_TAIL
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"

# name for tokenizer.ggml.pre -> (expressions applied one after another, does llama.cpp set ignore_merges)
PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "llama-bpe": ((_LLAMA3,), True),
    "dbrx": ((_LLAMA3,), False),
    "qwen2": ((_QWEN2,), False),
    "qwen35": ((_QWEN35,), False),
    "tekken": ((_TEKKEN,), True),
    "gpt-4o": ((_GPT4O,), False),
    "seed-coder": ((_SEED,), False),
    "deepseek-v3": ((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3), False),
    "falcon": ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"), False),
}

# One line per way in which pre-tokenizers are known to differ.
PROBES = (
    "I'm sure they'll say it's what WE'VE done, DON'T you? O'Neil's 'quoted' words",
    "1 12 123 1234 12345 1234567 3.14159 v2.0 x86_64 \u0663\u0664\u0665 \u00bd x\u00b2 \u2167",
    "  two   three    four\ttab\t\ttabs \n newline\n\n\nthree \r\n crlf\r\n\r\n end  ",
    "def f(x):\n    return x**2  # comment\n\tif (a&&b)||!c { y+=1; }\n",
    "http://example.com/a/b?c=d&e=f#g /usr/bin/env //\n/* x */ a/b",
    "!!! ... ?!?\n\n(;;) $5.00 <tag/> ~`^|+= @user #hash %d\n\u2014 \u201cquoted\u201d \u20ac9 \u00a77",
    "camelCase PascalCase HTTPServer iOS ABCdef \u0391\u0392\u03b3 \u01c5x \u00c9t\u00e9 na\u00efve e\u0301te\u0301",
    "\u4f60\u597d\u4e16\u754c "
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca"
    " \ud55c\uad6d\uc5b4 abc\u4e2d\u6587def",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940"
    " \u0e44\u0e17\u0e22 \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd"
    " \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 ok\u00a0nbsp\u3000wide \u200bzero",
    "_under_score __init__ -dash- a-b 's 'S 're\n'll",
)

_KNOWN_PARTS = {"ByteLevel", "Digits", "Sequence", "Split", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace",
                "BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts", "FixedLength"}  # fmt: skip


def identify_pre_tokenizer(content: Mapping[str, Any]) -> str:
    """Find llama.cpp's name for the pre-tokenizer of a byte-level BPE, by running both over `PROBES`.

    Args:
        content: the parsed ``tokenizer.json``.

    Returns:
        A key of `PRE_TOKENIZERS` that splits every probe the same and treats whole-word tokens the same.

    Raises:
        ExportError: none does; the message names the nearest and the first place where they differ.
    """
    definition = content.get("pre_tokenizer")
    unknown = set(step_types(definition)) - _KNOWN_PARTS
    if definition is None or unknown:
        raise ExportError(
            f"tokenizer: pre_tokenizer is {', '.join(sorted(unknown)) or 'null'}; a byte-level one is needed. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    own = [_split(_load_pre_tokenizer(definition), probe) for probe in PROBES]
    differences: dict[str, list[int]] = {}
    for name, (expressions, _) in PRE_TOKENIZERS.items():
        known = build_pre_tokenizer(expressions)
        differences[name] = [
            _difference(pieces, _split(known, probe)) for pieces, probe in zip(own, PROBES, strict=True)
        ]
    same = [name for name, counts in differences.items() if not any(counts)]
    if not same:
        nearest = min(differences, key=lambda name: sum(differences[name]))
        place = next(row for row, count in enumerate(differences[nearest]) if count)
        theirs = _split(build_pre_tokenizer(PRE_TOKENIZERS[nearest][0]), PROBES[place])
        first = next(at for at, (a, b) in enumerate(zip([*own[place], ""], [*theirs, ""], strict=False)) if a != b)
        raise ExportError(
            f"tokenizer: the pre-tokenizer splits like none that llama.cpp knows; the nearest is {nearest}, which "
            f"differs in {sum(differences[nearest])} pieces, first {own[place][first : first + 2]} against "
            f"{theirs[first : first + 2]}. Use a model whose tokenizer llama.cpp supports."
        )
    ignores = bool(content["model"].get("ignore_merges"))
    for name in same:
        if PRE_TOKENIZERS[name][1] == ignores:
            return name
    if not _every_token_is_merged(content):
        raise ExportError(
            f"tokenizer: splits like {same[0]}, but ignore_merges is {ignores} here and {not ignores} in llama.cpp, "
            "and some tokens depend on it. Use a model whose tokenizer llama.cpp supports."
        )
    return same[0]


def build_pre_tokenizer(expressions: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """What llama.cpp does with a list of expressions: split by each in turn, then map bytes to letters."""
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


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


def _load_pre_tokenizer(definition: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    """Build it through a whole tokenizer: the library reads definitions only as part of one."""
    empty = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": definition,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(empty)).pre_tokenizer


def _split(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


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


def _every_token_is_merged(content: Mapping[str, Any]) -> bool:
    """Whether the merges alone make every token of the vocabulary, so that ignoring them changes nothing."""
    model = content["model"]
    bpe = models.BPE(vocab=model["vocab"], merges=read_merges(model))
    added = {entry["content"] for entry in content.get("added_tokens") or []}
    return all(len(bpe.tokenize(text)) == 1 for text in model["vocab"] if text not in added)
