"""A study from its settings to its folder: study.json, runs/, original/, tables/, figures/, study.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.endings import DONE, FAILED
from letheon.errors import OutputError, SettingsError
from letheon.settings import UnlearnSettings
from letheon.storage.files import open_output_folder
from letheon.storage.run_folder import HASHES_FILE, ORIGINALS_FOLDER, RUNS_FOLDER, STUDY_FILE
from letheon.studies.checks import Checks, check_study
from letheon.studies.grid import Configuration, configuration_of, configurations
from letheon.studies.history import describe_change, note_study
from letheon.studies.live import View
from letheon.studies.planned_runs import Hashes, PlannedRun, identity_of, planned_run, planned_runs
from letheon.studies.records import RunRecord, StateScores, StudyRecord, write_study
from letheon.studies.runner import Jobs, Runner, Watcher, forget_failures
from letheon.studies.scoring import Evaluate, Scorer
from letheon.studies.spec import SearchRange, StudySettings
from letheon.training.judge import StateScore

if TYPE_CHECKING:
    from letheon.studies.search import Search

ORIGINAL_NAME = "original model"


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What a study left behind."""

    folder: Path
    record: StudyRecord
    num_elsewhere: int
    """Runs that another process was at."""
    exit_code: int = 0
    """That of the signal if the process was asked to end before all was done; else 1 if a run failed or diverged or
    could not be scored, 0 if none did."""
    num_failed: int = 0
    """Runs that failed, diverged or could not be scored."""


@dataclass(slots=True)
class _Progress:
    """A study under way: what it consists of so far and what study.json is written from."""

    study: StudySettings
    out: Path
    hashes: Hashes
    runner: Runner
    runs: list[PlannedRun] = field(default_factory=list)
    of_trials: Callable[[], Sequence[RunRecord]] = tuple
    """The runs that a search has tried, on any machine."""
    original: dict[str, StateScores] = field(default_factory=dict)

    def record(self) -> StudyRecord:
        """Return the record of the study so far."""
        here = [self.runner.record(run) for run in self.runs]
        known = {run.identity for run in here}
        # A trial that fell on settings of another one is that one's runs.
        tried = {run.identity: run for run in self.of_trials() if run.identity not in known}
        return StudyRecord(self.study, (*tried.values(), *here), self.original, self.study.sha256)

    def write(self) -> None:
        """Bring study.json up to date."""
        write_study(self.record(), self.out)


def run_study(
    study: StudySettings,
    out: Path,
    *,
    jobs: Jobs,
    evaluate: Evaluate,
    checks: Checks,
    view: View,
    storage: str | None = None,
    retry: bool = False,
    trains: bool = True,
) -> StudyReport:
    """Run the missing runs of a study; tables and figures are not written here.

    Finished runs are left alone, also under another study file, since a run is known by its settings and by what its
    files hold. Runs that were killed go on. Failed and diverged ones are tried again only with `retry`. Any number of
    processes may run the same study; no run is done twice. Without `trains` no run is begun or continued.

    Raises:
        LetheonError: whatever in the study, its files or its folder stands in the way of all runs.
    """
    open_study_folder(out)
    hashes = Hashes(out / HASHES_FILE)
    runs = planned_runs(study, configurations(study), out=out, hashes=hashes)
    samples = [*runs, *_samples_of_search(study, out, hashes)]
    check_study(study, samples, checks)
    changed = describe_change(study, out, {run.identity for run in runs})
    if changed is not None:
        view.note(changed)
    search = _open_search(study, out, storage, hashes) if study.search else None
    note_study(study, out)
    if retry:
        forget_failures(out)
    scorer = Scorer(study, hashes, evaluate)
    runner = Runner(out, jobs, scorer, view)
    progress = _Progress(study, out, hashes, runner, runs)
    runner.on_change = progress.write
    if study.pruner == "median" and not study.search:
        from letheon.studies.hopeless import median_judge

        runner.judge_of = median_judge
    for run in runs:
        view.show(run.name, runner.record(run).state)
    if study.scores_original:
        progress.original = score_originals(scorer, samples, out, view)
    progress.write()
    if search is not None and trains:
        _go_on(progress, search)
    if not runner.exit_code and trains:
        runner.run(runs)
    progress.write()
    return report_of(study, out, runner, progress.runs, record=progress.record())


def report_of(
    study: StudySettings, out: Path, runner: Runner, runs: Sequence[PlannedRun], *, record: StudyRecord | None = None
) -> StudyReport:
    """Return what `runs` have come to; `record` is that of the study where it has more than these."""
    if record is None:
        record = StudyRecord(study, tuple(runner.record(run) for run in runs), {}, study.sha256)
    done = [run for run in runs if runner.record(run).state == "finished"]
    unscored = {m.identity for m in done if not runner.scorer.is_scored(m)} - runner.elsewhere
    failed = [run for run in record.runs if run.state in ("failed", "diverged") or run.identity in unscored]
    exit_code = runner.exit_code or (FAILED if failed else DONE)
    return StudyReport(out, record, len(runner.elsewhere), exit_code, len(failed))


def _open_search(study: StudySettings, out: Path, storage: str | None, hashes: Hashes) -> "Search":
    """Begin the search or join it, if its trials run with the same settings on the same files and are scored alike."""
    from letheon.studies.search import open_search

    sample = _samples_of_search(study, out, hashes)[0]
    alike = {"settings or files of the runs": sample.identity}
    if study.evaluate is not None:
        scoring = study.evaluation(sample.settings, model="state", out=sample.folder)
        alike["settings or files of the evaluation"] = identity_of(scoring, hashes)
    return open_search(study, out=out, storage=storage, seed=study.seeds[0], alike=alike)


def _go_on(progress: _Progress, search: "Search") -> None:
    study, runner = progress.study, progress.runner
    progress.of_trials = lambda: [run for trial in search.trials() for run in trial.runs]

    def run_seeds(configuration: Configuration, on_score: Callable[[StateScore], None] | None) -> Sequence[RunRecord]:
        """Run a trial with each seed; one whose first seed is pruned or fails is given up."""
        runs = [
            planned_run(study, configuration, seed, out=progress.out, hashes=progress.hashes) for seed in study.seeds
        ]
        if on_score is not None:
            first = runner.run_one(runs[0], on_score=on_score)
            if first.state != "finished":
                return [first]
        runner.run(runs)
        return [runner.record(run) for run in runs]

    search.go_on(run_seeds, is_over=lambda: runner.exit_code != 0, on_trial=progress.write)


def _samples_of_search(study: StudySettings, out: Path, hashes: Hashes) -> list[PlannedRun]:
    """Some runs of a search, so that what is wrong with all of them is said before the first.

    Raises:
        SettingsError: the settings of each of them contradict each other.
    """
    if not study.search:
        return []
    samples, refusals = list[PlannedRun](), list[SettingsError]()
    for number in range(max(len(where.choices or (None,)) for where in study.search.values())):
        values = {name: _sample_of(where, number) for name, where in study.search.items()}
        try:
            samples.append(planned_run(study, configuration_of(study, values), study.seeds[0], out=out, hashes=hashes))
        except SettingsError as error:
            refusals.append(error)
    if not samples:
        raise refusals[0]
    return samples


def _sample_of(where: SearchRange, number: int) -> Any:
    if where.choices is not None:
        return where.choices[number % len(where.choices)]
    return int(where.low or 0) if where.whole else where.low


def originals_of(runs: Sequence[PlannedRun]) -> dict[str, UnlearnSettings]:
    """Return the models that runs begin from, each with the settings of the first run that does."""
    return {run.settings.model: run.settings for run in reversed(runs)}


def score_originals(scorer: Scorer, runs: Sequence[PlannedRun], out: Path, view: View) -> dict[str, StateScores]:
    """Score the models that runs begin from, each once for the study."""
    models = originals_of(runs)
    found = {}
    for model, settings in models.items():
        name = ORIGINAL_NAME if len(models) == 1 else f"{ORIGINAL_NAME} {model}"
        view.show(name, "scoring")
        found[model] = scorer.score_original(settings, out, progress=Watcher(view, name).stage)
        view.show(name, "finished")
    return found


def open_study_folder(out: Path) -> None:
    """Make the folder of a study, or refuse one that holds something else."""
    open_output_folder(out, what="a folder for the study", advice="choose another --out")
    held = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if held and not held & {str(entry) for entry in (STUDY_FILE, RUNS_FOLDER, HASHES_FILE, ORIGINALS_FOLDER)}:
        raise OutputError(f"{out}: already holds files that do not belong to a study; choose another --out")
