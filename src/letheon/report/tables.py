"""Scores as tables: before and after, several runs side by side, sample rows; for terminal, Markdown and CSV."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from letheon.evaluation.results import Prediction, Results, SplitScores
from letheon.report.text import shorten, to_markdown_text, to_rich_text, visible

MISSING = "—"
CUT = " [left here]"
NO_REASON = "no reason was recorded"
NO_FORM = "the rows were asked with raw prompts only, or these are what their form gives; see --template"
NO_VARIANT = "scored before there was a Unicode variant; `letheon evaluate --predictions` scores it again"
LOWER, HIGHER, HALF = "↓ lower", "↑ higher", "→ 0.5"

_IN_FORM = "_in_form"
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


@dataclass(frozen=True, slots=True)
class Score:
    """One line of a score table: what it is called, which way is better, and where its value lies in `Results`."""

    name: str
    """Dotted, as in results.json and its `missing`."""
    label: str
    better: str
    value: Callable[[Results], Cell]
    replaces: tuple[str, ...] = ()
    """Names of the scores that this one is to be read in place of: the official one and any variant that falls short of
    this one too. Empty for an official score."""


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


def scores_of(results: Iterable[Results]) -> tuple[Score, ...]:
    """List the scores that `results` are reported by: the tasks that any of them has, then the totals.

    Each kind of score is followed by its Unicode variant if for any of `results` the official one misses something, and
    by the scores in the rows' form where any of them asked the rows in another form than raw prompts.
    """
    present = list(results)
    has_form = any(r.form is not None and r.form.differs for r in present)
    tasks = sorted({task for r in present for split in (r.forget, r.retain) if split for task in split.tasks})
    varied = [kind for kind in ("regurgitation", "knowledge") if any(_misses_something(r, kind) for r in present)]
    by_task = [
        score
        for split in ("forget", "retain")
        for task in tasks
        for kind in ("regurgitation", "knowledge")
        for score in _task_scores(split, task, kind, is_varied=kind in varied, has_form=has_form)
    ]
    in_form = [_FORM_AGGREGATE, *([_UNICODE_FORM_AGGREGATE] if varied else [])] if has_form else []
    return (*by_task, _TASK_AGGREGATE, *([_UNICODE_AGGREGATE] if varied else []), *in_form, *_OTHER_TOTALS)


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
            return f"{cell.mean:.3f}{spread}{_interval_text(cell)}"
        case float():
            return f"{cell:.3f}"
        case _:
            return str(cell)


def _interval_text(cell: Spread) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f" ({cell.low:.3f}{'–' if cell.low >= 0 else ' to '}{cell.high:.3f})"


def missing_reason(results: Results, name: str) -> str | None:
    """Return why score `name` is None: what `missing` says of it or of the group it belongs to, None if nothing."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        reason = results.missing.get(".".join(parts[:length]))
        if reason:
            return reason
    return None


def missing_notes(column: str, results: Results, scores: Iterable[Score]) -> tuple[str, ...]:
    """Return one note for each reason why scores of `results` are missing, naming those scores."""
    by_name = {score.name: score for score in scores}
    labels: dict[str, list[str]] = {}
    for score in by_name.values():
        if score.value(results) is None:
            labels.setdefault(_reason(results, score, by_name), []).append(score.label)
    return tuple(f"{column}: no {', '.join(names)}: {reason}" for reason, names in labels.items())


def _reason(results: Results, score: Score, by_name: Mapping[str, Score]) -> str:
    official = by_name.get(score.replaces[0]) if score.replaces else None
    if official is not None and official.value(results) is not None:
        return NO_FORM if score.name.endswith(_IN_FORM) else NO_VARIANT
    return missing_reason(results, score.replaces[0] if score.replaces else score.name) or NO_REASON


def _score_table(title: str, columns: Mapping[str, Results | None]) -> Table:
    present = {name: results for name, results in columns.items() if results is not None}
    scores = scores_of(present.values())
    rows = tuple((s.label, s.better, *(None if r is None else s.value(r) for r in columns.values())) for s in scores)
    groups = [next((split for split in ("forget.", "retain.") if s.name.startswith(split)), "") for s in scores]
    sections = tuple(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])
    notes = [note for name, results in present.items() for note in missing_notes(name, results, scores)]
    notes += [f"{name}: {warning}" for name, results in present.items() for warning in results.warnings]
    return Table(title, ("Score", "Better", *columns), rows, tuple(notes), sections)


def _task_scores(split: str, task: str, kind: str, *, is_varied: bool, has_form: bool) -> list[Score]:
    """The official score and, after it, what is to be read in its place: over any script, in the rows' form."""
    scores = [_task_score(split, task, kind), *([_task_variant(split, task, kind)] if is_varied else [])]
    if not has_form:
        return scores
    # The last of the scores falls short of none of the others, so that it stands for all of them.
    forms = [_in_form(score) for score in scores]
    forms[-1] = replace(forms[-1], replaces=(*forms[-1].replaces, *(s.name for s in (*scores, *forms[:-1]))))
    return [*scores, *forms]


def _in_form(score: Score) -> Score:
    def value(results: Results) -> Cell:
        # The scores in form have the fields of the official ones.
        return score.value(results.form) if results.form is not None else None  # type: ignore[arg-type]

    return Score(f"{score.name}{_IN_FORM}", f"{score.label} (in form)", score.better, value, replaces=(score.name,))


def _task_score(split: str, task: str, kind: str) -> Score:
    def value(results: Results) -> float | None:
        scores: SplitScores | None = getattr(results, split)
        found = scores.tasks.get(task) if scores else None
        number: float | None = getattr(found, kind) if found else None
        return number

    better = LOWER if split == "forget" else HIGHER
    return Score(f"{split}.{task}.{kind}", f"{split.capitalize()} {task} {kind}", better, value)


def _task_variant(split: str, task: str, kind: str) -> Score:
    official, variant = _task_score(split, task, kind), _task_score(split, task, f"unicode_{kind}")
    return Score(variant.name, f"{official.label} (Unicode)", official.better, variant.value, replaces=(official.name,))


def _misses_something(results: Results, kind: str) -> bool:
    splits = [split for split in (results.forget, results.retain) if split]
    if kind == "regurgitation":
        return any(split.rouge_drops is not None and split.rouge_drops.matters for split in splits)
    tasks = [task for split in splits for task in split.tasks.values()]
    return any(task.unicode_knowledge not in (None, task.knowledge) for task in tasks)


def _mia_auc(results: Results) -> Cell:
    return Estimate(results.mia.auc, *results.mia.auc_interval) if results.mia else None


def _mia_score(results: Results) -> Cell:
    return Estimate(results.mia.score, *results.mia.score_interval) if results.mia else None


def _mmlu_accuracy(results: Results) -> Cell:
    return results.mmlu.accuracy if results.mmlu else None


_TASK_AGGREGATE = Score("task_aggregate", "Task aggregate", HIGHER, lambda results: results.task_aggregate)
_UNICODE_AGGREGATE = Score(
    "unicode_task_aggregate",
    "Task aggregate (Unicode)",
    HIGHER,
    lambda results: results.unicode_task_aggregate,
    replaces=("task_aggregate",),
)
_FORM_AGGREGATE = _in_form(_TASK_AGGREGATE)
_UNICODE_FORM_AGGREGATE = _in_form(_UNICODE_AGGREGATE)
_OTHER_TOTALS = (
    Score("mia.auc", "MIA AUC (95%)", HALF, _mia_auc),
    Score("mia.score", "MIA score (95%)", HIGHER, _mia_score),
    Score("mmlu.accuracy", "MMLU accuracy", HIGHER, _mmlu_accuracy),
    Score("final", "Final score", HIGHER, lambda results: results.final),
)


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
