"""Tokenizers in llama.cpp beside the libraries they come from, on llama.cpp's vectors and on a corpus of 200 lines."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from aird_mlx.errors import AirdError, ExportError, ModelError
from aird_mlx.gguf_export import LlamaRuntime, is_available
from aird_mlx.gguf_export.tokenizer import (
    Vocabulary,
    add_vocabulary,
    identify_pre_tokenizer,
    pre_names,
    read_vocabulary,
)
from aird_mlx.gguf_export.tokenizer.pre_tokenizer import PROBES, build_pre_tokenizer
from aird_mlx.gguf_export.tokenizer.pre_types import PRE_TOKENIZERS
from aird_mlx.gguf_export.tokenizer.vocabulary import lay_out
from aird_mlx.server.text import TextStream

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
DATA = Path(os.environ.get("AIRD_TEST_DATA", "/nonexistent")) / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AIRD_TEST_DATA is not set")
CORPUS: list[str] = [
    json.loads(line)
    for line in (Path(__file__).parent / "tokenizer_corpus.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RUN = re.compile(r"(.)\1\1", re.DOTALL)  # of one letter: "aa a" and "a aa" are equally likely to a unigram model
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> Path:
    """The smallest file whose vocabulary llama.cpp loads."""
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, vocabulary)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def open_vocabulary(vocabulary: Vocabulary, folder: Path) -> LlamaRuntime:
    return LlamaRuntime(write_vocabulary(vocabulary, folder / "vocabulary.gguf"), vocab_only=True)


def copy_files(name: str, folder: Path, **config: Any) -> Path:
    for file in (DATA / name).glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_files(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def read_vectors(name: str) -> list[tuple[str, list[int]]]:
    file = DATA / "llama.cpp" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{file}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(item) for item in line.split()]) for text, line in zip(texts, lines, strict=False)]


def read_fields(name: str) -> dict[str, Any]:
    """The tokenizer's keys of one of llama.cpp's own vocabulary files; gguf's reader takes half a minute for them."""
    data = (DATA / "llama.cpp" / f"ggml-vocab-{name}.gguf").read_bytes()
    at = 24

    def take(form: str) -> Any:
        nonlocal at
        at += struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", data, at - struct.calcsize(f"<{form}"))[0]

    def value(kind: int) -> Any:
        nonlocal at
        if kind == gguf.GGUFValueType.STRING:
            length = take("Q")
            at += length
            return data[at - length : at].decode("utf-8")
        if kind == gguf.GGUFValueType.ARRAY:
            inner = take("I")
            return [value(inner) for _ in range(take("Q"))]
        return take("BbHhIif?__Qqd"[kind])

    fields = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key = value(gguf.GGUFValueType.STRING)
        fields[key.removeprefix("tokenizer.ggml.")] = value(take("I"))
    return fields


def assert_one_line(error: AirdError) -> None:
    assert "\n" not in str(error)
    assert str(error).startswith("tokenizer: ")
    assert "; " in str(error)
    assert str(error).endswith(".")


def differing(runtime: LlamaRuntime, encode: Callable[[str], Sequence[int]], texts: Iterable[str]) -> list[str]:
    return [text for text in texts if runtime.tokenize(text) != list(encode(text))]


# --- real tokenizers ---------------------------------------------------------------------------------------------


def test_corpus_has_200_lines_of_many_kinds() -> None:
    assert len(CORPUS) == len(set(CORPUS)) == 200
    letters = {letter for line in CORPUS for letter in line}
    for start, end in (
        (0x400, 0x4FF),
        (0x600, 0x6FF),
        (0x900, 0x97F),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A3),
        (0x1F600, 0x1F64F),
    ):
        assert any(start <= ord(letter) <= end for letter in letters)


@needs_llama
@needs_data
@pytest.mark.parametrize(
    ("name", "rows", "eos", "pre"),
    [("smollm2", 49152, 2, "smollm"), ("gpt2", 50257, 50256, "gpt-2"), ("olmo-neox", 50304, 50279, "olmo"),
     ("phi-3-mini", 32064, 32000, None), ("mistral-v1", 32000, 2, None)],
)  # fmt: skip
def test_corpus_has_the_ids_of_hugging_face(tmp_path: Path, name: str, rows: int, eos: int, pre: str | None) -> None:
    folder = copy_files(name, tmp_path, eos_token_id=eos)
    vocabulary = read_vocabulary(folder, rows)
    assert vocabulary.pre == pre
    texts = CORPUS
    if name == "olmo-neox":  # llama.cpp normalizes nothing
        assert [note for note in vocabulary.notes if "NFC" in note]
        texts = [text for text in CORPUS if normalizers.NFC().normalize_str(text) == text]
        assert len(texts) == 195
    if name == "mistral-v1":
        sentencepiece = pytest.importorskip("sentencepiece")
        encode = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, encode, texts) == []


@needs_llama
@needs_data
@pytest.mark.parametrize(("vectors", "name", "rows"), [("gpt-2", "gpt2", 50257), ("phi-3", "phi-3-mini", 32064)])
def test_vectors_of_llama_cpp_pass(tmp_path: Path, vectors: str, name: str, rows: int) -> None:
    vocabulary = read_vocabulary(copy_files(name, tmp_path, eos_token_id=2), rows)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert cut_otherwise(runtime, vectors) == []


def cut_otherwise(runtime: LlamaRuntime, name: str) -> list[str]:
    """Texts of llama.cpp's vectors that a vocabulary cuts otherwise."""
    cases = read_vectors(name)
    assert len(cases) > 40
    return [text for text, ids in cases if runtime.tokenize(text, parse_special=False) != ids]


@needs_llama
@needs_data
def test_llama_3_rebuilt_from_its_parts_passes_the_vectors(tmp_path: Path) -> None:
    fields = read_fields("llama-bpe")
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    content = json.loads(tokenizer.to_str())
    content["model"] |= {
        "vocab": {text: index for index, text in enumerate(fields["tokens"]) if fields["token_type"][index] == 1},
        "merges": fields["merges"],
    }
    content["added_tokens"] = [
        {"id": index, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for index, text in enumerate(fields["tokens"]) if fields["token_type"][index] == 3
    ]  # fmt: skip
    content["pre_tokenizer"] = json.loads(split_by(LLAMA3_PATTERN).__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = read_vocabulary(tmp_path, len(fields["tokens"]))
    assert vocabulary.pre == "llama-bpe"
    assert vocabulary.tokens == fields["tokens"]
    assert vocabulary.merges == fields["merges"]
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert cut_otherwise(runtime, "llama-bpe") == []
        theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert differing(runtime, lambda text: theirs.encode(text).ids, CORPUS) == []


@needs_llama
@needs_data
def test_llama_2_rebuilt_from_its_parts_passes_the_vectors(tmp_path: Path) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    fields = read_fields("llama-spm")
    model = proto.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.remove_extra_whitespaces = False
    for text, score, kind in zip(fields["tokens"], fields["scores"], fields["token_type"], strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    vocabulary = read_vocabulary(tmp_path, len(fields["tokens"]))
    assert vocabulary.tokens == fields["tokens"]
    assert vocabulary.scores == fields["scores"]
    assert vocabulary.types == fields["token_type"]
    assert (vocabulary.special_ids["bos"], vocabulary.special_ids["eos"], vocabulary.special_ids["unk"]) == (1, 2, 0)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert cut_otherwise(runtime, "llama-spm") == []


@needs_data
def test_scores_from_merges_are_those_of_sentencepiece(tmp_path: Path) -> None:
    fields = read_fields("phi-3")
    scores = read_vocabulary(copy_files("phi-3-mini", tmp_path), 32064).scores or []
    assert sum(score == theirs for score, theirs in zip(scores, fields["scores"], strict=True)) > 32000


@needs_llama
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_text_comes_back_with_every_space(tmp_path: Path, name: str) -> None:
    known = PRE_TOKENIZERS[name]
    tokenizer = train_byte_level(build_pre_tokenizer(known.expressions), 2000, ignore_merges=known.ignore_merges)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 2000)
    texts = [text for text in CORPUS if "<|endoftext|>" not in text]
    assert any(" ?" in text for text in texts)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert [text for text in texts if runtime.detokenize(runtime.tokenize(text)) != text] == []
        stream = TextStream(runtime.detokenize)
        pieces = [stream.push(token) for token in runtime.tokenize("a ? b ! 'c' . d 's ,")]
        assert "".join(pieces) + stream.finish() == "a ? b ! 'c' . d 's ,"


# --- pre-tokenizers ----------------------------------------------------------------------------------------------


def split_by(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_byte_level(pre_tokenizer: Any, size: int = 600, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False,
        min_frequency=1, max_token_length=12,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def crossing() -> Tokenizer:
    """Tokens that cross every border, so that ids show where a text was split."""
    return train_byte_level(split_by(), 9000)


@needs_llama
@pytest.mark.parametrize("name", list(PRE_TOKENIZERS))
def test_known_pre_tokenizer_splits_as_llama_cpp_does(tmp_path: Path, crossing: Tokenizer, name: str) -> None:
    known = PRE_TOKENIZERS[name]
    content = json.loads(crossing.to_str())
    content["model"]["ignore_merges"] = known.ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = build_pre_tokenizer(known.expressions)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 9000)
    expected, same = PRE_TOKENIZERS[str(vocabulary.pre)], PRE_TOKENIZERS[name]
    assert (expected.expressions, expected.ignore_merges) == (same.expressions, same.ignore_merges)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, CORPUS) == []


@needs_llama
@pytest.mark.parametrize(("known", "name"), sorted(set(pre_names.NAMES.values())))
def test_other_names_of_a_pre_tokenizer_split_alike_in_llama_cpp(
    tmp_path: Path, crossing: Tokenizer, monkeypatch: pytest.MonkeyPatch, known: str, name: str
) -> None:
    content = json.loads(crossing.to_str())
    content["model"]["ignore_merges"] = PRE_TOKENIZERS[known].ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = build_pre_tokenizer(PRE_TOKENIZERS[known].expressions)
    ids = tokenizer.encode(pre_names.TEXT).ids
    monkeypatch.setattr(
        pre_names, "NAMES", {hashlib.sha256(str(ids).encode()).hexdigest()[:16]: (known, name)}
    )  # as if the converter knew this vocabulary
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 9000)
    assert vocabulary.pre == name
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, CORPUS) == []


def test_a_name_that_splits_otherwise_is_not_taken(
    tmp_path: Path, crossing: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing = Tokenizer.from_str(crossing.to_str())
    crossing.pre_tokenizer = build_pre_tokenizer(PRE_TOKENIZERS["gpt-2"].expressions)
    ids = crossing.encode(pre_names.TEXT).ids
    wrong = {hashlib.sha256(str(ids).encode()).hexdigest()[:16]: ("tekken", "tekken-2")}
    monkeypatch.setattr(pre_names, "NAMES", wrong)
    vocabulary = read_vocabulary(write_files(tmp_path, crossing, eos_token="<|endoftext|>"), 9000)
    assert vocabulary.pre == "gpt-2"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_name_is_told_by_the_ids_with_the_bos_that_the_settings_add(
    tmp_path: Path, crossing: Tokenizer, monkeypatch: pytest.MonkeyPatch, adds_bos: bool
) -> None:
    crossing = Tokenizer.from_str(crossing.to_str())
    crossing.pre_tokenizer = build_pre_tokenizer(PRE_TOKENIZERS["deepseek-v3"].expressions)
    ids = crossing.encode(pre_names.TEXT).ids
    marks = [hashlib.sha256(str(numbers).encode()).hexdigest()[:16] for numbers in ([0, *ids], ids)]
    names = [pre_names.NAMES[mark] for mark in ("877081d19cf6996e", "b4b8ca1f9769494f")]
    monkeypatch.setattr(pre_names, "NAMES", dict(zip(marks, names, strict=True)))
    end = "<|endoftext|>"
    folder = write_files(tmp_path, crossing, bos_token=end, eos_token=end, add_bos_token=adds_bos)
    vocabulary = read_vocabulary(folder, 9000)
    assert vocabulary.add_bos == adds_bos
    assert vocabulary.pre == ("deepseek-v3" if adds_bos else "joyai-llm")


def test_known_pre_tokenizers_all_differ_on_the_probes() -> None:
    seen: dict[Any, str] = {}
    for name, known in PRE_TOKENIZERS.items():
        splitter = build_pre_tokenizer(known.expressions)
        pieces = tuple(tuple(p for p, _ in splitter.pre_tokenize_str(probe)) for probe in PROBES), known.ignore_merges
        assert pieces not in seen, f"{name} and {seen[pieces]} cannot be told apart"
        seen[pieces] = name


@pytest.mark.parametrize("name", [name for name, known in PRE_TOKENIZERS.items() if known.meant])
def test_tokenizer_that_a_name_was_meant_for_is_recognized_and_its_difference_noted(name: str) -> None:
    known = PRE_TOKENIZERS[name]
    tokenizer = train_byte_level(build_pre_tokenizer(known.meant or ()), 300, ignore_merges=known.ignore_merges)
    found, notes = identify_pre_tokenizer(json.loads(tokenizer.to_str()))
    assert found == name
    assert ["other ids" in note and name in note for note in notes] == [True]


@needs_llama
def test_falcon_splits_otherwise_and_has_the_ids_of_hugging_face(tmp_path: Path, crossing: Tokenizer) -> None:
    meant = build_pre_tokenizer(PRE_TOKENIZERS["falcon"].meant or ())
    tokenizer = train_byte_level(meant, 3000)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 3000)
    assert vocabulary.pre == "falcon"
    assert "none of the lines tried got other ids" in " ".join(vocabulary.notes)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, CORPUS) == []
    across = Tokenizer.from_str(crossing.to_str())  # where some tokens cross what only one of them splits
    across.pre_tokenizer = meant
    assert "such words get other ids" in " ".join(identify_pre_tokenizer(json.loads(across.to_str()))[1])


def test_unknown_pre_tokenizer_names_nearest_and_place() -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN.replace("{1,3}", "{1,2}")), 300)
    with pytest.raises(ExportError, match=r"nearest is (llama-bpe|qwen2|dbrx)") as caught:
        identify_pre_tokenizer(json.loads(tokenizer.to_str()))
    assert "'12'" in str(caught.value)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("pre_tokenizer", "said"),
    [(pre_tokenizers.ByteLevel(add_prefix_space=True), "space before every text"),
     (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), "like none")],
)  # fmt: skip
def test_byte_level_that_llama_cpp_cannot_do_is_refused(pre_tokenizer: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        identify_pre_tokenizer(json.loads(train_byte_level(pre_tokenizer, 300).to_str()))
    assert_one_line(caught.value)


# --- other kinds -------------------------------------------------------------------------------------------------


def sentencepiece_like(prefix: str, *, size: int = 700) -> Tokenizer:
    """A BPE over whole texts with byte fallback, with every way to make a token among its merges."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    learned.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=8, limit_alphabet=250)
    )
    model = json.loads(learned.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {text: index for index, text in enumerate(["<unk>", "<s>", "</s>", *BYTES, *pieces])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif prefix == "none":  # as gemma has it: nothing is left to split
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    return tokenizer


@needs_llama
@pytest.mark.parametrize("prefix", ["prepend", "none", "never", "always", "first"])
def test_sentencepiece_bpe_has_the_ids_of_hugging_face(tmp_path: Path, prefix: str) -> None:
    tokenizer = sentencepiece_like(prefix)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>"), 1000)
    assert vocabulary.model == "llama"
    assert vocabulary.add_space_prefix == (prefix in ("prepend", "always", "first"))
    texts = CORPUS
    if prefix in ("always", "first"):
        assert [note for note in vocabulary.notes if "starts with a space" in note]
        texts = [text for text in CORPUS if not text.startswith(" ")]
        assert len(texts) > 185
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, texts) == []


@needs_llama
@pytest.mark.parametrize("prefix", ["prepend", "first"])
def test_sentencepiece_chat_has_the_ids_of_hugging_face(tmp_path: Path, prefix: str) -> None:
    tokenizer = sentencepiece_like(prefix)
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    folder = write_files(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>")
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}"
    )
    vocabulary = read_vocabulary(folder, 1000)
    assert vocabulary.add_space_prefix == (prefix == "prepend")
    assert bool([note for note in vocabulary.notes if "as chats need it" in note]) == (prefix == "first")
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        chats = [f"<s>[INST] {text}[/INST] Yes, {text}</s>[INST] and?[/INST]" for text in CORPUS]
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, chats) == []


def runs_of(letter: str, longest: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Runs of a character as tokens, and all ways to make them, the shortest first."""
    merges = [(letter * one, letter * (size - one)) for size in range(2, longest + 1) for one in range(1, size)]
    return [letter * size for size in range(2, longest + 1)], merges


@needs_llama
@pytest.mark.parametrize("longest_first", [False, True], ids=["gemma-2", "gemma-3"])
def test_added_runs_are_cut_as_the_merges_cut_them(tmp_path: Path, longest_first: bool) -> None:
    content = json.loads(sentencepiece_like("none").to_str())
    model = content["model"]
    runs, merges = [], []
    for letter in "\u2581\n":
        pieces, made = runs_of(letter, 9)
        runs += pieces
        merges += made
    if longest_first:  # then those for one run are not adjacent
        merges.sort(key=lambda pair: -len(pair[0]))
    model["merges"] = [*merges, *(pair for pair in model["merges"] if "".join(pair) not in runs)]
    for run in ["\n", *runs]:
        model["vocab"].setdefault(run, len(model["vocab"]))
    held = [text for text in model["vocab"] if "\u2581\u2581" in text and text not in runs]
    assert held == []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    folder = write_files(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>")
    vocabulary = read_vocabulary(folder, 1100)
    texts = [*CORPUS, *(f"a{' ' * size}b\n{' ' * size}\n\n\n" for size in range(2, 60)), "a \u2581b"]
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, texts) == []


@needs_llama
def test_byte_that_stands_as_its_character_is_a_byte(tmp_path: Path) -> None:
    content = json.loads(sentencepiece_like("none").to_str())
    vocab = content["model"]["vocab"]
    assert "\x1b" not in vocab
    vocab["\x1b"] = vocab.pop("<0x1B>")  # as the files of Gemma 2 have the tab
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path, 1000)
    assert vocabulary.tokens[vocab["\x1b"]] == "<0x1B>"
    assert vocabulary.types[vocab["\x1b"]] == gguf.TokenType.BYTE
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, [*CORPUS, "\x1b[1m a\x1b\x1b"]) == []
        assert runtime.detokenize(runtime.tokenize("a\x1bb")) == "a\x1bb"


def test_merges_that_no_scores_can_express_are_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like("prepend")
    content = json.loads(tokenizer.to_str())
    merges = content["model"]["merges"]
    pieces = ["".join(merge) for merge in merges]
    place = next(at for at in range(1, len(pieces)) if pieces[at] == pieces[at - 1])
    apart = json.loads(json.dumps(content))
    apart["model"]["merges"].append(apart["model"]["merges"].pop(place))
    missing = json.loads(json.dumps(content))
    del missing["model"]["merges"][place]
    for changed, said in ((apart, "not adjacent"), (missing, "are not merged")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        with pytest.raises(ExportError, match=said) as caught:
            read_vocabulary(tmp_path, 1000)
        assert_one_line(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"normalizer": {"type": "Lowercase"}}, {"normalizer": None},
     {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}],
    ids=["lowercase", "raw-spaces", "digits"],
)  # fmt: skip
def test_sentencepiece_bpe_prepared_otherwise_is_refused(tmp_path: Path, change: Mapping[str, Any]) -> None:
    content = json.loads(sentencepiece_like("prepend").to_str()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ExportError) as caught:
        read_vocabulary(tmp_path, 1000)
    assert_one_line(caught.value)


def train_sentencepiece(folder: Path, **options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [text.replace("\n", " ") for text in CORPUS if text.isascii()] + CORPUS[20:30]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=700, minloglevel=2,
        character_coverage=1.0, num_threads=1, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@needs_llama
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False},
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False,
         "remove_extra_whitespaces": False, "user_defined_symbols": ["<tool>", "\u2581\u2581"]},
        {"model_type": "unigram"},
        {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    ],
    ids=["bpe", "bpe-symbols", "unigram-nfkc", "unigram-identity"],
)  # fmt: skip
def test_trained_sentencepiece_model_has_its_own_ids(tmp_path: Path, options: Mapping[str, Any]) -> None:
    processor = train_sentencepiece(tmp_path, **options)
    vocabulary = read_vocabulary(tmp_path, 720)
    assert vocabulary.model == ("llama" if options["model_type"] == "bpe" else "t5")
    # A visible space written out beside one is two to sentencepiece; runs of a mark have several likeliest ways.
    unigram = options["model_type"] == "unigram"
    texts = [text for text in CORPUS if "\u2581" not in text and not (unigram and RUN.search(text))]
    assert len(texts) > (140 if unigram else 198)
    texts.append("a <tool> b<tool>c  d   e")
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, processor.encode, texts) == []
    assert vocabulary.types[0] == gguf.TokenType.UNKNOWN
    if not unigram:  # as the files of Llama 2 say it
        decoder = {"0": {"content": "<unk>", "special": True}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        special = read_vocabulary(tmp_path, 720)
        assert (special.types[0], special.special_ids["unk"]) == (gguf.TokenType.CONTROL, 0)
        with open_vocabulary(special, tmp_path) as runtime:
            assert differing(runtime, processor.encode, texts) == []


@needs_llama
@pytest.mark.parametrize("splits", [False, True], ids=["whole", "T5"])
def test_unigram_of_tokenizer_json_has_the_ids_of_hugging_face(tmp_path: Path, splits: bool) -> None:
    lines = "\n".join(text.replace(" ", "\u2581") for text in CORPUS if text.isascii())
    counts = Counter(lines[at : at + length] for length in (1, 2, 3, 5) for at in range(len(lines) - length))
    pieces = [piece for piece, count in sorted(counts.items()) if len(piece) == 1 or count > 3]
    pieces = [piece for piece in pieces if not (splits and "\u2581" in piece[1:])]
    # Trained models differ from run to run; no two sums of these are alike.
    scores = [-8.0 - 0.37 * len(piece) - number**2 * 0.6180339887 % 1 for number, piece in enumerate(pieces)]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *zip(pieces, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    if splits:
        both = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always", split=True)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(both)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = write_files(tmp_path, tokenizer, eos_token="</s>")
    if splits:
        content = json.loads(tokenizer.to_str())
        del content["model"]["type"]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    vocabulary = read_vocabulary(folder, 3000)
    assert (vocabulary.model, vocabulary.add_bos, vocabulary.add_eos) == ("t5", False, True)
    texts = [text for text in CORPUS if not text.startswith(" ") and not RUN.search(text)]
    if splits:  # llama.cpp knows one kind of space, but for those that a table of normalizations makes one
        texts = ["  a   b  ", *(text for text in texts if not re.search(r"[^\S ]|\u2581", text))]
    assert len(texts) > 120
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, texts) == []
        assert runtime.tokenize("a b", add_special=True) == tokenizer.encode("a b").ids


@needs_llama
def test_unigram_with_byte_fallback_keeps_ascii(tmp_path: Path) -> None:
    words = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *((text, 0.0) for text in BYTES),
        ("\u2581a", -2.0),
        ("b", -3.0),
        ("\u2581", -4.0),
    ]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="</s>"), 300)
    assert any("beyond ASCII" in note for note in vocabulary.notes)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        texts = ["a b\n", "a\tb{c}", "zab ~"]
        assert differing(runtime, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, texts) == []
        assert runtime.tokenize("\u00e9")[-1] == 0
    scores = vocabulary.scores or []
    assert scores[vocabulary.tokens.index("\n")] == -14.0


@needs_llama
def test_wordpiece_has_the_ids_of_hugging_face(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=2500, special_tokens=specials, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    write_files(tmp_path, tokenizer, bos_token="[CLS]", eos_token="[SEP]", sep_token="[SEP]", unk_token="[UNK]")
    vocabulary = read_vocabulary(tmp_path, 2500)
    assert vocabulary.model == "bert"
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        texts = [text for text in CORPUS if text.isascii()]
        assert differing(runtime, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, texts) == []
        assert runtime.tokenize("a b", add_special=True) == tokenizer.encode("a b").ids


def write_rwkv(folder: Path, lines: Iterable[str], **settings: Any) -> Path:
    (folder / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text("{}")
    return folder


def rwkv_pieces() -> list[bytes]:
    """All bytes, then what is frequent in the corpus, cut anywhere in the bytes of a text."""
    texts = [text.encode() for text in CORPUS]
    counts = Counter(text[at : at + size] for text in texts for size in range(2, 9) for at in range(len(text)))
    longer = [piece for piece, count in counts.most_common(3000) if len(piece) > 1 and count > 1]
    return [bytes([value]) for value in range(256)] + [piece for piece in longer if b"\0" not in piece]


@needs_llama
def test_rwkv_takes_the_longest_piece_each_time(tmp_path: Path) -> None:
    pieces = rwkv_pieces()
    assert any(b"'" in piece for piece in pieces)
    assert any(b"\n" in piece for piece in pieces)
    lines = (f"{index} {piece!r} {len(piece)}" for index, piece in enumerate(pieces, start=1))
    end = "<|rwkv_tokenizer_end_of_text|>"
    write_rwkv(tmp_path, lines, eos_token=end, added_tokens_decoder={"0": {"content": end, "special": True}})
    rows = len(pieces) + 7
    vocabulary = read_vocabulary(tmp_path, rows)
    assert (vocabulary.model, len(vocabulary.tokens)) == ("rwkv", rows)
    assert vocabulary.tokens[0] == end
    assert vocabulary.tokens[-1] == f"[PAD{rows - 1}]"
    ids = {piece: index for index, piece in enumerate(pieces, start=1)}

    def encode(text: str) -> list[int]:
        rest, found = text.encode(), []
        while rest:
            longest = next(rest[:size] for size in range(8, 0, -1) if rest[:size] in ids)
            found.append(ids[longest])
            rest = rest[len(longest) :]
        return found

    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert differing(runtime, encode, CORPUS) == []
        assert runtime.tokenize("a", add_special=True) == encode("a")


@needs_llama
def test_rwkv_cuts_at_an_end_that_is_plain_text_before_anything_else(tmp_path: Path) -> None:
    pieces = ["a", "b", ".", "\n", ".\n\n", "\n\na", "\n\n"]
    lines = (f"{index} {piece!r} {len(piece)}" for index, piece in enumerate(pieces, start=1))
    vocabulary = read_vocabulary(write_rwkv(tmp_path, lines, eos_token="\n\n"), 8)
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert runtime.tokenize("a.\n\nab") == [1, 3, 7, 1, 2]
        assert runtime.tokenize("a.\nb") == [1, 3, 4, 2]


@pytest.mark.parametrize(
    ("eos", "config", "ends", "text"),
    [
        ("\n\n", {}, {"eos": 2}, "\n\n"),
        ("\n\n", {"eos_token_id": [0, 2]}, {"eos": 2, "eot": 0}, "\n\n"),
        ("<|rwkv_tokenizer_end_of_text|>", {}, {"eos": 0}, r"\n\n"),
        ("<|rwkv_tokenizer_end_of_text|>", {"eos_token_id": [0, 2]}, {"eos": 0, "eot": 2}, r"\n\n"),
    ],
)
def test_rwkv_answers_end_where_the_files_say(
    tmp_path: Path, eos: str, config: dict[str, Any], ends: dict[str, int], text: str
) -> None:
    write_rwkv(tmp_path, ["1 'a' 1", r"2 '\n\n' 2"], eos_token=eos)
    (tmp_path / "config.json").write_text(json.dumps(config))
    vocabulary = read_vocabulary(tmp_path, 4)
    assert vocabulary.tokens == ["<s>", "a", text, "[PAD3]"]
    assert {role: vocabulary.special_ids.get(role) for role in ends} == ends
    assert vocabulary.special_ids["bos"] == 0
    assert not vocabulary.add_bos


@pytest.mark.parametrize("line", ["1 'a' 2", "1 a 1", "x 'a' 1", "1", "1 'a", "1 1 1"])
def test_damaged_line_of_rwkvs_file_is_one_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ModelError, match="cannot be used") as caught:
        read_vocabulary(write_rwkv(tmp_path, [line]), 4)
    assert_one_line(caught.value)


# --- special tokens, templates, bad input ------------------------------------------------------------------------


@needs_llama
def test_answers_end_in_llama_cpp_wherever_they_end_in_mlx(tmp_path: Path) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    names = ["<|im_end|>", "<stop>", "<halt>", "<over>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer.add_special_tokens(names)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("<|tool|>")])
    folder = write_files(tmp_path, tokenizer, eos_token="<|endoftext|>")
    at = {name: tokenizer.token_to_id(name) for name in ["<|endoftext|>", *names, "<think>", "<|tool|>"]}
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [at["<|endoftext|>"], at["<|im_end|>"]]}))
    ends = [at["<stop>"], at["<halt>"]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    vocabulary = read_vocabulary(folder, 420)
    assert vocabulary.notes == []
    assert vocabulary.special_ids["fim_pre"] == at["<|fim_prefix|>"]
    assert vocabulary.types[at["<think>"]] == gguf.TokenType.USER_DEFINED
    assert vocabulary.types[at["<|tool|>"]] == gguf.TokenType.CONTROL
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert set(runtime.end_tokens) == {at[name] for name in ("<|endoftext|>", "<|im_end|>", "<stop>", "<halt>")}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, at["<over>"]]}))
    assert [note for note in read_vocabulary(folder, 420).notes if "<over>" in note]


@needs_llama
def test_end_that_llama_cpp_sees_in_plain_text_is_noted(tmp_path: Path) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_tokens([AddedToken("</s>"), AddedToken("<|im_end|>", special=True)])  # the first as Gemma 3 has it
    folder = write_files(tmp_path, tokenizer, eos_token="<|im_end|>")
    vocabulary = read_vocabulary(folder, 420)
    assert vocabulary.notes == ["</s> is text to the tokenizer; llama.cpp takes it for a token that ends answers"]
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert tokenizer.token_to_id("</s>") in runtime.end_tokens


@needs_llama
@pytest.mark.parametrize(
    ("single", "settings", "roles"),
    [
        ("<s> $A", {}, {"bos": "<s>"}),
        ("<s> $A", {"bos_token": "<other>"}, {"bos": "<other>"}),
        ("<s> $A </s>", {}, {"bos": "<s>", "eos": "</s>"}),
        ("$A", {}, {"bos": "[gMASK]"}),
    ],
    ids=["first", "named otherwise", "both", "GLM"],
)
def test_what_is_put_around_every_text_has_its_role_where_no_file_gives_it(
    tmp_path: Path, single: str, settings: dict[str, str], roles: dict[str, str]
) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_special_tokens(["<s>", "</s>", "<other>", *(["[gMASK]"] if roles["bos"] == "[gMASK]" else [])])
    special = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=special)
    ends = {} if "eos" in roles else {"eos_token": "<|endoftext|>"}
    folder = write_files(tmp_path, tokenizer, **ends, **settings)
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 7} if "<s>" in single else {}))  # of no weight
    vocabulary = read_vocabulary(folder, 420)
    assert {role: vocabulary.tokens[vocabulary.special_ids[role]] for role in roles} == roles
    around = tokenizer.encode("ab").ids
    if settings:
        assert "llama.cpp can add only bos and eos" in " ".join(vocabulary.notes)
        return
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        assert runtime.tokenize("ab", add_special=True) == around


@needs_llama
def test_added_token_keeps_the_id_it_has_whatever_the_settings_say(tmp_path: Path) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_special_tokens(["<end>"])
    texts = ("<end>", "<|endoftext|>", "  ")  # the last has no id of its own, and none is left for it
    decoder = {str(300 + at): {"content": text, "special": True} for at, text in enumerate(texts)}
    folder = write_files(tmp_path, tokenizer, eos_token="<end>", added_tokens_decoder=decoder)
    vocabulary = read_vocabulary(folder, 420)
    assert vocabulary.special_ids["eos"] == tokenizer.token_to_id("<end>") == 400
    with open_vocabulary(vocabulary, tmp_path) as runtime:
        lines = [*CORPUS, "a<end>b<|endoftext|>"]
        assert differing(runtime, lambda text: tokenizer.encode(text).ids, lines) == []


def test_padding_and_truncation_of_a_training_run_do_not_count(tmp_path: Path) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_special_tokens(["<s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="$A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_padding(length=8, pad_token="<pad>", pad_id=tokenizer.token_to_id("<pad>"))
    tokenizer.enable_truncation(4)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 420)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.notes) == (True, False, [])
    assert vocabulary.tokens[vocabulary.special_ids["bos"]] == "<s>"


def test_end_of_code_llamas_infill_is_named(tmp_path: Path) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_special_tokens(["\u2581<PRE>", "\u2581<EOT>"])
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="<|endoftext|>"), 420)
    named = {role: vocabulary.tokens[vocabulary.special_ids[role]] for role in ("fim_pre", "eot")}
    assert named == {"fim_pre": "\u2581<PRE>", "eot": "\u2581<EOT>"}


def test_zero_character_is_written_as_llama_cpps_converter_does() -> None:
    tokens, _ = lay_out({0: "a", 1: "\0"}, {}, {}, 2)
    assert tokens == ["a", "\U0001f409"]
    with pytest.raises(ExportError, match="as is"):
        lay_out({0: "\U0001f409", 1: "\0"}, {}, {}, 2)


@pytest.mark.parametrize(("pair", "said"), [("$A <s> $B", False), ("<s> $A $B", None), ("<s> $A $B </s>", None)])
def test_separator_of_pairs_is_said_not_to_be_added(tmp_path: Path, pair: str, said: bool | None) -> None:
    tokenizer = train_byte_level(split_by(LLAMA3_PATTERN), 400)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    special = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair=pair, special_tokens=special)
    vocabulary = read_vocabulary(write_files(tmp_path, tokenizer, eos_token="</s>", add_prefix_space=False), 420)
    assert vocabulary.options.get("add_sep_token") == said
    assert vocabulary.add_space_prefix is False


def test_several_templates_are_written_under_names_that_ggml_allows(tmp_path: Path) -> None:
    folder = write_files(tmp_path, train_byte_level(split_by(LLAMA3_PATTERN), 400))
    (folder / "chat_template.jinja").write_text("A")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool-use.jinja").write_text("B")
    vocabulary = read_vocabulary(folder, 400)
    assert vocabulary.chat_templates == {"default": "A", "tool-use": "B"}
    fields = gguf.GGUFReader(write_vocabulary(vocabulary, tmp_path / "v.gguf")).fields
    assert fields["tokenizer.chat_template"].contents() == "A"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "B"
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]


@pytest.mark.parametrize(
    "damage",
    [lambda t: t["model"].pop("vocab"), lambda t: t["model"].update(vocab=[]), lambda t: t.update(model=3),
     lambda t: t["model"]["merges"].append(["only"]), lambda t: t.update(added_tokens=[{"id": "x"}]),
     lambda t: t.update(pre_tokenizer={"type": "Nonsense"})],
    ids=["no-vocab", "vocab-list", "no-model", "merge", "added", "pre"],
)  # fmt: skip
def test_damaged_tokenizer_is_one_line(tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(train_byte_level(split_by(LLAMA3_PATTERN), 300).to_str())
    damage(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises((ModelError, ExportError)) as caught:
        read_vocabulary(tmp_path, 400)
    assert_one_line(caught.value)


def test_file_that_is_no_sentencepiece_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"tokenizer\.model cannot be read") as caught:
        read_vocabulary(tmp_path, 400)
    assert_one_line(caught.value)
