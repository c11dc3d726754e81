"""A detached signature beside a GGUF file, and whether it is that of a key: who wrote the file, not only what is in it.

The format is that of OpenSSF Model Signing 1.0 (a Sigstore bundle around an in-toto statement with the file's sha256),
made and checked by the `model-signing` package, whose own command line takes the same files. Keys are local PEM files;
nothing here uses the network. Source: https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from aird_mlx.errors import UsageError
from aird_mlx.guard.packages import check_packages
from aird_mlx.report import Check
from aird_mlx.report.guard import FAILED, PASSED

Used = TypeVar("Used")

LONGEST_SIGNATURE = 1 << 20
_MAKE_KEY = {
    "private": "Make one: `openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem`.",
    "public": "Take it from the private one: `openssl pkey -in KEY.pem -pubout -out KEY.pub`.",
}


def signature_of(path: Path) -> Path:
    """Where the signature of a file lies beside it: ``NAME.gguf.sig``."""
    return path.with_name(path.name + ".sig")


def check_signature(path: Path, signature: Path, key: Path) -> Check:
    """One verdict: are these the bytes that the owner of a key signed?

    Args:
        path: the file, hashed whole.
        signature: of it; may be hostile.
        key: the public key, PEM, from a source you trust.

    Raises:
        DependencyError: model-signing is not installed. UsageError: the key cannot be used.
    """
    check_packages("verify", "sign")
    from cryptography.exceptions import InvalidSignature
    from model_signing.verifying import Config

    verifier = use_key("verify", key, "public", lambda: Config().use_elliptic_key_verifier(public_key=key))
    try:
        if signature.stat().st_size > LONGEST_SIGNATURE:
            return Check("signature", FAILED, f"{signature.name} is too long to be one")
        # Of old signatures model-signing prints a warning, which must not end up in the report.
        with contextlib.redirect_stdout(sys.stderr):
            verifier.verify(path.resolve(), signature)
    except OSError as error:
        return Check("signature", FAILED, f"{signature.name} cannot be read ({error.strerror or error})")
    except InvalidSignature:
        return Check("signature", FAILED, f"{signature.name} was not made with the key of {key.name}, or was changed")
    # A bundle is JSON of any shape: a missing or odd field is one of these in model-signing.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return Check("signature", FAILED, f"{signature.name}: {_reason(error)}")
    return Check("signature", PASSED, f"{signature.name} is of these bytes, by the key of {key.name}")


def use_key(stage: str, key: Path, kind: str, use: Callable[[], Used]) -> Used:
    """What ``use`` makes of a key.

    Args:
        stage: that wants it.
        key: its file, for the error.
        kind: private or public.
        use: reads it with model-signing.

    Raises:
        UsageError: it cannot be read, or is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return use()
    except OSError as error:
        seen = f"cannot be read ({error.strerror or error})"
    except TypeError:  # cryptography's word for a missing password
        seen = "is encrypted"
    except (ValueError, AttributeError, UnsupportedAlgorithm):  # another kind of key has no curve: AttributeError
        seen = f"holds no {kind} key on such a curve"
    raise UsageError(
        f"{stage}: {key} {seen}; an unencrypted PEM file with a {kind} key on P-256, P-384 or P-521 is needed. "
        + _MAKE_KEY[kind]
    )


def _reason(error: Exception) -> str:
    """What model-signing says in a line; of its many words for a broken bundle, one."""
    said = str(error)
    if said.startswith("Signature mismatch"):
        return "the file's bytes are not those that were signed"
    if said.startswith("Key mismatch"):
        return "it was made with another key"
    return "it is no signature of a file in the format of OpenSSF Model Signing"
