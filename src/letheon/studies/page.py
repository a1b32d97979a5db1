"""study.html: a study as evidence, with what it was run on, what came of each run, and what could not be compared.

Made as the page of a run is: one file without scripts or requests, every text in it escaped. It shows no rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from letheon.report.html import render_page
from letheon.report.page import Setting, list_settings
from letheon.report.tables import Table
from letheon.report.verdict import FORGOTTEN_SHARE, Level, Verdict
from letheon.settings import UnlearnSettings
from letheon.storage.fingerprints import short
from letheon.storage.run_folder import REPORT_FILE, STUDY_PAGE_FILE, write_entry
from letheon.studies.aggregate import ConfigurationRow, name_of, rows_of
from letheon.studies.forgetting import NOT_KNOWN, Forgetting, forgetting_of
from letheon.studies.history import study_facts
from letheon.studies.known import known_scores
from letheon.studies.origins import Facts, Origins, origins_of, run_folder
from letheon.studies.records import RunRecord, StudyRecord, read_study_record
from letheon.studies.shown_scores import forgotten_score
from letheon.studies.tables import tables_of

_FIGURES_FIRST = ("trade-off", "epochs", "settings", "seeds")
_ASKED = ("model", "forget", "retain", "method", "recipe")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and what it shows."""

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in the list of runs."""

    name: str
    state: str
    reason: str
    kept_epoch: str
    gone: str
    """What is gone of the mean score on the forget rows, or why that cannot be told."""
    is_unknown: bool
    fingerprint: str
    """Of its result, cut short; empty where none is recorded."""
    link: str | None
    """Its report or folder, relative to the page; None if neither is there."""


@dataclass(frozen=True, slots=True)
class StudyPage:
    """What the template shows."""

    title: str
    verdict: Verdict
    forgotten_percent: int
    asked: Facts
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    """Each note stands below the first table that has it."""
    runs: tuple[RunLine, ...]
    notes: tuple[str, ...]
    settings: tuple[Setting, ...]
    studies: Facts
    """Fingerprints of the study, and of those under which its runs were begun."""
    origins: Origins


def write_study_page(folder: Path, *, record: StudyRecord | None = None) -> Path:
    """Write study.html for the study in `folder` and return its path; `record` stands for its study.json.

    Raises:
        EvaluationError: the folder holds no study.
        OutputError: the page cannot be written.
    """
    page = _page(read_study_record(folder) if record is None else record, folder)
    write_entry(folder, STUDY_PAGE_FILE, render_page("study.html.j2", page, title=page.title))
    return folder / STUDY_PAGE_FILE


def _page(record: StudyRecord, folder: Path) -> StudyPage:
    from letheon.studies.figures import CAPTIONS, study_svgs

    origins = origins_of(record, folder)
    tables = tables_of(record)
    svgs = study_svgs(record)
    return StudyPage(
        title=f"Study: {record.study.name}",
        verdict=_verdict(record),
        forgotten_percent=round(100 * FORGOTTEN_SHARE),
        asked=_asked(record),
        figures=tuple(Figure(Markup(svgs[name]), CAPTIONS[name]) for name in _FIGURES_FIRST if name in svgs),  # noqa: S704
        tables=_without_repeated_notes([table for name, table in tables.items() if name != "unfinished"]),
        runs=tuple(_line(run, record, folder, origins) for run in record.runs),
        notes=_notes(record, origins, has_comparisons="comparisons" in tables),
        settings=list_settings(origins.settings or record.study.base, UnlearnSettings.defaults()),
        studies=tuple(study_facts(record, folder)),
        origins=origins,
    )


def _verdict(record: StudyRecord) -> Verdict:
    everything = rows_of(record, (), by_epoch=False)
    rows = [row for row in everything if _has_result(row, record)]
    if not rows:
        return Verdict("unknown", f"Nothing has been scored: none of {len(record.runs)} runs has a result.")
    forgot = [row for row in rows if row.forgetting.is_forgotten]
    judged = [(row.forgetting.share, row) for row in rows if row.forgetting.share is not None]
    unknown = [row for row in rows if row.is_unknown]
    level: Level = "unknown"
    if forgot:
        text = f"{len(forgot)} of {len(everything)} configurations forgot the forget rows"
    elif judged:
        level = "bad"
        share, most = max(judged, key=lambda found: found[0])
        text = f"None of {len(everything)} configurations forgot the forget rows: the most that is gone is {share:.0%} "
        text += f"({name_of(most)})"
    elif len(unknown) == len(rows):
        level = "bad"
        text = f"Nothing here is forgetting: {NOT_KNOWN}"
    else:
        reasons = dict.fromkeys(row.forgetting.reason for row in rows)
        text = f"It cannot be said what was forgotten: {'; '.join(reasons)}"
    if unknown and len(unknown) < len(rows):
        text += f"; of {len(unknown)} it cannot be said, since {NOT_KNOWN}"
    return Verdict(level, f"{text}{_open_runs(record)}.")


def _has_result(row: ConfigurationRow, record: StudyRecord) -> bool:
    runs = (run for run in record.runs if (run.role, run.configuration) == (row.role, row.label))
    return any(run.result is not None for run in runs)


def _open_runs(record: StudyRecord) -> str:
    num_open = sum(run.result is None for run in record.runs)
    return f"; {num_open} of {len(record.runs)} runs have no result" if num_open else ""


def _asked(record: StudyRecord) -> Facts:
    study = record.study
    given = {"recipe": study.recipe, **study.base}
    asked = [(name, str(given[name])) for name in _ASKED if given.get(name) is not None]
    varied = dict.fromkeys(name for run in record.runs if run.role == "study" for name in run.values)
    asked.append(("varied", ", ".join(varied) or "nothing"))
    asked.append(("seeds", ", ".join(map(str, study.seeds))))
    if study.baselines:
        asked.append(("baselines", ", ".join(study.baselines)))
    scoring = study.evaluate
    said = "the runs' own scores only" if scoring is None else ", ".join(f"{k}={v}" for k, v in scoring.items())
    return (*asked, ("scored with", said or "the defaults"))


def _without_repeated_notes(tables: Sequence[Table]) -> tuple[Table, ...]:
    seen: set[str] = set()
    found = []
    for table in tables:
        notes = tuple(note for note in table.notes if note not in seen)
        seen.update(notes)
        found.append(Table(table.title, table.columns, table.rows, notes, table.sections))
    return tuple(found)


def _line(run: RunRecord, record: StudyRecord, folder: Path, origins: Origins) -> RunLine:
    result = run.result
    found = (
        forgetting_of([(run, result)], record.original, score=known_scores(record.study)[forgotten_score(record)])
        if result
        else None
    )
    return RunLine(
        name=run.name,
        state="finished, not scored" if run.state == "finished" and result is None else run.state,
        reason="" if run.reason == run.state else run.reason,
        kept_epoch="" if result is None else f"{result.epoch:g}",
        gone=_gone(found),
        is_unknown=run.is_unknown,
        fingerprint=short(origins.fingerprints.get(run.identity, "")),
        link=_link(run, folder),
    )


def _gone(found: Forgetting | None) -> str:
    if found is None:
        return ""
    return found.reason if found.share is None else f"{found.share:.0%}"


def _link(run: RunRecord, folder: Path) -> str | None:
    path = run_folder(run, folder)
    if path is None:
        return None
    target = path / REPORT_FILE if (path / REPORT_FILE).is_file() else path
    # Quoted, so that no name in study.json can be another kind of address.
    return quote(target.relative_to(folder.resolve()).as_posix())


def _notes(record: StudyRecord, origins: Origins, *, has_comparisons: bool) -> tuple[str, ...]:
    notes = [f"Runs trained on their rows in form '{form}': {number}." for form, number in origins.forms.items()]
    notes += [
        f"Runs whose evaluation is not of their own result, rows and form: {number}, since {text}."
        for text, number in origins.differences.items()
    ]
    reasons: dict[str, list[str]] = {}
    for row in rows_of(record, (), by_epoch=False):
        if row.forgetting.share is None and _has_result(row, record):
            reasons.setdefault(row.forgetting.reason, []).append(row.label)
    notes += [f"What was forgotten cannot be said of {', '.join(rows)}: {why}." for why, rows in reasons.items()]
    if not has_comparisons:
        notes.append("No two configurations share two seeds and a score, so none are compared.")
    if record.study.published:
        notes.append("Published scores were taken elsewhere, perhaps of other models and rows, and are not compared.")
    if origins.varied:
        notes.append(f"Settings that differ between runs: {', '.join(origins.varied)}; each run's report has them.")
    notes += [f"Runs that {note}: {number}." for note, number in _counted(record).items()]
    return (*notes, *(f"Could not be read: {reason}" for reason in origins.unread))


def _counted(record: StudyRecord) -> Mapping[str, int]:
    return Counter(note for run in record.runs for note in run.notes)
