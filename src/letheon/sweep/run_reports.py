"""A report of its own for each finished run of a study, with the scores of the original model as those before."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from letheon.errors import EvaluationError
from letheon.files import write_text
from letheon.report.files import Evaluation, RunFiles, read_run
from letheon.report.page import render
from letheon.settings import UnlearnSettings
from letheon.sweep.origins import run_folder
from letheon.sweep.records import StudyRecord, forget_rows_of
from letheon.sweep.scoring import ORIGINAL

REPORT = "report.html"

_MADE_FROM = ("run.yaml", "log.jsonl", "provenance.json", "evaluation/after/results.json")


def write_run_reports(record: StudyRecord, folder: Path) -> None:
    """Write report.html, its owner's alone since it shows rows, for each finished run whose files are newer.

    A run whose files cannot be read is passed over; the study's page says so.

    Raises:
        OutputError: a report cannot be written.
    """
    originals = _originals(folder)
    for run in record.runs:
        path = run_folder(run, folder)
        if run.state != "finished" or path is None or _is_new(path):
            continue
        try:
            files = read_run(path)
        except EvaluationError:
            continue
        original = originals.get(run.model or "")
        if original is not None and files.before is None and _belongs_to(original, files):
            files = replace(files, before=original)
        write_text(path / REPORT, render(files, defaults=UnlearnSettings.defaults()), private=True)


def _originals(folder: Path) -> Mapping[str, Evaluation]:
    """Return the evaluations of models before unlearning, by model."""
    found = {}
    for results in sorted((folder / ORIGINAL).glob("*/results.json")):
        try:
            evaluation = read_run(results.parent).after
        except EvaluationError:
            continue
        if evaluation is not None:
            found[evaluation.results.model] = evaluation
    return found


def _belongs_to(original: Evaluation, files: RunFiles) -> bool:
    """Whether it is of the very weights that the run began from, scored on the rows that its result was scored on."""
    weights = [_weights(provenance) for provenance in (original.results.provenance, files.provenance)]
    is_same_model = weights[0] is not None and weights[0] == weights[1]
    return is_same_model and (
        files.after is None or forget_rows_of(original.results) == forget_rows_of(files.after.results)
    )


def _weights(provenance: Mapping[str, object]) -> str | None:
    model = provenance.get("model")
    return str(model["sha256"]) if isinstance(model, Mapping) and model.get("sha256") else None


def _is_new(run: Path) -> bool:
    """Whether the run's report is as new as what it is made from."""
    report = run / REPORT
    sources = [path for name in _MADE_FROM if (path := run / name).is_file()]
    return report.is_file() and all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in sources)
