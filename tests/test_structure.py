"""The reader of hostile files: what it accepts PyPI's gguf reads the same, and nothing crashes or fills the memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aird_mlx.errors import AirdError, IntegrityError
from aird_mlx.guard.cursor import STRING
from aird_mlx.guard.manifest import encode_scalars
from aird_mlx.guard.structure import Structure, read_structure
from aird_mlx.guard.verify import verify_file

MEMORY = 64 << 20
HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def read_bytes(tmp_path: Path, content: bytes) -> Structure:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return read_structure(path)


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return text(b"k") + struct.pack("<IIQ", 9, kind, count) + values


def padded(content: bytes, data: int) -> bytes:
    return content + bytes(-len(content) % 32) + bytes(data)


def test_structure_is_what_gguf_reads(sealed_gguf: Path) -> None:
    structure, reader = read_structure(sealed_gguf), gguf.GGUFReader(sealed_gguf)
    assert [one.name for one in structure.tensors] == [one.name for one in reader.tensors]
    for ours, theirs in zip(structure.tensors, reader.tensors, strict=True):
        assert (ours.start, ours.size, ours.type) == (theirs.data_offset, theirs.n_bytes, theirs.tensor_type)
        assert list(ours.shape) == theirs.shape.tolist()
    assert structure.keys.keys() == {name for name in reader.fields if not name.startswith("GGUF.")}
    for name, entry in structure.keys.items():
        if entry.value is not None:
            assert entry.value == reader.fields[name].contents()
    assert structure.data_start == reader.data_offset


def test_real_vocabularies_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    writer.add_token_list([f"token {number}" for number in range(60_000)])  # more than one block of the reader
    writer.add_token_scores([0.5] * 60_000)
    writer.add_bool("x", True)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    structure = read_structure(tmp_path / "v.gguf")
    assert structure.keys["x"].value is True and structure.keys["tokenizer.ggml.tokens"].value is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "needs 4 bytes here"),
        (b"GGU", "needs 4 bytes here"),
        (b"PK\x03\x04" + bytes(40), "it starts with"),
        (header(version=4), "version 4"),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(tensors=2**63), "tensors are announced"),
        (header(keys=2**63), "keys are announced"),
        (header(keys=1) + struct.pack("<Q", 2**63) + bytes(8), "a key's name has"),
        (header(keys=1) + text(b"") + bytes(8), "has no name"),
        (header(keys=1) + text(b"\xff") + bytes(8), "not UTF-8"),
        (header(keys=1) + text(b"k") + struct.pack("<II", 77, 0), "unknown type 77"),
        (header(keys=1) + text(b"k") + struct.pack("<IQ", STRING, 2**62), "4194304 are known"),
        (header(keys=1) + text(b"k") + struct.pack("<I", STRING) + text(b"\xff"), "not UTF-8"),
        (header(keys=1) + array(0, 2**62), "needs 4611686018427387904 bytes"),
        (header(keys=1) + array(12, 2**61), "bytes here"),
        (header(keys=1) + array(STRING, 2**62), "announces"),
        (header(keys=1) + array(STRING, 1, struct.pack("<Q", 2**64 - 1)), "holds a string that ends"),
        (header(keys=1) + array(55, 1, bytes(8)), "unknown type 55"),
        (header(keys=1) + array(9, 1, struct.pack("<IQ", 9, 1) * 50), "nested"),
        (header(keys=2) + encode_scalars({"a": 1}) * 2, "there twice"),
        (header(keys=1) + encode_scalars({"general.alignment": 32}), "of type 11"),
        (header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "power of two"),
        (header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 48), "power of two"),
        (header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 1 << 30), "at most"),
        (header(tensors=1) + padded(tensor(shape=(8, 8, 8, 8, 8)), 64), "5 dimensions"),
        (header(tensors=1) + text(b"a") + struct.pack("<I", 0) + bytes(64), "0 dimensions"),
        (header(tensors=1) + text(b"a" * 64) + bytes(64), "a tensor's name has 64"),
        (header(tensors=1) + padded(tensor(shape=(2**33, 2**33, 2**33)), 64), "needs"),
        (header(tensors=1) + padded(tensor(shape=(0,)), 64), "does not fit its type"),
        (header(tensors=1) + padded(tensor(shape=(33,), kind=8), 64), "does not fit its type"),
        (header(tensors=1) + padded(tensor(kind=999), 64), "unknown type 999"),
        (header(tensors=1) + padded(tensor(offset=32), 64), "0, behind the one before"),
        (header(tensors=2) + padded(tensor() + tensor(b"b"), 64), "32, behind the one before"),
        (header(tensors=2) + padded(tensor() + tensor(offset=32), 64), "there twice"),
        (padded(header(tensors=1) + tensor(), 31), "ends at byte"),
        (padded(header(tensors=1) + tensor(), 64), "32 bytes follow the last tensor"),
        (header() + bytes(40), "40 bytes follow"),
    ],
)  # fmt: skip
def test_contradiction_is_said_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=said) as raised:
        read_bytes(tmp_path, content)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 5


def test_smallest_files_are_read(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, header()).tensors == ()
    whole = read_bytes(tmp_path, padded(header(tensors=1) + tensor(), 32))
    assert [(one.start, one.size) for one in whole.tensors] == [(64, 32)]


def test_what_is_no_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(AirdError, match="cannot be read") as raised:
            read_structure(path)
        assert raised.value.exit_code == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.one_of(
            st.text(max_size=30),
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
        ),
        max_size=6,
    ).filter(lambda keys: "general.alignment" not in keys)
)
def test_keys_come_back_as_they_were_encoded(tmp_path: Path, keys: dict[str, str | int | float | bool]) -> None:
    structure = read_bytes(tmp_path, header(keys=len(keys)) + encode_scalars(keys))
    assert {name: entry.value for name, entry in structure.keys.items()} == keys
    content = (tmp_path / "m.gguf").read_bytes()
    for name, entry in structure.keys.items():
        if isinstance(keys[name], str):
            assert content[entry.start : entry.end].decode() == keys[name]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 5), st.integers(0, 5))
def test_any_bytes_are_a_structure_or_an_integrity_error(tmp_path: Path, rest: bytes, tensors: int, keys: int) -> None:
    try:
        structure = read_bytes(tmp_path, header(tensors, keys) + rest)
    except IntegrityError:
        pass
    else:
        assert (len(structure.tensors), len(structure.keys)) == (tensors, keys)
        assert all(one.start + one.size <= structure.size for one in structure.tensors)


def mutate(content: bytes, metadata: int, chance: random.Random) -> bytes:
    """A file with a hostile header: bytes changed, numbers made huge, parts cut out, doubled or cut off."""
    mutated = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(metadata, len(mutated)) or 1)
        kind = chance.randrange(6)
        if kind == 0:
            mutated[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            mutated[at : at + 8] = struct.pack("<Q", chance.choice(HUGE))
        elif kind == 2:
            del mutated[at : at + chance.randint(1, 64)]
        elif kind == 3:
            mutated[at:at] = mutated[at : at + chance.randint(1, 64)]
        elif kind == 4:
            mutated[at : at + 4] = struct.pack("<I", chance.choice((0, 8, 9, 12, 255, 2**32 - 1)))
        else:
            del mutated[chance.randrange(len(mutated) + 1) :]
        if not mutated:
            break
    return bytes(mutated)


def fuzz(content: bytes, metadata: int, path: Path, count: int) -> tuple[int, int]:
    """Verify so many mutations; how many failed, and the most memory that was held."""
    chance = random.Random(0)
    failed = 0
    tracemalloc.start()
    try:
        for _ in range(count):
            mutated = mutate(content, metadata, chance)
            path.write_bytes(mutated)
            found = verify_file(path)
            assert found.exit_code == 5 or mutated == content, found
            failed += found.exit_code == 5
            assert all("\n" not in check.said for check in found.checks)
        return failed, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_fuzzed_headers_are_errors_and_hold_little_memory(sealed_gguf: Path, tmp_path: Path) -> None:
    metadata = read_structure(sealed_gguf).data_start
    failed, peak = fuzz(sealed_gguf.read_bytes(), metadata, tmp_path / "m.gguf", 300)
    assert failed >= 290
    assert peak < MEMORY


@pytest.mark.slow
def test_ten_thousand_fuzzed_headers(sealed_gguf: Path, tmp_path: Path) -> None:
    metadata = read_structure(sealed_gguf).data_start
    failed, peak = fuzz(sealed_gguf.read_bytes(), metadata, tmp_path / "m.gguf", 10_000)
    assert failed >= 9_900
    assert peak < MEMORY


def test_file_of_nothing_but_text_holds_little_memory(tmp_path: Path) -> None:
    emoji = "\U0001f600".encode()
    keys = [text(f"k{number}".encode()) + struct.pack("<I", STRING) + text(emoji * 1_000_000) for number in range(12)]
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="bytes of text"):
            read_bytes(tmp_path, header(keys=len(keys)) + b"".join(keys))
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
