"""Makes the manifest of a file that was just exported: runs it in llama.cpp, fits the probe, asks the canaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx import __version__
from aird_mlx.errors import DirectionError
from aird_mlx.gates import judge_export
from aird_mlx.gguf_export import LlamaRuntime, is_available
from aird_mlx.guard.canaries import ask_canaries, record_canaries
from aird_mlx.guard.cursor import Scalar
from aird_mlx.guard.manifest import TEMPLATE_KEY, Manifest, Probe
from aird_mlx.guard.probe import TOKENS, fit_probe, probe_layers, read_streams
from aird_mlx.guard.structure import read_structure
from aird_mlx.prompts import KINDS
from aird_mlx.report import Gate, RepairFigures, Stage
from aird_mlx.settings import RepairSettings, pruning_words

# Of each kind, at most, that the probe is fitted on; and numbers of the residual stream that may be kept of all, those
# to find and to validate: 1 GB, which is 1,365 prompts where the stream is 4,096 wide. Copies of them, while the probe
# is fitted, take up to 2.5 times as much again (measured).
PROBE_PROMPTS, PROBE_NUMBERS = 2000, 1 << 28

Prompts = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class CanarySet:
    """The canaries as the model that is exported was asked them.

    Attributes:
        name: of the set.
        rendered: token ids of each, from the model's own tokenizer.
        dense: class letters of the dense model's answers.
        max_new_tokens: longer answers are cut.
    """

    name: str
    rendered: list[list[int]]
    dense: str
    max_new_tokens: int


def file_facts(settings: RepairSettings, repair: RepairFigures, exported: Stage, repaired: Stage) -> dict[str, Scalar]:
    """What an exported file says about how it was made and what was measured, by key without ``aird.``.

    Args:
        settings: of the run.
        repair: the repair that was chosen.
        exported: the file's own row, whose figures it carries.
        repaired: the MLX model's, which stands in where llama.cpp is missing.
    """
    measured = exported if exported.parity else repaired
    facts = source_facts(settings.model, settings.revision) | {
        "prune.method": settings.prune_method,
        "prune.asked": pruning_words(settings),
        "sparsity": measured.sparsity,
        "repair.rule": repair.rule,
        "repair.layers": ",".join(map(str, repair.layers)),
        "repair.strength": float(repair.strength),
        "seed": settings.seed,
        "evaluation.of": measured.name,
    }
    for kind in KINDS:
        rate = getattr(measured.refusal, kind)
        if rate is not None:
            facts |= {f"evaluation.{kind}.refused": float(rate.rate), f"evaluation.{kind}.n": rate.n}
    if measured.utility is not None:
        facts |= {"evaluation.perplexity": float(measured.utility.perplexity)}
        facts["evaluation.perplexity.n"] = measured.utility.tokens
    return facts | parity_facts(exported, judge_export(exported, repaired.refusal))


def source_facts(model: str, revision: str | None) -> dict[str, Scalar]:
    """What wrote a file, and from which model: a hub id, or a folder's name without where it lies."""
    name = Path(model).name if Path(model).exists() else model
    return {"version": __version__, "source.model": name, "source.revision": revision or ""}


def parity_facts(exported: Stage, gates: Sequence[Gate]) -> dict[str, Scalar]:
    """Whether llama.cpp followed MLX when a file was written, by its row and gates: what marks one that failed."""
    if exported.parity is None:
        return {"parity": f"not run: {exported.not_checked}"}
    failed = [f"{gate.name} {gate.value:.4g}, limit {gate.limit:.4g}" for gate in gates if not gate.passed]
    return {
        "parity": f"failed: {'; '.join(failed)}" if failed else "passed",
        "parity.tokens": exported.parity.tokens,
        "parity.argmax": exported.parity.argmax_agreement,
        "parity.kl": exported.parity.mean_kl,
    }


def make_manifest(
    path: Path,
    facts: Mapping[str, Scalar],
    find: Prompts,
    validate: Prompts,
    canaries: CanarySet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """What an exported file shall say about itself.

    Args:
        path: the file.
        facts: how it was made, and what was measured.
        find, validate: by kind, token ids of prompts that the probe is fitted, and chosen, on.
        canaries: asked and recorded.
        progress: called with (prompts run, prompts).

    Returns:
        Without llama-cpp-python it has neither probe nor canaries, and says so.

    Raises:
        ParityError: llama.cpp cannot run the file. IntegrityError: it is damaged.
    """
    structure = read_structure(path)
    template = structure.text(TEMPLATE_KEY)
    if not is_available():
        return Manifest(dict(facts), template, no_probe="llama-cpp-python was not installed when the file was written")
    prompts = [*canaries.rendered, *(ids for part in (find, validate) for kind in part.values() for ids in kind)]
    longest = max(map(len, prompts))
    layers = probe_layers(structure.whole(f"{structure.text('general.architecture')}.block_count") or 0)
    context = longest + canaries.max_new_tokens + 1
    with LlamaRuntime(path, n_ctx=context, n_batch=max(512, longest), layers=layers) as runtime:
        probe, why = _fit(runtime, find, validate, progress)
        try:
            asked = ask_canaries(runtime, canaries.rendered, canaries.max_new_tokens, probe)
        except DirectionError:  # no residual stream to be seen
            return Manifest(dict(facts), template, no_probe=why)
    record = record_canaries(canaries.name, asked, canaries.dense, canaries.rendered, canaries.max_new_tokens)
    return Manifest(dict(facts), template, probe, why, record)


def _most(counts: Sequence[int], room: int) -> int:
    """How many prompts of each kind and part are kept, at least one, so that there is room for all.

    >>> _most([2000, 600, 300], 1500)
    600
    """
    sizes = range(1, max(counts, default=0) + 1)
    return max((size for size in sizes if sum(min(size, count) for count in counts) <= room), default=1)


def _fit(
    runtime: LlamaRuntime, find: Prompts, validate: Prompts, progress: Callable[[int, int], None]
) -> tuple[Probe | None, str]:
    assert runtime.tap is not None
    counts = [len(prompts) for part in (find, validate) for prompts in part.values()]
    most = _most(counts, PROBE_NUMBERS // (len(runtime.tap.layers) * TOKENS * runtime.hidden))
    find, validate = ({kind: prompts[:most] for kind, prompts in part.items()} for part in (find, validate))
    parts: list[dict[str, np.ndarray]] = []
    total = sum(len(prompts) for part in (find, validate) for prompts in part.values())
    shortest = min((len(ids) for part in (find, validate) for prompts in part.values() for ids in prompts), default=1)
    done = 0
    try:
        for part in (find, validate):
            parts.append({})
            for kind, prompts in part.items():
                if prompts:
                    parts[-1][kind] = read_streams(runtime, prompts, min(TOKENS, shortest))
                    done += len(prompts)
                    progress(done, total)
        return fit_probe(parts[0], parts[1], sorted(runtime.tap.layers)), ""
    except DirectionError as error:
        return None, " ".join(str(error).split())
