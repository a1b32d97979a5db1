"""A report of its own for each finished run of a study, with the scores of the original model as those before."""

from pathlib import Path

from letheon.errors import EvaluationError
from letheon.report.files import originals_of, read_run
from letheon.report.page import render
from letheon.settings import UnlearnSettings
from letheon.storage.run_folder import (
    EVALUATIONS_FOLDER,
    LOG_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    write_entry,
)
from letheon.studies.origins import run_folder
from letheon.studies.records import StudyRecord

_MADE_FROM = (SETTINGS_FILE, LOG_FILE, PROVENANCE_FILE, f"{EVALUATIONS_FOLDER}/after/{RESULTS_FILE}")


def write_run_reports(record: StudyRecord, folder: Path) -> None:
    """Write report.html, its owner's alone since it shows rows, for each finished run whose files are newer.

    A run whose files cannot be read is skipped; the study's page says so.

    Raises:
        OutputError: a report cannot be written.
    """
    for run in record.runs:
        path = run_folder(run, folder)
        if run.state != "finished" or path is None or _is_new(path):
            continue
        try:
            files = read_run(path)
        except EvaluationError:
            continue
        write_entry(path, REPORT_FILE, render(files, defaults=UnlearnSettings.defaults()))


def _is_new(run: Path) -> bool:
    """Whether the run's report is as new as the files that it is made from."""
    report = run / REPORT_FILE
    sources = [path for name in _MADE_FROM if (path := run / name).is_file()]
    sources += [original / RESULTS_FILE for original in originals_of(run)]
    return report.is_file() and all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in sources)
