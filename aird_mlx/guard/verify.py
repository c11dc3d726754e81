"""Is this the file that was written? Structure, hashes, sidecar, signature, template: one verdict each; nothing is run.

Needs neither MLX nor llama.cpp, reads tensor data only to hash it, and trusts nothing the file says about sizes.
"""

from __future__ import annotations

import hmac
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from aird_mlx.errors import IntegrityError, UsageError
from aird_mlx.guard.hashes import (
    DIGITS,
    first_nonzero_gap,
    hash_all_data,
    hash_root,
    hash_tensors,
)
from aird_mlx.guard.manifest import TEMPLATE_KEY, Manifest, read_manifest, recorded_hashes
from aird_mlx.guard.parts import Part, join, open_parts
from aird_mlx.guard.seal import sidecar_of
from aird_mlx.guard.signature import check_signature, signature_of
from aird_mlx.guard.structure import Structure, Tensor, opened, parse
from aird_mlx.guard.template import first_difference, lint_template
from aird_mlx.report import Check, Verification
from aird_mlx.report.guard import FAILED, PASSED, SKIPPED, WARNED

# How much tensor data --fast hashes: tensors drawn at random until they have so many bytes, at least so many tensors.
FAST_BYTES, FAST_TENSORS = 1 << 26, 4
LONGEST_SIDECAR = 1 << 24


def verify_file(
    path: Path,
    *,
    fast: bool = False,
    root: str | None = None,
    require_manifest: bool = False,
    signature: Path | None = None,
    public_key: Path | None = None,
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Check a GGUF file against itself, its manifest and its sidecar.

    Args:
        path: the file; ``NAME.gguf.manifest`` beside it is read too.
        fast: hash only a random sample of the tensors; keys and layout are checked as ever.
        root: the root hash it must have, known from elsewhere.
        require_manifest: a file without a manifest fails.
        signature: of the file, ``NAME.gguf.sig`` beside it by default; looked at when there is a key to check it with.
        public_key: whose signature it must have; the whole file is hashed for it, even if ``fast``.
        seed: of the sample; a new one each time by default, so that nobody can know which tensors are looked at.
        progress: called with (tensors hashed, tensors).

    Raises:
        AirdError: the file cannot be opened. UsageError: ``root`` is no sha256, or ``public_key`` no key.
        DependencyError: there is a key, and model-signing is not installed.
    """
    wanted = None if root is None else root.strip().lower()
    if wanted is not None and (len(wanted) != DIGITS or set(wanted) - set("0123456789abcdef")):
        raise UsageError(
            f"verify: --root is {root!r:.80}; {DIGITS} hexadecimal digits are needed. Copy it from report.json."
        )
    if signature is not None and public_key is None:
        raise UsageError(
            "verify: --signature is given; a key to check it with is needed. Add --public-key, from a source you trust."
        )
    started = time.monotonic()
    with opened(path) as descriptor, ExitStack() as stack:
        run = _Run(path, descriptor, stack, fast=fast, seed=seed, progress=progress)
        signed = None if public_key is None else check_signature(path, signature or signature_of(path), public_key)
        run.check(wanted, require_manifest)
        if signed is not None:
            run.checks.append(signed)
        elif signature_of(path).exists():
            run.say("signature", SKIPPED, f"{signature_of(path).name} is there; only --public-key can say whose it is")
        return Verification(
            file=str(path),
            size_bytes=run.size,
            checks=run.checks,
            root=run.root,
            known=run.known,
            signed=signed is not None and signed.status == PASSED,
            hashed_bytes=run.hashed,
            seconds=round(time.monotonic() - started, 3),
        )


class _Run:
    def __init__(
        self,
        path: Path,
        descriptor: int,
        stack: ExitStack,
        *,
        fast: bool,
        seed: int | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.stack = stack
        self.parts: list[Part] = []
        self.path, self.descriptor, self.fast, self.progress = path, descriptor, fast, progress
        self.random = random.Random(seed)
        self.size = path.stat().st_size
        self.checks: list[Check] = []
        self.root = ""
        self.known = False
        self.hashed = 0

    def say(self, name: str, status: str, said: str) -> None:
        self.checks.append(Check(name, status, said))

    def check(self, root: str | None, require_manifest: bool) -> None:
        """All checks in order; what cannot be told any more after a failed one is left out."""
        try:
            first = Part(self.descriptor, parse(self.descriptor))
        except IntegrityError as error:
            self.say("structure", FAILED, error.seen)
            return
        try:
            self.parts = open_parts(self.path, first, self.stack)
            structure = join(self.parts)
        except IntegrityError as error:
            self.say("parts", FAILED, error.seen)
            return
        self.size = sum(part.structure.size for part in self.parts)
        if len(self.parts) > 1:
            self.say("parts", PASSED, f"all {len(self.parts)} are there and belong together, {self.size} bytes")
        counted = f"{len(structure.keys)} keys, {len(structure.tensors)} tensors, {structure.size} bytes"
        self.say("structure", PASSED, f"GGUF v{structure.version}: {counted}")
        try:
            self._check_padding()
            manifest = self._check_manifest(structure, root, require_manifest)
            self._check_template(structure, manifest)
        except IntegrityError as error:  # it changed while it was read
            self.say("reading", FAILED, error.seen)

    def _check_padding(self) -> None:
        for number, part in enumerate(self.parts, start=1):
            at = first_nonzero_gap(*part)
            if at is not None:
                where = f" of part {number}" if len(self.parts) > 1 else ""
                self.say("padding", FAILED, f"byte {at}{where}, between tensors, is not zero")
                return
        self.say("padding", PASSED, "nothing is hidden between the tensors")

    def _check_manifest(self, structure: Structure, root: str | None, require: bool) -> Manifest | None:
        """The manifest and every hash; None if there is no manifest, or a broken one."""
        manifest, recorded = None, None
        sidecar = self._read_sidecar()
        try:
            manifest = read_manifest(structure)
            if manifest is not None:
                self.root = hash_root(*self.parts)
                recorded_root, recorded = recorded_hashes(structure)
                self._check_root(self.root, recorded_root)
                self._say_parity(manifest)
        except IntegrityError as error:
            self.say("manifest", FAILED, error.seen)
        self.known = manifest is not None or bool(sidecar)
        if root is not None:
            self.root = self.root or hash_root(*self.parts)
            same = hmac.compare_digest(self.root, root)
            said = "it is the one given with --root" if same else f"the file has {self.root}, --root is {root}"
            self.say("given root", PASSED if same else FAILED, said)
        if not self.known and not any(check.name in ("manifest", "sidecar") for check in self.checks):
            said = "unknown: no manifest, so there is nothing to compare its bytes with"
            self.say("manifest", FAILED if require else SKIPPED, said)
        if recorded is not None or sidecar:
            self._check_tensors(structure, recorded, sidecar)
        return manifest

    def _say_parity(self, manifest: Manifest) -> None:
        said = manifest.facts.get("parity")
        if not isinstance(said, str):
            return
        verdict, _, why = said.partition(": ")
        if verdict == "passed":
            argmax, tokens = manifest.facts.get("parity.argmax"), manifest.facts.get("parity.tokens")
            share = f"{100 * argmax:.4g} %" if isinstance(argmax, float) else "?"
            said = f"when written llama.cpp followed MLX: same likeliest token at {share} of {tokens}"
            self.say("parity", PASSED, said)
        elif verdict == "failed":
            self.say("parity", WARNED, f"marked: when written llama.cpp did NOT follow MLX: {why:.400}")
        else:
            self.say("parity", SKIPPED, f"it was not run beside MLX when written: {why:.400}")

    def _check_root(self, computed: str, recorded: str) -> None:
        if hmac.compare_digest(computed.encode(), recorded.encode("utf-8")):
            self.say("metadata", PASSED, f"root {computed}")
        else:
            self.say("metadata", FAILED, f"a key, a tensor's place or the file's size changed: root {computed:.16}..., "
                     f"recorded {recorded:.16}...")  # fmt: skip

    def _check_tensors(self, structure: Structure, recorded: Sequence[str] | None, sidecar: dict[str, str]) -> None:
        chosen = self._sample(structure.tensors) if self.fast else list(structure.tensors)
        self.hashed = sum(tensor.size for tensor in chosen)
        names = {tensor.name for tensor in chosen}
        found: dict[str, str] = {}
        for part in self.parts:
            own = [tensor for tensor in part.structure.tensors if tensor.name in names]
            step = partial(self._step, len(found), len(chosen))
            digests = hash_tensors(part.descriptor, own, step)
            found |= dict(zip((tensor.name for tensor in own), digests, strict=True))
        count = f"{len(chosen)} of {len(structure.tensors)} tensors" + (", drawn at random" if self.fast else "")
        if recorded is not None:
            expected = dict(zip((tensor.name for tensor in structure.tensors), recorded, strict=True))
            changed = [name for name, digest in found.items() if expected[name] != digest]
            said = f"{count} are as they were written" if not changed else f"changed: {_few(changed)}"
            self.say("tensors", FAILED if changed else PASSED, said)
        if sidecar:
            self._compare_sidecar(self.parts[0].structure, found, sidecar, count)

    def _step(self, before: int, total: int, done: int, _: int) -> None:
        self.progress(before + done, total)

    def _sample(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        shuffled = self.random.sample(tensors, len(tensors))
        chosen: list[Tensor] = []
        size = 0
        for tensor in shuffled:
            size += tensor.size
            if size > FAST_BYTES and len(chosen) >= FAST_TENSORS:
                break
            chosen.append(tensor)
        return chosen

    def _read_sidecar(self) -> dict[str, str]:
        """Names without the file's, "" for the whole file, with their sha256; empty if there is no sidecar."""
        path = sidecar_of(self.path)
        try:
            if not path.exists():
                return {}
            with path.open("rb") as opened_file:
                text = opened_file.read(LONGEST_SIDECAR + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.say("sidecar", FAILED, f"{path.name} cannot be read ({error})")
            return {}
        lines = [line.split(None, 2) for line in text.splitlines()]
        named = [(parts[2], parts[1]) for parts in lines if len(parts) == 3 and parts[0] == "sha256"]
        found = {name.partition(":")[2]: digest.lower() for name, digest in named}
        if len(text) > LONGEST_SIDECAR or not found:
            self.say("sidecar", FAILED, f"{path.name} holds no sha256 lines as gguf-hash writes them")
            return {}
        return found

    def _compare_sidecar(
        self, structure: Structure, found: dict[str, str], sidecar: dict[str, str], count: str
    ) -> None:
        whole, lines = sidecar.get(""), {name: digest for name, digest in sidecar.items() if name}
        path = sidecar_of(self.path).name
        if not lines:
            if self.fast:
                self.say("sidecar", SKIPPED, f"{path} has one hash of the whole file, which --fast does not compute")
                return
            same = hash_all_data(self.descriptor, structure.tensors) == whole
            self.say("sidecar", PASSED if same else FAILED, f"{path} has {'the same' if same else 'another'} hash")
            return
        names = {tensor.name for tensor in structure.tensors}
        if names != lines.keys():
            one = sorted(names ^ lines.keys())[:3]
            self.say("sidecar", FAILED, f"{path} is of another file: it and the file do not both have {_few(one)}")
            return
        changed = [name for name, digest in found.items() if lines[name] != digest]
        said = (
            f"{path} has the same hashes of {count}" if not changed else f"{path} has other hashes of {_few(changed)}"
        )
        self.say("sidecar", FAILED if changed else PASSED, said)

    def _check_template(self, structure: Structure, manifest: Manifest | None) -> None:
        template = structure.text(TEMPLATE_KEY)
        if manifest is not None:
            if template == manifest.template:
                self.say("template", PASSED, "it is the one the file was written with")
            else:
                difference = first_difference(manifest.template or "", template or "")
                self.say("template", FAILED, f"it is not the one the file was written with; {difference}")
        named = {key: structure.text(key) for key in structure.keys if key.startswith(TEMPLATE_KEY)}
        findings = [(key, one) for key, text in named.items() if text is not None for one in lint_template(text)]
        if not named:
            self.say("template lint", WARNED, "there is no chat template: programs will guess one")
        for key, finding in findings[:5]:
            where = f"line {finding.line}" + ("" if key == TEMPLATE_KEY else f" of {key}")
            self.say("template lint", FAILED, f"{where}: {finding.said}")
        if named and not findings:
            self.say("template lint", PASSED, "no condition on a message's words, no hidden orders")


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
