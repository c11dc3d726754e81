"""Prompts and conversations to token ids, in the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.errors import PromptError

# What a template can raise besides jinja's own errors: it computes, indexes, and calls methods of strings.
TEMPLATE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def render_prompt(tokenizer: TokenizerWrapper, prompt: str) -> list[int]:
    """Token ids of ``prompt`` in the chat template, ending where the model starts to answer."""
    return render_messages(tokenizer, [{"role": "user", "content": prompt}])


def render_text(tokenizer: TokenizerWrapper, prompt: str) -> str:
    """The same as text, as a chat app would send it to a runtime."""
    return str(_apply_template(tokenizer, [{"role": "user", "content": prompt}], tokenize=False))


def render_dialogue(tokenizer: TokenizerWrapper, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer up to the end-of-turn token, and where the answer begins."""
    start = render_prompt(tokenizer, prompt)
    end = [min(tokenizer.eos_token_ids)] if tokenizer.eos_token_ids else []
    return start + tokenizer.encode(answer, add_special_tokens=False) + end, len(start)


def check_context(
    rendered: Sequence[Sequence[int]], new_tokens: int | None, context: int | None, prompts: Sequence[str] = ()
) -> None:
    """Refuse prompts that a model's context cannot take, before anything is generated.

    Args:
        rendered: token ids of the prompts.
        new_tokens: of each answer; None if one is enough.
        context: most tokens of prompt and answer together; None if unknown.
        prompts: their words, to name the longest by.

    Raises:
        PromptError: the longest prompt with its answer is longer than the context.
    """
    lengths = [len(ids) for ids in rendered]
    if context is None or not lengths or max(lengths) + (new_tokens or 1) <= context:
        return
    longest = max(lengths)
    words = f"{prompts[lengths.index(longest)][:60]!r}..." if prompts else "the longest"
    raise PromptError(
        f"prompts: {words} has {longest} tokens, its answer {new_tokens or 'at least 1'}; the model's context takes "
        f"{context} in all. Leave long prompts out{', or use a smaller --max-new-tokens' if new_tokens else ''}."
    )


def post_instruction_tokens(tokenizer: TokenizerWrapper) -> list[int]:
    """The tokens the template puts after the user's words: the positions where a refusal is decided.

    Found by rendering two different prompts and taking the ending they share.

    Raises:
        PromptError: the template ends with the user's words.
    """
    one, other = render_prompt(tokenizer, "apple"), render_prompt(tokenizer, "Seven 7")
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    if shared == 0 or shared == min(len(one), len(other)):
        raise PromptError(
            f"prompts: the chat template puts {shared} tokens after the user's words; at least one, and the words "
            "themselves, are needed. Check the model's chat template."
        )
    return one[len(one) - shared :]


def render_messages(tokenizer: TokenizerWrapper, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
    """Token ids of a conversation in the chat template, ending where the model starts to answer.

    Args:
        tokenizer: of the model.
        messages: each with ``role`` and ``content``.
        options: what the template itself understands, ``enable_thinking`` for example.

    Raises:
        PromptError: the template cannot render it, or renders nothing.
    """
    ids = _apply_template(tokenizer, messages, tokenize=True, return_dict=False, **options)
    if not ids:
        raise PromptError(
            "prompts: the model's chat template renders nothing; a template that gives the user's words is needed. "
            "Check chat_template in the model folder."
        )
    return [int(token) for token in ids]


def _apply_template(tokenizer: TokenizerWrapper, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, **options
        )
    except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
        roles = " and ".join(dict.fromkeys(f"a {message['role']}" for message in messages))
        raise PromptError(
            f"prompts: the model's chat template cannot render {roles} message ({error}); a working jinja template is "
            "needed. Check chat_template in the model folder."
        ) from error
