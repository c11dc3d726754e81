"""How much memory does a model take that is pruned and repaired block by block?

Writes random llama checkpoints of two sizes, then prunes and repairs each in a process of its own, streaming: dense
weights are read block by block, each block is written when it is done. Prints the peak resident memory (VmHWM)
beside the checkpoint's size and beside that of a process which has only imported the libraries, the seconds per stage
(of the CPU, which other work on the machine does not change), and how they grew with the number of blocks. Weights are
float32, which Linux CPUs are quick at.

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --blocks 24 --rule reconstruct --steps 2
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402

from aird_mlx.activations import batch_sequences  # noqa: E402
from aird_mlx.model import DEMO_FOLDER, ShardFolder, load, peak_memory  # noqa: E402
from aird_mlx.model.files import copy_companions  # noqa: E402
from aird_mlx.pruning import prune_model  # noqa: E402
from aird_mlx.repair import RepairPlan, repair_blocks  # noqa: E402

ALLOWED = 0.4


def main() -> None:
    """Measure and print; exit code 1 when a peak is above what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--intermediate", type=int, default=2816)
    parser.add_argument("--tokens", type=int, default=512, help="calibration tokens")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--rule", default="least-squares")
    parser.add_argument("--steps", type=int, default=20, help="of rule reconstruct, per block")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written  [default: a temporary one]")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _work(options.child, options)
        return
    parts = f"{options.method}, {options.rule}, {options.tokens} calibration tokens, {mx.default_device()}"
    print(f"llama of hidden {options.hidden}, intermediate {options.intermediate}, float32; {parts}")
    print(f"{'blocks':>6s} {'GB':>6s} {'peak GB':>8s} {'share':>6s} {'beyond import':>13s} {'prune s':>8s} "
          f"{'repair s':>9s} {'s/block':>8s}")  # fmt: skip
    shares, seconds = [], []
    for blocks in options.blocks:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            source = Path(scratch) / "dense"
            size = _write_checkpoint(source, blocks, options.hidden, options.intermediate)
            command = [sys.executable, __file__, "--child", str(source), *sys.argv[1:]]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        shares.append(found["peak"] / size)
        seconds.append(found["prune"] + found["repair"])
        print(f"{blocks:6d} {size / 1e9:6.2f} {found['peak'] / 1e9:8.3f} {shares[-1]:6.1%} "
              f"{(found['peak'] - found['imported']) / size:13.1%} {found['prune']:8.1f} {found['repair']:9.1f} "
              f"{seconds[-1] / blocks:8.2f}", flush=True)  # fmt: skip
    grown = seconds[-1] / seconds[0], options.blocks[-1] / options.blocks[0]
    print(f"time grew {grown[0]:.2f} times with {grown[1]:.2f} times the blocks")
    print(f"peak memory at most {max(shares):.1%} of the checkpoint; {ALLOWED:.0%} are allowed")
    sys.exit(max(shares) > ALLOWED)


def _write_checkpoint(folder: Path, blocks: int, hidden: int, intermediate: int) -> int:
    """A random llama with the demo's tokenizer, a file per four blocks; its size in bytes."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "intermediate_size": intermediate,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    copy_companions(DEMO_FOLDER, folder)
    key = mx.random.key(0)

    def matrix(rows: int, columns: int) -> mx.array:
        nonlocal key
        key, own = mx.random.split(key)
        return mx.random.normal((rows, columns), key=own) / columns**0.5

    arrays = {"model.embed_tokens.weight": matrix(4096, hidden), "model.norm.weight": mx.ones(hidden)}
    for block in range(blocks):
        prefix = f"model.layers.{block}."
        for name in ("q", "k", "v", "o"):
            arrays[f"{prefix}self_attn.{name}_proj.weight"] = matrix(hidden, hidden)
        for name, shape in (("gate", (intermediate, hidden)), ("up", (intermediate, hidden))):
            arrays[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape)
        arrays[f"{prefix}mlp.down_proj.weight"] = matrix(hidden, intermediate)
        arrays |= {f"{prefix}{name}_layernorm.weight": mx.ones(hidden) for name in ("input", "post_attention")}
        if block % 4 == 3 or block == blocks - 1:
            mx.save_safetensors(str(folder / f"model-{block:05d}.safetensors"), arrays)
            arrays = {}
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _work(source: Path, options: argparse.Namespace) -> None:
    """Prune and repair; prints the figures as JSON."""
    imported = peak_memory()
    generator = random.Random(0)
    length = 256
    sequences = [[generator.randrange(4096) for _ in range(length)] for _ in range(max(1, options.tokens // length))]
    calibration = batch_sequences(sequences)
    began = time.process_time()
    model = load(source, streaming=True)
    shards = ShardFolder(source.parent / "compressed", model)
    prune_model(model, calibration, method=options.method, sparsity=0.5, shards=shards)
    shards.finish()
    pruned = time.process_time()
    del model, shards
    dense, model = load(source, streaming=True), load(source.parent / "compressed", streaming=True)
    direction = mx.random.normal((1, dense.hidden_size), key=mx.random.key(1))
    plan = RepairPlan(options.rule, tuple(range(len(model.blocks))), steps=options.steps)
    shards = ShardFolder(source.parent / "repaired", model)
    repair_blocks(model, dense, calibration, direction / mx.linalg.norm(direction), plan, shards)
    shards.finish()
    repaired = time.process_time()
    print(
        json.dumps({"peak": peak_memory(), "imported": imported, "prune": pruned - began, "repair": repaired - pruned})
    )


if __name__ == "__main__":
    main()
