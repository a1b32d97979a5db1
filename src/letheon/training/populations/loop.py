"""The training loop of a population: the steps of all its members side by side."""

import time
from collections.abc import Sequence as Collection

from letheon.errors import DivergenceError
from letheon.model.population import Population
from letheon.training.loop import (
    end,
    goes_on,
    rows_of_next_step,
    score_at_end,
    score_if_due,
    update,
)
from letheon.training.populations.step import accumulate_together
from letheon.training.state import Outcome, Run
from letheon.training.stopping import Clock, Interruption
from letheon.training.tracking import Observer

Ended = Outcome | DivergenceError
"""How a member ended: with a scored state, or with a loss or gradient that is not finite."""


def train_together(
    population: Population,
    runs: Collection[Run],
    *,
    clock: Clock,
    interruption: Interruption,
    observer: Observer,
) -> list[Ended]:
    """Train `runs`, those of the population's members in order, each until it is over as `loop.train` has it.

    Members go step by step together, each through its own steps. One that is over leaves the pass; so does one whose
    loss or gradient is not finite, which keeps what it was before that step. Afterwards each member's parameters are
    those of the state that is kept.

    Raises:
        OutputError: a checkpoint cannot be written.
    """
    ended: dict[int, Ended] = {}
    total = sum(run.total_steps for run in runs)
    with population.running(), runs[0].problem.engine.running():
        while len(ended) < len(runs):
            for m in (m for m in range(len(runs)) if m not in ended):
                if not goes_on(runs[m], clock, interruption):
                    ended[m] = _end(population, m, runs[m])
            active = {m: run for m, run in enumerate(runs) if m not in ended}
            if active:
                began_s = time.monotonic()
                ended |= _take_steps(population, active)
                values = {"members": float(len(active)), "s/step": time.monotonic() - began_s}
                observer.step(sum(run.step for run in runs), total, values)
    return [ended[m] for m in range(len(runs))]


def _end(population: Population, member: int, run: Run) -> Ended:
    try:
        with population.alone(member):
            score_at_end(run)
    except DivergenceError as error:
        return error
    return end(run)


def _take_steps(population: Population, active: dict[int, Run]) -> dict[int, Ended]:
    """Take one step of each, scoring and saving those for which it is time; returns those that diverged."""
    began, rows = time.monotonic(), {m: rows_of_next_step(run) for m, run in active.items()}
    taken = accumulate_together(population, active, rows)
    diverged: dict[int, Ended] = {}
    for m, run in active.items():
        parts, num_tokens = taken[m]
        try:
            update(run, rows[m], parts, num_tokens=num_tokens, began=began)
            with population.alone(m):
                score_if_due(run)
        except DivergenceError as error:
            diverged[m] = error
    return diverged
