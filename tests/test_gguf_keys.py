"""Keys of a GGUF file: the same bytes as the package gguf writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFValue
from gguf import GGUFValueType as Kind
from hypothesis import given
from hypothesis import strategies as st

from aird_mlx.gguf_export.keys import encode_keys

WHOLE = {
    kind: st.integers(-(2 ** (bits - 1)) * signed, 2 ** (bits - signed) - 1)
    for bits, unsigned, whole in (
        (8, Kind.UINT8, Kind.INT8),
        (16, Kind.UINT16, Kind.INT16),
        (32, Kind.UINT32, Kind.INT32),
        (64, Kind.UINT64, Kind.INT64),
    )
    for kind, signed in ((unsigned, 0), (whole, 1))
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SINGLE = WHOLE | {
    Kind.FLOAT32: st.floats(width=32, allow_nan=False),
    Kind.FLOAT64: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
    Kind.STRING: TEXT | st.binary(),
}
VALUES = st.one_of(
    *(st.builds(GGUFValue, value, st.just(kind)) for kind, value in SINGLE.items()),
    # What an array is made of is told, or seen by its items.
    *(
        st.builds(GGUFValue, st.lists(value, min_size=1), st.just(Kind.ARRAY), st.just(kind))
        for kind, value in SINGLE.items()
    ),
    *(
        st.builds(GGUFValue, items, st.just(Kind.ARRAY))
        for items in (
            st.lists(WHOLE[Kind.INT32], min_size=1),
            st.lists(TEXT | st.binary(), min_size=1),
            st.lists(SINGLE[Kind.FLOAT32], min_size=1),
            st.lists(st.booleans(), min_size=1),
            st.binary(min_size=1),
        )
    ),
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_bytes_are_those_of_gguf(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, GGUFValue]) -> None:
    assert encode_keys(keys) == written_by_gguf(tmp_path_factory.getbasetemp() / "keys.gguf", keys)


@pytest.mark.parametrize("items", [[], [1, "one"], [True, 1]])
def test_arrays_that_cannot_be_written(items: Sequence[Any]) -> None:
    with pytest.raises(ValueError, match="key is an array of"):
        encode_keys({"key": GGUFValue(items, Kind.ARRAY)})


def written_by_gguf(path: Path, keys: dict[str, GGUFValue]) -> bytes:
    writer = gguf.GGUFWriter(path, "none")
    writer.kv_data = [keys]
    writer.write_header_to_file()
    start = writer.fout[0].tell()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()[start:]
