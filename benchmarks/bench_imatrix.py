"""What is an importance matrix worth, type by type, and which prompts does it have to be measured on?

Exports the demo model without one, with one measured on harmless dialogues alone (as a stock quantization would), and
with one measured on all kinds. Prints for each file, run in llama.cpp on held-out prompts: KL(dense || file) per token
of the dense model's own dialogues, share of tokens with the same likeliest next one, refused prompts.

The demo's rows of 64 fit no K-quant, so it is widened to 256 first, without a change of what it computes: the residual
stream holds every channel four times, there are four of every head, and what reads them shares its weights among the
four at random. (--times 1: as it is; llama.cpp then takes q4_0, q5_0, q8_0 or iq4_nl for all but mlp.down_proj.)
Source of the idea: Chen, Goodfellow, Shlens 2016 (Net2Net, arXiv:1511.05641).

    python benchmarks/bench_imatrix.py --types q2_k,q3_k_m
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from aird_mlx.blas import use_openblas

use_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from aird_mlx.evaluation import decode, judge_answer  # noqa: E402
from aird_mlx.gguf_export import check_parity, export_gguf  # noqa: E402
from aird_mlx.gguf_export.behaviour import run_exported  # noqa: E402
from aird_mlx.gguf_export.imatrix import Imatrix, measure_imatrix  # noqa: E402
from aird_mlx.gguf_export.outtypes import OUTTYPES  # noqa: E402
from aird_mlx.gguf_export.preparation import prepare  # noqa: E402
from aird_mlx.inputs import gather_inputs  # noqa: E402
from aird_mlx.model import DEMO_FOLDER, exact_logits, load  # noqa: E402
from aird_mlx.prompts import KINDS  # noqa: E402
from aird_mlx.reference import Reference, ask_reference  # noqa: E402

TYPES = "q2_k,q3_k_m,q4_k_m,iq4_nl,iq4_xs,iq3_s,iq3_xxs,iq2_xs,iq1_m"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--prompts", type=int, default=300, help="of each kind")
    parser.add_argument(
        "--folder", type=Path, default=DEMO_FOLDER, help="a llama instead of the demo; its prompts stay the demo's"
    )
    parser.add_argument("--times", type=int, default=4, help="as wide (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, Path(temporary))


def measure(options: argparse.Namespace, temporary: Path) -> None:
    """Export and run every type."""
    folder = options.folder if options.times == 1 else widen(options.folder, temporary / "wide", options.times)
    model = load(str(folder))
    inputs = gather_inputs("demo", 0, limit=options.prompts)
    reference = Reference(
        model, inputs, ask_reference(model, inputs, max_new_tokens=48, batch_size=64, parts=("find", "test"))
    )
    plan = prepare(model.folder, "f32").plan
    matrices: dict[str, Imatrix | None] = {"none": None}
    for name, measured in (("harmless", ("harmless",)), ("all kinds", KINDS)):
        matrices[name] = measure_imatrix(model, reference.calibration(measured), plan, [name])
    dialogues = [ids for kind in KINDS for ids, _ in reference.dialogues([kind], "test")[:100]]
    kinds, _ = reference.judged("test")
    prompts = [ids for kind in KINDS for ids in reference.prompts(kind, "test")]
    print(f"{'type':8s} {'imatrix':10s} {'KL':>9s} {'same':>7s}   refused: {'   '.join(KINDS)}")
    for name in options.types.split(","):
        for words, imatrix in matrices.items():
            if imatrix is None and OUTTYPES[name].needs_imatrix:
                continue
            file = export_gguf(model.folder, temporary / f"{name}-{words}.gguf", name, imatrix=imatrix).path
            parity = check_parity(
                file,
                texts=[""] * len(dialogues),
                token_ids=dialogues,
                mlx_logits=lambda ids: exact_logits(model, ids),
            )
            stops = sorted(model.tokenizer.eos_token_ids)
            answers = run_exported(file, prompts, dialogues_of(reference), max_new_tokens=48, stop_ids=stops).answers
            classes = [judge_answer(decode(model, answer)) for answer in answers]
            rates = [
                100 * sum(c == "refusal" for k, c in zip(kinds, classes, strict=True) if k == kind)
                / max(1, kinds.count(kind))
                for kind in KINDS
            ]  # fmt: skip
            print(
                f"{name:8s} {words:10s} {parity.mean_kl:9.5f} {100 * parity.argmax_agreement:6.1f} %   "
                + "   ".join(f"{rate:5.1f} %" for rate in rates),
                flush=True,
            )
            file.unlink()


def widen(source: Path, folder: Path, times: int) -> Path:
    """A llama with tied embeddings, every channel of its residual stream and head so many times; the same logits."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
        config[key] *= times
    (folder / "config.json").write_text(json.dumps(config))
    draws = np.random.default_rng(0)

    def shared(weight: np.ndarray) -> np.ndarray:
        """Reads each channel's copies in parts that sum to what it read."""
        noise = draws.standard_normal((times, *weight.shape)) * weight.std()
        return np.concatenate(list((weight + noise - noise.mean(axis=0)) / times), axis=1)

    wide = {}
    for name, stored in mx.load(str(source / "model.safetensors")).items():
        weight = np.array(stored.astype(mx.float32))
        if name == "model.norm.weight":  # the head reads the embedding, whose copies each give all of a logit
            weight = np.tile(weight, times) / times
        elif name.endswith("norm.weight"):
            weight = np.tile(weight, times)
        elif name == "model.embed_tokens.weight":
            weight = np.tile(weight, (1, times))
        else:
            weight = weight if "down_proj" in name else shared(weight)
            weight = weight if "gate_proj" in name or "up_proj" in name else np.tile(weight, (times, 1))
        wide[name] = mx.array(weight.astype(np.float32))
    mx.save_safetensors(str(folder / "model.safetensors"), wide)
    tokens = mx.arange(3, 67)[None]
    before, after = (load(str(one)).network(tokens) for one in (source, folder))
    assert mx.abs(before - after).max().item() < 1e-3, "another model"
    return folder


def dialogues_of(reference: Reference) -> list[tuple[list[int], int]]:
    """One text, since `run_exported` wants some."""
    return reference.dialogues(["harmless"], "test")[:1]


if __name__ == "__main__":
    main()
