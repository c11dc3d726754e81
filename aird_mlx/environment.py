"""What a result was measured with: versions, machine, seed; part of every report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions of the packages that decide a result, Python, platform, MLX's device, and the seed."""
    packages = ("aird-mlx", "mlx", "mlx-lm", "numpy", "gguf", "llama-cpp-python")
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "seed": seed,
    }
