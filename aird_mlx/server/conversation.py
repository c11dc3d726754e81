"""Conversations to token ids, so that nothing a user writes becomes a token that steers the model.

A rendered conversation is tokenized as one text, as everywhere in this project; only where a message holds the written
form of a control token ("<|im_end|>") is it tokenized apart from the template around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aird_mlx.errors import PromptError
from aird_mlx.gguf_export.chat import GgufChat
from aird_mlx.server.engine import Engine, Request


class ContextError(PromptError):
    """A prompt leaves no room for an answer."""


def render_conversation(chat: GgufChat, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids up to the answer's start.

    Args:
        chat: the file that will answer.
        messages: each with ``role`` and ``content``.

    Raises:
        PromptError: the template cannot render the conversation, or changes a message that holds a control token.
    """
    controls = chat.runtime.control_texts
    if not any(control in one["content"] for one in messages for control in controls):
        return chat.render(messages)
    marked = [{**one, "content": f"\ue000{at}\ue001"} for at, one in enumerate(messages)]
    ids: list[int] = []
    seen = set()
    for at, part in enumerate(re.split("\ue000([0-9]+)\ue001", chat.render_text(marked))):
        if at % 2:
            seen.add(int(part))
            ids += chat.runtime.tokenize(messages[int(part)]["content"], parse_special=False)
        elif part:
            ids += chat.runtime.tokenize(part)
    if seen != set(range(len(messages))):
        raise PromptError(
            "prompts: a message holds the written form of a control token, and the chat template does not keep it as "
            "it is; a message without one is needed. Leave it out."
        )
    return ids


def make_request(
    engine: Engine,
    ids: Sequence[int],
    max_new_tokens: int,
    probe_ids: Sequence[int] | None = None,
    **sampling: Any,
) -> Request:
    """A request that fits the engine's context; its answer may be as long as there is room.

    Args:
        engine: answers it.
        ids: token ids of the prompt.
        max_new_tokens: more are not wanted.
        probe_ids, sampling: see `Request`.

    Raises:
        ContextError: there is no room for an answer.
    """
    longest, room = max(len(ids), len(probe_ids or ())), engine.context_length
    if longest >= room:
        raise ContextError(
            f"prompts: the prompt has {longest} tokens and the context {room}; room to answer is needed. Shorten it."
        )
    return Request(ids, min(max_new_tokens, room - len(ids)), probe_ids=probe_ids, **sampling)
