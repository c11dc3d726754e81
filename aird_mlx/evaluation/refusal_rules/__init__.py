"""What refusals say: a hand-written list of named rules, each one pattern with one meaning.

A rule holds in one place. ``skip`` takes out what only looks like a refusal before anything else is read; ``start``
must match what the answer begins with, courtesies apart; ``opening`` may match anywhere in the opening. ``condemns``
and ``turns`` refuse together only: the first sentences call the act wrong, and the answer then pleads, warns or points
elsewhere; either alone is what an explanation of law or a good piece of advice says too. ``answers`` says that the
answer is given (or cannot be) all the same, and overrules the refusals. The order within a place decides only which
rule is named. Patterns see lower and upper case alike, straight apostrophes and no Markdown emphasis. Every repetition
is bounded, because an opening is short but a pattern is tried at each of its characters.
"""

from __future__ import annotations

from aird_mlx.evaluation.refusal_rules.exceptions import ANSWERING, NOT_REFUSING
from aird_mlx.evaluation.refusal_rules.morals import CONDEMNING, TURNING
from aird_mlx.evaluation.refusal_rules.opening import IN_THE_OPENING
from aird_mlx.evaluation.refusal_rules.rule import ANSWERS, CONDEMNS, OPENING, SKIP, START, TURNS, Rule, refused
from aird_mlx.evaluation.refusal_rules.start import AT_THE_START
from aird_mlx.evaluation.refusal_rules.unwilling import UNWILLING

__all__ = ["ANSWERS", "CONDEMNS", "OPENING", "RULES", "SKIP", "START", "TURNS", "Rule", "refused"]

RULES: tuple[Rule, ...] = (
    *NOT_REFUSING,
    *AT_THE_START,
    *IN_THE_OPENING,
    *UNWILLING,
    *CONDEMNING,
    *TURNING,
    *ANSWERING,
)
