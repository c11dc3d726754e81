"""What a result was made with: versions, machine, seed, files; part of every report, and what a resumed run shares."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from aird_mlx import __version__
from aird_mlx.model import COMPANION_FILES
from aird_mlx.workspace import hash_file


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


def resumable_facts(settings: Mapping[str, Any], files: Mapping[str, Path | None], model: Path) -> dict[str, str]:
    """What must be the same when an interrupted run is resumed: settings, versions, and the contents of every file.

    Args:
        settings: what the run is asked to do.
        files: those the user gave, by option.
        model: the folder of the model, whose weights are told apart by size and time only.
    """
    fixed = {name: str(value) for name, value in settings.items()}
    fixed |= {f"content of {name}": hash_file(path) for name, path in files.items() if path is not None}
    for name in ("config.json", *COMPANION_FILES):
        if (model / name).is_file():
            fixed[f"content of the model's {name}"] = hash_file(model / name)
    for path in sorted(model.glob("*.safetensors")):  # gigabytes are not read for this
        status = path.stat()
        fixed[f"size and time of the model's {path.name}"] = f"{status.st_size} bytes, {status.st_mtime_ns}"
    return fixed | {"version": __version__, "mlx": version("mlx")}
