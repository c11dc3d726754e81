"""The pre-tokenizers that llama.cpp knows by name (``tokenizer.ggml.pre``), and what each really does.

A name stands for a list of expressions, applied one after another. They are written here as Oniguruma would have to
read them to split as llama.cpp does, which is not always how its source writes them: there, letters are told apart by
case only in ASCII, and a few lists are replaced by code. `tests/test_gguf_pre_tokenizer.py` runs every one beside
llama.cpp. Source: ``llm_tokenizer_bpe`` and ``ignore_merges`` in ``src/llama-vocab.cpp``, ``src/unicode.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers.

    Attributes:
        expressions: what it splits by, one after another.
        ignore_merges: a piece that is a token as a whole becomes it, whatever the merges say.
        meant: the expressions of the tokenizers it was written for, or their steps as ``tokenizer.json`` has them,
            where llama.cpp does something else with unusual text.
    """

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    meant: tuple[str | Mapping[str, Any], ...] | None = None


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _SPACES
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + _SPACES
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{_TAIL}"
_CASCADE = "".join(rf"|\s{{{run}}}(?!\S)" for run in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
_DIGITS_FROM_RIGHT = r"%s{1,3}(?=(?:%s{3})*(?!%s))"
_NOT_POEM_PUNCTUATION = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+"
_IDEOGRAPHS = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+"
_ASCII_MARK_AND_LETTERS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = _ASCII_MARK_AND_LETTERS + r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+" + _SPACES
_SPARK = _ASCII_MARK_AND_LETTERS + r"| ?[\p{P}\p{S}]+|[\r\n]" + _SPACES


def _cased(upper: str, lower: str, ending: str) -> str:
    """Words that begin at a capital: any capitals and then small letters, or capitals alone."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII_CASED = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_ASCII_CASED_OR_MARK = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_NO_CASE = r"[\p{L}\p{M}]", r"[\p{L}\p{M}]"
_HAN = r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2ebef}\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}]"
_NOT_HAN = (rf"[[\p{{L}}]&&[^{_HAN}]]",) * 2
_UPPER_NOT_HAN, _LOWER_NOT_HAN = (f"[{letters}&&[^\\p{{Han}}]]" for letters in (_UPPER, _LOWER))
_O200K_TAIL = r"|\p{N}{1,3}" + _SLASH_TAIL
_EAST_ASIAN = (
    r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}"
    r"\x{ff0c}\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|[\x{3105}-\x{312f}]+|" + _IDEOGRAPHS
)
_UNSPACED_SCRIPTS = (
    r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{8c48}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}\x{ff65}-\x{ff9f}"
    r"\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}\x{aa60}-\x{aa7f}"
    r"\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+"
)
_MARKS = r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+"
_EASTERN = r"\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}"  # with spaces in it, which llama.cpp leaves out
_EASTERN_RUN, _EASTERN_NO_SPACE = f"[{_EASTERN}]+", rf"[[{_EASTERN}]&&[^\s]]+"
_CASED_LETTERS = (
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}"
    r"-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}"
    r"-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}"
    r"-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}"
    r"\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}"
    r"-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}"
    r"-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}"
    r"\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}"
    r"\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}"
    r"\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}"
    r"-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}"
    r"\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}"
    r"-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+"
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + _SPACES,
        )
    ),
    "tekken": PreTokenizer(
        (_cased(*_ASCII_CASED, "") + r"|\p{N}" + _SLASH_TAIL,),
        ignore_merges=True,
        meant=(_cased(_UPPER, _LOWER, "") + r"|\p{N}" + _SLASH_TAIL,),
    ),
    "gpt-4o": PreTokenizer(
        (_cased(*_ASCII_CASED, f"{_CONTRACTION}?") + _O200K_TAIL,),
        meant=(_cased(_UPPER, _LOWER, f"{_CONTRACTION}?") + _O200K_TAIL,),
    ),
    "granite-embed-multi-97m": PreTokenizer(
        (_cased(*_ASCII_CASED_OR_MARK, f"{_CONTRACTION}?") + _O200K_TAIL,),
        ignore_merges=True,
    ),
    "tiny_aya": PreTokenizer(
        (_DIGITS_FROM_RIGHT.replace("%s", r"\p{N}"), _cased(*_NO_CASE, f"{_CONTRACTION}?") + _O200K_TAIL),
        meant=(r"\d{1,3}(?=(?:\d{3})*\b)", _cased(_UPPER, _LOWER, f"{_CONTRACTION}?") + _O200K_TAIL),
    ),
    "youtu": PreTokenizer(
        (_EAST_ASIAN, _cased(*_NO_CASE, f"{_CONTRACTION}?") + r"|\p{N}" + _SLASH_TAIL),
        ignore_merges=True,
        meant=(_EAST_ASIAN, _cased(_UPPER, _LOWER, f"{_CONTRACTION}?") + r"|\p{N}" + _SLASH_TAIL),
    ),
    "kimi-k2": PreTokenizer(
        (rf"{_HAN}+|{_cased(*_NOT_HAN, _CONTRACTION + '?')}|\p{{N}}{{1,3}}{_TAIL}",),
        meant=(rf"\p{{Han}}+|{_cased(_UPPER_NOT_HAN, _LOWER_NOT_HAN, _CONTRACTION + '?')}|\p{{N}}{{1,3}}{_TAIL}",),
    ),
    "seed-coder": PreTokenizer(
        (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+{_SPACES}",)
    ),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}{_TAIL}",)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+{_TAIL}"), ignore_merges=True),
    "jais-2": PreTokenizer(
        (rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+{_CASCADE}",)
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]" + _SPACES,
        )
    ),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", _IDEOGRAPHS, _DEEPSEEK3)),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _IDEOGRAPHS, _SPARK, r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", _CASED_LETTERS, _MARKS, r"\s+$", _EASTERN_NO_SPACE, r"\p{N}+"),
        meant=(r"[\r\n]", _CASED_LETTERS, _MARKS, r"\s+$", _EASTERN_RUN, r"\p{N}+"),
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EASTERN_NO_SPACE, r"\p{N}"),
        meant=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EASTERN_RUN, r"\p{N}"),
    ),
    "afmoe": PreTokenizer(
        (_DIGITS_FROM_RIGHT.replace("%s", r"\p{N}"), _UNSPACED_SCRIPTS, _DEEPSEEK3),
        meant=(r"\d{1,3}(?=(?:\d{3})*\b)", _UNSPACED_SCRIPTS, _DEEPSEEK3),
    ),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))"), meant=(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "falcon": PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
        meant=(
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            {"type": "Digits", "individual_digits": False},  # of the letters for bytes, some of which are numbers
            "[0-9][0-9][0-9]",
        ),
    ),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        )
    ),
    "bloom": PreTokenizer((_NOT_POEM_PUNCTUATION,)),
    "viking": PreTokenizer((_NOT_POEM_PUNCTUATION, r"\p{N}")),
}
