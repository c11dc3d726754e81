"""How much memory there is, how much was taken, and whether a model fits."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

import mlx.core as mx

from aird_mlx.architectures import quantization_of
from aird_mlx.model.find import read_config

# Share of the memory that a job may plan with.
USABLE_MEMORY = 0.6


def usable_memory() -> int:
    """Bytes a job may plan with: a share of the memory the device is to use, or else of the machine's."""
    memory = mx.device_info().get("max_recommended_working_set_size")
    if memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(USABLE_MEMORY * int(memory))


def loaded_bytes(folder: Path) -> int:
    """Memory the weights in ``folder`` take once loaded; quantized ones are dequantized to 16 bits.

    Raises:
        ModelError: no config.json.
    """
    config = read_config(folder)
    stored = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    found = quantization_of(config)
    bits = found.get("bits") if isinstance(found, dict) else None
    return int(stored * 16 / bits) if isinstance(bits, int) and 0 < bits < 16 else stored


def needs_streaming(folder: Path, copies: int = 1) -> bool:
    """Whether so many copies of the model in ``folder`` are too much for the memory that a job may plan with."""
    return copies * loaded_bytes(folder) > usable_memory()


def peak_memory() -> int:
    """The most bytes this process had in memory; from /proc where it tells: getrusage begins with its parent's."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None  # gVisor has no VmHWM
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
