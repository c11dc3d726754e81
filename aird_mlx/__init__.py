"""Compress a chat model in MLX, measure what happened to its refusals, repair them, prove it, export a GGUF.

The public names are loaded on first use, so that ``import aird_mlx`` alone imports no mlx.

    from aird_mlx import RepairSettings, repair_model
    report = repair_model(RepairSettings(model="demo", sparsity=0.5))
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AirdError": "errors",
    "ChatModel": "model",
    "load": "model",
    "save": "model",
    "Direction": "direction",
    "measure_direction": "direction",
    "report_direction": "geometry",
    "compare_models": "geometry",
    "prune_model": "pruning",
    "quantize_model": "quantization",
    "Patch": "patch",
    "fold": "patch",
    "solve_patch": "repair",
    "measure_refusals": "evaluation",
    "measure_utility": "evaluation",
    "export_gguf": "gguf_export",
    "write_pruned": "compress",
    "write_quantized": "compress",
    "Report": "report",
    "RepairSettings": "settings",
    "repair_model": "pipeline",
    "Evaluation": "report",
    "EvaluationSettings": "settings",
    "evaluate_model": "evaluate",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"aird_mlx.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'aird_mlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
