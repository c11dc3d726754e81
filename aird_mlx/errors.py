"""What can go wrong, one kind per thing a caller would do about it.

Every message is one line: ``<stage>: <what was seen, with values>; <what is needed>. <what to do>.``
The library raises these and nothing else on bad input; the command line turns them into that line and
``exit_code``. ``assert`` is kept for our own invariants. This module knows nothing about the rest of the package.
"""

from __future__ import annotations


class AirdError(Exception):
    """Base of every error that bad input can cause; ``exit_code`` is what the command line returns."""

    exit_code = 1

    @property
    def seen(self) -> str:
        """What was seen: the message without its stage, what is needed, and what to do.

        >>> AirdError("walk: 3 tokens; one is needed. Give more.").seen
        '3 tokens'
        """
        return " ".join(str(self).split(": ", 1)[-1].rsplit("; ", 1)[0].split())


class UsageError(AirdError):
    """An option or argument is outside what the function accepts (sparsity, pattern, rule, ...)."""

    exit_code = 2


class ShapeError(AirdError):
    """An array given to a kernel has the wrong shape."""


class ModelError(AirdError):
    """A model folder or hub id cannot be read, or holds something this project does not support."""


class PromptError(AirdError):
    """A prompt or calibration file is missing, empty, malformed, or too small to be split."""


class DirectionError(AirdError):
    """There is no refusal direction: the model never, or always, refuses, or a file holds none."""


class OutputError(AirdError):
    """The output folder exists already, cannot be written, or the disk is full."""


class ResumeError(AirdError):
    """An interrupted run cannot be continued with these settings."""


class ExportError(AirdError):
    """A model cannot be written as GGUF as asked."""


class ParityError(AirdError):
    """An exported file could not be run, or does not behave like the model it was made from."""

    exit_code = 4


class DependencyError(AirdError):
    """An optional package or system library that this step needs is not installed."""


class IntegrityError(AirdError):
    """A GGUF file is damaged, hostile, or not what was written."""

    exit_code = 5
