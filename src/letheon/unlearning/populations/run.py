"""Runs over one frozen model, from their settings to a run folder each."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from letheon.data.forms import AUTO
from letheon.data.packing import join, probe_of
from letheon.data.probing import Known
from letheon.engine.population import populate
from letheon.errors import DivergenceError, GivenUpError, ModelError, SettingsError
from letheon.model.adapters import LoraAdapter
from letheon.model.loading import LoadedModel, load_model
from letheon.processes import check_alone
from letheon.settings import UnlearnSettings
from letheon.signals import Interruption, finishing, heed_signals
from letheon.storage.cache import default_cache_dir
from letheon.storage.files import full_disk_is_an_error
from letheon.storage.run_folder import CHECKPOINTS_FOLDER, LOG_FILE
from letheon.training.checkpoint import Checkpoint
from letheon.training.loop import is_over
from letheon.training.state import Hooks, Outcome, Run
from letheon.training.stopping import Clock
from letheon.training.tracking import Observer, Silent, check_trackers, open_log, trackers
from letheon.unlearning.attempts import begin_attempt, fail_attempt
from letheon.unlearning.automatic import course_of
from letheon.unlearning.dial.turn import Dialled
from letheon.unlearning.fluent import gibberish_note
from letheon.unlearning.folder import check_disk, hold_folder
from letheon.unlearning.form_record import check_same_inputs, inputs_read, recorded_form
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.method_runs import begin_run, dial_outcome, find_checkpoints
from letheon.unlearning.planning import check_fit
from letheon.unlearning.planning.machine import machine_of
from letheon.unlearning.populations.groups import groups_of, why_alone
from letheon.unlearning.populations.loop import Ended, GivesUp, train_together
from letheon.unlearning.populations.reports import DivergedRun, GivenUpRun, NamedObserver, Report
from letheon.unlearning.populations.sizes import cohorts_of, num_at_once
from letheon.unlearning.populations.together import (
    Cohort,
    Diverged,
    common_step,
    divergence_of,
    is_in_population,
    leave_population,
    recorded_cohorts,
    write_cohorts,
    write_divergence,
)
from letheon.unlearning.prepare import Prepared, SharedProblem, adapt, lora_settings, prepare_run, prepare_shared
from letheon.unlearning.problem import Problem
from letheon.unlearning.reading import precision_of, read, target_warnings, warnings_of_dial
from letheon.unlearning.record import RunReport, log_end, log_start, write_result, write_run
from letheon.unlearning.resolve import method_of, resolve_end, resolve_settings
from letheon.unlearning.run import WHEN_FULL, unlearn


def run_population(
    settings: Sequence[UnlearnSettings],
    *,
    observer: Observer | None = None,
    observers: Sequence[Observer] | None = None,
    judge: GivesUp | None = None,
) -> list[Report]:
    """Train runs that `groups_of` puts in one group at once, and leave for each the folder that `unlearn` leaves.

    Each run's losses, gradients and adapter are those that it has alone, to the rounding of float32. As many go
    together as memory holds by their plans (see `num_at_once`), the rest after them. Where the model's architecture
    does not let several through at once, they go one after another, and `observer` is told why. It hears of all runs
    together, each of `observers` of one.

    A population that was ended goes on, with `resume`, in the same bytes: in the cohorts that it was cut into, all of a
    cohort from the last step at which all of them were saved. Runs that are done by then may be left out.

    `judge` may give up runs that are trained together; what others do then no longer waits for them. None ends none.

    Returns what came of each run, in order; one that diverges does not end the others.

    Raises:
        LetheonError: as `unlearn`, for any of the runs.
        SettingsError: the runs cannot share a model, or two have one folder.
    """
    observer = observer or Silent()
    observers = observers or [NamedObserver(observer, one.out.name) for one in settings]
    _check_group(settings)
    if len(settings) > 1 or (settings[0].resume and is_in_population(settings[0].out)):
        reports = _try_together(settings, observer, observers, judge)
        if reports is not None:
            return reports
    return [_alone(one, watcher) for one, watcher in zip(settings, observers, strict=True)]


@dataclass(frozen=True, slots=True)
class _Together:
    """What all cohorts of a population have in common."""

    settings: Sequence[UnlearnSettings]
    """In full."""
    resumes: Sequence[bool]
    inputs: Inputs
    loaded: LoadedModel
    shared: LoraAdapter
    common: SharedProblem
    observer: Observer
    observers: Sequence[Observer]
    judge: GivesUp | None

    def note(self, message: str) -> None:
        """Say something of all of them."""
        self.observer.note(message)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Where a run begins or goes on."""

    found: Checkpoint | None
    passed_over: Sequence[str]
    diverged: Diverged | None = None
    """Where it ended before the step that the others go on from."""


def _alone(settings: UnlearnSettings, observer: Observer) -> RunReport | DivergedRun:
    try:
        return unlearn(settings, observer=observer)
    except DivergenceError as error:
        return DivergedRun(settings.out, str(error))


def _check_group(settings: Sequence[UnlearnSettings]) -> None:
    check_alone("a population of runs")
    folders = [one.out.resolve() for one in settings]
    twice = next((one.out for one, path in zip(settings, folders, strict=True) if folders.count(path) > 1), None)
    if twice is not None:
        raise SettingsError(f"out: expected a folder for each run of a population, got {twice} twice")
    if len(groups_of(settings)) > 1:
        reasons = [f"{one.out}: {reason}" for one in settings if (reason := why_alone(one)) is not None]
        raise SettingsError(
            "population: expected runs that share model, rows, template and adapted layers, got "
            f"{len(groups_of(settings))} groups of them{f' ({reasons[0]})' if reasons else ''}; groups_of returns the "
            f"runs that go together"
        )


def _try_together(
    settings: Sequence[UnlearnSettings], observer: Observer, observers: Sequence[Observer], judge: GivesUp | None
) -> list[Report] | None:
    """Train them together; None, saying why, where the model's architecture does not allow that."""
    clock = Clock(None)
    first, inputs = read(settings[0], method_of(settings[0]), note=observer.note)
    others = [
        resolve_end(one, resolve_settings(one), inputs.forget, inputs.retain).model_copy(update={"dtype": first.dtype})
        for one in settings[1:]
    ]
    resolved = [first, *others]
    for one in resolved:
        check_trackers(one.trackers)
    for one, watcher in zip(others, observers[1:], strict=True):
        target_warnings(one, note=watcher.note)
    check_fit(first, inputs, note=observer.note)
    at_once = num_at_once(resolved, inputs, machine=machine_of(first))
    with ExitStack() as stack:
        notes = [watcher.note for watcher in observers]
        resumes = [stack.enter_context(hold_folder(one, note=n)) for one, n in zip(resolved, notes, strict=True)]
        stack.enter_context(full_disk_is_an_error(first.out, advice=WHEN_FULL))
        for one, goes_on in zip(resolved, resumes, strict=True):
            if goes_on:
                check_same_inputs(one.out, inputs_read(inputs))
        resolved, known = _in_recorded_form(resolved, resumes)
        observer.stage("loading the model", 0, 0)
        loaded = load_model(
            first.model,
            dtype=first.dtype,
            tokenizer=inputs.tokenizer,
            device=first.device,
            trust_remote_code=first.trust_remote_code,
            quantise=first.quantise,
            note=observer.note,
        )
        shared = adapt(loaded.model, first)
        assert isinstance(shared, LoraAdapter), "checked with the group"
        methods = [method_of(one) for one in resolved]
        cache_dir = first.cache_dir or default_cache_dir()
        common = prepare_shared(
            loaded, inputs, resolved, shared,
            methods=methods, cache_dir=cache_dir, progress=observer.stage, known=known,
        )  # fmt: skip
        for note in (precision_of(resolve_settings(settings[0])).line, *common.notes):
            observer.note(note)
        whole = _Together(resolved, resumes, inputs, loaded, shared, common, observer, observers, judge)
        objection = _objection(whole)
        if objection is None:
            with heed_signals() as interruption:
                return _train_cohorts(whole, _cut(whole, at_once), clock, interruption)
    observer.note(f"{objection}; the runs go one after another")
    return None


def _in_recorded_form(
    settings: list[UnlearnSettings], resumes: Sequence[bool]
) -> tuple[list[UnlearnSettings], Mapping[str, Known]]:
    """Return the settings of all runs with the form found out when any of them began, and what was known in each."""
    begun = [recorded_form(one) for one, goes_on in zip(settings, resumes, strict=True) if goes_on]
    # One that was ended before it wrote down its form knows of none.
    found = next(((one.template, known) for one, known in begun if one.template != AUTO), None)
    if found is None:
        return settings, {}
    template, known = found
    return [one.model_copy(update={"template": template}) for one in settings], known


def _objection(whole: _Together) -> str | None:
    """Why several runs cannot go through the model at once, if so."""
    engine = whole.common.engine
    if engine.path != "packed":
        return f"{type(engine.model).__name__} needs padded sequences, so runs cannot share a pass"
    probe = probe_of(whole.inputs.sequences).to(engine.model.device)
    try:
        two = [lora_settings(one) for one in (*whole.settings, whole.settings[0])[:2]]
        population = populate(whole.shared, two, seeds=[0, 1])
        with population.running(), engine.running(), population.together([0, 1], [probe, probe]):
            engine.states(join([probe, probe]))
    except ModelError as error:
        return str(error)
    return None


def _cut(whole: _Together, at_once: int) -> list[Cohort]:
    """Return the cohorts that the runs were in before, where they still fit, and the others cut anew."""
    before = recorded_cohorts([one.out for one in whole.settings])
    kept = [cohort for cohort in before if len(cohort.runs) <= at_once]
    if len(kept) < len(before):
        whole.note(
            f"only {at_once} runs at once fit into the memory that is free now, so they continue in other groups "
            f"than before and round differently"
        )
    held = {m for cohort in kept for m in cohort.runs}
    others = [m for m in range(len(whole.settings)) if m not in held]
    return [*kept, *(Cohort(tuple(others[i] for i in found)) for found in cohorts_of(len(others), at_once))]


def _train_cohorts(
    whole: _Together, cohorts: Sequence[Cohort], clock: Clock, interruption: Interruption
) -> list[Report]:
    """Train one cohort after another; one that finds too little memory goes on as two halves."""
    if len(cohorts) > 1:
        largest = max(len(cohort.runs) for cohort in cohorts)
        whole.note(f"{len(whole.settings)} runs in {len(cohorts)} parts of at most {largest}, which is what fits")
    folders = [one.out for one in whole.settings]
    waiting, reports = deque(cohorts), dict[int, Report]()
    write_cohorts(folders, cohorts)
    while waiting:
        cohort = waiting.popleft()
        try:
            reports |= _train_cohort(whole, cohort, clock, interruption)
        except torch.OutOfMemoryError:
            if len(cohort.runs) == 1:
                raise
            middle = len(cohort.runs) // 2
            whole.note(f"{len(cohort.runs)} runs at once do not fit into the GPU's memory; they go on in two parts")
            halves = [Cohort(cohort.runs[:middle], goes_on=True), Cohort(cohort.runs[middle:], goes_on=True)]
            waiting.extendleft(reversed(halves))
            write_cohorts([folders[m] for m in cohort.runs], _renumbered(halves, cohort.runs))
    return [reports[m] for m in range(len(folders))]


def _renumbered(cohorts: Sequence[Cohort], runs: Sequence[int]) -> list[Cohort]:
    return [Cohort(tuple(runs.index(m) for m in cohort.runs), cohort.goes_on) for cohort in cohorts]


def _train_cohort(whole: _Together, cohort: Cohort, clock: Clock, interruption: Interruption) -> dict[int, Report]:
    """Train some of the runs at once and leave their folders."""
    settings = [whole.settings[m] for m in cohort.runs]
    population = populate(whole.shared, [lora_settings(one) for one in settings], seeds=[one.seed for one in settings])
    prepared = [
        prepare_run(whole.common, inputs, one, adapter, method=method_of(one))
        for one, inputs, adapter in zip(settings, _inputs_of(whole, settings), population.adapters, strict=True)
    ]
    for one in settings:
        check_same_inputs(one.out, whole.common.read)  # before checkpoints that cannot be gone on from are removed
    with ExitStack() as stack:
        beginnings = _beginnings(whole, cohort, prepared)
        runs = [
            _begin(whole, m, ready, beginning, stack)
            for m, ready, beginning in zip(cohort.runs, prepared, beginnings, strict=True)
        ]
        ends = train_together(
            population, runs, clock=clock, interruption=interruption, observer=whole.observer,
            diverged={m: one.diverged.error for m, one in enumerate(beginnings) if one.diverged},
            judge=whole.judge,
        )  # fmt: skip
        dials: list[Dialled | None] = [None] * len(runs)
        for index, (one, run, ended) in enumerate(zip(settings, runs, ends, strict=True)):
            if isinstance(ended, Outcome):
                ends[index], dials[index] = dial_outcome(
                    run.job, one, ended, clock=clock, interruption=interruption, hooks=run.hooks
                )
            _log_ending(one.out, run, ends[index], clock)
    exit_code = interruption.exit_code if interruption.signal_number else 0
    if not exit_code:
        # All that is left to do comes to the same for each alone.
        for one, ended in zip(settings, ends, strict=True):
            if isinstance(ended, Outcome):
                leave_population(one.out)
    with finishing():
        return {
            m: _write_result(whole, m, ready, ended, dialled, cohort=cohort, clock=clock, exit_code=exit_code)
            for m, ready, ended, dialled in zip(cohort.runs, prepared, ends, dials, strict=True)
        }


def _inputs_of(whole: _Together, settings: Sequence[UnlearnSettings]) -> list[Inputs]:
    """Return what was read for all runs with the warnings of each, whose ranks may differ."""
    return [
        replace(whole.inputs, warnings=(*target_warnings(one), *warnings_of_dial(one, whole.inputs)))
        for one in settings
    ]


def _beginnings(whole: _Together, cohort: Cohort, prepared: Sequence[Prepared]) -> list[_Beginning]:
    """Find where each run goes on; those of a cohort that goes on, all after the same step."""
    settings, problems = [whole.settings[m] for m in cohort.runs], [one.problem for one in prepared]
    courses = [course_of(one, each) for one, each in zip(settings, problems, strict=True)]
    passed_over: list[dict[str, None]] = [{} for _ in settings]

    def find(m: int, upto: int | None) -> Checkpoint | None:
        folder, note = settings[m].out / CHECKPOINTS_FOLDER, passed_over[m].setdefault
        return find_checkpoints([folder], courses[m], note=note, upto=upto)[0]

    if not cohort.goes_on:
        resumes = [whole.resumes[m] for m in cohort.runs]
        return [
            _Beginning(find(m, None) if goes_on else None, list(passed_over[m])) for m, goes_on in enumerate(resumes)
        ]
    diverged = {m: end for m, one in enumerate(settings) if (end := divergence_of(one.out)) is not None}
    found, left = common_step(
        find,
        is_over=lambda m, checkpoint: is_over(checkpoint.position, courses[m]),
        diverged=diverged,
        num_runs=len(settings),
    )
    return [
        _Beginning(found[m] if m not in left else find(m, None), list(passed_over[m]), left.get(m))
        for m in range(len(settings))
    ]


def _begin(whole: _Together, m: int, prepared: Prepared, beginning: _Beginning, stack: ExitStack) -> Run[Problem]:
    """Open what a run writes to, which `stack` closes, and return its run where it begins or goes on."""
    settings, observer, found, end = whole.settings[m], whole.observers[m], beginning.found, beginning.diverged
    check_disk(settings, prepared.problem.adapted, num_runs=1, num_held=2)
    write_run(settings, prepared)
    write_divergence(settings.out, end)
    keep_events = end.log_events if end else found.position.log_events if found else 0
    log = stack.enter_context(open_log(settings.out / LOG_FILE, keep_events=keep_events))
    tracker = stack.enter_context(trackers(settings.out, settings.trackers, settings.plain()))
    if end is None:
        begin_attempt(settings.out, first_step=found.position.step if found else 0)
        log_start(log, prepared, [found], beginning.passed_over)
    for message in beginning.passed_over:
        observer.note(message)
    hooks = Hooks(log, observer, tracker)
    checkpoints = settings.out / CHECKPOINTS_FOLDER
    return begin_run(prepared.problem, settings, hooks=hooks, checkpoints=checkpoints, resumed=found)


def _log_ending(folder: Path, run: Run[Problem], ended: Ended, clock: Clock) -> None:
    if not isinstance(ended, Outcome):
        run.hooks.log.write("note", message=str(ended), names_rows=isinstance(ended, DivergenceError))
        run.hooks.observer.note(str(ended))
        fail_attempt(folder, ended)
    else:
        log_end(run.hooks.log, ended, clock, folder=folder)


def _write_result(
    whole: _Together,
    m: int,
    prepared: Prepared,
    ended: Ended,
    dialled: Dialled | None,
    *,
    cohort: Cohort,
    clock: Clock,
    exit_code: int,
) -> Report:
    settings = whole.settings[m]
    if isinstance(ended, GivenUpError):
        return GivenUpRun(settings.out, str(ended), exit_code)
    if isinstance(ended, DivergenceError):
        return DivergedRun(settings.out, str(ended), exit_code)
    population = {
        "member": cohort.runs.index(m),
        "folders": [str(whole.settings[index].out) for index in cohort.runs],
    }
    report = write_result(
        settings, whole.loaded, prepared, whole.inputs, ended, clock=clock, exit_code=exit_code,
        more={"population": population}, dialled=dialled,
    )  # fmt: skip
    if (gibberish := gibberish_note(report.fluency)) is not None:
        whole.observers[m].note(gibberish)
    return report
