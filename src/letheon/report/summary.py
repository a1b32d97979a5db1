"""A run in about ten lines: its scores before and after in short, the verdict."""

from pathlib import Path

from letheon.report.files import read_run
from letheon.report.page import judge
from letheon.report.tables import HIGHER, LOWER, Cell, Table, better_text
from letheon.report.verdict import Verdict, mean_scores
from letheon.scores.results import Results
from letheon.scores.score import FORGETTING, RETENTION, Role, shown_of


def summarise(folder: Path) -> tuple[Table | None, Verdict]:
    """Return the mean scores and totals of the run in `folder` before and after, if both were taken, and its verdict.

    Raises:
        EvaluationError: a file in the folder cannot be read.
    """
    run = read_run(folder)
    before, after = (side.results if side else None for side in (run.before, run.after))
    return (None if before is None or after is None else short_table(before, after)), judge(run)


def short_table(before: Results, after: Results) -> Table:
    """Return the scores that sum up all others: the verdict's means, then the totals that were taken on both sides."""
    sides: tuple[tuple[str, str, Role], ...] = (
        ("Mean forget score", LOWER, FORGETTING),
        ("Mean retain score", HIGHER, RETENTION),
    )
    means = [(label, better, *found) for label, better, role in sides if (found := mean_scores(role, before, after))]
    totals: list[tuple[Cell, ...]] = []
    for score in shown_of((before.scores, after.scores)):
        values = before.scores.value(score.name), after.scores.value(score.name)
        # The verdict says how the answers read.
        if score.role not in (FORGETTING, RETENTION, "fluency") and None not in values:
            totals.append((score.label, better_text(score), *values))
    return Table("", ("Score", "Better", "Before", "After"), (*means, *totals))
