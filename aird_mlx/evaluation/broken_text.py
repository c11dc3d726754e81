"""Is a text broken? What a model writes that was pruned too far, told from short, terse or foreign but whole text.

Broken is: stuck on a few words or letters, words without grammar, scripts mixed inside words, words without end, or
hardly a letter at all. Code, lists, tables, verse with a refrain and other languages are whole. It reads a text once
and knows no grammar: a fluent sentence that means nothing passes for whole. The thresholds were set on answers of the
demo model pruned to 60-90 %, and on made-up texts of either kind.
"""

from __future__ import annotations

import re
import unicodedata

# Letters repeated inside one word: `HappyHappyHappyHappy`, `hahahahahahahaha`, `can't't't't`, `aaaaaaaaaaaa`.
_STUTTER = re.compile(
    r"([^\W\d_]{3,12}?)\1{3,}|([^\W\d_]{2})\2{7,}|('[^\W\d_]{1,2})\3{3,}|([^\W\d_])\4{11,}", re.IGNORECASE
)
_LONG_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff]{61,}")
_TABLE_RULE = re.compile(r"^[ \t|:+-]{3,}$", re.MULTILINE)
_BARE_WORD = re.compile(r"[a-z']+\Z", re.IGNORECASE)
# Words that join others, of English and of the other languages that are written without accents for long enough to
# look like English without grammar.
_JOINING_WORDS = "the of to in a and that is for on by with or at an as from it be this was are if but so than into"
_OTHER_WORDS = (
    "i you he she we they me my your his her its our their not no do does can will would has have had were am been "
    "what who which when where how all more also there these those up out about over some any "
    "de la le les des et en el los las que y con una del der die das und ist ein eine zu den mit il di che per non da "
    "um uma com os het een van dat niet och att det som og er til ja ei se yang dan ini untuk dengan itu ve bir na "
    "w z nie jest ang ng sa mga"
)
_JOINING = frozenset(_JOINING_WORDS.split())
_FUNCTION_WORDS = _JOINING | frozenset(_OTHER_WORDS.split())
_SCRIPTS = re.compile(
    r"([A-Za-z\u00c0-\u024f]+)|([\u0400-\u04ff]+)|([\u3040-\u30ff\u3400-\u9fff]+)|([\uac00-\ud7af]+)|([\u0e00-\u0e7f]+)"
    r"|([\u0590-\u05ff]+)|([\u0600-\u06ff]+)|([\u0900-\u097f]+)|([\u0370-\u03ff]+)"
)


def is_broken(text: str, *, longest: int = 8) -> bool:
    """Whether text is broken.

    Args:
        text: what was generated, without code.
        longest: how many words a phrase may have that is said over and over.

    Returns:
        True if a reader would not take it for language, a list, or an answer of one character.

    >>> is_broken("Mix flour and water, then bake it."), is_broken("4")
    (False, False)
    >>> is_broken("Of course course course course course course course"), is_broken("?!")
    (True, True)
    """
    words = text.lower().split()
    return bool(
        _has_few_letters(text)
        or _STUTTER.search(text)
        or _LONG_WORD.search(text)
        or any(_is_stuck(words, size) for size in range(1, longest + 1))
        or _has_few_words(words)
        or _is_salad(words)
        or _mixes_scripts(words)
    )


def _has_few_letters(text: str) -> bool:
    visible = [character for character in _TABLE_RULE.sub("", text) if not character.isspace()]
    lost = visible.count("\ufffd")
    letters = sum(character.isalnum() for character in visible)
    if letters == 0 and not any(unicodedata.category(one) == "So" and one != "\ufffd" for one in visible):
        return True
    return (lost >= 3 and lost > 0.05 * len(visible)) or (len(visible) >= 20 and letters < 0.2 * len(visible))


def _is_stuck(words: list[str], size: int) -> bool:
    """A phrase of ``size`` words six times in a row; a number may stand in a column ten times."""
    run = 0
    for index in range(size, len(words)):
        run = run + 1 if words[index] == words[index - size] else 0
        if run >= 5 * size and (run >= 9 or any(character.isalpha() for character in words[index])):
            return True
    return False


def _has_few_words(words: list[str], window: int = 20, distinct: int = 4) -> bool:
    """Some 20 words in a row that are only four different ones."""
    counts: dict[str, int] = {}
    spoken = [word.strip(".,!?;:") for word in words if any(character.isalpha() for character in word)]
    for index, word in enumerate(spoken):
        counts[word] = counts.get(word, 0) + 1
        if index >= window:
            first = spoken[index - window]
            counts[first] -= 1
            if not counts[first]:
                del counts[first]
        if index >= window - 1 and len(counts) <= distinct:
            return True
    return False


def _is_salad(words: list[str]) -> bool:
    """Words without grammar: 14 in a row without one that joins, or 12 that do nothing else. Commas end a row."""
    without, only = 0, 0
    for word in words:
        bare = word.rstrip(".,!?;:")
        if not _BARE_WORD.match(bare):
            without, only = 0, 0
            continue
        without = 0 if bare in _FUNCTION_WORDS else without + 1
        only = only + 1 if bare in _JOINING else 0
        if without >= 14 or only >= 12:
            return True
        if bare != word:
            without, only = 0, 0
    return False


def _mixes_scripts(words: list[str]) -> bool:
    """Three scripts in a text, three times two of them inside one word."""
    scripts: set[int] = set()
    mixed = 0
    for word in words:
        found = {match.lastindex or 0 for match in _SCRIPTS.finditer(word)}
        scripts |= found
        mixed += len(found) > 1
    return len(scripts) >= 3 and mixed >= 3
