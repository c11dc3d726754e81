"""Ollama's ``Modelfile``: the model's own chat template in Ollama's language, stop tokens and parameters.

Ollama does not run jinja, and guesses a template where none is given. Here six strings are read off the model's
template by rendering it: what stands before the first message, around a system message, and between the turns. The
Go template made of them is rendered beside the original on many conversations; where they differ it is not written,
and the file says why. Source: Ollama's ``template/template.go`` (which joins neighbours of one role and hands over
system messages apart) and ``docs/modelfile.mdx``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jinja2

from aird_mlx.chat_apps.go_template import quote_text, render
from aird_mlx.errors import PromptError
from aird_mlx.gguf_export.chat import compile_template
from aird_mlx.gguf_export.chat_facts import ChatFacts
from aird_mlx.prompts import TEMPLATE_ERRORS

NOT_IN_PARTS = "Ollama does not import a file in parts"  # ollama/ollama#5245
Conversation = list[tuple[str, str]]  # of role and text
LONGEST_CONTEXT = 8192  # tokens; models may take more, laptops often not
_PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
               "repetition_penalty": "repeat_penalty"}  # fmt: skip
_MARKS = ("QzSystemQz", "QzFirstQz", "QzAnswerQz", "QzSecondQz")
_TEXTS = (
    "Hello there!", "How do I bake bread?\n\n1. Mix\n2. Wait", 'He said "{{ no }}" and {% that %} was it.',
    "\u00dcber 42", "print('x')  # code", "Yes.", "Thanks, and now?",
)  # fmt: skip
_SYSTEMS = ("You are a careful assistant.", "Be brief.\nBe kind.")


@dataclass(frozen=True)
class Turns:
    """What stands around the messages of a conversation.

    Attributes:
        start: before the first message where no system message is given.
        start_with_system: before the system message.
        after_system: between it and the user's.
        late_system: the system message stands in the last message, not the first.
        to_answer: between a message and an earlier answer.
        to_message: between an answer and the next message.
        end: after the last message: the answer's beginning.
        takes_system: the template puts a system message anywhere.
    """

    start: str
    start_with_system: str
    after_system: str
    late_system: bool
    to_answer: str
    to_message: str
    end: str
    takes_system: bool


@dataclass(frozen=True)
class Translation:
    """A template for Ollama, or why there is none; ``notes`` say what it does otherwise with unusual messages."""

    template: str | None
    reason: str = ""
    notes: tuple[str, ...] = ()


class _Unlike(Exception):
    """The template is not turns with text between them."""


def translate(facts: ChatFacts) -> Translation:
    """The chat template in Ollama's language, verified by rendering both."""
    if not facts.template:
        return Translation(None, "the model has no chat template")
    try:
        original = _original(facts)
        turns = read_turns(original)
    except _Unlike as error:
        return Translation(None, str(error))
    template = to_go(turns)
    if '"""' in template:
        return Translation(None, 'the template holds """, which ends a text in a Modelfile')
    for conversation in _conversations(turns.takes_system):
        try:
            expected = original(conversation)
        except _Unlike as error:
            return Translation(None, str(error))
        if render_ollama(template, conversation) != expected:
            return Translation(
                None, f"the template treats a conversation of {len(conversation)} messages otherwise than by its turns"
            )
    return Translation(template, notes=tuple(_notes(facts, turns, original, template)))


def read_turns(original: Callable[[Conversation], str]) -> Turns:
    """Find what a template writes between messages.

    Args:
        original: renders a conversation up to where the answer begins.
    """
    system, first, answer, second = _MARKS
    start, end = _cut(original([("user", first)]), first)
    whole = original([("user", first), ("assistant", answer), ("user", second)])
    before, to_answer, to_message, after = _cut(whole, first, answer, second)
    if (before, after) != (start, end):
        raise _Unlike("the template writes something else around a message in longer conversations")
    turns = Turns(start, start, "", False, to_answer, to_message, end, False)
    try:
        alone = original([("system", system), ("user", first)])
        longer = original([("system", system), ("user", first), ("assistant", answer), ("user", second)])
    except _Unlike:
        return turns
    if system not in alone:
        return turns
    start_with_system, after_system, _ = _cut(alone, system, first)
    late = longer.find(system) > longer.find(first)
    return Turns(start, start_with_system, after_system, late, to_answer, to_message, end, True)


def to_go(turns: Turns) -> str:
    """The template in Go."""
    text = {name: quote_text(value) for name, value in vars(turns).items() if isinstance(value, str)}
    head = [text["start"]]
    inner: list[str] = []
    if turns.takes_system and turns.late_system:
        inner = ["{{ if and $.System $last }}{{ $.System }}", text["after_system"], "{{ end }}"]
    elif turns.takes_system:
        with_system = ["{{ if .System }}", text["start_with_system"], "{{ .System }}", text["after_system"]]
        head = [*with_system, "{{ else }}", text["start"], "{{ end }}"]
    return "".join(
        [
            *head,
            "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{ if eq $m.Role "user" }}',
            *inner,
            *("{{ $m.Content }}{{ if $last }}", text["end"], "{{ else }}", text["to_answer"], "{{ end }}"),
            '{{ else if eq $m.Role "assistant" }}',
            *("{{ $m.Content }}{{ if not $last }}", text["to_message"], "{{ end }}"),
            "{{ end }}{{ end }}",
        ]
    )


def render_ollama(template: str, conversation: Sequence[tuple[str, str]]) -> str:
    """What Ollama makes of a conversation with this template.

    >>> render_ollama("{{ .System }}{{ range $i, $m := .Messages }} {{ $m.Role }}{{ end }}", [("system", "s")])
    's system'
    """
    joined: list[dict[str, str]] = []
    for role, text in conversation:
        if joined and joined[-1]["Role"] == role:
            joined[-1]["Content"] += "\n\n" + text
        else:
            joined.append({"Role": role, "Content": text})
    system = "\n\n".join(text for role, text in conversation if role == "system")
    return render(template, {"System": system, "Messages": joined, "Response": ""})


def write_modelfile(
    name: str, file_name: str, facts: ChatFacts, translation: Translation, first_part: str | None = None
) -> str:
    """The text of a ``Modelfile`` that stands beside the GGUF file.

    Args:
        name: its own, without the ending.
        file_name: of the GGUF file.
        facts: of its model.
        translation: of its template.
        first_part: what the file is in parts is to be merged from, since Ollama imports whole files alone.
    """
    lines = []
    if first_part is not None:
        lines = [f"# {NOT_IN_PARTS}, so merge them first:", f"# {merge_command(first_part, file_name)}"]
    lines += [f"# ollama create NAME -f {shlex.quote(name + '.Modelfile')}", f"FROM ./{file_name}"]
    lines += [f"# Note: {note}." for note in translation.notes]
    if translation.template is None:
        lines.append(f"# No TEMPLATE, so Ollama guesses one: {translation.reason}.")
    else:
        lines.append(f'TEMPLATE """{translation.template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in facts.stops if not set('"\n') & set(stop)]
    lines.append(f"PARAMETER num_ctx {min(facts.context_length, LONGEST_CONTEXT)}")
    sampling = {_PARAMETERS[key]: value for key, value in facts.sampling.items() if key in _PARAMETERS}
    lines += [f"PARAMETER {key} {value:g}" for key, value in sampling.items()]
    return "\n".join(lines) + "\n"


def merge_command(first_part: str, file_name: str) -> str:
    """How llama.cpp makes one file of parts."""
    return f"llama-gguf-split --merge {shlex.quote(first_part)} {shlex.quote(file_name)}"


def _original(facts: ChatFacts) -> Callable[[Conversation], str]:
    """The model's template as a function; Ollama writes the first token itself where the file says so."""
    try:
        template = compile_template(facts.template or "", "the model")
    except PromptError as error:
        raise _Unlike(error.seen) from error
    special = {"bos_token": facts.bos, "eos_token": facts.eos}

    def original(conversation: Conversation) -> str:
        messages = [{"role": role, "content": text} for role, text in conversation]
        try:
            text = template.render(messages=messages, add_generation_prompt=True, **special)
        except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
            raise _Unlike(f"the template refuses a conversation ({' '.join(str(error).split())})") from error
        return text.removeprefix(facts.bos) if facts.adds_bos else text

    return original


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks, each of which must occur once and in this order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise _Unlike("the template writes a message more than once, in another order, or not at all")
        piece, text = text.split(mark)
        pieces.append(piece)
    return [*pieces, text]


def _conversations(with_system: bool) -> list[Conversation]:
    """Conversations of one to seven messages, with system messages where the template takes them."""
    found: list[Conversation] = []
    for length in (1, 3, 5, 7):
        for shift in range(len(_TEXTS)):
            texts = [*_TEXTS[shift:], *_TEXTS[:shift]][:length]
            turns = [("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts)]
            found.append(turns)
            found += [[("system", system), *turns] for system in _SYSTEMS if with_system]
    return found


def _notes(facts: ChatFacts, turns: Turns, original: Callable[[Conversation], str], template: str) -> list[str]:
    notes = []
    if not turns.takes_system:
        notes.append("the model's template takes no system message, so SYSTEM has no effect")
    if "strftime_now" in (facts.template or ""):
        notes.append("the date in the template is that of the export")
    if "tools" in (facts.template or ""):
        notes.append("tools are left out; llama-server with --jinja has them")
    tried: list[tuple[str, Conversation]] = [
        ("trims messages", [("user", " Hi \n")]),
        ("drops earlier thoughts", [("user", "a"), ("assistant", "<think>\nb\n</think>\n\nc"), ("user", "d")]),
    ]
    if turns.takes_system:
        tried += [("trims system messages", [("system", " Be brief. \n"), ("user", "a")])]
        tried += [
            ("reads /think and /no_think in system messages", [("system", said), ("user", "a")])
            for said in ("/no_think", "/think", "Be brief. /no_think", "Be brief. /think")
        ]
    found = [what for what, conversation in tried if render_ollama(template, conversation) != original(conversation)]
    notes += [f"the model's template {what}, Ollama's does not" for what in dict.fromkeys(found)]
    return notes
