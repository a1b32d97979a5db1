"""The runs of a population, cohort by cohort, each from where it begins or goes on to its folder."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from letheon.engine.population import populate
from letheon.errors import DivergenceError, GivenUpError
from letheon.model.adapters import LoraAdapter
from letheon.model.loading import LoadedModel
from letheon.settings import UnlearnSettings
from letheon.signals import Interruption, finishing
from letheon.storage.run_folder import CHECKPOINTS_FOLDER, LOG_FILE
from letheon.training.checkpoint import Checkpoint
from letheon.training.loop import is_over
from letheon.training.state import Hooks, Outcome, Run
from letheon.training.stopping import Clock
from letheon.training.tracking import Observer, open_log, trackers
from letheon.unlearning.attempts import begin_attempt, fail_attempt
from letheon.unlearning.automatic import course_of
from letheon.unlearning.dial.turn import Dialled
from letheon.unlearning.fluent import answer_notes
from letheon.unlearning.folder import check_disk
from letheon.unlearning.form_record import check_same_inputs
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.method_runs import begin_run, dial_outcome, find_checkpoints
from letheon.unlearning.populations.loop import Ended, GivesUp, train_together
from letheon.unlearning.populations.reports import DivergedRun, GivenUpRun, Report
from letheon.unlearning.populations.sizes import cohorts_of
from letheon.unlearning.populations.together import (
    Cohort,
    Diverged,
    common_step,
    divergence_of,
    leave_population,
    recorded_cohorts,
    write_cohorts,
    write_divergence,
)
from letheon.unlearning.prepare import Prepared, SharedProblem, lora_settings, prepare_run
from letheon.unlearning.problem import Problem
from letheon.unlearning.reading import target_warnings, warnings_of_dial
from letheon.unlearning.record import log_end, log_start, write_result, write_run
from letheon.unlearning.resolve import method_of


@dataclass(frozen=True, slots=True)
class PreparedPopulation:
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


def cut_into_cohorts(whole: PreparedPopulation, at_once: int) -> list[Cohort]:
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


def train_cohorts(
    whole: PreparedPopulation, cohorts: Sequence[Cohort], clock: Clock, interruption: Interruption
) -> list[Report]:
    """Train one cohort after another and leave all folders; one that finds too little memory goes on as two halves.

    Returns what came of each run, in order.

    Raises:
        OutputError: something cannot be written.
    """
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


def _train_cohort(
    whole: PreparedPopulation, cohort: Cohort, clock: Clock, interruption: Interruption
) -> dict[int, Report]:
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


def _inputs_of(whole: PreparedPopulation, settings: Sequence[UnlearnSettings]) -> list[Inputs]:
    """Return what was read for all runs with the warnings of each, whose ranks may differ."""
    return [
        replace(whole.inputs, warnings=(*target_warnings(one), *warnings_of_dial(one, whole.inputs)))
        for one in settings
    ]


def _beginnings(whole: PreparedPopulation, cohort: Cohort, prepared: Sequence[Prepared]) -> list[_Beginning]:
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


def _begin(
    whole: PreparedPopulation, m: int, prepared: Prepared, beginning: _Beginning, stack: ExitStack
) -> Run[Problem]:
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
    whole: PreparedPopulation,
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
    for note in answer_notes(report.fluency, settings):
        whole.observers[m].note(note)
    return report
