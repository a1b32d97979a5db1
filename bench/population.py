"""Time the steps of many runs at once against the same steps one after another.

    python -m bench.population --data DIR --shape 6m --runs 2 8 32 --pairs 10 --threads 1

One process, one model, the same batches; the two alternate, each first in half of the pairs. One after another means as
a run alone takes a step: its own adapter fused into the layers, its own gradient, clipping and optimiser. Nothing is
timed before runs at once have computed the losses and gradients that they have alone.
"""

import argparse
import io
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, get_args

import torch

from bench.case import LEARNING_RATE, adapt, build_case
from bench.gate import TOLERANCE
from bench.machine import (
    Clock,
    Precision,
    Spread,
    Timing,
    clock_for,
    default_device,
    describe_machine,
    dtype_of,
    prepare_process,
    spread,
    timed,
)
from bench.rows import workload
from bench.shapes import SHAPES, make_model, shape_of
from letheon.data.schedules import MixedSchedule
from letheon.engine.population import Population, populate
from letheon.model.adapters import LoraSettings
from letheon.report.tables import Table, to_markdown
from letheon.settings import UnlearnSettings
from letheon.storage.files import write_json
from letheon.training.state import Hooks, Run
from letheon.training.step import accumulate, add_gradients, update
from letheon.training.tracking import Log, Silent
from letheon.unlearning.method_runs import begin_run
from letheon.unlearning.populations.step import accumulate_together
from letheon.unlearning.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

RANK = 5
_ALLOWED = {torch.float32: TOLERANCE, torch.bfloat16: 2**-6}
"""Largest relative difference of a gradient from the same alone; in bfloat16 sizes change the rounding."""


@dataclass(frozen=True, slots=True)
class PopulationResult:
    """What was measured of one number of runs; times in seconds for a step of each of them."""

    shape: str
    precision: Precision
    threads: int
    clock: Clock
    runs: int
    batch_size: int
    mean_tokens: float
    """Of a run's step."""
    gradient_error: float
    alone: Spread
    together: Spread
    speedup: Spread
    """Alone over together, pair by pair."""


def main(arguments: list[str] | None = None) -> None:
    """Measure one shape with each number of runs and print the table."""
    given = _parse(arguments)
    prepare_process(threads=None if given.threads == "all" else int(given.threads), precision=given.dtype)
    shape, device = shape_of(given.shape, given.data), default_device()
    num_steps = -(-given.rows // given.batch_size)
    work = workload(shape, given.data, num_steps=num_steps, batch_size=given.batch_size)
    adapted = adapt(make_model(shape, dtype=dtype_of(given.dtype), device=device), rank=RANK)
    problem = build_case(adapted, work).problem
    results = []
    for num_runs in given.runs:
        case = make_runs(problem, num_runs, batch_size=given.batch_size)
        results.append(measure(case, given.dtype, shape_name=shape.name, pairs=given.pairs, device=device))
        print(to_markdown(table(results[-1:])), flush=True)
    if given.json:
        found = [asdict(result) for result in results]
        write_json(given.json, {"machine": describe_machine(device), "population": found})


@dataclass(frozen=True, slots=True)
class Compared:
    """A population, and each of its runs as part of it and alone."""

    population: Population
    together: dict[int, Run[Problem]]
    alone: list[Run[Problem]]
    batch_size: int


def make_runs(problem: Problem, num_runs: int, *, batch_size: int) -> Compared:
    """Return so many runs over the model of `problem`, each with rows in an order of its own.

    What is timed alone trains the one adapter that the model holds, in turn for each: its values are not those of the
    run, the work is.
    """
    shared = problem.adapted
    settings = [LoraSettings(rank=RANK, alpha=RANK)] * num_runs
    population = populate(shared, settings, seeds=range(num_runs))  # type: ignore[arg-type]  # made by `adapt`
    schedules = [MixedSchedule(len(problem.rows), batch_size, seed, epochs=10**6) for seed in range(num_runs)]
    return Compared(
        population,
        {
            m: _run(replace(problem, adapted=adapter, schedule=schedules[m]))
            for m, adapter in enumerate(population.adapters)
        },
        [_run(replace(problem, schedule=schedule)) for schedule in schedules],
        batch_size,
    )


def measure(
    case: Compared, precision: Precision, *, shape_name: str, pairs: int, device: torch.device, warmup: int = 2
) -> PopulationResult:
    """Time `pairs` pairs, a step of each run in both, after some that do not count."""
    error = gradient_error(case)
    allowed = _ALLOWED[dtype_of(precision)]
    if not error <= allowed:
        sys.exit(f"runs at once have other gradients than alone: they differ by {error:.2g}, at most {allowed:.2g}")
    engine = case.alone[0].job.engine
    alone, together, tokens = list[Timing](), list[Timing](), list[int]()

    def by_turns() -> None:
        with engine.running():
            alone.append(timed(lambda: steps_alone(case), device)[0])

    def at_once() -> None:
        before = sum(run.num_tokens for run in case.together.values())
        with case.population.running(), engine.running():
            together.append(timed(lambda: step_together(case), device)[0])
        tokens.append(sum(run.num_tokens for run in case.together.values()) - before)

    for number in range(warmup + pairs):
        ways: list[Callable[[], None]] = [by_turns, at_once]
        for way in ways if number % 2 else reversed(ways):
            way()
    clock = clock_for(device)
    first, second = ([timing.on(clock) for timing in found[warmup:]] for found in (alone, together))
    return PopulationResult(
        shape=shape_name,
        precision=precision,
        threads=torch.get_num_threads(),
        clock=clock,
        runs=len(case.alone),
        batch_size=case.batch_size,
        mean_tokens=fmean(tokens[warmup:]) / len(case.alone),
        gradient_error=error,
        alone=spread(first),
        together=spread(second),
        speedup=spread([one / other for one, other in zip(first, second, strict=True)]),
    )


def steps_alone(case: Compared) -> None:
    """Take a step of each run as a run alone does; the caller holds the engine's `running` open."""
    for run in case.alone:
        began, rows = time.monotonic(), run.rows
        parts, num_tokens = add_gradients(run.job, rows, max_tokens=run.settings.max_batch_tokens)
        update(run, rows, parts, num_tokens=num_tokens, began=began)


def step_together(case: Compared) -> None:
    """Take a step of all runs; the caller holds the `running` of population and engine open."""
    began, rows = time.monotonic(), {m: run.rows for m, run in case.together.items()}
    taken = accumulate_together(case.population, case.together, rows)
    for m, run in case.together.items():
        parts, num_tokens = taken[m]
        update(run, rows[m], parts, num_tokens=num_tokens, began=began)


def gradient_error(case: Compared) -> float:
    """Return the largest difference of a gradient at once from that alone, over the largest gradient of its tensor.

    Runs begin with B = 0, where half of the gradients are 0; they are moved off it first.
    """
    generator = torch.Generator().manual_seed(0)
    for adapter in case.population.adapters:
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.add_(noise.to(parameter.device))
    rows = {m: run.rows for m, run in case.together.items()}
    worst = 0.0
    with case.population.running(), case.alone[0].job.engine.running():
        accumulate_together(case.population, case.together, rows)
        for m, run in case.together.items():
            parameters = run.job.adapted.parameters()
            found = [parameter.grad for parameter in parameters]
            run.optimiser.zero_grad(set_to_none=True)
            with case.population.alone(m):
                accumulate(run.job, rows[m], max_tokens=run.settings.max_batch_tokens)
            for parameter, gradient in zip(parameters, found, strict=True):
                assert parameter.grad is not None
                assert gradient is not None
                scale = float(parameter.grad.abs().max().clamp_min(1e-30))
                worst = max(worst, float((gradient - parameter.grad).abs().max()) / scale)
            run.optimiser.zero_grad(set_to_none=True)
    return worst


def table(results: list[PopulationResult]) -> Table:
    """Return the results as one table."""
    columns = ("shape", "dtype", "threads, clock", "runs", "batch", "tokens a run", "one after another s",
               "at once s", "speed-up", "gradient error")  # fmt: skip
    rows = tuple(
        (
            r.shape,
            r.precision,
            f"{r.threads}, {r.clock}",
            r.runs,
            r.batch_size,
            f"{r.mean_tokens:.0f}",
            _cell(r.alone),
            _cell(r.together),
            _cell(r.speedup),
            f"{r.gradient_error:.1e}",
        )
        for r in results
    )
    notes = ("median (quartiles) of the pairs; seconds are those of one step of every run",)
    return Table("Runs at once against one after another", columns, rows, notes=notes)


def _run(problem: Problem) -> Run[Problem]:
    files = {"model": "-", "forget": "-", "retain": "-", "out": "-"}
    own = {"learning_rate": LEARNING_RATE, "epochs": 10**6, "batch_size": problem.schedule.batch_size}  # type: ignore[attr-defined]
    settings = UnlearnSettings.of({**files, **own})
    hooks = Hooks(Log(io.StringIO()), Silent())
    return begin_run(problem, settings, hooks=hooks, checkpoints=Path("-"), resumed=None)


def _cell(values: Spread) -> str:
    return f"{values.median:.3g} ({values.low:.3g} to {values.high:.3g})"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with lume/, tokenizers/ and targets/; made-up rows without")
    parser.add_argument("--shape", choices=SHAPES, default="6m")
    parser.add_argument("--dtype", choices=get_args(Precision), default="float32")
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=256, help="how many rows runs draw from, about")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", default="1", help="a number, or all")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
