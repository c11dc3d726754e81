"""The part of Go's ``text/template`` that Ollama's chat templates here use, rendered: to check them before they go out.

Knows text, ``if``/``else``/``end``, ``range $i, $m :=``, ``$name :=``, fields, and the functions eq, and, not, len
and slice; nothing else is written, so nothing else is read. Source: https://pkg.go.dev/text/template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ACTION = re.compile(r'\{\{((?:"(?:[^"\\]|\\.)*"|[^"}]|\}(?!\}))*)\}\}', re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|[^\s()"]+')


def quote_text(text: str) -> str:
    """Text as a template that renders to it, whatever action follows.

    >>> quote_text("a {{ b")
    'a {{ "{{" }} b'
    """
    return re.sub(r"\{\{|\{\Z", lambda braces: f'{{{{ "{braces[0]}" }}}}', text)


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template.

    Args:
        template: of this module's part of the language; anything else is a ValueError.
        values: fields of the dot, such as ``System`` and ``Messages``.

    >>> render("{{ if .System }}{{ .System }}: {{ end }}{{ len .Messages }}", {"System": "x", "Messages": [1, 2]})
    'x: 2'
    """
    return _Rendering(template, values).text()


class _Rendering:
    """One rendering: text and actions in turn, from left to right."""

    def __init__(self, template: str, values: Mapping[str, Any]) -> None:
        pieces = _ACTION.split(template)
        self.parts = [(index % 2 == 1, piece) for index, piece in enumerate(pieces)]
        self.variables: dict[str, Any] = {"$": values}

    def text(self) -> str:
        end, written = self._block(0, True)
        if end != len(self.parts):
            raise ValueError("an end without a beginning")
        return "".join(written)

    def _block(self, at: int, live: bool) -> tuple[int, list[str]]:
        """Render up to the next ``else`` or ``end``; where it stands, and what was written."""
        written: list[str] = []
        while at < len(self.parts):
            action, piece = self.parts[at]
            words = _TOKEN.findall(piece) if action else []
            if not action:
                written += [piece] * live
                at += 1
            elif words[0] in ("else", "end"):
                return at, written
            elif words[0] == "if":
                at, inner = self._condition(at, live)
                written += inner
            elif words[0] == "range":
                at, inner = self._loop(at, live)
                written += inner
            else:
                if live:
                    written += self._action(words)
                at += 1
        return at, written

    def _condition(self, at: int, live: bool) -> tuple[int, list[str]]:
        """One ``if`` with its branches; where the template goes on."""
        written: list[str] = []
        words = _TOKEN.findall(self.parts[at][1])[1:]
        while True:
            holds = live and bool(self._value(words))
            at, inner = self._block(at + 1, holds)
            written += inner
            live = live and not holds
            following = _TOKEN.findall(self._part(at))
            if following == ["end"]:
                return at + 1, written
            words = following[2:] or ['"always"']  # else if ..., or else

    def _loop(self, at: int, live: bool) -> tuple[int, list[str]]:
        words = _TOKEN.findall(self.parts[at][1])
        if len(words) < 5 or words[3] != ":=":
            raise ValueError(f"{self.parts[at][1]!r} is no range with an index and an element")
        index, element = words[1].rstrip(","), words[2]
        written: list[str] = []
        end, _ = self._block(at + 1, False)
        for number, value in enumerate(self._value(words[4:]) if live else ()):
            self.variables |= {index: number, element: value}
            written += self._block(at + 1, True)[1]
        if _TOKEN.findall(self._part(end)) != ["end"]:
            raise ValueError("a range without an end")
        return end + 1, written

    def _part(self, at: int) -> str:
        if at >= len(self.parts):
            raise ValueError("a beginning without an end")
        return self.parts[at][1]

    def _action(self, words: Sequence[str]) -> Iterator[str]:
        if len(words) > 2 and words[1] == ":=":
            self.variables[words[0]] = self._value(words[2:])
        else:
            yield str(self._value(words))

    def _value(self, words: Sequence[str]) -> Any:
        """The value of one call or operand."""
        values = list(self._operands(iter(words)))
        function = values[0]
        if not callable(function):
            return function
        return function(*values[1:])

    def _operands(self, words: Iterator[str]) -> Iterator[Any]:
        for word in words:
            if word == ")":
                return
            if word == "(":
                inner = list(self._operands(words))
                yield inner[0](*inner[1:]) if callable(inner[0]) else inner[0]
            else:
                yield self._operand(word)

    def _operand(self, word: str) -> Any:
        if word.startswith('"'):
            return word[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        if word.isdigit():
            return int(word)
        if word in _FUNCTIONS:
            return _FUNCTIONS[word]
        name, *fields = word.split(".")
        value = self.variables[name or "$"] if name in ("", *self.variables) else None
        if value is None:
            raise ValueError(f"{word!r} is not known")
        for field in fields:
            value = value.get(field, "") if field else value
        return value


_FUNCTIONS = {
    "eq": lambda first, second: first == second,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "slice": lambda values, start: values[start:],
}
