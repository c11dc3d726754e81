"""Keys and values as they stand in a GGUF file; a vocabulary's arrays are packed as a whole.

The package ``gguf`` packs them item by item: for the 150,000 tokens of a usual vocabulary that takes longer than
copying a gigabyte of weights. Source: GGUF v3 (``docs/gguf.md`` of ggml).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import gguf

_TYPES = gguf.GGUFValueType
_FORMATS = {
    _TYPES.UINT8: "B",
    _TYPES.INT8: "b",
    _TYPES.UINT16: "H",
    _TYPES.INT16: "h",
    _TYPES.UINT32: "I",
    _TYPES.INT32: "i",
    _TYPES.FLOAT32: "f",
    _TYPES.BOOL: "?",
    _TYPES.UINT64: "Q",
    _TYPES.INT64: "q",
    _TYPES.FLOAT64: "d",
}


def encode_keys(keys: Mapping[str, gguf.GGUFValue]) -> bytes:
    """All keys with their values, little-endian, in order.

    Args:
        keys: as ``gguf.GGUFWriter.kv_data`` holds them; arrays not empty, of numbers, booleans or texts of one type.

    Raises:
        ValueError: an array is empty or its items differ in type.
        struct.error: a number does not fit its type.
    """
    parts = []
    for name, value in keys.items():
        parts += [_encode_texts([name]), struct.pack("<I", value.type)]
        if value.type is _TYPES.ARRAY:
            kind = _kind_of_items(name, value)
            parts += [struct.pack("<IQ", kind, len(value.value)), _encode_items(value.value, kind)]
        else:
            parts.append(_encode_items([value.value], value.type))
    return b"".join(parts)


def _kind_of_items(name: str, value: gguf.GGUFValue) -> gguf.GGUFValueType:
    items = value.value
    if value.sub_type is not None and items:
        return value.sub_type
    if isinstance(items, bytes):
        return _TYPES.UINT8
    kinds = {_TYPES.get_type(kind()) for kind in set(map(type, items))}
    if len(kinds) != 1:
        raise ValueError(f"{name} is an array of {len(kinds)} types")
    return kinds.pop()


def _encode_items(items: Sequence[Any], kind: gguf.GGUFValueType) -> bytes:
    if kind is _TYPES.STRING:
        return _encode_texts(items)
    return struct.pack(f"<{len(items)}{_FORMATS[kind]}", *items)


def _encode_texts(texts: Sequence[str | bytes]) -> bytes:
    encoded = [text.encode("utf-8") if isinstance(text, str) else text for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(8, "little"), text))
