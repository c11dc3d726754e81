"""What the user sees of a compression alone: what each block lost, or how each kind of module is stored."""

from __future__ import annotations

import sys

from aird_mlx.report import AdapterReport, PruningReport, QuantizationReport, TensorQuantization, to_json
from aird_mlx.report_page import interval, number, percent

from .render import Part, caption, headline, new_table, show_files, show_notes, show_sections, size


def show_pruning(report: PruningReport, as_json: bool = False) -> None:
    """Print what was pruned: JSON alone, or the sparsity of every block."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    if report.removed_experts:
        _show_experts(report)
        return
    names = list(dict.fromkeys(one.name for one in report.tensors))
    short = [name.rpartition(".")[2].removesuffix("_proj") for name in names]
    table = new_table("zeros in block", "all", *short)
    sparsities = {(one.block, one.name): one.sparsity for one in report.tensors}
    for block, sparsity in report.block_sparsity().items():
        own = [percent(sparsities[block, name]) if (block, name) in sparsities else "-" for name in names]
        table.add_row(str(block), percent(sparsity), *own)
    how = f"{report.method}, {report.pattern}, scope {report.scope}, allocation {report.allocation}"
    if report.method == "sparsegpt" or report.pattern != "unstructured":
        how = f"{report.method}, {report.pattern}, allocation {report.allocation}"
    title = f"{percent(report.sparsity)} of {report.linears} linears' weights are zero ({percent(report.asked)} asked)"
    show_sections([[headline(title), caption(how)], [table]])
    show_files(report.written)
    show_notes(report.notes)


def _show_experts(report: PruningReport) -> None:
    table = new_table("block", "experts removed")
    for block, experts in report.removed_experts.items():
        table.add_row(block, ", ".join(map(str, experts)))
    title = f"{percent(report.asked)} of the experts of {len(report.removed_experts)} blocks are gone"
    show_sections([[headline(title), caption("reap: those that add least to the residual stream")], [table]])
    show_files(report.written)
    show_notes(report.notes)


def show_quantization(report: QuantizationReport, as_json: bool = False) -> None:
    """Print how a model was quantized: JSON alone, or one row per kind of module and way of storing it."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    kinds: dict[tuple[str, str, int, int], list[TensorQuantization]] = {}
    for one in report.tensors:
        kinds.setdefault((one.name.rpartition(".")[2], one.mode, one.bits, one.group_size), []).append(one)
    table = new_table("module", "mode", "bits", "group", "count", "error", "zeros", "kept")
    for (name, mode, bits, group_size), tensors in kinds.items():
        weights = sum(one.weights for one in tensors)
        zeros = sum(one.zeros * one.weights for one in tensors)
        kept = sum(one.zeros_kept * one.zeros * one.weights for one in tensors)
        error = max(one.error for one in tensors)
        share = percent(kept / zeros) if zeros else "-"
        cells = (mode, str(bits), str(group_size), str(len(tensors)), number(error), percent(zeros / weights), share)
        table.add_row(name, *cells)
    title = f"{number(report.bits_per_weight, 2)} bits per weight; {percent(report.zeros_kept)} of the zeros kept"
    parts: list[Part] = [table, caption("error: relative, of the weights that are not zero; the worst of its modules")]
    show_sections([[headline(title)], parts])
    show_files(report.written)
    skipped = [f"{len(report.skipped)} modules were left as they were"] if report.skipped else []
    show_notes([*skipped, *report.notes])


def show_adapters(report: AdapterReport, as_json: bool = False) -> None:
    """Print what the adapters are and do: JSON alone, or their size, what they leave out, and canaries."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    exact = "exact" if report.lost == 0 else f"leaves out {percent(report.lost)} of the change"
    title = f"rule {report.rule} as a LoRA of rank {report.rank}, {exact}: {size(report.lora_bytes)}"
    sizes = f"the MLX adapter is {size(report.adapter_bytes)}, the repaired model {size(report.repaired_bytes)}"
    sections: list[list[Part]] = [[headline(title), caption(sizes)]]
    if report.check is not None:
        check = report.check
        table = new_table("canaries refused", "harmful", "harmless", "benign twins")
        rows = (("base", check.base), ("base with adapter", check.adapted), ("repaired, in MLX", check.repaired))
        for name, rates in rows:
            table.add_row(name, *(interval(rate) for rate in (rates.harmful, rates.harmless, rates.twin)))
        logits = (
            f"beside the repaired model in MLX: same argmax {percent(check.argmax_agreement)} of {check.tokens} "
            f"tokens, KL {check.mean_kl:.2g}, logits differ by {check.max_logit_difference:.2g} at most"
        )
        sections.append([table, caption(logits)])
    show_sections(sections)
    base = {} if report.base_sha256 is None else {"for base": report.base_sha256}
    show_files(report.written | base)
    show_notes(report.notes)
