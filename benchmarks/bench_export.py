"""How fast is an export beside copying a file, and how much memory does it take?

Writes random llamas whose weights take the given size into a temporary folder: float16, bfloat16, and quantized by MLX
(affine, 4 and 5 bits, groups of 64; mxfp4; nvfp4), which holds about three times as many. Exports each in a process of
its own: float16 and bfloat16 as f16, the quantized ones as q4_1, q5_1, mxfp4 and nvfp4 with their codes and scales.
Beside each it copies the file that came out. Prints seconds (the best of ``--repeat``), the throughput as a share of
the copy's, seconds of processor time of both (with other jobs on the machine only these mean something: an export
keeps two cores busy, a copy one), and the peak memory beside 3 times the largest tensor + 300 MB.

Both end where the operating system has the bytes, not the disk. A copy within the page cache never leaves the
kernel; the export converts each byte as well.

    python benchmarks/bench_export.py --gigabytes 1
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from aird_mlx.gguf_export import export_gguf
from aird_mlx.model import DEMO_FOLDER, peak_memory

HIDDEN, VOCABULARY = 2048, 32768
PER_BLOCK = 4 * HIDDEN**2 + 3 * HIDDEN * 4 * HIDDEN
SHARE, FIXED_BYTES, TENSORS = 0.3, 300 * 10**6, 3
SCHEMES: dict[str, dict[str, Any]] = {
    "affine": {"group_size": 64, "bits": 4},
    "affine5": {"group_size": 64, "bits": 5},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
}
# Of a weight, with its share of scales and biases.
BITS = {"affine": 4 + 32 / 64, "affine5": 5 + 32 / 64, "mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16}
CASES = {
    "float16 as f16": ("float16", "f16"),
    "bfloat16 as f16": ("bfloat16", "f16"),
    "affine 4-bit as q4_1": ("affine", "auto"),
    "affine 5-bit as q5_1": ("affine5", "auto"),
    "mxfp4 as mxfp4": ("mxfp4", "auto"),
    "nvfp4 as nvfp4": ("nvfp4", "auto"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the weights as stored")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_export(*options.child)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        print(f"{'':22s}   file MB   export s   copy s   share   cpu s: export   copy   peak MB   limit MB")
        for name, (stored, outtype) in CASES.items():
            folder = Path(temporary) / stored
            largest = write_llama(folder, int(options.gigabytes * 1e9), stored)
            measured = [measure(folder, outtype) for _ in range(options.repeat)]
            export, copy, export_cpu, copy_cpu = (
                min(one[key] for one in measured) for key in ("export", "copy", "export cpu", "copy cpu")
            )
            peak, limit = max(one["peak"] for one in measured), TENSORS * largest + FIXED_BYTES
            passed = "" if copy / export >= SHARE and peak <= limit else "   missed"
            print(
                f"{name:22s} {measured[0]['bytes'] / 1e6:9.0f} {export:10.2f} {copy:8.2f} {copy / export:7.2f}"
                f" {export_cpu:14.2f} {copy_cpu:6.2f}"
                f" {peak / 1e6:9.0f} {limit / 1e6:10.0f}{passed}",
                flush=True,
            )
            shutil.rmtree(folder)


def measure(folder: Path, outtype: str) -> dict[str, float]:
    """Export in a fresh process, then copy what came out."""
    outfile = folder / "model.gguf"
    command = [sys.executable, __file__, "--child", str(folder), str(outfile), outtype]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    began, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(outfile, folder / "copy.gguf")
    found["copy"], found["copy cpu"] = time.perf_counter() - began, time.process_time() - cpu
    for file in folder.glob("*.gguf"):
        file.unlink()
    return found


def run_export(folder: str, outfile: str, outtype: str) -> dict[str, float]:
    """Seconds, bytes written and peak memory of one export in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    written = export_gguf(Path(folder), Path(outfile), outtype)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"export": seconds, "export cpu": cpu, "bytes": written.size_bytes, "peak": peak_memory()}


def write_llama(folder: Path, size: int, stored: str) -> int:
    """A random llama with the demo's tokenizer; gives the bytes of its largest tensor as stored."""
    folder.mkdir()
    for file in DEMO_FOLDER.glob("*token*"):
        shutil.copy(file, folder / file.name)
    weights_of_size = size * 8 / (16 if stored not in SCHEMES else BITS[stored])
    blocks = max(1, round((weights_of_size - VOCABULARY * HIDDEN) / PER_BLOCK))
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": blocks,
        "intermediate_size": 4 * HIDDEN,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    if stored in SCHEMES:
        config["quantization"] = SCHEMES[stored]
    (folder / "config.json").write_text(json.dumps(config))
    names: dict[str, str] = {}
    parts = {"model": {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}}
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        parts[prefix] = {
            **{f"{prefix}.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
            **{f"{prefix}.mlp.{name}_proj": (4 * HIDDEN, HIDDEN) for name in ("gate", "up")},
            f"{prefix}.mlp.down_proj": (HIDDEN, 4 * HIDDEN),
            **{f"{prefix}.{name}_layernorm": (HIDDEN,) for name in ("input", "post_attention")},
        }
    arrays = {shape: random_arrays(shape, stored) for shapes in parts.values() for shape in shapes.values()}
    for prefix, shapes in parts.items():  # one file for each block, so that this takes little memory too
        weights = {f"{name}.{part}": array for name, shape in shapes.items() for part, array in arrays[shape].items()}
        file = f"{prefix}.safetensors"
        mx.save_safetensors(str(folder / file), weights)
        names |= dict.fromkeys(weights, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return max(sum(array.nbytes for array in found.values()) for found in arrays.values())


def random_arrays(shape: tuple[int, ...], stored: str) -> dict[str, mx.array]:
    """A weight by its parts; the same for the same shape."""
    values = mx.array(np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * 0.02)
    if stored in SCHEMES and len(shape) == 2:
        quantized = mx.quantize(values.astype(mx.bfloat16), **SCHEMES[stored])
        return dict(zip(("weight", "scales", "biases"), quantized, strict=False))
    return {"weight": values.astype(mx.bfloat16 if stored == "bfloat16" else mx.float16)}


if __name__ == "__main__":
    main()
