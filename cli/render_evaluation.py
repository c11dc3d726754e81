"""What the user sees of an evaluation: tables from its result, readable at 80 columns without colour."""

from __future__ import annotations

import sys

from aird_mlx.report import AskedSet, Evaluation, SetChange, to_json
from aird_mlx.report_page import interval, judged_on, number, p_value, percent

from .render import Part, caption, headline, new_table, show_notes, show_sections

ROW_NAME_WIDTH = 26  # what the widest figures leave of 80 columns


def show_evaluation(evaluation: Evaluation, as_json: bool = False) -> None:
    """Print an evaluation: JSON alone, or tables."""
    if as_json:
        sys.stdout.write(to_json(evaluation))
        return
    sections: list[list[Part]] = []
    for kind, name in dict.fromkeys((one.kind, one.prompts) for one in evaluation.sets):
        mine = [one for one in evaluation.sets if (one.kind, one.prompts) == (kind, name)]
        words = "harmful prompts" if kind == "harmful" else f"{kind} prompts, to be answered"
        sections.append([headline(f"{words}: {name}, n = {len(mine[0].classes)}"), _rates_table(mine)])
    if sections:
        sections[-1].append(caption(_rates_caption(evaluation)))
    if any(one.judge_model for one in evaluation.sets):
        sections.append([_judge_table(evaluation.sets), caption("agreement: of the rule judge with the judge model")])
    if evaluation.changes:
        sections.append([_change_table(evaluation), caption("p: McNemar's exact test on the same prompts")])
    if evaluation.utility or evaluation.multiple_choice or evaluation.tasks:
        sections.append([_utility_table(evaluation)])
    show_sections(sections)
    show_notes(evaluation.notes)


def _rates_table(sets: list[AskedSet]) -> Part:
    table = new_table("asked", "complied", "refused", "incoherent")
    for one in sets:
        rows = [(one.attack if one.mean is None else f"{one.attack}, any of {one.tries}", one.rates)]
        rows += [] if one.mean is None else [(f"{one.attack}, mean", one.mean)]
        for name, rates in rows:
            table.add_row(name, interval(rates.compliance), interval(rates.refusal), percent(rates.incoherent.rate))
    return table


def _rates_caption(evaluation: Evaluation) -> str:
    words = "harmful prompts complied with: attack success rate; in brackets Wilson 95 %"
    if any(one.tries > 1 for one in evaluation.sets):
        words += "\nany: a prompt counts when one try complied"
    return f"{words}\n{judged_on(evaluation.answer_tokens)}".rstrip()


def _row_name(one: AskedSet | SetChange) -> str:
    """Kind or attack, and set; of the set's name what there is room for, its end, where file names differ."""
    asked = one.attack if one.kind == "harmful" else one.kind
    asked += "/system" if one.kind != "harmful" and one.attack == "system" else ""
    room = ROW_NAME_WIDTH - len(asked) - 1
    return f"{asked} {one.prompts if len(one.prompts) <= room else '..' + one.prompts[2 - room :]}"


def _judge_table(sets: list[AskedSet]) -> Part:
    table = new_table("judge model", "complied", "agreement", "kappa", "n", "unread")
    for one in sets:
        if one.judge_model is not None:
            figures = one.judge_model
            agreement = figures.agreement
            table.add_row(
                _row_name(one),
                interval(figures.compliance) if figures.compliance else "-",
                "-" if agreement is None else percent(agreement.rate),
                number(figures.kappa, 2),
                "0" if agreement is None else str(agreement.n),
                str(figures.unparsable),
            )
    return table


def _change_table(evaluation: Evaluation) -> Part:
    table = new_table("change since", "outcome", "before", "after", "gained", "lost", "p")
    for one in evaluation.changes:
        change = one.change
        table.add_row(
            _row_name(one),
            one.outcome,
            percent(change.before),
            percent(change.after),
            str(change.gained),
            str(change.lost),
            p_value(change.p_value),
        )
    return table


def _utility_table(evaluation: Evaluation) -> Part:
    table = new_table("utility", "", "n")
    if evaluation.utility is not None:
        utility = evaluation.utility
        tokens = f"{utility.tokens} tokens"
        table.add_row("perplexity", number(utility.perplexity), tokens)
        if utility.kl_to_dense is not None and utility.top1_agreement is not None:
            table.add_row("KL to dense", number(utility.kl_to_dense, 4), tokens)
            table.add_row("top-1 agreement", percent(utility.top1_agreement), tokens)
    for figures in evaluation.multiple_choice:
        table.add_row(f"{figures.name} acc", interval(figures.accuracy), str(figures.accuracy.n))
        table.add_row(f"{figures.name} acc_norm", interval(figures.accuracy_normalized), str(figures.accuracy.n))
    for score in evaluation.tasks:
        spread = "" if score.error is None else f" +- {score.error:.3f}"
        table.add_row(
            f"{score.task} {score.metric}", f"{score.value:.3f}{spread}", "-" if score.n is None else str(score.n)
        )
    return table
