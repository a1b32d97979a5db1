"""A study's tables: the same numbers for terminal, Markdown, LaTeX and CSV."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from letheon.report.tables import Cell, Spread, Table
from letheon.report.verdict import FORGOTTEN_SHARE
from letheon.studies.aggregate import (
    ALPHA,
    ConfigurationRow,
    comparisons_of,
    name_of,
    rows_of,
    seed_moves,
    sensitivities,
)
from letheon.studies.forgetting import NOT_KNOWN, NOT_SCORED
from letheon.studies.known import aims_of, known_scores
from letheon.studies.records import RunRecord, StateScores, StudyRecord
from letheon.studies.shown_scores import (
    label_of_score,
    labelled_states,
    scores_in,
    trade_off_in,
    trade_off_scores,
    versions_of,
)
from letheon.studies.statistics import deviation

NAMES = ("scores", "trade-off", "comparisons", "sensitivity", "unfinished")
"""The tables that a study may have."""

_MOST_NAMES = 5


def tables_of(record: StudyRecord) -> dict[str, Table]:
    """Return the tables that the study has numbers for, by name."""
    made = {
        "scores": scores_table(record),
        "trade-off": trade_off_table(record),
        "comparisons": comparison_table(record),
        "sensitivity": sensitivity_table(record),
        "unfinished": runs_table(record),
    }
    return {name: table for name, table in made.items() if table is not None and table.rows}


def scores_table(record: StudyRecord) -> Table:
    """Return every configuration's scores: mean, standard deviation and 95% interval over seeds, the best in bold.

    Baselines, the original model and scores that the study did not take are rows of their own below a rule.
    """
    return _table_of(record, scores_in(record), record.study.name)


def trade_off_table(record: StudyRecord) -> Table | None:
    """Return what each configuration forgot and retained; None where that was not scored."""
    names = trade_off_scores(record)
    return None if not names else _table_of(record, names, f"{record.study.name}: forgotten and retained")


def comparison_table(record: StudyRecord) -> Table | None:
    """Return the paired comparisons of all scores, and of what was forgotten and retained.

    None where no two configurations share two seeds.
    """
    scores = tuple(dict.fromkeys([*scores_in(record), *trade_off_scores(record)]))
    rows = rows_of(record, scores)
    found = [comparison for score in scores for comparison in comparisons_of(record, rows, score)]
    if not found:
        return None
    cells: list[tuple[Cell, ...]] = [
        (
            label_of_score(one.score, record),
            one.first,
            one.second,
            one.found.num_seeds,
            Spread(
                one.found.difference, None, one.found.low, one.found.high, one.p_holm < ALPHA and one.is_of_forgetting
            ),
            _p(one.found.p),
            _p(one.p_holm),
            _p(one.found.p_flips),
        )
        for one in found
    ]
    starts = tuple(i for i in range(1, len(found)) if found[i].score != found[i - 1].score)
    columns = ("Score", "Configuration", "against", "Seeds", "Difference (95%)", "p", "p (Holm)", "p (sign flips)")
    return Table(f"{record.study.name}: differences over the same seeds", columns, tuple(cells), _why(record), starts)


def sensitivity_table(record: StudyRecord) -> Table | None:
    """Return how far each setting moves forgetting and retention; None where no two configurations differ in one."""
    names = trade_off_in(record)
    if names is None:
        return None
    rows = rows_of(record, names, by_epoch=False)
    found = sensitivities(rows, names)
    if not found:
        return None
    cells: list[tuple[Cell, ...]] = [
        (
            one.setting,
            one.num_pairs,
            one.forgotten,
            one.retained,
            Spread(one.retained - one.forgotten, None, *(one.excess or (None, None))),
        )
        for one in found
    ]
    by_seed = [seed_moves(rows, name) for name in names]
    cells.append(("(seeds alone)", None, *by_seed, None))
    columns = ("Setting", "Pairs", "Forgotten moves", "Retained moves", "Retained - forgotten (95%)")
    notes = (
        "How far the mean of a score lies apart between two configurations that differ in this setting alone, on "
        "average over all such pairs. Above 0 in the last column: the setting moves retention more than forgetting, "
        "which is then the more fragile; its interval is over seeds (bootstrap).",
        "Seeds alone: what two equal configurations would lie apart; a setting that moves a score no farther has not "
        "been shown to do anything.",
    )
    return Table(f"{record.study.name}: what each setting moves", columns, tuple(cells), notes, (len(found),))


def runs_table(record: StudyRecord) -> Table | None:
    """Return the runs that have no result, with what became of them; None where all have."""
    open_runs = [run for run in record.runs if run.result is None]
    if not open_runs:
        return None
    cells: tuple[tuple[Cell, ...], ...] = tuple(
        (run.name, "not scored" if run.state == "finished" else run.state, run.reason) for run in open_runs
    )
    return Table(f"{record.study.name}: runs without a result", ("Run", "State", "Reason"), cells)


def runs_data(record: StudyRecord) -> Table:
    """Return every scored state of every run as plain numbers, for CSV."""
    scores = _all_scores(record)
    settings = list(dict.fromkeys(name for run in record.runs for name in run.values))
    scale = ("scale",) if _scales(record) else ()
    cells: list[tuple[Cell, ...]] = [
        (
            run.configuration,
            *(_plain(run.values.get(name)) for name in settings),
            run.role,
            run.seed,
            run.state,
            " ".join(run.unknown),
            *(run.scale if state and state.is_result else None for _ in scale),
            state.epoch if state else None,
            int(state.is_result) if state else None,
            *(state.scores.get(name) if state else None for name in scores),
        )
        for run, state in _states(record)
    ]
    columns = ("configuration", *settings, "role", "seed", "state", "unknown", *scale, "epoch", "is_result", *scores)
    return Table("runs", columns, tuple(cells))


def scores_data(record: StudyRecord) -> Table:
    """Return the numbers behind `scores_table` and `trade_off_table`, one score of one row a line, for CSV."""
    scores = _all_scores(record)
    cells: list[tuple[Cell, ...]] = []
    for row in rows_of(record, scores):
        for name, found in row.summaries.items():
            values = list(row.scores[name].values())
            spreads = (deviation(values, "sample"), deviation(values, "population"))
            ends = (found.low, found.high, int(found.is_best), row.forgetting.share)
            cells.append((row.label, row.role, row.epoch, name, found.num_seeds, found.mean, *spreads, *ends))
    for label, state in _originals(record):
        cells += [(label, "original", 0.0, name, 1, value, *[None] * 6) for name, value in state.scores.items()]
    for role, others in (("reference", record.study.references), ("published", record.study.published)):
        for label, found_elsewhere in others.items():
            cells += [(label, role, None, name, None, value, *[None] * 6) for name, value in found_elsewhere.items()]
    spread = ("sample_deviation", "population_deviation", "low", "high", "is_best", "share_gone")
    return Table("scores", ("configuration", "role", "epoch", "score", "seeds", "mean", *spread), tuple(cells))


def _table_of(record: StudyRecord, scores: Sequence[str], title: str) -> Table:
    rows = rows_of(record, scores)
    has_epochs = any(row.epoch is not None for row in rows)
    scales = _scales(record)
    others = {label: found for label, found in record.study.others.items() if found.keys() & set(scores)}
    groups = [
        [_cells(row, scores, has_epochs, scales) for row in rows if row.role == "study"],
        [_cells(row, scores, has_epochs, scales) for row in rows if row.role == "baseline"],
        [_one(label, state.scores, scores, has_epochs, scales) for label, state in _originals(record)],
        [_one(label, found, scores, has_epochs, scales) for label, found in others.items()],
    ]
    cells = [row for group in groups for row in group]
    ends = [sum(len(group) for group in groups[: number + 1]) for number in range(len(groups))]
    sections = tuple(sorted({end for end in ends if 0 < end < len(cells)}))
    epoch = ("Epoch",) if has_epochs else ()
    scale = ("Scale",) if scales else ()
    columns = ("Configuration", *epoch, "Seeds", *scale, *(label_of_score(name, record) for name in scores))
    return Table(title, columns, tuple(cells), _notes(record, rows), sections)


def _scales(record: StudyRecord) -> dict[str, float]:
    """The mean over the seeds of the scale that the dial chose, by configuration; empty where no run has a dial."""
    found: dict[str, list[float]] = {}
    for run in record.runs:
        if run.scale is not None:
            found.setdefault(run.configuration, []).append(run.scale)
    return {label: fmean(scales) for label, scales in found.items()}


def _cells(
    row: ConfigurationRow, scores: Sequence[str], has_epochs: bool, scales: Mapping[str, float]
) -> tuple[Cell, ...]:
    most = max((len(row.scores[name]) for name in scores), default=0)
    seeds: Cell = str(most) if most == row.num_runs else f"{most} of {row.num_runs}"
    found = [row.summaries.get(name) for name in scores]
    spreads = [s and Spread(s.mean, s.deviation, s.low, s.high, s.is_best) for s in found]
    label = f"{row.label} (rows not known)" if row.is_unknown else row.label
    scale = scales.get(row.label) if row.epoch is None else None
    shown = (None if scale is None else f"{scale:.3f}",) if scales else ()
    return (label, *((_epoch(row.epoch),) if has_epochs else ()), seeds, *shown, *spreads)


def _one(
    label: str, found: Mapping[str, float], scores: Sequence[str], has_epochs: bool, scales: Mapping[str, float]
) -> tuple[Cell, ...]:
    cells = [Spread(found[name]) if name in found else None for name in scores]
    return (label, *((None,) if has_epochs else ()), None, *((None,) if scales else ()), *cells)


def _notes(record: StudyRecord, rows: Sequence[ConfigurationRow]) -> tuple[str, ...]:
    num_seeds = max((summary.num_seeds for row in rows for summary in row.summaries.values()), default=0)
    notes = []
    if num_seeds > 1:
        divisor = "n - 1" if record.study.deviation == "sample" else "n"
        notes.append(
            f"Mean ± {record.study.deviation} standard deviation (divided by {divisor}) over the seeds, and the 95% "
            "bootstrap interval of the mean, which is too narrow for few seeds."
        )
        notes.append(_bold_note(rows))
    elif num_seeds == 1:
        notes.append("One seed: the spread is unknown, so nothing is marked as best.")
    unknown = [row.label for row in rows if row.is_unknown]
    if unknown:
        notes.append(f"Rows not known: {NOT_KNOWN} ({_listed(unknown)}), so that these scores are not of forgetting.")
    states = Counter(run.state for run in record.runs if run.result is None)
    if states:
        found = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        notes.append(f"Runs without a result, which the means leave out: {found}.")
    return (*notes, *_form_notes(record), *_script_notes(record), *_objective_notes(record))


def _bold_note(rows: Sequence[ConfigurationRow]) -> str:
    """Say what bold stands for, or why nothing is bold."""
    needed = f"at least {FORGOTTEN_SHARE:.0%} of the mean score on the forget rows gone"
    if any(summary.is_best for row in rows for summary in row.summaries.values()):
        return (
            f"In bold: of the configurations that forgot ({needed}), the highest mean, and every one whose difference "
            "from it over the same seeds may be 0 (paired t, interval at 95% for all of them together). Where all are "
            "equal none is."
        )
    if any(row.forgetting.is_forgotten for row in rows):
        return "Nothing is in bold: the configurations that forgot have equal scores, or nothing to be compared with."
    judged = [(row.forgetting.share, row) for row in rows if row.forgetting.share is not None]
    if not judged:
        reasons = dict.fromkeys(row.forgetting.reason for row in rows)
        known = [reason for reason in reasons if reason != NOT_SCORED] or [NOT_SCORED]
        return f"Nothing is in bold, since it cannot be said what was forgotten: {'; '.join(known)}."
    share, most = max(judged, key=lambda found: found[0])
    return f"Nothing is in bold, since no configuration forgot ({needed}): the most is {share:.0%} ({name_of(most)})."


def _listed(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more


def _script_notes(record: StudyRecord) -> list[str]:
    """Return one note on what the official scores miss of the rows' script, by the first state that shows it."""
    found: dict[str, str] = {}
    for label, state in labelled_states(record):
        for note in state.script_notes:
            split, what, *_ = note.split(":")
            found.setdefault(f"{split}:{what}", f"{label}: {note}")
    return list(found.values())


def _form_notes(record: StudyRecord) -> list[str]:
    """Say which form stands beside the raw prompts, where it does."""
    forms = sorted({state.form for _, state in labelled_states(record) if state.form and state.form_differs})
    if not forms:
        return []
    return [
        "In form: the rows are asked in the form in which the model knows them "
        f"({'; '.join(forms)}), the official scores by raw prompts. What was forgotten is judged in form."
    ]


def _objective_notes(record: StudyRecord) -> list[str]:
    """Say of a search that it looked at scores which variants of them stand for here."""
    named = aims_of(record.study) if record.study.search else ()
    misled = {name: best for name in named if (best := _told_by(name, record)) not in named}
    if not misled:
        return []
    return [
        f"The search made {' and '.join(misled)} large, which may miss what the model still knows of these rows; "
        f"{' and '.join(misled.values())} would be the objectives to name."
    ]


def _told_by(objective: str, record: StudyRecord) -> str:
    """The variant that stands for an objective in this study."""
    return versions_of(known_scores(record.study)[objective].base, record)[-1]


def _why(record: StudyRecord) -> tuple[str, ...]:
    notes = [
        "Difference of the means over the same seeds with its 95% interval (paired t, not corrected); p corrected by "
        f"Holm for the comparisons of one score; a difference is in bold where that is below {ALPHA:g}. The t test "
        "takes the differences to be normal; the exact sign-flip test does not, but cannot go below 2 / 2 ** seeds "
        "(0.0625 for five).",
    ]
    if record.study.compare == "best":
        notes.append(
            "The configuration with the highest mean was chosen by these very scores, which flatters it: for a claim, "
            "name the configuration beforehand (`compare`) or run it with new seeds."
        )
    return tuple(notes)


def _originals(record: StudyRecord) -> list[tuple[str, StateScores]]:
    return labelled_states(record)[: len(record.original)]


def _all_scores(record: StudyRecord) -> tuple[str, ...]:
    shown = scores_in(record)
    return (*shown, *(name for name in trade_off_scores(record) if name not in shown))


def _states(record: StudyRecord) -> list[tuple[RunRecord, StateScores | None]]:
    return [(run, state) for run in record.runs for state in run.states or (None,)]


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _epoch(epoch: float | None) -> str:
    return "kept" if epoch is None else f"{epoch:g}"


def _plain(value: object) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else str(value)
