"""Signatures: a file is signed with a local key and checked with the public one; anything else fails in one line."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from aird_mlx.errors import DependencyError, IntegrityError, OutputError, UsageError
from aird_mlx.guard.manifest import TEMPLATE_KEY, Manifest
from aird_mlx.guard.packages import check_packages
from aird_mlx.guard.seal import seal, sidecar_of
from aird_mlx.guard.sign import sign_file
from aird_mlx.guard.signature import LONGEST_SIGNATURE, check_signature, signature_of
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx.report import Verification, from_json
from aird_mlx_cli.main import main

KEYS: dict[str, Callable[[], Any]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def write_keys(folder: Path, kind: str = "p256", password: bytes = b"") -> tuple[Path, Path]:
    """The private and the public key, as openssl writes them."""
    key = KEYS[kind]()
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    private, public = folder / f"{kind}.pem", folder / f"{kind}.pub"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(copy: Path) -> tuple[Path, Path]:
    """That file, signed, and the public key."""
    private, public = write_keys(copy.parent)
    sign_file(copy, private)
    return copy, public


def said(found: Verification) -> tuple[str, str]:
    """Status and words of the signature's verdict."""
    return next((check.status, check.said) for check in found.checks if check.name == "signature")


@pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
def test_signed_file_passes_with_the_public_key(copy: Path, kind: str) -> None:
    private, public = write_keys(copy.parent, kind)
    written = sign_file(copy, private)
    assert Path(written.signature) == signature_of(copy)
    found = verify_file(copy, public_key=public)
    assert found.exit_code == 0 and found.signed and said(found)[0] == "passed"


def test_the_packages_own_command_line_accepts_it_and_ours_accepts_its(signed: tuple[Path, Path]) -> None:
    path, public = signed
    tool = Path(sys.executable).with_name("model_signing")
    common = [str(path), "--signature", str(signature_of(path))]
    done = subprocess.run([tool, "verify", "key", *common, "--public_key", str(public)], check=False)
    assert done.returncode == 0
    signature_of(path).unlink()
    subprocess.run([tool, "sign", "key", *common, "--private_key", str(public.with_suffix(".pem"))], check=True)
    assert verify_file(path, public_key=public).signed


def test_key_named_is_what_openssl_says(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, public = signed
    assert main(["sign", str(path), "--key", str(public.with_suffix(".pem")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == hashlib.sha256(public.read_bytes()).hexdigest()


def test_a_resealed_file_passes_all_but_the_signature(signed: tuple[Path, Path], tiny_gguf: Path) -> None:
    """What hashes cannot say: whoever writes the file writes hashes that fit, but has not the key."""
    path, public = signed
    shutil.copy(tiny_gguf, path)
    template = read_structure(path).text(TEMPLATE_KEY)
    seal(path, Manifest(facts={"version": "0.1.0"}, template=template, no_probe="none"))
    assert verify_file(path).exit_code == 0
    found = verify_file(path, public_key=public)
    assert [check.name for check in found.checks if check.status == "failed"] == ["signature"]
    assert said(found) == ("failed", f"{path.name}.sig: the file's bytes are not those that were signed")
    assert found.exit_code == 5 and not found.signed


def test_fast_verify_still_signs_for_every_byte(signed: tuple[Path, Path]) -> None:
    path, public = signed
    with path.open("r+b") as out:
        out.seek(-1, 2)
        out.write(b"\x5a")
    assert said(verify_file(path, fast=True, public_key=public))[0] == "failed"


def test_another_key_and_no_signature_fail(signed: tuple[Path, Path]) -> None:
    path, public = signed
    other = write_keys(path.parent, "p384")[1]
    assert said(verify_file(path, public_key=other)) == ("failed", f"{path.name}.sig: it was made with another key")
    signature_of(path).rename(path.parent / "moved.sig")
    assert "cannot be read" in said(verify_file(path, public_key=public))[1]
    assert verify_file(path, public_key=public, signature=path.parent / "moved.sig").signed


def test_only_a_signed_file_is_served(
    demo_gguf: Path, signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, public = signed
    other = write_keys(path.parent, "p384")[1]
    assert main(["serve", str(path), "--public-key", str(other)]) == 5
    assert main(["serve", str(path), "--public-key", str(path.with_suffix(".sig"))]) == 2
    assert main(["chat", str(path), "--signature", str(signature_of(path))]) == 2
    moved = tmp_path / "moved.sig"
    sign_file(demo_gguf, public.with_suffix(".pem"), out=moved)
    assert main(["chat", str(demo_gguf), "--public-key", str(public)]) == 5
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", str(demo_gguf), "--public-key", str(public), "--signature", str(moved)]) == 0


def test_renamed_and_linked_files_stay_signed(signed: tuple[Path, Path]) -> None:
    path, public = signed
    link = path.parent / "link.gguf"
    link.symlink_to(path)
    assert check_signature(link, signature_of(path), public).status == "passed"
    sidecar_of(path).unlink()
    assert check_signature(path.rename(path.parent / "b.gguf"), signature_of(path), public).status == "passed"


def test_signature_without_a_key_is_mentioned_and_not_believed(signed: tuple[Path, Path]) -> None:
    found = verify_file(signed[0])
    assert said(found)[0] == "skipped" and "--public-key" in said(found)[1]
    assert found.exit_code == 0 and not found.signed
    with pytest.raises(UsageError, match="--public-key"):
        verify_file(signed[0], signature=signature_of(signed[0]))


def test_file_without_manifest_can_be_signed(tiny_gguf: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path / "m.gguf"))
    private, public = write_keys(tmp_path)
    sign_file(path, private)
    found = verify_file(path, public_key=public)
    assert found.signed and not found.known and found.exit_code == 0


def test_broken_signatures_fail_in_one_line(signed: tuple[Path, Path]) -> None:
    path, public = signed
    whole = signature_of(path).read_bytes()
    bundle = json.loads(whole)
    forged = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    forged["predicate"]["resources"][0]["digest"] = "0" * 64
    chance = random.Random(3)
    spoilt: list[bytes] = [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"verificationMaterial": 1}']
    spoilt += [whole[: chance.randrange(len(whole))] for _ in range(20)]
    for _ in range(150):
        at = chance.randrange(len(whole))
        spoilt.append(whole[:at] + bytes([whole[at] ^ chance.randrange(1, 256)]) + whole[at + 1 :])
    for key in ("mediaType", "verificationMaterial", "dsseEnvelope"):
        for value in (None, 1, "", [], {}):
            spoilt.append(json.dumps({**bundle, key: value}).encode())
    payload = base64.b64encode(json.dumps(forged).encode()).decode()
    spoilt.append(json.dumps({**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], "payload": payload}}).encode())
    for content in spoilt:
        signature_of(path).write_bytes(content)
        found = check_signature(path, signature_of(path), public)
        if found.status == "passed":  # a change of what nobody reads: the JSON means the same, or has one more key
            assert _meaning(content) == _meaning(whole)
        assert "\n" not in found.said and len(found.said) < 200
    signature_of(path).write_bytes(whole + b" " * LONGEST_SIGNATURE)
    assert "too long" in check_signature(path, signature_of(path), public).said
    assert check_signature(path, path.parent, public).status == "failed"


def _meaning(content: bytes) -> Any:
    bundle = json.loads(content)
    envelope = bundle["dsseEnvelope"]
    return base64.b64decode(envelope["payload"]), base64.b64decode(envelope["signatures"][0]["sig"])


def test_old_warning_stays_out_of_the_report(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, public = signed
    bundle = json.loads(signature_of(path).read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    signature_of(path).write_text(json.dumps(bundle))
    assert main(["verify", str(path), "--public-key", str(public), "--json"]) == 0
    assert from_json(Verification, capsys.readouterr().out).signed


@pytest.mark.parametrize("kind", ["k1", "rsa", "ed25519", "encrypted", "public", "none", "rubbish"])
def test_key_that_cannot_sign_is_said(copy: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy.parent
    if kind in KEYS:
        key = write_keys(folder, kind)[0]
    elif kind == "encrypted":
        key = write_keys(folder, password=b"secret")[0]
    else:
        key = write_keys(folder)[1] if kind == "public" else folder / "no.pem"
    if kind == "rubbish":
        key.write_bytes(b"\xff rubbish")
    assert main(["sign", str(copy), "--key", str(key)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: sign: ") and "openssl" in line
    assert not signature_of(copy).exists()


def test_private_key_is_no_public_key(signed: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="holds no public key"):
        verify_file(signed[0], public_key=signed[1].with_suffix(".pem"))


def test_file_that_fails_is_not_signed(copy: Path) -> None:
    private, _ = write_keys(copy.parent)
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x5a")
    with pytest.raises(IntegrityError, match=r"sign: .* fails"):
        sign_file(copy, private)
    assert not signature_of(copy).exists()


def test_signature_never_takes_the_place_of_what_is_read(copy: Path) -> None:
    private, _ = write_keys(copy.parent)
    before = copy.read_bytes(), private.read_bytes()
    for out in (copy, private):
        with pytest.raises(UsageError, match="--out"):
            sign_file(copy, private, out=out)
    (copy.parent / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        sign_file(copy, private, out=copy.parent / "file" / "s.sig")
    assert (copy.read_bytes(), private.read_bytes()) == before


@pytest.mark.parametrize(
    ("module", "extra", "package"),
    [("OpenSSL", "sign", "pyopenssl"), ("prometheus_client", "serve", "prometheus-client")],
)
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, extra: str, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(DependencyError, match=rf"^verify: {package} not installed.*aird-mlx\[{extra}\]"):
        check_packages("verify", extra)


def test_command_line_signs_and_tells(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = write_keys(copy.parent)
    assert main(["sign", str(copy), "--key", str(private)]) == 0
    assert "is signed" in capsys.readouterr().out
    assert main(["verify", str(copy), "--public-key", str(public)]) == 0
    assert "and signed." in capsys.readouterr().out
