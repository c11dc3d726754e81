"""The tokens with a role: beginning, end, unknown, padding, fill-in-the-middle; and what is put around a text.

llama.cpp finds some of them by their text, in an order that hashing decides; a file that names them is read the same
everywhere. Source: ``llama_vocab::impl::load`` in llama.cpp's ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.hyperparameters import read_json
from aird_mlx.gguf_export.tokenizer.vocabulary import NORMAL, USER_DEFINED

# Texts that end an answer in llama.cpp whatever the file says.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
_ENDS_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>", "[EOT]", "\u2581<EOT>",
)  # fmt: skip
_FILL_IN = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
                "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
                "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
                "\u2581<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
# That tokenizers without a tokenizer.json have.
ROLES = ("bos", "eos", "unk", "pad")
_ENDS_OF_TEXT = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<eos>", "</s>")


def token_text(settings: Mapping[str, Any], role: str) -> str | None:
    """How ``tokenizer_config.json`` writes the token of a role, a text or an object with its content."""
    entry = settings.get(f"{role}_token")
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) else None


def find_special_ids(
    folder: Path,
    settings: Mapping[str, Any],
    tokens: Sequence[str],
    around: tuple[list[int], list[int]] | None,
    known: Mapping[str, int],
) -> tuple[dict[str, int], list[str]]:
    """Ids of the roles, and what llama.cpp cannot be told about them.

    Args:
        folder: the model's, for ``config.json`` and ``generation_config.json``.
        settings: ``tokenizer_config.json``, which comes first.
        tokens: the vocabulary.
        around: ids that are put before and after every text, which come next: what begins a text is its bos.
        known: what the tokenizer file itself says, used where the configs say nothing either.

    Raises:
        ExportError: nothing says where answers end.
    """
    at = {text: index for index, text in enumerate(tokens)}
    configs = _read_configs(folder)
    ids: dict[str, int] = dict(known)
    before, after = around or ([], [])
    seen = {"bos": before[:1], "eos": after[-1:]}
    for role in ("bos", "eos", "unk", "sep", "pad", "mask"):
        text = token_text(settings, role)
        told = [[at[text]] if text in at else [], seen.get(role, [])]
        told += [_ids_in(config, f"{role}_token_id", len(tokens)) for config in configs]
        ids |= next(({role: numbers[0]} for numbers in told if numbers), {})
    for role, texts in _FILL_IN.items():
        found = [at[text] for text in texts if text in at]
        if found:
            ids[role] = found[0]
    if "eos" not in ids:  # llama.cpp would take token 11, or token 2
        ids["eos"] = _find_end(at)
    ids.setdefault("bos", at.get("[gMASK]", ids["eos"]))  # GLM names none, and begins its chats with that
    return _with_ends(ids, at, set(_end_ids(configs, len(tokens))))


def read_end_ids(folder: Path, size: int) -> list[int]:
    """The ids of a vocabulary of ``size`` that the configs of a model say end an answer, in their order, each once."""
    return _end_ids(_read_configs(folder), size)


def _end_ids(configs: Sequence[Mapping[str, Any]], size: int) -> list[int]:
    return list(dict.fromkeys(number for config in configs for number in _ids_in(config, "eos_token_id", size)))


def _read_configs(folder: Path) -> list[Mapping[str, Any]]:
    """What may name tokens by their ids, the first word first."""
    config = read_json(folder / "config.json")
    return [config, config.get("text_config") or {}, read_json(folder / "generation_config.json")]


def _with_ends(ids: dict[str, int], at: Mapping[str, int], wanted: set[int]) -> tuple[dict[str, int], list[str]]:
    """Add the end of a turn and of a message, so that every id that ends an answer in MLX does in llama.cpp."""
    texts = {number: text for text, number in at.items()}
    others = [number for number in sorted(wanted - {ids["eos"]}) if texts[number] not in ENDS]
    if "<|eom_id|>" in at:
        ids["eom"] = at["<|eom_id|>"]
    channels = {"<|return|>", "<|flush|>"} & set(at)  # there <|end|> ends a part of an answer, not the answer
    turns = [at[text] for text in _ENDS_OF_TURN if text in at and not (channels and text == "<|end|>")]
    for role, numbers in (("eot", [*others[:1], *turns]), ("eom", others[1:2])):
        if numbers:
            ids.setdefault(role, numbers[0])
    missed = [texts[number] for number in others if number not in (ids.get("eot"), ids.get("eom"))]
    if not missed:
        return ids, []
    return ids, [f"answers do not end at {', '.join(missed)} in llama.cpp, which takes only eos, eot and eom"]


def notes_on_plain_ends(tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int]) -> list[str]:
    """That llama.cpp ends answers at what is text to the tokenizer, in a sentence; empty if it does not.

    Args:
        tokens: the vocabulary.
        types: of its tokens.
        ids: of the roles; a token with one ends answers as it should.
    """
    roles, ends = set(ids.values()), set(ENDS)
    plain = [
        text
        for index, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if text in ends and kind in (NORMAL, USER_DEFINED) and index not in roles
    ]
    return [f"{text} is text to the tokenizer; llama.cpp takes it for a token that ends answers" for text in plain]


def _ids_in(config: Mapping[str, Any], key: str, size: int) -> list[int]:
    value = config.get(key)
    return [
        number
        for number in (value if isinstance(value, list) else [value])
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size
    ]


def _find_end(at: Mapping[str, int]) -> int:
    """The token that ends a text, for tokenizers whose files do not say."""
    for text in _ENDS_OF_TEXT:
        if text in at:
            return at[text]
    raise ExportError(
        "tokenizer: no eos token in tokenizer_config.json, config.json or generation_config.json; llama.cpp needs "
        "to know where answers end. Set eos_token in tokenizer_config.json."
    )


def find_added_around(
    around: tuple[list[int], list[int]] | None,
    ids: Mapping[str, int],
    settings: Mapping[str, Any],
    usual: tuple[bool, bool],
) -> tuple[bool, bool, list[str]]:
    """Whether llama.cpp shall add bos and eos: what the post-processor does, else what the config says.

    Args:
        around: ids the post-processor puts before and after a text; None without ``tokenizer.json``.
        ids: of the roles.
        settings: ``tokenizer_config.json``.
        usual: what this kind of tokenizer adds where nothing says otherwise.

    Returns:
        add bos, add eos, and what llama.cpp cannot add, in a sentence.
    """
    before, after = around or ([], [])
    if before or after:
        adds_bos = "bos" in ids and before == [ids["bos"]]
        adds_eos = "eos" in ids and after == [ids["eos"]]
        if (not before or adds_bos) and (not after or adds_eos):
            return adds_bos, adds_eos, []
        note = f"the tokenizer puts ids {before} before and {after} after a text; llama.cpp can add only bos and eos"
        return adds_bos, adds_eos, [note]
    if around is not None:  # a tokenizer.json that adds nothing
        usual = False, False
    add_bos, add_eos = (settings.get(f"add_{role}_token", usual[index]) for index, role in enumerate(("bos", "eos")))
    return add_bos is True and "bos" in ids, add_eos is True and "eos" in ids, []
