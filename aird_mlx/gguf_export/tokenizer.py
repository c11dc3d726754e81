"""Tokenizers: from ``tokenizer.json`` or ``tokenizer.model`` to the vocabulary keys of a GGUF file.

Two kinds exist there: ``gpt2`` (byte-level BPE, whose splitting rule `pre_tokenizer` names) and ``llama``
(sentencepiece BPE, where scores take the place of merges). What llama.cpp cannot express is refused, or noted where
it touches only unusual text. Knows nothing about weights. Source: llama.cpp's ``gguf-py/gguf/vocab.py`` and
``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import tokenizers

from aird_mlx.errors import DependencyError, ExportError, ModelError
from aird_mlx.gguf_export.metadata import read_json
from aird_mlx.gguf_export.pre_tokenizer import identify_pre_tokenizer, list_steps, read_merges, step_types

NORMAL = int(gguf.TokenType.NORMAL)
UNKNOWN = int(gguf.TokenType.UNKNOWN)
CONTROL = int(gguf.TokenType.CONTROL)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
UNUSED = int(gguf.TokenType.UNUSED)
BYTE = int(gguf.TokenType.BYTE)
SPACE = "\u2581"  # sentencepiece's visible space


@dataclass(frozen=True)
class Vocabulary:
    """Everything a GGUF file says about its tokenizer.

    Attributes:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (sentencepiece BPE).
        pre: llama.cpp's name of the pre-tokenizer, None for ``llama``.
        tokens: one text per row of the embedding.
        types: one number of ``gguf.TokenType`` per token.
        scores: one per token for ``llama``, highest merges first; None for ``gpt2``.
        merges: ``"left right"``, best first, for ``gpt2``; None for ``llama``.
        special_ids: bos, eos, unk, pad, eot, eom -> id, those that exist.
        chat_templates: ``default`` and others by name.
        notes: what llama.cpp cannot be told about this tokenizer, one sentence each.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special_ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    chat_templates: dict[str, str]
    notes: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read a model folder's tokenizer as llama.cpp needs it.

    Args:
        folder: with ``tokenizer.json`` (preferred: it is what MLX tokenizes with) or ``tokenizer.model``.
        vocab_size: rows of the embedding. Rows without a token become unused ``[PAD<row>]``.

    Raises:
        ModelError: no tokenizer, or a file that cannot be parsed.
        ExportError: llama.cpp has no equal for this tokenizer, or it has more tokens than ``vocab_size``.
        DependencyError: only ``tokenizer.model`` is there and sentencepiece is not installed.
    """
    settings = read_json(folder / "tokenizer_config.json")
    content = read_json(folder / "tokenizer.json")
    if content:
        added = _added_tokens(content, settings)
        kind = (content.get("model") or {}).get("type")
        if kind != "BPE":
            raise ExportError(
                f"tokenizer: tokenizer.json is of type {kind!r}; BPE is needed. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
        if content["model"].get("byte_fallback"):
            vocabulary = _read_sentencepiece_json(content, added, vocab_size)
        else:
            vocabulary = _read_byte_level(content, added, vocab_size)
        prefix, suffix = _template_ids(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").is_file():
        vocabulary = _read_sentencepiece_model(folder, _added_tokens({}, settings), vocab_size)
        prefix, suffix = None, None
    else:
        raise ModelError(
            f"tokenizer: {folder} has neither tokenizer.json nor tokenizer.model; one is needed. "
            "Copy the tokenizer files into the folder."
        )
    ids = {**vocabulary.special_ids, **_special_ids(folder, settings, vocabulary.tokens)}
    add_bos, add_eos = _added_around(prefix, suffix, ids, settings, vocabulary)
    if vocabulary.model == "gpt2":  # llama.cpp would take token 11 for a missing one
        ids.setdefault("eos", _find_end(vocabulary.tokens))
        ids.setdefault("bos", ids["eos"])
    return Vocabulary(
        model=vocabulary.model,
        pre=vocabulary.pre,
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        scores=vocabulary.scores,
        merges=vocabulary.merges,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=vocabulary.add_space_prefix,
        chat_templates=read_chat_templates(folder),
        notes=vocabulary.notes,
    )


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; the one in use is ``default``. Empty if there is none.

    Raises:
        ModelError: a file with one cannot be read.
    """
    try:
        return _find_chat_templates(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"tokenizer: the chat template in {folder} cannot be read ({type(error).__name__}: {error}); UTF-8 text, "
            "or entries with name and template, are needed. Copy the file again."
        ) from error


def _find_chat_templates(folder: Path) -> dict[str, str]:
    file = folder / "chat_template.jinja"
    if file.is_file():
        found = {
            path.stem: path.read_text(encoding="utf-8") for path in folder.glob("additional_chat_templates/*.jinja")
        }
        return {"default": file.read_text(encoding="utf-8"), **found}
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if template is None:
        template = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, list):
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    return {}


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the tokenizer's keys and its chat templates."""
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for kind, token_id in vocabulary.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{_KEYS[kind]}_token_id", token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for name, template in vocabulary.chat_templates.items():
        if name == "default":
            writer.add_string("tokenizer.chat_template", template)
        else:
            writer.add_string(f"tokenizer.chat_template.{name}", template)
    others = sorted(set(vocabulary.chat_templates) - {"default"})
    if others:
        writer.add_array("tokenizer.chat_templates", others)


_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}


@dataclass(frozen=True)
class _Added:
    """An added token: matched in the text before anything else happens to it."""

    text: str
    special: bool
    strips: bool


def _added_tokens(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[int, _Added]:
    """Added tokens by id; ``tokenizer_config.json`` may add to and override ``tokenizer.json``."""
    entries = {int(entry["id"]): entry for entry in content.get("added_tokens") or []}
    for token_id, entry in (settings.get("added_tokens_decoder") or {}).items():
        entries[int(token_id)] = {**entries.get(int(token_id), {}), **entry}
    return {
        token_id: _Added(
            entry["content"],
            bool(entry.get("special")),
            any(entry.get(key) for key in ("lstrip", "rstrip", "single_word")),
        )
        for token_id, entry in sorted(entries.items())
    }


def _read_byte_level(content: Mapping[str, Any], added: Mapping[int, _Added], vocab_size: int) -> Vocabulary:
    model = content["model"]
    notes = _notes_on_added(added)
    for part in step_types(content.get("normalizer")):
        if part == "NFC":
            notes.append("llama.cpp does not apply the tokenizer's NFC normalization: text not in NFC gets other ids")
        elif part != "Sequence":
            raise ExportError(
                f"tokenizer: normalizer {part}; none or NFC is needed for byte-level BPE. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ExportError(
                f"tokenizer: {key} is {model[key]!r}; llama.cpp has no such rule. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    pre = identify_pre_tokenizer(content)
    texts = {int(token_id): text for text, token_id in model["vocab"].items()}
    tokens, types = _lay_out(texts, {}, added, vocab_size)
    pairs = read_merges(model)
    if any(" " in left + right for left, right in pairs):
        raise ExportError(
            "tokenizer: a merge holds a space; byte-level BPE writes it as \u0120. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    ids = {"unk": model["vocab"][model["unk_token"]]} if model.get("unk_token") in model["vocab"] else {}
    return Vocabulary(
        "gpt2",
        pre,
        tokens,
        types,
        None,
        [f"{left} {right}" for left, right in pairs],
        ids,
        False,
        False,
        None,
        {},
        notes,
    )


def _read_sentencepiece_json(content: Mapping[str, Any], added: Mapping[int, _Added], vocab_size: int) -> Vocabulary:
    model = content["model"]
    notes = _notes_on_added(added)
    texts = {int(token_id): text for text, token_id in model["vocab"].items()}
    add_space_prefix = _space_prefix(content, texts.values(), notes)
    pairs = read_merges(model)
    ranks: dict[str, int] = {}
    previous = ""
    for rank, (left, right) in enumerate(pairs):
        piece = left + right
        if piece in ranks and piece != previous:
            raise ExportError(
                f"tokenizer: merges for {piece!r} are not adjacent; sentencepiece's order is needed to turn ranks "
                "into scores. Put the original tokenizer.model in the folder in place of tokenizer.json."
            )
        ranks.setdefault(piece, rank)
        previous = piece
    kinds = {token_id: BYTE for token_id, text in texts.items() if _is_byte_token(text)}
    if len(kinds) != 256:
        raise ExportError(
            f"tokenizer: {len(kinds)} byte tokens; byte_fallback needs 256. Use llama.cpp's convert_hf_to_gguf.py."
        )
    ids: dict[str, int] = {}
    if model.get("unk_token") in model["vocab"]:
        ids["unk"] = model["vocab"][model["unk_token"]]
    tokens, types = _lay_out(texts, kinds, added, vocab_size)
    if "unk" in ids:
        types[ids["unk"]] = UNKNOWN
    scores = [-float(ranks.get(text, len(pairs))) for text in tokens]
    return Vocabulary("llama", None, tokens, types, scores, None, ids, True, False, add_space_prefix, {}, notes)


def _read_sentencepiece_model(folder: Path, added: dict[int, _Added], vocab_size: int) -> Vocabulary:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise DependencyError(
            "tokenizer: only tokenizer.model is there; sentencepiece is needed to read it. "
            "Run `pip install sentencepiece`, or put tokenizer.json in the folder."
        ) from error
    file = folder / "tokenizer.model"
    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise ModelError(f"tokenizer: {file} cannot be read ({str(error).splitlines()[0]}); a sentencepiece model is "
                         "needed. Copy it again.") from error  # fmt: skip
    for text, token_id in read_json(folder / "added_tokens.json").items():
        added.setdefault(int(token_id), _Added(text, False, False))
    size = processor.get_piece_size()
    texts = {index: processor.id_to_piece(index) for index in range(size)}
    kinds, scores = {}, {}
    for index in range(size):
        scores[index] = float(processor.get_score(index))
        if processor.is_unknown(index):
            kinds[index] = UNKNOWN
        elif processor.is_control(index):
            kinds[index] = CONTROL
        elif processor.is_unused(index):
            kinds[index] = UNUSED
        elif processor.is_byte(index):
            kinds[index] = BYTE
        elif not scores[index].is_integer():
            raise ExportError(
                f"tokenizer: score {scores[index]} of {texts[index]!r} is not a whole number, as in unigram models; "
                "BPE is needed. Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    if "".join(processor.encode("a  b", out_type=str)).lstrip(SPACE) != f"a{SPACE}{SPACE}b":
        raise ExportError(
            "tokenizer: tokenizer.model removes repeated spaces; llama.cpp keeps them. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    prefix = "".join(processor.encode("a", out_type=str)).startswith(SPACE)
    tokens, types = _lay_out(texts, kinds, added, vocab_size)
    ids = {
        name: token_id
        for name, token_id in (
            ("bos", processor.bos_id()), ("eos", processor.eos_id()),
            ("unk", processor.unk_id()), ("pad", processor.pad_id()),
        )
        if token_id >= 0
    }  # fmt: skip
    return Vocabulary(
        "llama", None, tokens, types, [scores.get(index, -1000.0) for index in range(len(tokens))], None, ids,
        True, False, prefix, {}, _notes_on_added(added),
    )  # fmt: skip


def _lay_out(
    texts: Mapping[int, str], kinds: Mapping[int, int], added: Mapping[int, _Added], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Texts and types for every row of the embedding; rows without a token are unused."""
    highest = max([*texts, *added])
    if highest >= vocab_size:
        raise ExportError(
            f"tokenizer: token id {highest}; the embedding has {vocab_size} rows. "
            "Use the tokenizer that belongs to these weights."
        )
    tokens, types = [], []
    for index in range(vocab_size):
        if index in added:
            tokens.append(added[index].text)
            types.append(CONTROL if added[index].special else USER_DEFINED)
        elif index in texts:
            tokens.append(texts[index])
            types.append(kinds.get(index, NORMAL))
        else:
            tokens.append(f"[PAD{index}]")
            types.append(UNUSED)
    seen: dict[str, int] = {}
    for index, text in enumerate(tokens):  # llama.cpp aborts the process on these
        if not text or seen.setdefault(text, index) != index:
            raise ExportError(
                f"tokenizer: token {index} is {text!r}, as is {seen.get(text, 'no other')}; every token needs its own "
                "non-empty text. Repair the tokenizer files."
            )
    return tokens, types


def _special_ids(folder: Path, settings: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    """Ids of the special roles: by text from tokenizer_config.json, else by number from the configs."""
    at = {text: index for index, text in enumerate(tokens)}
    configs = (read_json(folder / "config.json"), read_json(folder / "generation_config.json"))
    found: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        entry = settings.get(f"{role}_token")
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(text, str) and text in at:
            found[role] = at[text]
            continue
        for config in configs:
            number = config.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if isinstance(number, int) and 0 <= number < len(tokens):
                found[role] = number
                break
    for role, texts in (("eot", ("<|im_end|>", "<|eot_id|>", "<|end|>")), ("eom", ("<|eom_id|>",))):
        for text in texts:
            if text in at:
                found.setdefault(role, at[text])
    return found


def _find_end(tokens: list[str]) -> int:
    """The token that ends a text, for tokenizers whose files do not say."""
    for text in ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>"):
        if text in tokens:
            return tokens.index(text)
    raise ExportError(
        "tokenizer: no eos token in tokenizer_config.json, config.json or generation_config.json; llama.cpp needs "
        "to know where answers end. Set eos_token in tokenizer_config.json."
    )


def _template_ids(file: Path) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after a text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


def _added_around(
    prefix: list[int] | None,
    suffix: list[int] | None,
    ids: Mapping[str, int],
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> tuple[bool, bool]:
    """Whether llama.cpp shall add bos and eos: what the post-processor does, else what the config says."""
    if prefix or suffix:
        adds_bos = "bos" in ids and prefix == [ids["bos"]]
        adds_eos = "eos" in ids and suffix == [ids["eos"]]
        if (prefix and not adds_bos) or (suffix and not adds_eos):
            vocabulary.notes.append(
                f"the tokenizer puts ids {prefix} before and {suffix} after a text; llama.cpp can add only bos and eos"
            )
        return adds_bos, adds_eos
    if prefix is not None:  # a tokenizer.json that adds nothing
        return settings.get("add_bos_token") is True and "bos" in ids, settings.get("add_eos_token") is True
    add_bos = settings.get("add_bos_token", vocabulary.add_bos)
    return bool(add_bos) and "bos" in ids, bool(settings.get("add_eos_token", False)) and "eos" in ids


def _notes_on_added(added: Mapping[int, _Added]) -> list[str]:
    stripping = [token.text for token in added.values() if token.strips]
    if not stripping:
        return []
    return [
        f"{len(stripping)} added tokens such as {stripping[0]} swallow neighbouring spaces; llama.cpp does not, "
        "so text with spaces beside them gets other ids"
    ]


def _space_prefix(content: Mapping[str, Any], texts: Iterable[str], notes: list[str]) -> bool:
    """Whether a space is put before the text; refuses normalizers that llama.cpp has no equal for."""
    prepends, replaces = False, False
    for part in list_steps(content.get("normalizer")):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            prepends = True
        elif part.get("type") == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == SPACE:
            replaces = True
        else:
            raise ExportError(
                f"tokenizer: normalizer {part.get('type')}; only a space prefix and spaces to {SPACE} are known to "
                "llama.cpp. Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
    for part in list_steps(content.get("pre_tokenizer")):
        if part.get("type") != "Metaspace" or part.get("replacement", SPACE) != SPACE:
            raise ExportError(
                f"tokenizer: pre_tokenizer {part.get('type')}; none or Metaspace is needed with byte_fallback. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
        if part.get("split", True) and any(SPACE in text[1:] for text in texts):
            raise ExportError(
                "tokenizer: Metaspace splits at spaces, but some tokens hold inner ones; llama.cpp would use them. "
                "Use llama.cpp's convert_hf_to_gguf.py for this model."
            )
        replaces = True
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        prepends = prepends or scheme in ("always", "first")
        if scheme == "first":
            notes.append("llama.cpp adds the space prefix after special tokens too, the tokenizer only at the start")
    if not replaces:
        raise ExportError(
            f"tokenizer: spaces are not turned into {SPACE}; llama.cpp always does with byte_fallback. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    return prepends


def _is_byte_token(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
