"""The three jobs as functions of their settings: memorize, unlearn, evaluate. The command line calls these too.

What draws figures and sums up studies is imported where it is used: a run needs neither, and they take long to import.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from letheon.auditing.inputs import settings_of_run
from letheon.auditing.run import audit as run_audit
from letheon.evaluation.outputs import check_is_folder
from letheon.memorizing.memorize import MemorizeProgress, MemorizeReport
from letheon.memorizing.target import make_target
from letheon.processes import from_first, in_processes, on_first
from letheon.report.card import adapter_card, model_card
from letheon.report.files import RunFiles, read_run
from letheon.report.pairing import doubt, refusal
from letheon.scores.audits import AuditResults
from letheon.scores.results import Evaluation
from letheon.scoring.evaluating import Progress, evaluate_model
from letheon.scoring.inputs import read_evaluated
from letheon.scoring.run import RunScoring, UnlearnReport
from letheon.settings import AuditSettings, DialSettings, EvaluateSettings, MemorizeSettings, UnlearnSettings
from letheon.storage.run_folder import (
    ADAPTER_FOLDER,
    AUDITS_FOLDER,
    CARD_FILE,
    MODEL_FOLDER,
    RESULTS,
    SETTINGS_FILE,
    STUDY_FILE,
    STUDY_TEXT_FILE,
    write_entry,
)
from letheon.storage.staged import finish_staged
from letheon.training.tracking import Observer, Silent
from letheon.unlearning import run as training
from letheon.unlearning.dial.again import dial_again
from letheon.unlearning.dial.turn import Dialled
from letheon.unlearning.populations import GivesUp, Report, groups_of, run_population
from letheon.unlearning.reading import check
from letheon.unlearning.record import RunReport

if TYPE_CHECKING:
    from letheon.studies.checks import Checks
    from letheon.studies.live import View
    from letheon.studies.runner import Jobs
    from letheon.studies.spec import StudySettings
    from letheon.studies.study import StudyReport

_Job = TypeVar("_Job", bound=Callable[..., Any])


@in_processes
def unlearn(settings: UnlearnSettings, *, observer: Observer | None = None) -> UnlearnReport:
    """Make a model forget rows and leave the run's folder `settings.out` (see unlearning/run.py), model card included.

    Unless `settings.evaluate` is false, the model before and after is scored as `evaluate` does, into evaluation/ in
    that folder, and report.html is written. A run whose scoring fails or is interrupted is complete all the same.

    Raises:
        LetheonError: whatever in settings, rows, checkpoint or disk stands in the way.
    """
    observer = observer or Silent()
    if not settings.evaluate:
        report = training.unlearn(settings, observer=observer)
        on_first(lambda: _write_cards(read_run(report.folder)))
        return UnlearnReport.of(report)
    scoring = RunScoring(settings, observer=observer)

    def score(written: training.Written) -> None:
        # First, so that they are there whatever becomes of the scoring.
        on_first(lambda: _write_cards(read_run(settings.out)))
        scoring.score(written)

    report = training.unlearn(settings, observer=observer, on_checked=scoring.check, on_written=score)
    observer.stage("writing the report", 0, 0)
    return UnlearnReport.of(report, page=from_first(lambda: write_report(report.folder)), scoring=scoring)


def dial(folder: Path, settings: DialSettings | None = None, *, observer: Observer | None = None) -> Dialled | None:
    """Set the dial of the finished run in `folder` anew, cards included (see unlearning/dial/again.py).

    Returns how the scale was chosen; None where `settings` ask for "none", which gives the result at scale 1.

    Raises:
        LetheonError: there is no finished run, or what it was trained with is not there any more.
    """
    dialled = dial_again(folder, settings, observer=observer)
    _write_cards(read_run(folder))
    return dialled


def unlearn_population(
    runs: Sequence[UnlearnSettings],
    *,
    observer: Observer | None = None,
    observers: Sequence[Observer] | None = None,
    judge: GivesUp | None = None,
) -> list[Report]:
    """Do several runs at once over one frozen model, leaving each its folder as `unlearn` does.

    The runs share model, rows and adapted layers (see unlearning/populations); each comes to what it comes to alone.
    None of them is scored before and after.
    `observer` hears of all together, each of `observers` of one run. `judge` may give up runs whose interim scores are
    hopeless beside the others'.

    Raises:
        LetheonError: as `unlearn`, for any of the runs; a run that diverges is returned, not raised.
    """
    reports = run_population(runs, observer=observer, observers=observers, judge=judge)
    for report in reports:
        if isinstance(report, RunReport):
            _write_cards(read_run(report.folder))
    return reports


def study(
    settings: "StudySettings",
    out: Path,
    *,
    view: "View | None" = None,
    storage: str | None = None,
    retry: bool = False,
    trains: bool = True,
) -> "StudyReport":
    """Run the missing runs of a study, then write its reports, tables, figures and pages to `out`.

    See studies/study.py.

    A search keeps its trials in a journal in `out`, or in the database at the URL `storage`, from which any number of
    processes take them. `retry` tries failed and diverged runs again. Without `trains` no run is begun or continued.

    Raises:
        LetheonError: whatever in the study, its files or its folder stands in the way of all runs.
    """
    from letheon.studies.live import Quiet
    from letheon.studies.report import write_study_report
    from letheon.studies.run_reports import write_run_reports
    from letheon.studies.study import run_study

    report = run_study(
        settings,
        out,
        jobs=_jobs(),
        evaluate=partial(evaluate, replace=True),
        checks=_checks(),
        view=view or Quiet(),
        storage=storage,
        retry=retry,
        trains=trains,
    )
    for run in report.record.runs:
        folder = out / run.folder
        # Of a process that was killed between a run's result and its cards.
        parts = [part for entry in RESULTS if (part := folder / entry).is_dir()]
        if run.state == "finished" and not all((part / CARD_FILE).exists() for part in parts):
            _write_cards(read_run(folder))
    write_run_reports(report.record, out)
    write_study_report(report.record, out)
    return report


def study_runs_to_do(settings: "StudySettings", out: Path, *, retry: bool = False) -> dict[str, str]:
    """Return the names of the runs of a study that are still to do, by the ids that `study_run` takes.

    Raises:
        LetheonError: the study is a search, or something is wrong with its settings or its folder.
    """
    from letheon.studies.single import runs_to_do

    return runs_to_do(settings, out, jobs=_jobs(), evaluate=evaluate, retry=retry)


def study_run(
    settings: "StudySettings", out: Path, identity: str, *, view: "View | None" = None, retry: bool = False
) -> "StudyReport":
    """Do one run of a study; tables and pages are written by `study`, when all are done.

    Raises:
        LetheonError: there is no such run, or something is wrong with the study, its files or its folder.
    """
    from letheon.studies.live import Quiet
    from letheon.studies.single import run_single

    return run_single(
        settings,
        out,
        identity,
        jobs=_jobs(),
        evaluate=partial(evaluate, replace=True),
        checks=_checks(),
        view=view or Quiet(),
        retry=retry,
    )


def study_side_by_side(
    settings: "StudySettings", out: Path, given: Sequence[str], *, num_jobs: int, view: "View", retry: bool = False
) -> int:
    """Do what is still to do of a study, `num_jobs` runs at a time in processes of their own; return the exit code.

    `given` are the arguments of `letheon study`. The processes of a search take trials until there are enough.

    Raises:
        LetheonError: what would stop every run.
    """
    from letheon.studies.runner import forget_failures
    from letheon.studies.side_by_side import run_side_by_side
    from letheon.studies.single import begin_runs

    if settings.search:
        if retry:
            forget_failures(out)
        runs = {str(number): f"process {number} of the search" for number in range(1, num_jobs + 1)}
        return run_side_by_side(runs, num_jobs=num_jobs, arguments=lambda _: ["study", *given], view=view)
    runs = begin_runs(settings, out, jobs=_jobs(), evaluate=evaluate, checks=_checks(), view=view, retry=retry)
    return run_side_by_side(
        runs, num_jobs=num_jobs, arguments=lambda identity: ["study", *given, "--run", identity], view=view
    )


def _jobs() -> "Jobs":
    from letheon.studies.runner import Jobs

    return Jobs(
        unlearn=lambda run, observer: unlearn(run.model_copy(update={"evaluate": False}), observer=observer),
        unlearn_together=lambda runs, observer, observers, judge: unlearn_population(
            runs, observer=observer, observers=observers, judge=judge
        ),
        groups_of=groups_of,
    )


def _checks() -> "Checks":
    from letheon.studies.checks import Checks

    return Checks(unlearn=check, evaluate=read_evaluated)


def _no_empty_folder(job: _Job) -> _Job:
    """Have a job that ends before it has written anything, whatever ends it, leave no folder `out` of its own."""

    @wraps(job)
    def do(settings: EvaluateSettings | MemorizeSettings, **given: Any) -> Any:
        """Run the job; if it fails, remove `settings.out` where it is empty and was made here."""
        existed = settings.out.exists()
        try:
            return job(settings, **given)
        except BaseException:
            if not existed:
                with suppress(OSError):  # it holds something, or was never made
                    settings.out.rmdir()
            raise

    return cast("_Job", do)


@in_processes
@_no_empty_folder
def evaluate(
    settings: EvaluateSettings,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    replace: bool = False,
) -> Evaluation:
    """Score a model as the task does; leaves results.json, predictions.jsonl and evaluation_results.jsonl in `out`.

    `note` hears what was understood of the files of rows. Scores of another model or of other rows in `out` are kept,
    by an error, unless `replace` is true.

    Raises:
        DataError: rows or documents are not usable.
        EvaluationError: only one of --members and --nonmembers is given, or MMLU's folder is not one.
        ModelError: the checkpoint cannot be used.
        OutputError: the results cannot be written, or would replace others.
    """
    return evaluate_model(settings, progress=progress, note=note, replace=replace)


@in_processes
def audit(
    settings: AuditSettings | Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **changes: Any,
) -> AuditResults:
    """Attack an unlearned model and say whether the rows are gone; leaves audit/ in `settings.out`.

    A path is the folder of a run, whose settings `changes` change: `audit(Path("run"), attacks=("membership",))`. The
    report of a run gets a section on the audit; where there is no run, audit/ gets a report.html of its own.

    Raises:
        LetheonError: models, rows or settings are not usable or do not go together.
    """
    if isinstance(settings, Path):
        settings = settings_of_run(settings, changes)
    out = settings.out
    results = run_audit(settings, progress=progress, note=note)
    on_first(lambda: write_report(out if (out / SETTINGS_FILE).is_file() else out / AUDITS_FOLDER))
    return results


@in_processes
@_no_empty_folder
def memorize(
    settings: MemorizeSettings,
    *,
    progress: Callable[[MemorizeProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> MemorizeReport:
    """Make a target: train a checkpoint, or a new model, until it has memorised rows; leaves `settings.out`.

    `note` hears what was understood of the files of rows.

    Raises:
        DataError: rows or text are not usable.
        ModelError: the architecture, checkpoint or tokenizer cannot be used.
        OutputError: the checkpoint cannot be written.
    """
    return make_target(settings, progress=progress, note=note)


def write_report(folder: Path, *, show_paths: bool = False) -> Path:
    """Write report.html for the folder of a run, or of an evaluation or an audit alone, and return its path.

    The cards of a run's model and adapter are written anew too, with the scores in evaluation/after. They name no
    paths, command line or machine unless `show_paths`. For a study's folder its page is written.

    Raises:
        EvaluationError: the folder holds nothing to report, or a file in it is broken.
        OutputError: a file cannot be written.
    """
    check_is_folder(folder)
    finish_staged(folder, note=_ignore)
    if (folder / STUDY_FILE).is_file():
        from letheon.studies.report import report_study

        report_study(folder)
        return folder / STUDY_TEXT_FILE
    from letheon.report.audit_page import audit_without_run, write_audit_page

    audited = audit_without_run(folder)
    if audited is not None:
        return write_audit_page(audited)
    from letheon.report.page import write_report as write_page

    page = write_page(folder, defaults=UnlearnSettings.defaults())
    _write_cards(read_run(folder), show_paths=show_paths)
    return page


def _ignore(_: str) -> None:
    """Hear a note that nobody waits for."""


def _write_cards(run: RunFiles, *, show_paths: bool = False) -> None:
    if (run.folder / ADAPTER_FOLDER).is_dir():
        card = adapter_card(settings=run.settings, provenance=run.provenance, show_paths=show_paths)
        write_entry(run.folder / ADAPTER_FOLDER, CARD_FILE, card)
    if not (run.folder / MODEL_FOLDER).is_dir():
        return
    results = run.after.results if run.after is not None else None
    after = tuple(pairing for pairing in run.pairings if pairing.side == "after")
    card = model_card(
        settings=run.settings,
        provenance=run.provenance,
        results=results,
        doubt=refusal(after) or doubt(after),
        show_paths=show_paths,
    )
    write_entry(run.folder / MODEL_FOLDER, CARD_FILE, card)
