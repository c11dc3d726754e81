"""Exit codes of the error kinds: what scripts branch on."""

from __future__ import annotations

import inspect

from aird_mlx import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_every_kind_is_an_aird_error_with_a_line_of_meaning() -> None:
    assert len(KINDS) > 5
    for kind in KINDS:
        assert issubclass(kind, errors.AirdError)
        assert kind.__doc__
        assert kind.__doc__ != errors.AirdError.__doc__ or kind is errors.AirdError


def test_exit_codes_are_1_but_for_usage_parity_and_integrity() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert codes.pop("UsageError") == 2
    assert codes.pop("ParityError") == 4
    assert codes.pop("IntegrityError") == 5
    assert set(codes.values()) == {1}
