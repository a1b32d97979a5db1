"""A study from its settings to its folder: study.json, runs/, original/, tables/, figures/, study.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.endings import DONE, FAILED
from letheon.errors import DataError, OutputError, SettingsError
from letheon.files import open_output_folder
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.loading import load_config
from letheon.model.quantised import check_not_quantised
from letheon.sweep.grid import Configuration, configuration_of, configurations
from letheon.sweep.live import View
from letheon.sweep.members import RUNS, Hashes, Member, member_of, members_of
from letheon.sweep.records import FILE, RunRecord, StateScores, StudyRecord, write_study
from letheon.sweep.runner import Jobs, Runner, Watcher, forget_failures
from letheon.sweep.scoring import Evaluate, Scorer
from letheon.sweep.spec import SearchRange, StudySettings
from letheon.training.interim import InterimScore

HASHES = "inputs.json"


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
    members: list[Member] = field(default_factory=list)
    of_trials: Callable[[], Sequence[RunRecord]] = tuple
    """The runs that a search has tried, on any machine."""
    original: dict[str, StateScores] = field(default_factory=dict)

    def record(self) -> StudyRecord:
        """Return what has been done so far."""
        here = [self.runner.record(member) for member in self.members]
        known = {run.identity for run in here}
        # A trial that fell on settings of another one is that one's runs.
        tried = {run.identity: run for run in self.of_trials() if run.identity not in known}
        return StudyRecord(self.study, (*tried.values(), *here), self.original)

    def write(self) -> None:
        """Bring study.json up to date."""
        write_study(self.record(), self.out)


def run_study(
    study: StudySettings,
    out: Path,
    *,
    jobs: Jobs,
    evaluate: Evaluate,
    view: View,
    storage: str | None = None,
    retry: bool = False,
) -> StudyReport:
    """Run what a study has not done yet and leave its folder; tables and figures are not written here.

    Finished runs are left alone, also under another study file, since a run is known by its settings and by what its
    files hold. Runs that were killed go on. Failed and diverged ones are tried again only with `retry`. Any number of
    processes may run the same study; no run is done twice.

    Raises:
        LetheonError: whatever in the study, its files or its folder stands in the way of all runs.
    """
    _open_folder(out)
    hashes = Hashes(out / HASHES)
    members = members_of(study, configurations(study), out=out, hashes=hashes)
    samples = [*members, *_samples_of_search(study, out, hashes)]
    _check(study, samples)
    if retry:
        forget_failures(out)
    scorer = Scorer(study, hashes, evaluate)
    runner = Runner(out, jobs, scorer, view)
    progress = _Progress(study, out, hashes, runner, members)
    runner.on_change = progress.write
    for member in members:
        view.show(member.name, runner.record(member).state)
    if study.scores_original:
        progress.original = _score_original(scorer, samples, out, view)
    progress.write()
    if study.search:
        _search(progress, storage)
    if not runner.exit_code:
        runner.run(members)
    progress.write()
    return _report(progress)


def _report(progress: _Progress) -> StudyReport:
    record, runner = progress.record(), progress.runner
    done = [member for member in progress.members if runner.record(member).state == "finished"]
    unscored = {m.identity for m in done if not runner.scorer.is_scored(m)} - runner.elsewhere
    failed = [run for run in record.runs if run.state in ("failed", "diverged") or run.identity in unscored]
    exit_code = runner.exit_code or (FAILED if failed else DONE)
    return StudyReport(progress.out, record, len(runner.elsewhere), exit_code, len(failed))


def _search(progress: _Progress, storage: str | None) -> None:
    from letheon.sweep.search import open_search

    study, runner = progress.study, progress.runner
    search = open_search(study, out=progress.out, storage=storage, seed=study.seeds[0])
    progress.of_trials = lambda: [run for trial in search.trials() for run in trial.runs]

    def run_seeds(configuration: Configuration, on_score: Callable[[InterimScore], None] | None) -> Sequence[RunRecord]:
        members = [
            member_of(study, configuration, seed, out=progress.out, hashes=progress.hashes) for seed in study.seeds
        ]
        if on_score is not None:
            first = runner.run_one(members[0], on_score=on_score)
            if first.state != "finished":
                return [first]
        runner.run(members)
        return [runner.record(member) for member in members]

    search.go_on(run_seeds, is_over=lambda: runner.exit_code != 0, on_trial=progress.write)


def _samples_of_search(study: StudySettings, out: Path, hashes: Hashes) -> list[Member]:
    """One run of a search, so that what is wrong with all of them is said before the first."""
    if not study.search:
        return []
    values = {name: _first_of(where) for name, where in study.search.items()}
    return [member_of(study, configuration_of(study, values), study.seeds[0], out=out, hashes=hashes)]


def _first_of(where: SearchRange) -> Any:
    if where.choices is not None:
        return where.choices[0]
    return int(where.low or 0) if where.whole else where.low


def _check(study: StudySettings, members: Sequence[Member]) -> None:
    """Say what would stop every run or every evaluation before any is begun."""
    for model, trust in {(member.settings.model, member.settings.trust_remote_code) for member in members}:
        check_checkpoint(model)
        check_not_quantised(load_config(model, trust_remote_code=trust), source=model)
    for member in members:
        evaluation = study.evaluation(member.settings, model=member.settings.model, out=member.folder)
        sources = {"forget": member.settings.forget, "retain": member.settings.retain}
        if study.evaluate is not None:
            sources |= {"evaluate.forget": evaluation.forget, "evaluate.retain": evaluation.retain}
            others = ("members", "nonmembers", "mmlu")
            sources |= {f"evaluate.{name}": str(found) for name in others if (found := getattr(evaluation, name))}
        for name, source in sources.items():
            if not source.startswith("hub:") and not Path(source).exists():
                raise DataError(f"{name}: {source}: no such file or folder; give the right path (--set {name}=PATH)")
    if isinstance(study.compare, dict) and not study.search:
        wanted = study.compare
        if not any(all(m.configuration.values.get(k) == v for k, v in wanted.items()) for m in members):
            raise SettingsError(f"compare: no configuration of the study has {wanted}; name one that is there")


def _score_original(scorer: Scorer, members: Sequence[Member], out: Path, view: View) -> dict[str, StateScores]:
    models = {member.settings.model: member.settings for member in reversed(members)}
    found = {}
    for model, settings in models.items():
        name = "original model" if len(models) == 1 else f"original model {model}"
        view.show(name, "scoring")
        found[model] = scorer.score_original(settings, out, progress=Watcher(view, name).stage)
        view.show(name, "finished")
    return found


def _open_folder(out: Path) -> None:
    open_output_folder(out, what="a folder for the study", advice="choose another --out")
    held = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if held and not held & {FILE, RUNS, HASHES, "original"}:
        raise OutputError(f"{out}: already holds files that do not belong to a study; choose another --out")
