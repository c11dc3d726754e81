"""The refusal direction of one model, or of two compared, as a report: what it is, how sure that is, has it moved.

Both models are measured on the same prompts with the refusal tokens of the dense one. This module does not choose words
for the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from aird_mlx.direction import (
    MAXIMUM_KL,
    CandidateScores,
    Measurement,
    PlaceComparison,
    Resampled,
    check_image,
    compare_directions,
    draw_heat_map,
    mean_differences,
    save_direction,
)
from aird_mlx.errors import ModelError, OutputError, UsageError
from aird_mlx.inputs import Inputs, gather_inputs
from aird_mlx.model import ChatModel, load
from aird_mlx.prompts import render_prompt
from aird_mlx.reference import Reference, ask_to_find
from aird_mlx.report import ComparisonReport, DirectionReport, Estimate, PlaceFigures, ScoredDirection, to_json
from aird_mlx.settings import Progress
from aird_mlx.stages import DIRECTION_PROMPTS, measure_on_reference
from aird_mlx.verdict import comparison_in_words, selection_in_words
from aird_mlx.workspace import write_text, write_whole


def report_direction(
    model: str,
    *,
    harmful: Path | None = None,
    harmless: Path | None = None,
    twins: Path | None = None,
    seed: int = 0,
    top: int = 10,
    out: Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> DirectionReport:
    """Measure the refusal direction of a model as `repair_model` does, and how sure its selection is.

    Args:
        model: hub id, folder, or ``demo``.
        harmful, harmless, twins: prompt files instead of the built-in ones.
        seed: of the splits of the prompts and of their resamples.
        top: how many candidates the report lists.
        out: where to save the direction (.safetensors).
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input, or a model without a refusal direction.
    """
    _check_file(out, ".safetensors")
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code)
    inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, twins=twins)
    reference = _ask(loaded, inputs, progress)
    measured = measure_on_reference(loaded, reference, _step(progress, "direction"))
    resampled = measured.scores.resampled(seed=seed)
    best = _winner(measured)
    scored = _scored(measured.scores, resampled, best)
    selected = scored[best]
    ranked = sorted(scored, key=lambda one: (not one.survived, one.kl.value > MAXIMUM_KL, one.bypass.value))
    if out is not None:
        write_whole(out, lambda path: save_direction(measured.direction, path))
    return DirectionReport(
        model=model,
        seed=seed,
        said=selection_in_words(selected, scored),
        selected=selected,
        candidates=[one for rank, one in enumerate(ranked) if rank < top or one.near_tie],
        considered=len(scored),
        survivors=sum(one.survived for one in scored),
        refusal_tokens=_token_texts(reference),
        refusal_token_ids=reference.refusal_tokens,
        twins_along=_twins_along(reference, measured),
        found=list(measured.direction.found),
        scored=list(measured.direction.selected),
        resamples=len(resampled.winners),
        written={} if out is None else {"direction": str(out)},
        notes=[*loaded.notes, f"prompts: {inputs.contrast.origin}"],
    )


def compare_models(
    dense: str,
    other: str,
    *,
    harmful: Path | None = None,
    harmless: Path | None = None,
    seed: int = 0,
    splits: int = 200,
    image: Path | None = None,
    out: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> ComparisonReport:
    """Say whether the refusal direction moved from one version of a model to another.

    Args:
        dense, other: hub ids, folders, or ``demo``; two versions of one model.
        harmful, harmless: prompt files instead of the built-in ones.
        seed: of the splits of the prompts, of their halves and their resamples.
        splits: random splits of the prompts in halves.
        image: where to draw the heat map (.png or .svg).
        out: where to write the report (.json).
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input, models of different shapes, or a dense model without a refusal direction.
    """
    _check_file(out, ".json")
    if image is not None:
        check_image(image)
    one, two = (load(name, trust_remote_code=trust_remote_code) for name in (dense, other))
    _check_shapes(one, two)
    inputs = gather_inputs(dense, seed, harmful=harmful, harmless=harmless)
    reference = _ask(one, inputs, progress)
    measured = [
        measure_on_reference(model, reference, _step(progress, f"direction of {name}"))
        for model, name in ((one, "DENSE"), (two, "OTHER"))
    ]
    places = [(found.direction.layer, found.direction.position) for found in measured]
    compared = compare_directions(
        one,
        two,
        *(reference.prompts(kind, "find", DIRECTION_PROMPTS) for kind in ("harmful", "harmless")),
        positions=measured[0].differences.shape[1],
        across=(places[0], places[1]),
        splits=splits,
        seed=seed,
        progress=_step(progress, "compare"),
    )
    resampled = [found.scores.resampled(seed=seed) for found in measured]
    scored = [_scored(found.scores, drawn, _winner(found)) for found, drawn in zip(measured, resampled, strict=True)]
    at_dense = measured[1].scores.at(*places[0])
    fixed = _place_figures(places[0], places[0], compared.places[places[0]])
    same_winner = _same_winner([found.scores for found in measured], resampled)
    selected = [one[_winner(found)] for one, found in zip(scored, measured, strict=True)]
    report = ComparisonReport(
        dense=dense,
        other=other,
        seed=seed,
        verdict=comparison_in_words(fixed, selected, same_winner),
        fixed=fixed,
        reselected=_place_figures(places[0], places[1], compared.across),
        dense_selected=selected[0],
        other_fixed=None if at_dense is None else scored[1][at_dense],
        other_selected=selected[1],
        same_winner=same_winner,
        places=[_place_figures(place, place, found) for place, found in compared.places.items()],
        refusal_tokens=_token_texts(reference),
        found=list(measured[0].direction.found),
        scored=list(measured[0].direction.selected),
        splits=splits,
        resamples=len(resampled[0].winners),
        written={name: str(path) for name, path in (("image", image), ("report", out)) if path is not None},
        notes=[*one.notes, *two.notes, f"prompts: {inputs.contrast.origin}", *_template_note(reference, two)],
    )
    if image is not None:
        _draw(report, image)
    if out is not None:
        write_text(out, to_json(report))
    return report


def _ask(model: ChatModel, inputs: Inputs, progress: Progress) -> Reference:
    """The model as reference, with its answers to what its refusal tokens are found with."""
    return Reference(model, inputs, ask_to_find(model, inputs, ("harmful", "harmless"), _step(progress, "answers")))


def _step(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def _check_file(path: Path | None, suffix: str) -> None:
    if path is None:
        return
    if path.suffix != suffix:
        raise UsageError(f"output: {path} ends in {path.suffix!r}; {suffix} is needed. Rename it.")
    if not path.parent.is_dir():
        raise OutputError(f"output: there is no folder {path.parent}; an existing one is needed. Create it.")


def _check_shapes(dense: ChatModel, other: ChatModel) -> None:
    seen, wanted = ((model.hidden_size, len(model.blocks), model.vocabulary) for model in (other, dense))
    if seen != wanted:
        raise ModelError(
            f"compare: {other.name} has width, blocks and vocabulary {seen}, {dense.name} has {wanted}; two versions "
            "of one model are needed. Compare a model with what was made from it."
        )


def _template_note(reference: Reference, other: ChatModel) -> list[str]:
    prompt = reference.inputs.contrast.part("harmful", "find")[0]
    if render_prompt(other.tokenizer, prompt) == render_prompt(reference.model.tokenizer, prompt):
        return []
    return ["OTHER's chat template or tokenizer differs; both models were given the tokens of DENSE's"]


def _token_texts(reference: Reference) -> list[str]:
    return [reference.model.tokenizer.decode([token]) for token in reference.refusal_tokens]


def _twins_along(reference: Reference, measured: Measurement) -> float | None:
    twins = reference.prompts("twin", "find", DIRECTION_PROMPTS)
    if not twins:
        return None
    direction, positions = measured.direction, measured.differences.shape[1]
    harmless = reference.prompts("harmless", "find", DIRECTION_PROMPTS)
    differences = mean_differences(reference.model, twins, harmless, positions)
    along = (differences[direction.layer, direction.position] * direction.vector).sum()
    return float((along / mx.array(direction.norm)).item())


def _winner(measured: Measurement) -> int:
    """Index of the selected candidate."""
    index = measured.scores.at(measured.direction.layer, measured.direction.position)
    assert index is not None
    return index


def _scored(scores: CandidateScores, resampled: Resampled, best: int) -> list[ScoredDirection]:
    """All candidates with their intervals; near ties of the candidate ``best`` are as good as it by the filters."""
    shares, ties = resampled.shares(), resampled.near_ties(best)

    def estimate(name: str, index: int) -> Estimate:
        return Estimate(getattr(scores.candidates[index], name), *resampled.interval(name, index))

    return [
        ScoredDirection(
            layer=candidate.layer,
            position=candidate.position,
            norm=candidate.norm,
            bypass=estimate("bypass", index),
            induce=estimate("induce", index),
            kl=estimate("kl", index),
            survived=candidate.is_survivor,
            win_share=float(shares[index]),
            near_tie=bool(ties[index]) and candidate.is_survivor == scores.candidates[best].is_survivor,
        )
        for index, candidate in enumerate(scores.candidates)
    ]


def _same_winner(scores: list[CandidateScores], resampled: list[Resampled]) -> float:
    """Share of resamples in which both models select the same place; the same draw is the same prompts."""
    winners = [
        [(one.candidates[index].layer, one.candidates[index].position) for index in drawn.winners.tolist()]
        for one, drawn in zip(scores, resampled, strict=True)
    ]
    return float(np.mean([first == second for first, second in zip(*winners, strict=True)]))


def _place_figures(place: tuple[int, int], other: tuple[int, int], compared: PlaceComparison) -> PlaceFigures:
    calibrated = compared.splits.calibrated_cosine()
    return PlaceFigures(
        *place,
        *other,
        cosine=compared.cosine,
        calibrated_cosine=calibrated,
        angle=None if calibrated is None else _angle(calibrated),
        null_dense=float(compared.splits.null_one.mean()),
        null_other=float(compared.splits.null_other.mean()),
        norm_dense=compared.norms[0],
        norm_other=compared.norms[1],
        norm_ratio=compared.splits.norm_ratio(),
    )


def _angle(cosine: Estimate) -> Estimate:
    value, low, high = np.degrees(np.arccos(np.clip([cosine.value, cosine.high, cosine.low], -1.0, 1.0))).tolist()
    return Estimate(value, low, high)


def _draw(report: ComparisonReport, path: Path) -> None:
    layers, positions = (1 + max(one.layer for one in report.places), -min(one.position for one in report.places))
    calibrated, plain = np.full((layers, positions), np.nan), np.zeros((layers, positions))
    for one in report.places:
        plain[one.layer, one.position] = one.cosine
        if one.calibrated_cosine is not None:
            calibrated[one.layer, one.position] = one.calibrated_cosine.value
    names = {"OTHER": Path(report.other).name, "DENSE": Path(report.dense).name}
    selected = {"OTHER": report.other_selected, "DENSE": report.dense_selected}
    places = {which: (one.layer, one.position) for which, one in selected.items()}
    marks = {place: f"selected in {which} ({names[which]})" for which, place in places.items()}
    if len(marks) == 1:
        marks = dict.fromkeys(marks, "selected in both")
    title = f"refusal direction, {names['DENSE']} and {names['OTHER']} (plain cosine in brackets)"
    draw_heat_map(calibrated, plain, path, title=title, label="calibrated cosine", marks=marks)
