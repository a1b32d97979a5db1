"""Runs of a study by themselves: which are still to do, and one of them, for schedulers that start each as a job."""

from pathlib import Path

from letheon.errors import SettingsError, nearest
from letheon.storage.run_folder import HASHES_FILE
from letheon.studies.checks import Checks, check_study
from letheon.studies.grid import configurations
from letheon.studies.history import describe_change, note_study
from letheon.studies.live import Quiet, View
from letheon.studies.planned_runs import Hashes, PlannedRun, planned_runs
from letheon.studies.runner import Jobs, Runner, forget_failures
from letheon.studies.scoring import Evaluate, Scorer
from letheon.studies.spec import StudySettings
from letheon.studies.study import (
    ORIGINAL_NAME,
    StudyReport,
    open_study_folder,
    originals_of,
    report_of,
    score_originals,
)

ORIGINAL = "original"
"""What stands for an identity where the model before unlearning is to be scored."""


def runs_to_do(
    study: StudySettings, out: Path, *, jobs: Jobs, evaluate: Evaluate, retry: bool = False
) -> dict[str, str]:
    """Return the names of the runs that are not finished and scored, by identity, in the order of the study.

    Runs that failed, diverged or were given up are among them only with `retry`. `ORIGINAL` comes first where the model
    before unlearning is not scored yet. What another process is at counts as still to do.

    Raises:
        SettingsError: the study is a search, or its settings contradict each other.
        OutputError: the folder is not a study's, or cannot be written.
    """
    runs, hashes = _planned(study, out)
    scorer = Scorer(study, hashes, evaluate)
    runner = Runner(out, jobs, scorer, Quiet())
    waiting = {run.identity: run.name for run in runs if runner.is_waiting(run, retry=retry)}
    is_scored = all(scorer.is_original_scored(run, out) for run in originals_of(runs).values())
    return waiting if is_scored or not study.scores_original else {ORIGINAL: ORIGINAL_NAME, **waiting}


def begin_runs(
    study: StudySettings, out: Path, *, jobs: Jobs, evaluate: Evaluate, checks: Checks, view: View, retry: bool = False
) -> dict[str, str]:
    """Say what would stop every run, write down what the study is, and return what is to do as `runs_to_do` does.

    Raises:
        LetheonError: whatever in the study, its files or its folder stands in the way of all runs.
    """
    runs, _ = _planned(study, out)
    check_study(study, runs, checks)
    changed = describe_change(study, out, {run.identity for run in runs})
    if changed is not None:
        view.note(changed)
    note_study(study, out)
    if retry:
        forget_failures(out)
    return runs_to_do(study, out, jobs=jobs, evaluate=evaluate)


def run_single(
    study: StudySettings,
    out: Path,
    identity: str,
    *,
    jobs: Jobs,
    evaluate: Evaluate,
    checks: Checks,
    view: View,
    retry: bool = False,
) -> StudyReport:
    """Run and score one run of a study, or score the model before unlearning where `identity` is `ORIGINAL`.

    A run that is finished, or that another process is at, is left alone. Tables and study.json are not written here.

    Raises:
        SettingsError: the study is a search, or has no such run.
        LetheonError: whatever in the study, its files or its folder stands in the way.
    """
    runs, hashes = _planned(study, out)
    chosen = [run for run in runs if run.identity == identity]
    if not chosen and identity != ORIGINAL:
        known = [ORIGINAL, *(run.identity for run in runs)]
        raise SettingsError(
            f"run: expected the id of one of the {len(runs)} runs of this study, got '{identity}'"
            f"{nearest(identity, known)}; --list prints those that are still to do"
        )
    check_study(study, chosen or runs, checks, planned=runs)
    note_study(study, out)
    if retry:
        forget_failures(out, [run.identity for run in chosen])
    scorer = Scorer(study, hashes, evaluate)
    runner = Runner(out, jobs, scorer, view)
    if identity == ORIGINAL and study.scores_original:
        score_originals(scorer, runs, out, view)
    runner.run(chosen)
    return report_of(study, out, runner, chosen)


def _planned(study: StudySettings, out: Path) -> tuple[list[PlannedRun], Hashes]:
    if study.search:
        raise SettingsError(
            "study: a search chooses its runs as it goes, so there is no list of them; let each job call `letheon "
            "study FILE --out FOLDER --storage URL`, and they share the trials"
        )
    open_study_folder(out)
    hashes = Hashes(out / HASHES_FILE)
    return planned_runs(study, configurations(study), out=out, hashes=hashes), hashes
