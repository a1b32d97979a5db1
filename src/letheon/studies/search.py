"""A search over settings with Optuna: its samplers and pruners, its storage, any number of processes."""

import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from letheon.errors import LetheonError, MissingExtraError, OutputError, SettingsError
from letheon.scores.score import Score
from letheon.storage.mounts import mount_of
from letheon.studies.grid import Configuration, configuration_of
from letheon.studies.known import aims_of, known_scores
from letheon.studies.records import RunRecord, run_from
from letheon.studies.runner import PrunedError
from letheon.studies.spec import SearchRange, StudySettings
from letheon.training.judge import StateScore

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import DBAPIError, IntegrityError
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise MissingExtraError("a study with a `search`", "search") from error

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"

_WORKER = "worker"
_ABANDONED = "abandoned-"
_RUNS = "runs"
_ATTEMPTS = 6
"""At making the tables of a new database, while other processes do the same."""

RunSeeds = Callable[[Configuration, Callable[[StateScore], None] | None], Sequence[RunRecord]]
"""Runs a configuration with each seed; the second argument hears of the first seed's interim scores and may prune."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration that a search tried."""

    number: int
    state: str
    """Optuna's, in lower case."""
    values: Mapping[str, Any]
    runs: Sequence[RunRecord]
    """What its runs found; kept with the trial, since they may lie on another machine."""


@dataclass(slots=True)
class Search:
    """A search that this process takes part in."""

    study: StudySettings
    found: "optuna.Study"
    dead: Callable[[str], bool]
    """Whether a worker of the given name is no longer there."""

    def go_on(self, run_seeds: RunSeeds, *, is_over: Callable[[], bool], on_trial: Callable[[], None]) -> None:
        """Take trials until there are as many as the study asks for, or `is_over`.

        A trial whose process was killed on this machine is taken up again with the same settings.
        """
        self._take_up_abandoned()
        while not is_over() and (self._is_queued() or len(self._counted()) < self.study.trials):
            trial = self.found.ask()
            trial.set_user_attr(_WORKER, _this_worker())
            values = {name: _ask(trial, name, where) for name, where in self.study.search.items()}
            if sum(other.number < trial.number for other in self._counted()) >= self.study.trials:
                self._abandon(trial.number)  # another process took the last one in the meantime
                return
            self._try(trial, values, run_seeds, is_over)
            on_trial()

    def trials(self) -> list[Trial]:
        """List the trials of all processes."""
        return [
            Trial(t.number, t.state.name.lower(), t.params, [run_from(run) for run in t.user_attrs.get(_RUNS, ())])
            for t in self._counted()
        ]

    def _try(
        self, trial: "optuna.Trial", values: dict[str, Any], run_seeds: RunSeeds, is_over: Callable[[], bool]
    ) -> None:
        prune = _Pruning(trial) if self.study.pruner != "none" else None
        try:
            runs = run_seeds(configuration_of(self.study, values), prune)
        except LetheonError:
            self._abandon(trial.number)
            raise
        except BaseException:
            self._abandon(trial.number, again=True)
            raise
        if is_over() and not all(run.state == "finished" for run in runs):
            self._abandon(trial.number, again=True)
            return
        trial.set_user_attr(_RUNS, [asdict(run) for run in runs])
        if any(run.state == "pruned" for run in runs):
            self.found.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        reached = [_mean(runs, score) for score in self._aims()]
        if any(value is None for value in reached):
            self.found.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.found.tell(trial, [value for value in reached if value is not None])

    def _aims(self) -> list[Score]:
        known = known_scores(self.study)
        return [known[name] for name in aims_of(self.study)]

    def _counted(self) -> list["FrozenTrial"]:
        waiting = optuna.trial.TrialState.WAITING
        abandoned = self.found.user_attrs
        every = self.found.get_trials(deepcopy=False)
        return [t for t in every if t.state != waiting and f"{_ABANDONED}{t.number}" not in abandoned]

    def _is_queued(self) -> bool:
        return bool(self.found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))

    def _take_up_abandoned(self) -> None:
        for trial in self.found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if self.dead(trial.user_attrs.get(_WORKER, "")):
                self._abandon(trial.number, again=True)

    def _abandon(self, number: int, *, again: bool = False) -> None:
        # Said first, so that no process counts it: its settings are tried under another number.
        self.found.set_user_attr(f"{_ABANDONED}{number}", True)
        params = self.found.get_trials(deepcopy=False)[number].params
        if again and params:
            self.found.enqueue_trial(dict(params))
        self.found.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


@dataclass(frozen=True, slots=True)
class _Pruning:
    """Reports the interim scores of a run to Optuna, which says when to give it up."""

    trial: "optuna.Trial"

    def __call__(self, score: StateScore) -> None:
        self.trial.report(score.score, score.step)
        if self.trial.should_prune():
            raise PrunedError(f"interim score {score.score:.3f} after epoch {score.epoch:g}")


def open_search(
    study: StudySettings,
    *,
    out: Path,
    storage: str | None = None,
    seed: int = 0,
    alike: Mapping[str, str] | None = None,
) -> Search:
    """Begin a search or join it: in the journal file in `out`, or in the database at the URL `storage`.

    The process that begins the search draws from `seed`. Those that join, or go on with it, draw anew, since the same
    seed would give them the first one's trials again. `alike` are fingerprints of what its trials must have in common.

    Raises:
        SettingsError: the database cannot be reached, or another search of that name lies there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        backend = _storage(out, storage)
        directions = [optuna.study.StudyDirection.MAXIMIZE for _ in aims_of(study)]
        common: dict[str, Any] = {"storage": backend, "study_name": study.name, "pruner": _pruner(study)}
        try:
            found = optuna.create_study(**common, directions=directions, sampler=_sampler(study, seed))
        except optuna.exceptions.DuplicatedStudyError:
            found = optuna.load_study(**common, sampler=_sampler(study, None))
    except (OutputError, SettingsError):
        raise
    except Exception as error:  # drivers of databases raise what they like
        raise SettingsError(
            f"storage: expected a database that Optuna can use, got '{storage or out / JOURNAL}' "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'})"
        ) from error
    _check_same(study, found, alike or {})
    return Search(study, found, _is_dead)


def _storage(out: Path, url: str | None) -> Any:
    if url is not None:
        return _database(url)
    _check_disk_of_journal(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    except OSError as error:
        raise OutputError(f"{out / JOURNAL}: cannot be written ({error.strerror}); choose another --out") from error


def _check_disk_of_journal(out: Path) -> None:
    """Refuse a journal that several machines would write to.

    Raises:
        SettingsError: it would lie on a network disk.
    """
    mount = mount_of(out)
    if mount is not None and mount.is_network:
        raise SettingsError(
            f"storage: the journal of the search would be {out / JOURNAL}, on a network disk ({mount.kind}, mounted on "
            f"{mount.folder}), where one machine may not see at once what another has written, so that trials would be "
            "lost or tried twice; give a database by --storage postgresql+psycopg://USER@HOST/NAME, or an --out on a "
            "disk of this machine"
        )


def _database(url: str) -> "optuna.storages.RDBStorage":
    # Hours of training lie between two words to the database: a connection kept open would not live that long.
    connect = partial(optuna.storages.RDBStorage, url, engine_kwargs={"poolclass": NullPool})
    for _ in range(_ATTEMPTS - 1):
        try:
            return connect()
        except DBAPIError as error:
            # Optuna looks whether a table is there and then makes it, in which another process may forestall it.
            if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
        time.sleep(random.uniform(0.1, 0.5))
    return connect()


def _sampler(study: StudySettings, seed: int | None) -> "optuna.samplers.BaseSampler":
    chosen = study.sampler
    if chosen == "auto":
        chosen = "tpe" if len(aims_of(study)) == 1 else "nsga2"
    if chosen == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # A fifth of the trials at random, or a generation of a fifth of them: Optuna's own numbers are for long searches.
    share = max(study.trials // 5, 4)
    if chosen == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(share, 50))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(share, 10), constant_liar=True)


def _pruner(study: StudySettings) -> "optuna.pruners.BasePruner":
    if study.pruner == "successive-halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if study.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    if study.pruner == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.NopPruner()


def _ask(trial: "optuna.Trial", name: str, where: SearchRange) -> Any:
    if where.choices is not None:
        # A list, such as of modules, is a text with commas to Optuna, as it is on the command line.
        plain = [",".join(map(str, c)) if isinstance(c, list | tuple) else c for c in where.choices]
        return trial.suggest_categorical(name, plain)
    assert where.low is not None, "checked with the study"
    assert where.high is not None, "checked with the study"
    if where.whole:
        return trial.suggest_int(name, int(where.low), int(where.high), log=where.log)
    return trial.suggest_float(name, where.low, where.high, log=where.log)


def _check_same(study: StudySettings, found: "optuna.Study", alike: Mapping[str, str]) -> None:
    """Refuse to mix trials of two searches: what makes them up is written down by the first process."""
    own: dict[str, Any] = {
        "search": study.plain()["search"],
        "objectives": list(aims_of(study)),
        "seeds": list(study.seeds),
        **alike,
    }
    there = found.user_attrs.get("search")
    if there is None:
        found.set_user_attr("search", own)
        return
    # A search of an earlier version has no fingerprints.
    changed = [name for name in own if own[name] != there.get(name, own[name] if name in alike else None)]
    if changed:
        prints = "; ".join(f"{name}: {there[name]} there, {own[name]} here" for name in changed if name in alike)
        raise SettingsError(
            f"search: '{study.name}' already exists with a different {', '.join(changed)}"
            f"{f' ({prints})' if prints else ''}; give this one another name or --out"
        )


def _mean(runs: Sequence[RunRecord], score: Score) -> float | None:
    """The mean of a score over runs, such that higher is better."""
    found = [run.result.scores.get(score.name) if run.result else None for run in runs]
    known = [score.merit(value) for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def _this_worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_dead(worker: str) -> bool:
    """Whether a worker was a process of this machine that is gone; of other machines nothing is known."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
