"""What a run is asked to do: the options of the command line as frozen objects, checked before anything runs."""

from aird_mlx.settings.compression import (
    REFUSAL_RECIPE,
    PruningSettings,
    QuantizationSettings,
    check_recipe,
    quantization_words,
)
from aird_mlx.settings.evaluation import EvaluationSettings, check_evaluation, read_system_prompt
from aird_mlx.settings.record import Progress, settings_record
from aird_mlx.settings.repair import (
    GGUF_TYPES,
    RepairSettings,
    check_places,
    check_settings,
    output_folder,
    pruning_words,
)

__all__ = [
    "GGUF_TYPES",
    "REFUSAL_RECIPE",
    "EvaluationSettings",
    "Progress",
    "PruningSettings",
    "QuantizationSettings",
    "RepairSettings",
    "check_evaluation",
    "check_places",
    "check_recipe",
    "check_settings",
    "output_folder",
    "pruning_words",
    "quantization_words",
    "read_system_prompt",
    "settings_record",
]
