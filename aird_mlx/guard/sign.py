"""Signs a GGUF file with a local key; `signature` says how, and checks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from aird_mlx.errors import IntegrityError, UsageError
from aird_mlx.guard.packages import check_packages
from aird_mlx.guard.signature import signature_of, use_key
from aird_mlx.guard.verify import verify_file
from aird_mlx.report import Signing
from aird_mlx.report.guard import FAILED
from aird_mlx.workspace import write_whole


def sign_file(
    path: Path, key: Path, *, out: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Signing:
    """Verify a GGUF file and sign all its bytes.

    Args:
        path: the file.
        key: private elliptic-curve key (P-256, P-384 or P-521), PEM, not encrypted.
        out: the signature, ``NAME.gguf.sig`` beside the file by default; replaced if it is there.
        progress: called with (tensors hashed, tensors).

    Raises:
        DependencyError: model-signing is not installed. UsageError: the key or ``out`` cannot be used.
        IntegrityError: the file fails a check: what is signed is vouched for. OutputError: it cannot be written.
    """
    check_packages("sign", "sign")
    from model_signing.signing import Config

    signer = use_key("sign", key, "private", lambda: Config().use_elliptic_key_signer(private_key=key))
    target = out or signature_of(path)
    if target.resolve() in (path.resolve(), key.resolve()):
        raise UsageError(f"sign: --out is {target}, which is read; another name is needed. Choose one for a new file.")
    failed = [check for check in verify_file(path, progress=progress).checks if check.status == FAILED]
    if failed:
        raise IntegrityError(
            f"sign: {path} fails {failed[0].name} ({failed[0].said}); a file that passes `aird-mlx verify` is needed. "
            "Sign the file that was written."
        )
    write_whole(target, lambda partial: signer.sign(path.resolve(), partial))
    bundle = json.loads(target.read_text(encoding="utf-8"))
    return Signing(str(path), str(target), bundle["verificationMaterial"]["publicKey"]["hint"])
