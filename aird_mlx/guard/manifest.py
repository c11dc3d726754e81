"""What a file says about itself: how it was made, what it measured, how to tell whether it still refuses.

Kept in the file as ``aird.*`` keys (text, numbers and booleans only: llama.cpp's interface reads no arrays), written by
`seal` when the file is done and read back by `read_manifest`. Knows the layout of a GGUF file, nothing about models.
"""

from __future__ import annotations

import array
import base64
import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aird_mlx.errors import IntegrityError
from aird_mlx.guard.cursor import STRING, Scalar
from aird_mlx.guard.hashes import DIGITS, ROOT_KEY, TENSORS_KEY
from aird_mlx.guard.structure import Structure

PREFIX = "aird."
TEMPLATE_KEY = "tokenizer.chat_template"
_OWN = ("aird.hash.", "aird.probe", "aird.canary.", "aird.template")


@dataclass(frozen=True)
class Probe:
    """What tells harmful prompts from others in the residual stream of this very file, as llama.cpp computes it.

    Attributes:
        layers: inputs of these blocks are read, each at least 1, ascending.
        tokens: how many of the prompt's last tokens are read.
        weight: ``[layer * token * hidden]``; a prompt's score is its product with what is read, plus ``offset``.
        offset: makes benign validation prompts score 0 on average; the weight makes them spread by 1.
        harmful, benign: mean and standard deviation of the scores of validation prompts.
        threshold: above it a prompt counts as harmful; of harmless prompts it was not fitted on at most 1 % are.
        auc: chance that a harmful validation prompt scores above a benign one.
        prompts: how many harmful, harmless and twin prompts it was validated on.
    """

    layers: tuple[int, ...]
    tokens: int
    weight: tuple[float, ...]
    offset: float
    harmful: tuple[float, float]
    benign: tuple[float, float]
    threshold: float
    auc: float
    prompts: tuple[int, int, int]

    @cached_property
    def weights(self) -> array.array[float]:
        """``weight`` as numbers side by side: made once, read for every prompt."""
        return array.array("d", self.weight)


@dataclass(frozen=True)
class CanaryRecord:
    """What the file did with the canary prompts when it was written, one letter or entry per prompt.

    Attributes:
        set: names the prompts and, by a hash, their words.
        max_new_tokens: of each answer.
        classes: r for refusal, c for compliance, i for incoherent; ``dense``: the model it was made from.
        token_ids: hash of each rendered prompt's ids, as the source model's own tokenizer gives them.
        first: the answer's first token, ``log_probability``: of that token, nats.
        alarms: letters too, a where the probe takes the prompt for harmful, - where it does not; "" without a probe.
    """

    set: str
    max_new_tokens: int
    classes: str
    dense: str
    token_ids: tuple[str, ...]
    first: tuple[int, ...]
    log_probability: tuple[float, ...]
    alarms: str = ""


@dataclass(frozen=True)
class Manifest:
    """All ``aird.*`` keys.

    Attributes:
        facts: how the file was made and what was measured, by key without ``aird.``.
        template: the chat template it was written with, None if it had none.
        probe: None where there is none; ``no_probe`` then says why.
    """

    facts: dict[str, Scalar] = field(default_factory=dict)
    template: str | None = None
    probe: Probe | None = None
    no_probe: str = ""
    canaries: CanaryRecord | None = None


def manifest_keys(manifest: Manifest) -> dict[str, Scalar]:
    """A manifest as keys of a GGUF file; `read_manifest` is its inverse."""
    keys: dict[str, Scalar] = {PREFIX + name: value for name, value in manifest.facts.items()}
    if manifest.template is not None:
        keys["aird.template"] = manifest.template
    probe, canaries = manifest.probe, manifest.canaries
    if probe is None:
        keys["aird.probe"] = f"none: {manifest.no_probe}"
    else:
        keys |= {
            "aird.probe.layers": json.dumps(probe.layers),
            "aird.probe.tokens": probe.tokens,
            "aird.probe.weight": base64.b64encode(_little(array.array("f", probe.weight))).decode("ascii"),
            "aird.probe.offset": probe.offset,
            "aird.probe.harmful.mean": probe.harmful[0],
            "aird.probe.harmful.deviation": probe.harmful[1],
            "aird.probe.benign.mean": probe.benign[0],
            "aird.probe.benign.deviation": probe.benign[1],
            "aird.probe.threshold": probe.threshold,
            "aird.probe.auc": probe.auc,
            "aird.probe.prompts": json.dumps(probe.prompts),
        }
    if canaries is not None:
        keys |= {
            "aird.canary.set": canaries.set,
            "aird.canary.max_new_tokens": canaries.max_new_tokens,
            "aird.canary.classes": canaries.classes,
            "aird.canary.dense": canaries.dense,
            "aird.canary.alarms": canaries.alarms,
            "aird.canary.token_ids": json.dumps(canaries.token_ids),
            "aird.canary.first": json.dumps(canaries.first),
            "aird.canary.log_probability": json.dumps(canaries.log_probability),
        }
    return keys


def read_manifest(structure: Structure) -> Manifest | None:
    """The manifest of a file, None if it has no key of this project's.

    Raises:
        IntegrityError: it is incomplete, or a value is of another type or out of range.
    """
    ours = {name: entry.value for name, entry in structure.keys.items() if name.startswith(PREFIX)}
    if not ours:
        return None
    values = {name: value for name, value in ours.items() if value is not None}
    for key in (ROOT_KEY, TENSORS_KEY):
        if not isinstance(values.get(key), str):
            raise _broken(f"there are {len(ours)} aird keys, and no {key}")
    try:
        return Manifest(
            facts={name.removeprefix(PREFIX): value for name, value in values.items() if not name.startswith(_OWN)},
            template=_text(values, "aird.template") if "aird.template" in values else None,
            probe=None if "aird.probe" in values else _read_probe(values, structure),
            no_probe=str(values.get("aird.probe", "")).removeprefix("none: "),
            canaries=_read_canaries(values) if "aird.canary.set" in values else None,
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _broken(f"a key is missing or broken ({type(error).__name__} {error!s:.80})") from error


def recorded_hashes(structure: Structure) -> tuple[str, list[str]]:
    """The root hash and the tensors' hashes that a file with a manifest carries.

    Raises:
        IntegrityError: there is not one for each tensor.
    """
    root, listed = structure.text(ROOT_KEY) or "", (structure.text(TENSORS_KEY) or "").split()
    if len(root) != DIGITS or len(listed) != len(structure.tensors):
        raise _broken(f"{len(listed)} hashes for {len(structure.tensors)} tensors, and a root of {len(root)} digits")
    return root, listed


def _read_probe(values: Mapping[str, Scalar], structure: Structure) -> Probe:
    raw = array.array("f")
    raw.frombytes(base64.b64decode(_text(values, "aird.probe.weight"), validate=True))
    weight = tuple(array.array("f", _little(raw)))
    names = ("offset", "harmful.mean", "harmful.deviation", "benign.mean", "benign.deviation", "threshold", "auc")
    numbers = {name: _number(values, f"aird.probe.{name}") for name in names}
    if not all(map(math.isfinite, (*weight, *numbers.values()))):
        raise ValueError("the probe has a value that is not finite")
    layers = tuple(_list(values, "aird.probe.layers", int))
    tokens = _whole(values, "aird.probe.tokens")
    architecture = structure.text("general.architecture")
    width, blocks = (structure.whole(f"{architecture}.{name}") for name in ("embedding_length", "block_count"))
    if (
        not layers
        or list(layers) != sorted(set(layers))
        or layers[0] < 1
        or (blocks is not None and layers[-1] >= blocks)
    ):
        raise ValueError(f"the probe does not fit {architecture}.block_count {blocks}")
    if tokens < 1 or len(weight) % (len(layers) * tokens) or not 0 <= numbers["auc"] <= 1:
        raise ValueError("the probe's tokens, weights or AUC are out of range")
    if width is not None and len(weight) != len(layers) * tokens * width:
        raise ValueError(f"the probe does not fit {architecture}.embedding_length {width}")
    counts = _list(values, "aird.probe.prompts", int, 3)
    return Probe(
        layers,
        tokens,
        weight,
        numbers["offset"],
        (numbers["harmful.mean"], numbers["harmful.deviation"]),
        (numbers["benign.mean"], numbers["benign.deviation"]),
        numbers["threshold"],
        numbers["auc"],
        (counts[0], counts[1], counts[2]),
    )


def _read_canaries(values: Mapping[str, Scalar]) -> CanaryRecord:
    classes = _text(values, "aird.canary.classes")
    count = len(classes)
    record = CanaryRecord(
        _text(values, "aird.canary.set"),
        _whole(values, "aird.canary.max_new_tokens"),
        classes,
        _text(values, "aird.canary.dense"),
        tuple(_list(values, "aird.canary.token_ids", str, count)),
        tuple(_list(values, "aird.canary.first", int, count)),
        tuple(_list(values, "aird.canary.log_probability", float, count)),
        _text(values, "aird.canary.alarms"),
    )
    if {*record.alarms} - {*"a-"} or len(record.alarms) not in (0, count):
        raise ValueError("the canaries' alarms are out of range")
    if not 0 < record.max_new_tokens <= 4096 or {*classes, *record.dense} - {*"rci"} or len(record.dense) != count:
        raise ValueError("the canary record is out of range")
    return record


def _text(values: Mapping[str, Scalar], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _number(values: Mapping[str, Scalar], key: str) -> float:
    value = values[key]
    if isinstance(value, str):
        raise TypeError(f"{key} is no number")
    return float(value)


def _whole(values: Mapping[str, Scalar], key: str) -> int:
    value = values[key]
    if type(value) is not int:
        raise TypeError(f"{key} is no whole number")
    return value


def _list(values: Mapping[str, Scalar], key: str, kind: type, count: int | None = None) -> list[Any]:
    """A list in JSON; ``count`` None takes any length."""
    found = json.loads(_text(values, key))
    if (
        not isinstance(found, list)
        or (count is not None and len(found) != count)
        or not all(type(one) is kind for one in found)
    ):
        raise ValueError(f"{key} is no list of {'any' if count is None else count} {kind.__name__}")
    return found


def _little(values: array.array[float]) -> bytes:
    if sys.byteorder == "big":
        values = array.array("f", values)
        values.byteswap()
    return values.tobytes()


def _broken(seen: str) -> IntegrityError:
    return IntegrityError(f"manifest: {seen}; whole aird keys are needed. Get the file again.")


def encode_scalars(keys: Mapping[str, Scalar]) -> bytes:
    """Keys as they stand in a GGUF file: text, whole numbers and floats of 64 bit, booleans."""
    parts = []
    for name, value in keys.items():
        parts.append(encode_text(name))
        if isinstance(value, bool):
            parts.append(struct.pack("<I?", 7, value))
        elif isinstance(value, int):
            parts.append(struct.pack("<Iq", 11, value))
        elif isinstance(value, float):
            parts.append(struct.pack("<Id", 12, value))
        else:
            parts += [struct.pack("<I", STRING), encode_text(value)]
    return b"".join(parts)


def encode_text(text: str) -> bytes:
    """A text as it stands in a GGUF file: its length in bytes, then these."""
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded
