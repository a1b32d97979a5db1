"""Runs over one frozen model, from their settings to a run folder each."""

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from letheon.data.packing import join
from letheon.errors import DivergenceError, ModelError, SettingsError
from letheon.files import full_disk_is_an_error
from letheon.model.adapters import LoraAdapter
from letheon.model.loading import LoadedModel, load_model
from letheon.model.population import populate
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import Checkpoint
from letheon.training.folder import check_disk, hold_folder
from letheon.training.inputs import Inputs
from letheon.training.interim import InterimScore
from letheon.training.loop import begin
from letheon.training.plan import check_fit
from letheon.training.plan.machine import machine_of
from letheon.training.populations.cut import num_at_once, parts_of
from letheon.training.populations.groups import groups_of, why_alone
from letheon.training.populations.loop import Ended, train_together
from letheon.training.prepare import Ground, Prepared, adapt, lay_ground, lora_settings, probe_of, put_on
from letheon.training.record import RunReport, leave, log_end, log_start, write_run
from letheon.training.resolve import resolve_settings
from letheon.training.run import WHEN_FULL, check_alone, default_cache_dir, find_checkpoints, read, unlearn
from letheon.training.state import Hooks, Run
from letheon.training.stopping import Clock, Interruption, heed_signals
from letheon.training.tracking import Observer, Silent, check_trackers, open_log, trackers


@dataclass(frozen=True, slots=True)
class DivergedRun:
    """A run that met a loss or gradient that is not finite: its folder is as `unlearn` leaves it then.

    That is run.yaml, log.jsonl and the checkpoints before, but no model, adapter or provenance.
    """

    folder: Path
    reason: str
    """Step, rows and what is not finite."""
    exit_code: int = 0
    """Of what ended the process, which divergence does not."""


def run_population(
    members: Collection[UnlearnSettings],
    *,
    observer: Observer | None = None,
    observers: Collection[Observer] | None = None,
) -> list[RunReport | DivergedRun]:
    """Train runs that `groups_of` puts in one group at once, and leave for each the folder that `unlearn` leaves.

    Each run's losses, gradients and adapter are those that it has alone, to the rounding of float32. As many go
    together as memory holds by their plans (see `num_at_once`), the rest after them. Where the model's architecture
    does not let several through at once, they go one after another, and `observer` is told why. It hears of all runs
    together, each of `observers` of one.

    Returns what came of each run, in order; one that diverges does not end the others.

    Raises:
        LetheonError: as `unlearn`, for any of the runs.
        SettingsError: the runs cannot share a model, or two have one folder.
    """
    observer = observer or Silent()
    observers = observers or [_Named(observer, one.out.name) for one in members]
    _check_group(members)
    if len(members) > 1:
        reports = _try_together(members, observer, observers)
        if reports is not None:
            return reports
    return [_alone(one, watcher) for one, watcher in zip(members, observers, strict=True)]


@dataclass(frozen=True, slots=True)
class _Named:
    """Hands on what is said of one member, under its name."""

    observer: Observer
    name: str

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Say nothing: the steps are counted over all members."""

    def scored(self, score: InterimScore) -> None:
        """Hand it on."""
        self.observer.scored(score)

    def note(self, message: str) -> None:
        """Say whose it is."""
        self.observer.note(f"{self.name}: {message}")


@dataclass(frozen=True, slots=True)
class _Together:
    """What all parts of a population have in common."""

    members: Collection[UnlearnSettings]
    """In full."""
    resumes: Collection[bool]
    inputs: Inputs
    loaded: LoadedModel
    shared: LoraAdapter
    ground: Ground
    observer: Observer
    observers: Collection[Observer]


def _alone(settings: UnlearnSettings, observer: Observer) -> RunReport | DivergedRun:
    try:
        return unlearn(settings, observer=observer)
    except DivergenceError as error:
        return DivergedRun(settings.out, str(error))


def _check_group(members: Collection[UnlearnSettings]) -> None:
    check_alone()
    folders = [one.out.resolve() for one in members]
    twice = next((one.out for one, path in zip(members, folders, strict=True) if folders.count(path) > 1), None)
    if twice is not None:
        raise SettingsError(f"out: expected a folder for each run of a population, got {twice} twice")
    if len(groups_of(members)) > 1:
        reasons = [f"{one.out}: {reason}" for one in members if (reason := why_alone(one)) is not None]
        raise SettingsError(
            "population: expected runs that share model, rows, template and adapted layers, got "
            f"{len(groups_of(members))} groups of them{f' ({reasons[0]})' if reasons else ''}; groups_of tells which "
            "go together"
        )


def _try_together(
    members: Collection[UnlearnSettings], observer: Observer, observers: Collection[Observer]
) -> list[RunReport | DivergedRun] | None:
    """Train them together; None, saying why, where the model's architecture does not allow that."""
    clock = Clock(None)
    first, inputs = read(members[0], get_method(members[0].method))
    resolved = [first, *map(resolve_settings, members[1:])]
    for one in resolved:
        check_trackers(one.trackers)
    check_fit(first, inputs, note=observer.note)
    at_once = num_at_once(resolved, inputs, machine=machine_of(first))
    with ExitStack() as stack:
        notes = [watcher.note for watcher in observers]
        resumes = [stack.enter_context(hold_folder(one, note=n)) for one, n in zip(resolved, notes, strict=True)]
        stack.enter_context(full_disk_is_an_error(first.out, advice=WHEN_FULL))
        loaded = load_model(
            first.model,
            dtype=first.dtype,
            tokenizer=inputs.tokenizer,
            device=first.device,
            trust_remote_code=first.trust_remote_code,
        )
        shared = adapt(loaded.model, first)
        assert isinstance(shared, LoraAdapter), "checked with the group"
        methods = [get_method(one.method) for one in resolved]
        cache_dir = first.cache_dir or default_cache_dir()
        ground = lay_ground(loaded, inputs, resolved, shared, methods=methods, cache_dir=cache_dir)
        for note in ground.notes:
            observer.note(note)
        whole = _Together(resolved, resumes, inputs, loaded, shared, ground, observer, observers)
        objection = _objection(whole)
        if objection is None:
            with heed_signals() as interruption:
                return _train_parts(whole, parts_of(len(resolved), at_once), clock, interruption)
    observer.note(f"{objection}; the runs go one after another")
    return None


def _objection(whole: _Together) -> str | None:
    """Why several members cannot go through the model at once, if so."""
    engine = whole.ground.engine
    if engine.path != "packed":
        return f"{type(engine.model).__name__} takes sequences padded, so that members cannot share a pass"
    probe = probe_of(whole.inputs.sequences).to(engine.model.device)
    try:
        population = populate(whole.shared, [lora_settings(one) for one in whole.members[:2]], seeds=[0, 1])
        with population.running(), engine.running(), population.together([0, 1], [probe, probe]):
            engine.states(join([probe, probe]))
    except ModelError as error:
        return str(error)
    return None


def _train_parts(
    whole: _Together, parts: Collection[range], clock: Clock, interruption: Interruption
) -> list[RunReport | DivergedRun]:
    """Train one part after another; one that finds too little memory goes on as two halves."""
    if len(parts) > 1:
        whole.observer.note(
            f"{len(whole.members)} members in {len(parts)} parts of at most {max(map(len, parts))}, which is what fits"
        )
    waiting, reports = deque(parts), list[RunReport | DivergedRun]()
    while waiting:
        part = waiting.popleft()
        try:
            reports += _train_part(whole, part, clock, interruption)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            middle = len(part) // 2
            whole.observer.note(
                f"{len(part)} members at once do not fit into the GPU's memory; they go on in two parts"
            )
            waiting.extendleft([part[middle:], part[:middle]])
            whole = replace(whole, resumes=[done or m in part for m, done in enumerate(whole.resumes)])
    return reports


def _train_part(
    whole: _Together, part: range, clock: Clock, interruption: Interruption
) -> list[RunReport | DivergedRun]:
    """Train some of the members at once and leave their folders."""
    members = [whole.members[m] for m in part]
    population = populate(whole.shared, [lora_settings(one) for one in members], seeds=[one.seed for one in members])
    prepared = [
        put_on(whole.ground, whole.inputs, one, member, method=get_method(one.method))
        for one, member in zip(members, population.members, strict=True)
    ]
    with ExitStack() as stack:
        runs = [_begin(whole, m, ready, stack) for m, ready in zip(part, prepared, strict=True)]
        ends = train_together(population, runs, clock=clock, interruption=interruption, observer=whole.observer)
        for run, ended in zip(runs, ends, strict=True):
            _log_ending(run, ended, clock)
    exit_code = interruption.exit_code if interruption.signal_number else 0
    return [
        _leave(whole, m, ready, ended, part=part, clock=clock, exit_code=exit_code)
        for m, ready, ended in zip(part, prepared, ends, strict=True)
    ]


def _begin(whole: _Together, m: int, prepared: Prepared, stack: ExitStack) -> Run:
    """Open what a member writes to, which `stack` closes, and return its run where it begins or goes on."""
    settings, observer, folder = whole.members[m], whole.observers[m], whole.members[m].out / "checkpoints"
    check_disk(settings, prepared.problem.adapted, num_runs=1)
    write_run(settings, prepared)
    found, passed_over = list[Checkpoint | None]([None]), list[str]()
    if whole.resumes[m]:
        found = find_checkpoints([folder], prepared.problem.start, settings, note=passed_over.append)
    keep_bytes = found[0].position.log_bytes if found[0] else 0
    log = stack.enter_context(open_log(settings.out / "log.jsonl", keep_bytes=keep_bytes))
    tracker = stack.enter_context(trackers(settings.out, settings.trackers, settings.plain()))
    log_start(log, prepared, found, passed_over)
    for message in passed_over:
        observer.note(message)
    hooks = Hooks(log, observer, tracker)
    return begin(prepared.problem, settings, hooks=hooks, checkpoints=folder, resumed=found[0])


def _log_ending(run: Run, ended: Ended, clock: Clock) -> None:
    if isinstance(ended, DivergenceError):
        run.hooks.log.write("note", message=str(ended))
        run.hooks.observer.note(str(ended))
    else:
        log_end(run.hooks.log, ended, clock)


def _leave(
    whole: _Together, m: int, prepared: Prepared, ended: Ended, *, part: range, clock: Clock, exit_code: int
) -> RunReport | DivergedRun:
    settings = whole.members[m]
    if isinstance(ended, DivergenceError):
        return DivergedRun(settings.out, str(ended), exit_code)
    population = {
        "member": m - part.start,
        "folders": [str(whole.members[index].out) for index in part],
    }
    return leave(
        settings, whole.loaded, prepared, whole.inputs, ended, clock=clock, exit_code=exit_code,
        more={"population": population},
    )  # fmt: skip
