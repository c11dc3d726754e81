"""What ``verify`` and ``selftest`` found out about a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field

from aird_mlx.report.figures import SCHEMA, Rate

PASSED, FAILED, WARNED, SKIPPED = "passed", "failed", "warned", "skipped"


@dataclass(frozen=True)
class Check:
    """One verdict. ``status`` is passed, failed, warned (look at it, but it stops nothing) or skipped."""

    name: str
    status: str
    said: str


@dataclass(frozen=True)
class Verification:
    """What ``aird-mlx verify`` found.

    Attributes:
        root: the root hash computed from the file, "" when its structure cannot be read or it carries none.
        known: whether there was a manifest to compare with.
        signed: whether it has the signature of the key that was given.
        hashed_bytes: how much tensor data was hashed.
    """

    file: str
    size_bytes: int
    checks: list[Check]
    root: str = ""
    known: bool = False
    signed: bool = False
    hashed_bytes: int = 0
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def exit_code(self) -> int:
        """5 when a check failed, else 0."""
        return 5 if any(check.status == FAILED for check in self.checks) else 0


@dataclass(frozen=True)
class Signing:
    """What ``aird-mlx sign`` wrote. ``key``: sha256 of the public key as a PEM file."""

    file: str
    signature: str
    key: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class CanaryFigures:
    """What a file did with one kind of canary prompts.

    Attributes:
        refused: of them, with its interval; ``recorded`` is how many were refused when the file was written.
        drift: mean absolute change, nats, of the log-probability of the first token recorded then; None without record.
        alarms: how many the probe takes for harmful; None without a probe.
    """

    kind: str
    refused: Rate
    recorded: int | None
    drift: float | None
    alarms: int | None


@dataclass(frozen=True)
class SelfTest:
    """What ``aird-mlx selftest`` found. ``canary_set`` names the prompts; ``probe_auc`` is measured on them."""

    file: str
    canary_set: str
    checks: list[Check]
    canaries: list[CanaryFigures] = field(default_factory=list)
    probe_auc: float | None = None
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def exit_code(self) -> int:
        """3 when refusals or the probe are lost, else 4 when template, tokens or other answers changed, else 0."""
        failed = {check.name for check in self.checks if check.status == FAILED}
        if failed & {"refusals", "refusal probability", "probe"}:
            return 3
        return 4 if failed else 0
