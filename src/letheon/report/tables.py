"""Scores as tables: before and after, several runs side by side, sample rows; for terminal, Markdown and CSV."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from letheon.evaluation.registry import suite_of
from letheon.report.text import shorten, to_markdown_text, to_rich_text, visible
from letheon.scores.predictions import Prediction
from letheon.scores.results import Results, missing_reason
from letheon.scores.score import FORGETTING, RETENTION, Score, shown_of
from letheon.settings import DEFAULT_SUITE

MISSING = "—"
CUT = " [left here]"
NO_REASON = "no reason was recorded"
LOWER, HIGHER, NEAR = "↓ lower", "↑ higher", "→"

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds with its standard deviation and 95% interval, None where there are too few seeds."""

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    is_best: bool = False
    """Shown in bold."""


_SMALLEST_SHOWN = 5e-4

Cell = str | int | float | Estimate | Spread | None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, rows of as many cells, and notes that say what a dash stands for; None is a missing value."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sections: tuple[int, ...] = ()
    """Rows, by index, that begin a new group."""


def before_after(before: Results | None, after: Results | None) -> Table:
    """Return every score of one model before and after unlearning; for None there are dashes and a note."""
    table = _score_table("Scores before and after", {"Before": before, "After": after})
    absent = [name for name, results in (("before", before), ("after", after)) if results is None]
    notes = tuple(
        f"{name.capitalize()}: not evaluated. Run `letheon evaluate` on the model {name} unlearning "
        f"with --out RUN/evaluation/{name}."
        for name in absent
    )
    return Table(table.title, table.columns, table.rows, notes + table.notes, table.sections)


def compare(results: Mapping[str, Results]) -> Table:
    """Return the scores of several evaluations side by side, a column each, in the mapping's order."""
    return _score_table("Scores", results)


def better_text(score: Score) -> str:
    """Say which way of a score is better, with an arrow."""
    if score.better == "lower":
        return LOWER
    return HIGHER if score.better == "higher" else f"{NEAR} {score.better:g}"


def score_cell(score: Score | None) -> Cell:
    """Return a score's value, with its interval where it has one; None without."""
    if score is None or score.value is None:
        return None
    return score.value if score.interval is None else Estimate(score.value, *score.interval)


def side_by_side(
    predictions_before: Sequence[Prediction],
    predictions_after: Sequence[Prediction],
    *,
    ids: Sequence[str],
    max_characters: int | None = None,
) -> Table:
    """Return rows `ids` with their prompt, expected answer and generations; ids that neither side has are left out."""
    paired = paired_predictions(predictions_before, predictions_after, ids=ids)
    rows = tuple(
        (
            row.split,
            shorten(row.prompt, max_characters),
            shorten(row.answer, max_characters),
            *(None if found is None else shorten(_shown_generation(found), max_characters) for found in pair),
        )
        for row, pair in paired
    )
    columns = ("Set", "Prompt", "Expected answer", "Before", "After")
    first_of_split = {row[0]: index for index, row in reversed(list(enumerate(rows)))}
    notes: tuple[str, ...] = ()
    if any(None in row for row in rows):
        notes += ("A dash: that evaluation has no prediction for the row.",)
    if any(found and found.is_cut for _, pair in paired for found in pair):
        notes += (f"{CUT.strip()}: not generated to its end, since the answer could no longer be matched.",)
    return Table("Sample rows", columns, rows, notes, tuple(sorted(first_of_split.values())))


def _shown_generation(prediction: Prediction) -> str:
    return prediction.generation + CUT if prediction.is_cut else prediction.generation


def paired_predictions(
    before: Sequence[Prediction], after: Sequence[Prediction], *, ids: Sequence[str]
) -> list[tuple[Prediction, tuple[Prediction | None, Prediction | None]]]:
    """Pair predictions by split and id: (either of them, (before, after)), forget rows first, then as in `ids`."""
    sides = [{(p.split, p.id): p for p in predictions} for predictions in (before, after)]
    pairs = [
        (sides[0].get((split, row_id)), sides[1].get((split, row_id)))
        for split in ("forget", "retain")
        for row_id in dict.fromkeys(ids)
    ]
    return [(row, pair) for pair in pairs if (row := pair[0] or pair[1]) is not None]


def pick_samples(before: Sequence[Prediction], after: Sequence[Prediction], *, num_per_split: int) -> tuple[str, ...]:
    """Choose ids to show: tasks and kinds in turn, within one the order of a hash of the id.

    The hash keeps the choice the same from run to run and blind to how a row came out. Rows that both evaluations
    have come first where there are any.
    """
    both = {(p.split, p.id) for p in before} & {(p.split, p.id) for p in after}
    rows = {(p.split, p.id): p for p in (*before, *after) if not both or (p.split, p.id) in both}
    picked = [
        row.id
        for split in ("forget", "retain")
        for row in _in_turn([p for p in rows.values() if p.split == split])[:num_per_split]
    ]
    return tuple(dict.fromkeys(picked))


def to_rich(table: Table) -> RenderableType:
    """Return the table for a rich console; text from models cannot style it or move the cursor."""
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    shown.title = to_rich_text(table.title)
    is_number = [is_number_column(table, index) for index in range(len(table.columns))]
    for column, numeric in zip(table.columns, is_number, strict=True):
        shown.add_column(to_rich_text(column), justify="right" if numeric else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        if index in table.sections:
            shown.add_section()
        shown.add_row(*(_rich_cell(cell) for cell in row))
    return Group(shown, *(Text("  ") + to_rich_text(note, style="dim") for note in table.notes))


def to_markdown(table: Table) -> str:
    """Return the table as GitHub-flavoured Markdown, its notes as a list below it."""
    is_number = [is_number_column(table, index) for index in range(len(table.columns))]
    lines = [
        _markdown_row(table.columns),
        _markdown_row(["---:" if numeric else "---" for numeric in is_number], is_text=False),
        *(_markdown_row([_markdown_cell(cell) for cell in row], is_text=False) for row in table.rows),
    ]
    notes = ["", *(f"- {to_markdown_text(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([*lines, *notes]) + "\n"


def to_csv(table: Table) -> str:
    """Return the table as CSV with full-precision numbers; a missing value is an empty cell, notes are left out.

    Text that a spreadsheet would run as a formula is given a leading apostrophe; numbers stay numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(column) for column in table.columns])
    writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return text.getvalue()


def cell_text(cell: Cell) -> str:
    """Return a cell as people read it: three decimals, an interval in brackets, a dash for what is missing."""
    match cell:
        case None:
            return MISSING
        case Estimate():
            return f"{cell.value:.3f} ({cell.low:.2f}–{cell.high:.2f})"
        case Spread():
            spread = "" if cell.deviation is None else f" ± {cell.deviation:.3f}"
            return f"{_number_text(cell.mean)}{spread}{_interval_text(cell)}"
        case float():
            return _number_text(cell)
        case _:
            return str(cell)


def _number_text(value: float) -> str:
    """Three decimals, or two digits of a number so small, as p-values are, that nothing but zeros would be left."""
    return f"{value:.1e}" if 0 < abs(value) < _SMALLEST_SHOWN else f"{value:.3f}"


def _interval_text(cell: Spread) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f" ({cell.low:.3f}{'–' if cell.low >= 0 else ' to '}{cell.high:.3f})"


def missing_notes(column: str, results: Results, shown: Iterable[Score]) -> tuple[str, ...]:
    """Return one note for each reason why scores of `results` are missing, naming those scores."""
    own = results.scores
    labels: dict[str, list[str]] = {}
    for score in shown:
        found = own.get(score.name)
        if found is None or found.value is None:
            reason = missing_reason(results, score.name) if found is None else found.missing
            labels.setdefault(reason or NO_REASON, []).append(score.label)
    return tuple(f"{column}: no {', '.join(names)}: {reason}" for reason, names in labels.items())


def _score_table(title: str, columns: Mapping[str, Results | None]) -> Table:
    present = {name: results for name, results in columns.items() if results is not None}
    own = {name: results.scores for name, results in present.items()}
    shown = shown_of(list(own.values()) or [suite_of(DEFAULT_SUITE).scores])
    rows = tuple(
        (s.label, better_text(s), *(score_cell(own[name].get(s.name)) if name in own else None for name in columns))
        for s in shown
    )
    groups = [score.role if score.role in (FORGETTING, RETENTION, "fluency") else "" for score in shown]
    sections = tuple(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])
    notes = [note for name, results in present.items() for note in missing_notes(name, results, shown)]
    notes += [f"{name}: {warning}" for name, results in present.items() for warning in results.warnings]
    return Table(title, ("Score", "Better", *columns), rows, tuple(notes), sections)


def _in_turn(rows: list[Prediction]) -> list[Prediction]:
    """Order rows so that a few from the start show every task, and kinds in turn."""
    tasks = sorted({row.task for row in rows})
    kinds = sorted({row.kind for row in rows})
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.id.encode("utf-8", "surrogatepass")).digest()):
        groups.setdefault((row.task, row.kind), []).append(row)
    diagonal = [
        groups.get((task, kinds[(index + shift) % len(kinds)]), [])
        for shift in range(len(kinds))
        for index, task in enumerate(tasks)
    ]
    deepest = max(map(len, diagonal), default=0)
    return [group[depth] for depth in range(deepest) for group in diagonal if depth < len(group)]


def _rich_cell(cell: Cell) -> Text:
    if cell == "":
        return Text("(empty)", style="dim")
    style = "dim" if cell is None else "bold" if isinstance(cell, Spread) and cell.is_best else ""
    return to_rich_text(cell_text(cell), style=style)


def _markdown_cell(cell: Cell) -> str:
    text = to_markdown_text(cell_text(cell))
    return f"**{text}**" if isinstance(cell, Spread) and cell.is_best else text


def is_number_column(table: Table, index: int) -> bool:
    """Whether a column holds numbers, or none but missing ones among them, and is set flush right."""
    cells = [row[index] for row in table.rows]
    return any(not isinstance(cell, str) for cell in cells) and not any(isinstance(cell, str) for cell in cells)


def _markdown_row(cells: Iterable[str], *, is_text: bool = True) -> str:
    return "| " + " | ".join(to_markdown_text(cell) if is_text else cell for cell in cells) + " |"


def _csv_cell(cell: Cell) -> str | int | float:
    if cell is None:
        return ""
    if isinstance(cell, int | float):
        return cell
    text = visible(cell_text(cell))
    # A tab at the start is already a visible escape here; what was one is guarded all the same.
    is_formula = cell_text(cell).lstrip(" ").startswith(_FORMULA_STARTS) and not _PLAIN_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text
