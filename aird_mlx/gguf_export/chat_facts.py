"""What chat programs need to know of a model: its template, where answers end, how long they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aird_mlx.gguf_export.hyperparameters import read_json
from aird_mlx.gguf_export.tokenizer import Vocabulary, read_end_ids

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ChatFacts:
    """What a chat program is told.

    Attributes:
        template: jinja; None without one.
        bos, eos: texts of the first and the last token.
        adds_bos: the runtime puts ``bos`` before a text.
        stops: texts of the tokens that end an answer: those the GGUF file names, then what else the configs say.
        context_length: tokens of prompt and answer.
        sampling: what ``generation_config.json`` recommends, by its own words.
    """

    template: str | None
    bos: str
    eos: str
    adds_bos: bool
    stops: tuple[str, ...]
    context_length: int
    sampling: Mapping[str, float] = field(default_factory=dict)


def gather_chat_facts(folder: Path, vocabulary: Vocabulary, context_length: int) -> ChatFacts:
    """Take them from a vocabulary and the model's files."""
    ids, tokens = vocabulary.special_ids, vocabulary.tokens
    generation = read_json(folder / "generation_config.json")
    ends = [ids[role] for role in ("eos", "eot", "eom") if role in ids] + read_end_ids(folder, len(tokens))
    return ChatFacts(
        template=vocabulary.chat_templates.get("default"),
        bos=tokens[ids["bos"]],
        eos=tokens[ids["eos"]],
        adds_bos=vocabulary.add_bos,
        stops=tuple(dict.fromkeys(tokens[number] for number in ends)),
        context_length=context_length,
        sampling={
            key: float(generation[key])
            for key in SAMPLING
            if isinstance(generation.get(key), (int, float)) and not isinstance(generation[key], bool)
        },
    )
