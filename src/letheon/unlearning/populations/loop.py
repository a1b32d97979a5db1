"""The training loop of a population: the steps of all its runs side by side."""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from letheon.engine.population import Population
from letheon.errors import DivergenceError, GivenUpError
from letheon.signals import Interruption
from letheon.training.judge import StateScore
from letheon.training.loop import (
    broken_parameters,
    end,
    goes_on,
    prune,
    save,
    score_at_end,
    score_if_due,
)
from letheon.training.state import Outcome, Run
from letheon.training.step import update
from letheon.training.stopping import Clock
from letheon.training.tracking import Observer
from letheon.unlearning.populations.step import accumulate_together
from letheon.unlearning.populations.together import Diverged, write_divergence
from letheon.unlearning.problem import Problem

Ended = Outcome | DivergenceError | GivenUpError
"""How a run ended: with a scored state, with a loss or gradient that is not finite, or because others do better."""

GivesUp = Callable[[Mapping[Path, Sequence[StateScore]], Set[Path]], Mapping[Path, str]]
"""Says which runs are given up, and why, by folder: it is told the interim scores so far of all that are trained
together, and which of them were scored just now, from which it chooses. It must say the same of the same scores."""


def train_together(
    population: Population,
    runs: Sequence[Run[Problem]],
    *,
    clock: Clock,
    interruption: Interruption,
    observer: Observer,
    diverged: Mapping[int, DivergenceError | GivenUpError] | None = None,
    judge: GivesUp | None = None,
) -> list[Ended]:
    """Train `runs`, one for each adapter of the population, in order, each until it is over as `loop.train` has it.

    Runs go step by step together, each through its own steps. One that is over leaves the pass; so does one whose
    loss or gradient is not finite, which keeps what it was before that step, and one that `judge` gives up; those that
    are `diverged` have left before. Afterwards each run's parameters are those of the state that is kept.

    Raises:
        OutputError: a checkpoint cannot be written.
    """
    ended: dict[int, Ended] = dict(diverged or {})
    total = sum(run.total_steps for run in runs)
    with population.running(), runs[0].job.running():
        ended |= _given_up(runs, ended, judge)  # where the process was killed before it was said
        while len(ended) < len(runs):
            asked = replace(interruption)  # a signal ends all runs after the same step
            for m in (m for m in range(len(runs)) if m not in ended):
                if not goes_on(runs[m], clock, asked):
                    ended[m] = _end(population, m, runs[m])
            active = {m: run for m, run in enumerate(runs) if m not in ended}
            if active:
                began_s = time.monotonic()
                ended |= _take_steps(population, active)
                ended |= _given_up(runs, ended, judge)
                values = {"runs": float(len(active)), "s/step": time.monotonic() - began_s}
                observer.step(sum(run.step for run in runs), total, values)
    for run in runs:
        run.held_steps = frozenset()
        prune(run)
    return [ended[m] for m in range(len(runs))]


def _end(population: Population, index: int, run: Run[Problem]) -> Ended:
    try:
        with population.alone(index):
            score_at_end(run)
    except DivergenceError as error:
        _note_divergence(run, error, num_passes=run.step)
        return error
    return end(run)


def _take_steps(population: Population, active: dict[int, Run[Problem]]) -> dict[int, Ended]:
    """Take one step of each, scoring and saving those for which it is time; returns those that diverged."""
    began, rows = time.monotonic(), {m: run.rows for m, run in active.items()}
    taken = accumulate_together(population, active, rows)
    diverged: dict[int, Ended] = {}
    saved: set[int] = set()
    for m, run in active.items():
        parts, num_tokens = taken[m]
        num_passes = run.step + 1
        try:
            update(run, rows[m], parts, num_tokens=num_tokens, began=began)
            with population.alone(m):
                if score_if_due(run):
                    saved.add(m)
        except DivergenceError as error:
            _note_divergence(run, error, num_passes=num_passes)
            diverged[m] = error
    _save_all({m: run for m, run in active.items() if m not in diverged}, saved)
    return diverged


def _save_all(runs: Mapping[int, Run[Problem]], saved: Set[int]) -> None:
    """Where the first of the runs has been `saved` or its time has come, save the others too: all can go on there.

    That waits where a run holds numbers that are not finite: its next step says so.
    """
    if not runs:
        return
    first = next(iter(runs))
    if not (first in saved or runs[first].saves.is_due) or any(broken_parameters(run) for run in runs.values()):
        return
    with runs[first].saves.saving():
        for m, run in runs.items():
            if m not in saved:
                save(run)
    for run in runs.values():
        run.held_steps = run.course.needed(run.history) | {run.step}
        prune(run)


def _given_up(runs: Sequence[Run[Problem]], ended: Mapping[int, Ended], judge: GivesUp | None) -> dict[int, Ended]:
    """Return the runs that are given up by what they and the others were scored at."""
    asked = {_folder(run): m for m, run in enumerate(runs) if m not in ended and _is_scored_and_goes_on(run)}
    if judge is None or not asked:
        return {}
    found: dict[int, Ended] = {}
    for folder, reason in judge({_folder(run): tuple(run.history) for run in runs}, asked.keys()).items():
        m, error = asked[folder], GivenUpError(reason)
        _note_divergence(runs[m], error, num_passes=runs[m].step)
        found[m] = error
    return found


def _is_scored_and_goes_on(run: Run[Problem]) -> bool:
    is_scored = bool(run.history) and run.history[-1].step == run.step
    return is_scored and run.reason is None and run.step < run.total_steps


def _note_divergence(run: Run[Problem], error: DivergenceError | GivenUpError, *, num_passes: int) -> None:
    is_given_up = isinstance(error, GivenUpError)
    write_divergence(_folder(run), Diverged(num_passes, run.hooks.log.flush(), str(error), is_given_up))


def _folder(run: Run[Problem]) -> Path:
    assert run.checkpoints is not None, "runs of a population are saved"
    return run.checkpoints.parent
