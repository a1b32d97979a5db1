"""A study's results as files: tables in four forms, figures, and study.html and study.md, which show all of it."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from letheon.report.latex import to_latex
from letheon.report.tables import to_csv, to_markdown, to_rich
from letheon.report.text import to_markdown_text
from letheon.storage.files import write_text
from letheon.storage.run_folder import (
    FIGURES_FOLDER,
    RUNS_FILE,
    SCORES_FILE,
    STUDY_TEXT_FILE,
    TABLES_FOLDER,
    write_entry,
)
from letheon.studies.records import StudyRecord, read_study_record
from letheon.studies.spec import SHOWN, StudySettings
from letheon.studies.tables import NAMES, runs_data, scores_data, tables_of


def write_study_report(record: StudyRecord, out: Path) -> Path:
    """Write tables/, figures/, study.html and study.md into the study's folder and return the last one's path.

    Raises:
        OutputError: a file cannot be written.
    """
    from letheon.studies.figures import CAPTIONS, save_study_figures
    from letheon.studies.page import write_study_page

    tables = tables_of(record)
    for name, table in tables.items():
        write_text(out / TABLES_FOLDER / f"{name}.md", to_markdown(table))
        write_text(out / TABLES_FOLDER / f"{name}.tex", to_latex(table))
        write_text(out / TABLES_FOLDER / f"{name}.csv", to_csv(table))
    for name in set(NAMES) - set(tables):  # of a report before, when there were rows for it
        for suffix in ("md", "tex", "csv"):
            (out / TABLES_FOLDER / f"{name}.{suffix}").unlink(missing_ok=True)
    # The numbers themselves, in full: the tables above hold them as people read them.
    write_entry(out, SCORES_FILE, to_csv(scores_data(record)))
    write_entry(out, RUNS_FILE, to_csv(runs_data(record)))
    drawn = save_study_figures(record, out / FIGURES_FOLDER)
    for path in (out / FIGURES_FOLDER).glob("*"):
        if path.stem in CAPTIONS and path not in drawn:
            path.unlink()
    figures = [path for path in drawn if path.suffix == ".png"]
    parts = [f"# {to_markdown_text(record.study.name)}\n"]
    parts += [f"## {to_markdown_text(table.title)}\n\n{to_markdown(table)}" for table in tables.values()]
    parts += [f"![{CAPTIONS[path.stem]}]({FIGURES_FOLDER}/{path.name})\n\n{CAPTIONS[path.stem]}\n" for path in figures]
    write_entry(out, STUDY_TEXT_FILE, "\n".join(parts))
    write_study_page(out, record=record)
    return out / STUDY_TEXT_FILE


def report_study(out: Path, *, settings: StudySettings | None = None) -> StudyRecord:
    """Write the report of what a study's folder holds, without running anything, and return what it is made from.

    `settings` takes the place of the study's own where they say how results are shown: `name`, `deviation`, `compare`,
    `references`, `published`.

    Raises:
        EvaluationError: the folder holds no study.
        OutputError: a file cannot be written.
    """
    record = read_study_record(out)
    if settings is not None:
        shown = {name: getattr(settings, name) for name in SHOWN}
        record = replace(record, study=record.study.model_copy(update=shown))
    write_study_report(record, out)
    return record


def print_study(record: StudyRecord, console: Console) -> None:
    """Print the study's tables."""
    for table in tables_of(record).values():
        console.print(to_rich(table))
