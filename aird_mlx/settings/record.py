"""How settings stand in a result, and how a long job says how far it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aird_mlx.settings.evaluation import EvaluationSettings
from aird_mlx.settings.repair import RepairSettings

# Stage, steps done, steps.
Progress = Callable[[str, int, int], None]


def settings_record(settings: RepairSettings | EvaluationSettings) -> dict[str, Any]:
    """The settings as plain values, for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(settings).items()}
