"""Run the runs of a study: finished ones are left alone, unfinished ones continue, failures are recorded."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from letheon.errors import DivergenceError, LetheonError, OutputError
from letheon.settings import UnlearnSettings
from letheon.storage.files import made_folder, write_json
from letheon.storage.locks import clear_locks
from letheon.storage.run_folder import FAILURES_FOLDER, LOCKS_FOLDER, RUNS_FOLDER
from letheon.studies.history import begun_under, note_begun
from letheon.studies.known import telling_scores
from letheon.studies.live import View
from letheon.studies.planned_runs import PlannedRun
from letheon.studies.records import RunRecord, State
from letheon.studies.scoring import Scorer
from letheon.studies.states import is_finished, result_of, scale_of, start_of
from letheon.training.judge import StateScore
from letheon.training.tracking import Observer
from letheon.unlearning.populations import DivergedRun, GivenUpRun, GivesUp, Report, is_in_population, leave_population
from letheon.unlearning.record import RunReport


class PrunedError(Exception):
    """A search has no more hope for a run; raised inside it, where it is scored."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """The two jobs that a study is made of, and how runs are trained together where they can share a model."""

    unlearn: Callable[[UnlearnSettings, Observer], RunReport]
    unlearn_together: Callable[
        [Sequence[UnlearnSettings], Observer, Sequence[Observer], GivesUp | None], Sequence[Report]
    ]
    """Called with the runs, who hears of them together, who hears of each, and who may give some up."""
    groups_of: Callable[[Sequence[UnlearnSettings]], Sequence[Sequence[int]]]


@dataclass(slots=True)
class Runner:
    """Runs the planned runs, each in its folder of the study."""

    out: Path
    jobs: Jobs
    scorer: Scorer
    view: View
    on_change: Callable[[], None] = lambda: None
    """Called whenever a run has ended or been scored, to bring study.json up to date."""
    judge_of: Callable[[Mapping[Path, str]], GivesUp] | None = None
    """Makes a judge of runs that are trained together, from their folders and configurations; None gives up none."""
    exit_code: int = 0
    """Not 0 when the process was asked to end; nothing more is begun then."""
    elsewhere: set[str] = field(default_factory=set)
    """Identities of runs that another process is at."""
    _done: dict[str, RunRecord] = field(default_factory=dict)

    def run(self, runs: Sequence[PlannedRun]) -> None:
        """Run and score the missing runs, in groups that share a model where possible."""
        waiting = [run for run in runs if self.is_waiting(run)]
        to_train = [run for run in waiting if not is_finished(run.folder)]
        groups = self.jobs.groups_of([run.settings for run in to_train])
        for run in waiting:
            if run not in to_train:
                self._alone(run)
        for group in groups:
            if self.exit_code:
                return
            self._train([to_train[index] for index in group])

    def run_one(self, run: PlannedRun, *, on_score: Callable[[StateScore], None] | None = None) -> RunRecord:
        """Run and score one run and return its record; `on_score` may raise PrunedError to end it."""
        if self.is_waiting(run):
            self._alone(run, on_score=on_score)
        return self.record(run)

    def record(self, run: PlannedRun) -> RunRecord:
        """Return the state of a run on disk."""
        if run.identity not in self._done:
            record = self._read(run)
            if record.state == "waiting" and run.identity in self.elsewhere:
                return replace(record, state="elsewhere", reason="another process is at it")
            if record.state != "finished" or not self.scorer.is_scored(run):
                return record
            clear_locks(run.folder)  # of a process that was killed when all was done
            self._done[run.identity] = record
        # The name may have changed since, where the study's file has.
        return replace(self._done[run.identity], **_named(run, self.out))

    def is_waiting(self, run: PlannedRun, *, retry: bool = False) -> bool:
        """Return whether a run is to be trained or scored; one that failed or was given up is only with `retry`."""
        record = self.record(run)
        self.view.show(run.name, record.state, record.reason)
        if record.state in ("failed", "diverged", "pruned"):
            return retry
        return record.state != "finished" or not self.scorer.is_scored(run)

    def _read(self, run: PlannedRun) -> RunRecord:
        named = RunRecord(**_named(run, self.out), identity=run.identity, state="waiting")
        recalls, unknown = start_of(run.folder)
        begun = begun_under(self.out, run.identity)
        named = replace(named, recalls=recalls, unknown=unknown, study_sha256=begun)
        failure = _read_failure(self.out, run.identity)
        if failure is not None:
            return replace(named, state=failure["state"], reason=failure["reason"])
        if not is_finished(run.folder):
            return named
        result = result_of(run.folder)
        states, notes = self.scorer.read(run)
        ended = replace(named, state="finished", reason=result["reason"], duration_s=result["duration_s"])
        return replace(ended, states=states, notes=notes, scale=scale_of(result))

    def _alone(self, run: PlannedRun, *, on_score: Callable[[StateScore], None] | None = None) -> None:
        with self._held([run]) as held, self._recorded(held):
            for found in held:
                if not is_finished(found.folder):
                    self.view.show(found.name, "running")
                    report = self.jobs.unlearn(_ready(found), Watcher(self.view, found.name, on_score))
                    self.exit_code = self.exit_code or report.exit_code
                self._score(found)

    def _train(self, runs: Sequence[PlannedRun]) -> None:
        if len(runs) == 1 and not is_in_population(runs[0].folder):
            self._alone(runs[0])
            return
        with self._held(runs) as held:
            for run in held:
                self.view.show(run.name, "running", f"one of {len(held)} over one model")
            watchers = [Watcher(self.view, run.name) for run in held]
            group_watcher = GroupWatcher(self.view, [run.name for run in held])
            with self._recorded(held):
                reports = self.jobs.unlearn_together(
                    [_ready(run) for run in held], group_watcher, watchers, self._judge(held)
                )
                for run, report in zip(held, reports, strict=True):
                    self.exit_code = self.exit_code or report.exit_code
                    if isinstance(report, DivergedRun):
                        self._fail(run, "diverged", report.reason)
                    elif isinstance(report, GivenUpRun):
                        self._fail(run, "pruned", report.reason)
            for run in held:
                with self._recorded([run]):
                    self._score(run)

    def _judge(self, runs: Sequence[PlannedRun]) -> GivesUp | None:
        """Baselines are rows of their own and never given up."""
        found = {m.folder: m.configuration.label for m in runs if m.configuration.role == "study"}
        return self.judge_of(found) if self.judge_of is not None else None

    def _score(self, run: PlannedRun) -> None:
        if self.exit_code or not is_finished(run.folder):
            self.view.show(run.name, self.record(run).state, "stopped" if self.exit_code else "")
            return
        self.view.show(run.name, "scoring")
        watcher = Watcher(self.view, run.name)
        self.scorer.score(run, note=lambda text: self.view.show(run.name, "scoring", text), progress=watcher.stage)
        result = self.record(run).result
        found = result.scores if result else {}
        has_notes = result is not None and bool(result.script_notes)
        names = telling_scores(self.scorer.study, by_unicode=has_notes)
        shown = [f"{name} {found[name]:.3f}" for name in names if name in found]
        self.view.show(run.name, "finished", shown[0] if shown else "")
        self.on_change()

    @contextmanager
    def _held(self, runs: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
        """Hold those of the runs that no other process is at, and that none has done in the meantime."""
        with ExitStack() as stack:
            held = []
            for run in runs:
                lock = FileLock(made_folder(self.out / LOCKS_FOLDER) / f"{run.identity}.lock")
                try:
                    stack.enter_context(lock.acquire(timeout=0))
                except Timeout:
                    self.elsewhere.add(run.identity)
                    self.view.show(run.name, "running", "in another process")
                    continue
                if self.is_waiting(run):
                    if not run.folder.exists():
                        note_begun(self.scorer.study, self.out, run.identity)
                    held.append(run)
            yield held

    @contextmanager
    def _recorded(self, runs: Sequence[PlannedRun]) -> Iterator[None]:
        """Keep what ended a run instead of ending the study, unless it would end all other runs too."""
        try:
            yield
        except OutputError:
            raise
        except PrunedError as error:
            self._end(runs, "pruned", str(error))
        except DivergenceError as error:
            self._end(runs, "diverged", str(error))
        except (LetheonError, MemoryError) as error:
            self._end(runs, "failed", str(error) or "out of memory")
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            self._end(runs, "failed", f"out of memory: {error}")

    def _end(self, runs: Sequence[PlannedRun], state: State, reason: str) -> None:
        for run in runs:
            if not is_finished(run.folder):
                self._fail(run, state, reason)
            else:
                self.view.show(run.name, "failed", f"not scored: {reason}")

    def _fail(self, run: PlannedRun, state: State, reason: str) -> None:
        write_json(made_folder(self.out / FAILURES_FOLDER) / f"{run.identity}.json", {"state": state, "reason": reason})
        self.view.show(run.name, state, reason)
        self.on_change()


@dataclass(frozen=True, slots=True)
class Watcher:
    """Tells a study's view how a run goes; an observer of runs."""

    view: View
    name: str
    on_score: Callable[[StateScore], None] | None = None

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:  # noqa: ARG002
        """Move the bar."""
        self.view.progress(self.name, done, total)

    def stage(self, name: str, done: int, total: int) -> None:
        """Show it beside the run."""
        self.view.progress(self.name, done, total, stage=name)

    def note(self, message: str) -> None:
        """Show it beside the run."""
        self.view.show(self.name, "running", message)

    def scored(self, score: StateScore) -> None:
        """Hand on what the run found of a state."""
        if self.on_score is not None:
            self.on_score(score)


@dataclass(frozen=True, slots=True)
class GroupWatcher:
    """Tells a study's view how runs over one model go together; their steps are counted in one."""

    view: View
    names: Sequence[str]

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:  # noqa: ARG002
        """Move all of the bars."""
        for name in self.names:
            self.view.progress(name, done, total)

    def stage(self, name: str, done: int, total: int) -> None:
        """Show it beside the first of them, which stands for all."""
        self.view.progress(self.names[0], done, total, stage=name)

    def note(self, message: str) -> None:
        """Show it beside each run."""
        for name in self.names:
            self.view.show(name, "running", message)

    def scored(self, score: StateScore) -> None:
        """Do nothing: each run hears of its own."""


def forget_failures(out: Path, identities: Collection[str] | None = None) -> None:
    """Have failed, diverged and pruned runs tried again, all or some, from where they came to."""
    for path in (out / FAILURES_FOLDER).glob("*.json"):
        if identities is not None and path.stem not in identities:
            continue
        for folder in (out / RUNS_FOLDER).glob(f"*-{path.stem}"):
            leave_population(folder)
        path.unlink()


def _ready(run: PlannedRun) -> UnlearnSettings:
    return run.settings.model_copy(update={"resume": run.folder.exists()})


def _named(run: PlannedRun, out: Path) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": run.folder.relative_to(out).as_posix(),
        "configuration": run.configuration.label,
        "values": dict(run.configuration.values),
        "seed": run.seed,
        "role": run.configuration.role,
        "model": run.settings.model,
    }


def _read_failure(out: Path, identity: str) -> dict[str, Any] | None:
    path = out / FAILURES_FOLDER / f"{identity}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); delete it to run that run again") from error
