"""Compress the embedded demo model, repair its refusals, print what that did: the main job in ten lines."""

from aird_mlx.blas import use_openblas

use_openblas()  # on Linux, before mlx is imported: 30 times faster matrix products; does nothing on a Mac

from aird_mlx import RepairSettings, repair_model  # noqa: E402

report = repair_model(RepairSettings(model="demo", sparsity=0.6, gguf=()))
for stage in report.stages:
    harmful, twin = stage.refusal.harmful, stage.refusal.twin
    print(f"{stage.name:>10}: refuses {harmful.rate:.1%} of harmful, {twin.rate:.1%} of benign twin prompts")
print("written to", report.written["mlx"])
