"""Tokens to text while they come: whole characters only, and nothing that may yet become a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """The text of an answer in pieces; their concatenation is the answer.

    Args:
        detokenize: text of token ids, U+FFFD for bytes that are no whole character.
        stop: texts that end the answer and are no part of it.

    Attributes:
        stopped: one of them has come.

    >>> spell = lambda ids: bytes(ids).decode("utf-8", errors="replace")
    >>> stream = TextStream(spell, ["END"])
    >>> [stream.push(byte) for byte in "é EaEND".encode()]
    ['', 'é', ' ', '', 'Ea', '', '', '']
    >>> stream.stopped, stream.finish()
    (True, '')
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._detokenize, self._stop = detokenize, [one for one in stop if one]
        # Tokens before _said are in the text already; a few of them stay as context, because some tokenizers write a
        # word's space only behind another word.
        self._ids: list[int] = []
        self._said = 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._ids) - self._said < 8:  # a character's bytes are not all there
            return ""
        return self._hold(self._take(text))

    def finish(self) -> str:
        """What was still held back, when no more tokens come."""
        text = "" if self.stopped else self._hold(self._take(self._new_text())) + self._held
        self._held = ""
        return text

    def _new_text(self) -> str:
        before = self._detokenize(self._ids[: self._said]) if self._said else ""
        return self._detokenize(self._ids)[len(before) :]

    def _take(self, text: str) -> str:
        self._ids = self._ids[self._said :]
        self._said = len(self._ids)
        return text

    def _hold(self, text: str) -> str:
        """Of what was held and ``text``, what is no beginning of a stop text; cut at a whole one."""
        text, self._held = self._held + text, ""
        found = [at for at in (text.find(one) for one in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        longest = max((len(one) for one in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(one.startswith(text[-length:]) for one in self._stop):
                self._held = text[-length:]
                return text[:-length]
        return text
