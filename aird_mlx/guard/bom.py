"""A bill of materials beside a GGUF file: what it is, what it was made from and what was measured, for inventories.

CycloneDX 1.6 as JSON, one component of type machine-learning-model with its model card. Everything in it is read from
the sealed file, so equal files get equal bills. Written here because cyclonedx-python-lib (11.12) has no model cards;
the tests validate with it. Source: https://cyclonedx.org/docs/1.6/json, purl-spec's type ``huggingface``.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from aird_mlx.errors import IntegrityError
from aird_mlx.evaluation import wilson_rate
from aird_mlx.guard.cursor import Scalar
from aird_mlx.guard.hashes import ROOT_KEY, read_range
from aird_mlx.guard.manifest import PREFIX, Manifest, read_manifest, recorded_hashes
from aird_mlx.guard.structure import Structure, opened, parse
from aird_mlx.prompts import KINDS
from aird_mlx.workspace import whole_file

HUB = "https://huggingface.co/"
MOST_PARENTS = 100
_JUDGED = (
    "A refusal rate is the share of generated answers to held-out prompts that rules for English judge a refusal, with "
    "its Wilson 95 % interval; it holds for prompts like those."
)

Entry = dict[str, Any]


def bom_of(path: Path) -> Path:
    """Where the bill of materials of a file lies beside it: ``NAME.gguf.cdx.json``."""
    return path.with_name(path.name + ".cdx.json")


def write_bom(path: Path) -> Path:
    """Write the bill of materials of a sealed file beside it; where it is.

    Raises:
        IntegrityError: the file is damaged, or has no manifest. OSError: it cannot be written.
    """
    bom = make_bom(path)
    with whole_file(bom_of(path)) as partial:
        partial.write_text(json.dumps(bom, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return bom_of(path)


def make_bom(path: Path) -> Entry:
    """The bill of materials of a sealed file.

    Raises:
        IntegrityError: the file is damaged, or has no manifest.
    """
    digest = hashlib.sha256()
    with opened(path) as descriptor:
        structure = parse(descriptor)
        for chunk in read_range(descriptor, 0, structure.size):
            digest.update(chunk)
    manifest = read_manifest(structure)
    if manifest is None:
        raise IntegrityError(
            f"bill of materials: {path} has no manifest; a file that says how it was made is needed. Use one that "
            "`aird-mlx repair` wrote."
        )
    root, _ = recorded_hashes(structure)
    tool = {"type": "application", "name": "aird-mlx", "version": str(manifest.facts.get("version", ""))}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"urn:sha256:{digest.hexdigest()}").urn,
        "version": 1,
        "metadata": {
            "tools": {"components": [tool]},
            "component": _component(path.name, structure, manifest, root, digest.hexdigest()),
        },
    }


def _component(file: str, structure: Structure, manifest: Manifest, root: str, sha256: str) -> Entry:
    facts = manifest.facts
    properties = {PREFIX + name: value for name, value in facts.items()} | {ROOT_KEY: root}
    licence = structure.text("general.license")
    source = _source(structure, facts)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"sha256:{sha256}",
        "name": structure.text("general.name") or file,
        # A model of this kind has seldom a version of its own; the root hash tells builds apart.
        "version": structure.text("general.version") or root,
        "description": _how(file, facts),
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        **({"licenses": [_licence(licence, structure)]} if licence else {}),
        **({"pedigree": {"ancestors": [source]}} if source else {}),
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "modelArchitecture": structure.text("general.architecture") or "unknown",
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest)},
            "considerations": {
                "technicalLimitations": [_JUDGED, *([] if manifest.probe else [f"No probe: {manifest.no_probe}"])]
            },
        },
        "properties": [{"name": name, "value": _words(value)} for name, value in properties.items()],
    }


def _how(file: str, facts: Mapping[str, Scalar]) -> str:
    """The file and its method in a sentence, as far as the manifest says."""
    method, rule = facts.get("prune.method", "none"), facts.get("repair.rule")
    steps = [] if method == "none" else [f"pruned with {method} ({facts.get('prune.asked', 'unknown')})"]
    steps += [] if rule is None else [f"refusals repaired in the weights with rule {rule}"]
    return ": ".join([file, *([", ".join(steps)] if steps else [])])


def _licence(named: str, structure: Structure) -> Entry:
    """As SPDX writes it where SPDX knows it, else by its name and link."""
    try:
        return {"expression": canonicalize_license_expression(named)}
    except InvalidLicenseExpression:
        link = structure.text("general.license.link") or ""
        known = {"url": quote(link, safe=":/?#[]@!$&'()*+,;=%~")} if link.startswith("https://") else {}
        return {"license": {"name": structure.text("general.license.name") or named, **known}}


def _source(structure: Structure, facts: Mapping[str, Scalar]) -> Entry | None:
    """The model that was compressed, with those it was made from."""
    model, revision = str(facts.get("source.model", "")), str(facts.get("source.revision", ""))
    if not model:
        return None
    parents = []
    for index in range(min(structure.whole("general.base_model.count") or 0, MOST_PARENTS)):
        key = f"general.base_model.{index}"
        name, place = structure.text(f"{key}.name"), structure.text(f"{key}.repo_url") or ""
        identifier = place.removeprefix(HUB) if place.startswith(HUB) else ""
        if (identifier or name) and identifier != model:
            parents.append(_model(identifier or str(name), structure.text(f"{key}.version") or ""))
    return {**_model(model, revision), **({"pedigree": {"ancestors": parents}} if parents else {})}


def _model(model: str, version: str) -> Entry:
    """A model by its id on the hub, or by its name alone: a folder's path is in no manifest."""
    group, _, name = model.rpartition("/")
    place = f"pkg:huggingface/{quote(model)}" + (f"@{quote(version, safe='')}" if version else "")
    return {
        "type": "machine-learning-model",
        **({"group": group} if group else {}),
        "name": name,
        **({"version": version} if version else {}),
        **({"purl": place} if group else {}),
    }


def _metrics(manifest: Manifest) -> list[Entry]:
    """What was measured, with n in the name of the slice: the format has no place of its own for it."""
    facts, found = manifest.facts, []
    of = facts.get("evaluation.of", "unknown")
    for kind in KINDS:
        refused, n = facts.get(f"evaluation.{kind}.refused"), facts.get(f"evaluation.{kind}.n")
        if isinstance(refused, float) and isinstance(n, int) and (rate := wilson_rate(round(refused * n), n)):
            found.append({
                "type": "refusal rate",
                "value": _words(rate.rate),
                "slice": f"{kind} prompts, n = {n}, measured on {of}",
                "confidenceInterval": {"lowerBound": _words(rate.low), "upperBound": _words(rate.high)},
            })  # fmt: skip
    perplexity, n = facts.get("evaluation.perplexity"), facts.get("evaluation.perplexity.n")
    if perplexity is not None:
        text = f"held-out text, n = {n} tokens, measured on {of}"
        found.append({"type": "perplexity", "value": _words(perplexity), "slice": text})
    if manifest.probe is not None:
        counts = ", ".join(f"{n} {kind}" for n, kind in zip(manifest.probe.prompts, KINDS, strict=True))
        text = f"validation prompts, n = {counts}"
        found.append(
            {"type": "area under the ROC curve of the probe", "value": _words(manifest.probe.auc), "slice": text}
        )
    return found


def _words(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
