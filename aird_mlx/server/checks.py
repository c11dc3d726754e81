"""What has to hold before a file is served: it is what was written, and it still refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import UsageError
from aird_mlx.guard.manifest import Manifest, read_manifest
from aird_mlx.guard.selftest import selftest_file
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx.report import SelfTest, Verification


@dataclass(frozen=True)
class CheckedFile:
    """A file with its verdicts.

    Attributes:
        selftest: None when the file failed before it could be run.
        manifest: what it says about itself, None if nothing.
    """

    path: Path
    verification: Verification
    selftest: SelfTest | None
    manifest: Manifest | None
    allow_unverified: bool = False

    @property
    def is_allowed(self) -> bool:
        """Whether it may be served: bytes that are not what was written never are."""
        return not self.verification.exit_code and (self.allow_unverified or not self.exit_code)

    @property
    def exit_code(self) -> int:
        """5 when its bytes are not what was written, 3 or 4 when it does not behave as it should, else 0."""
        return self.verification.exit_code or (0 if self.selftest is None else self.selftest.exit_code)


def check_file(
    path: Path,
    *,
    root: str | None = None,
    public_key: Path | None = None,
    signature: Path | None = None,
    canary_set: str | None = None,
    allow_unverified: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckedFile:
    """Verify a file, then run its selftest.

    Args:
        path: the GGUF file.
        root, public_key, signature: as for `verify_file`.
        canary_set: as for `selftest_file`.
        allow_unverified: a file without a manifest is run, and one whose selftest fails is allowed.
        progress: as for `verify_file`.

    Raises:
        AirdError: the file cannot be opened or run. UsageError: it has no manifest.
    """
    verification = verify_file(path, root=root, public_key=public_key, signature=signature, progress=progress)
    if verification.exit_code:
        return CheckedFile(path, verification, None, None)
    manifest = read_manifest(read_structure(path))
    if manifest is None and not allow_unverified:
        raise UsageError(
            f"serve: {path} has no manifest, so nobody can say what it is; a file written by `aird-mlx repair` is "
            "needed. Add --allow-unverified to use it all the same."
        )
    tested = selftest_file(path, canary_set=canary_set)
    return CheckedFile(path, verification, tested, manifest, allow_unverified)
