"""Time our step and the plain one side by side, and against the machine's own rate.

    python -m bench.step --data DIR --shape 50m --dtype float32 --pairs 10 --threads 1

One process, one model, the same batches; the two alternate, each first in half of the pairs. Nothing is timed before
both have computed the same loss and gradients.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import torch

from bench.breakdown import operators, split
from bench.case import LEARNING_RATE, WEIGHTS, Case, adapt, build_case, our_optimiser, our_step, padded
from bench.gate import NUM_STEPS, Gate, GateError, check
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
    product_rate,
    spread,
    square_rate,
    timed,
)
from bench.plain import plain_step
from bench.rows import smallest_steps, workload
from bench.shapes import SHAPES, Flops, Shape, make_model, shape_of
from letheon.engine.head import Head, label_values
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCHS = 20
"""The paper's; over so many the pass that fills the reference store is spread."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One batch by both steps."""

    rows: list[int]
    plain: Timing
    ours: Timing


@dataclass(frozen=True, slots=True)
class Rates:
    """Products of matrices, FLOP/s."""

    square: float
    """A large square product in the dtype of the weights."""
    head_square: float
    """The same in float32, in which the head is computed whatever the dtype."""
    own: dict[str, float]
    """Products of the shape's own sizes, a mean batch's tokens through each matrix."""
    head_share: float
    """Of our head with its gradient: the time of its two products alone over its time."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What was measured of one shape; times in seconds a step."""

    shape: str
    precision: Precision
    threads: int
    clock: Clock
    """The clock of all times but those called wall."""
    batch_size: int
    num_weights: int
    mean_tokens: float
    mean_padded: float
    mean_answers: float
    gate: Gate
    plain: Spread
    ours: Spread
    plain_wall: Spread
    ours_wall: Spread
    speedup: Spread
    """Plain over ours, pair by pair, the reference pass left out."""
    reference_s: float
    """Of the reference pass, for the rows of one step, to be spread over the epochs."""
    arithmetic_ratio: float
    """Operations of the plain step over those of ours: what equal rates alone would give."""
    throughput_ratio: float
    """Real tokens a second, ours over plain's, the reference pass counted into 20 epochs."""
    our_tokens_per_s: float
    plain_tokens_per_s: float
    rates: Rates
    floor_s: float
    """The arithmetic that cannot be left out, at the machine's rate, with its share of the reference pass."""
    floor_share: float
    """Floor over ours, the reference pass counted into both: 1 is as fast as the arithmetic allows."""


def main(arguments: list[str] | None = None) -> None:
    """Measure one shape and print the table."""
    given = _parse(arguments)
    prepare_process(threads=None if given.threads == "all" else int(given.threads), precision=given.dtype)
    shape, device = shape_of(given.shape, given.data), default_device()
    work = workload(
        shape, given.data, num_steps=given.steps or given.pairs, batch_size=given.batch_size, num_rows=given.rows
    )
    model = make_model(shape, dtype=dtype_of(given.dtype), device=device)
    adapted = adapt(model)
    try:
        gate = check(adapted, smallest_steps(shape, given.data, num_steps=NUM_STEPS), given.dtype)
    except GateError as error:
        sys.exit(str(error))
    case = build_case(adapted, work)
    if given.profile:
        print(profile(case))
    result = result_of(case, shape, gate, precision=given.dtype, pairs=given.pairs)
    print(to_markdown(table([result])))
    if given.json:
        write_json(given.json, {"machine": describe_machine(device), "step": asdict(result)})


def result_of(case: Case, shape: Shape, gate: Gate, *, precision: Precision, pairs: int, warmup: int = 2) -> StepResult:
    """Time `pairs` pairs of steps after some that do not count."""
    work, device = case.work, case.device
    measured = alternate(case, pairs=pairs, warmup=warmup)
    clock = clock_for(device)
    steps = [pair.rows for pair in measured]
    mean_tokens, mean_padded, mean_answers = (
        fmean(map(count, steps)) for count in (work.num_tokens, work.num_padded, work.num_answers)
    )
    rates = measure_rates(shape, precision, round(mean_tokens), round(mean_answers), device)
    plain, ours = ([getattr(pair, name).on(clock) for pair in measured] for name in ("plain", "ours"))
    reference_s = case.reference_time.on(clock) / len(work.steps)
    our_s = fmean(ours) + reference_s / EPOCHS
    flops = floor_flops(shape, mean_tokens, mean_answers)
    floor_s = flops.seconds(trunk_rate=rates.square, head_rate=rates.head_square)
    return StepResult(
        shape=shape.name,
        precision=precision,
        threads=torch.get_num_threads(),
        clock=clock,
        batch_size=max(map(len, steps)),
        num_weights=shape.num_weights,
        mean_tokens=mean_tokens,
        mean_padded=mean_padded,
        mean_answers=mean_answers,
        gate=gate,
        plain=spread(plain),
        ours=spread(ours),
        plain_wall=spread([pair.plain.wall_s for pair in measured]),
        ours_wall=spread([pair.ours.wall_s for pair in measured]),
        speedup=spread([p / o for p, o in zip(plain, ours, strict=True)]),
        reference_s=reference_s,
        arithmetic_ratio=shape.plain_flops(round(mean_padded)).total / flops.total,
        throughput_ratio=fmean(plain) / our_s,
        our_tokens_per_s=mean_tokens / our_s,
        plain_tokens_per_s=mean_tokens / fmean(plain),
        rates=rates,
        floor_s=floor_s,
        floor_share=floor_s / our_s,
    )


def alternate(case: Case, *, pairs: int, warmup: int) -> list[Pair]:
    """Take the steps of the case one after another, each by both, as often as `pairs` wants."""
    optimiser = our_optimiser(case)
    plain_optimiser = torch.optim.Adam(case.adapted.parameters(), lr=LEARNING_RATE)
    plain_model: Any = case.adapted.peft

    def by_plain(rows: list[int]) -> Timing:
        return timed(
            lambda: plain_step(
                plain_model, padded(case.work, rows, case.device), optimiser=plain_optimiser, weights=WEIGHTS
            ),
            case.device,
        )[0]

    def by_ours(rows: list[int]) -> Timing:
        with case.problem.engine.running():  # a run holds this open from its first step to its last
            return timed(lambda: our_step(case, rows, optimiser), case.device)[0]

    measured = []
    for number in range(warmup + pairs):
        rows = case.work.steps[number % len(case.work.steps)]
        if number % 2:
            ours, plain = by_ours(rows), by_plain(rows)
        else:
            plain, ours = by_plain(rows), by_ours(rows)
        measured.append(Pair(rows, plain, ours))
    return measured[warmup:]


def measure_rates(shape: Shape, precision: Precision, num_tokens: int, num_answers: int, device: torch.device) -> Rates:
    """Measure what the machine gives for a large square product and for the shape's own ones."""
    dtype = dtype_of(precision)
    own = {name: product_rate(num_tokens, *sizes, dtype=dtype, device=device) for name, sizes in shape.products.items()}
    own["head"] = product_rate(num_answers, shape.width, shape.vocab_size, dtype=torch.float32, device=device)
    square = square_rate(dtype, device)
    head_square = square if dtype == torch.float32 else square_rate(torch.float32, device)
    return Rates(square, head_square, own, head_share(shape, num_answers, dtype=dtype, device=device))


def head_share(shape: Shape, num_answers: int, *, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Return the least time of the head's products, logits and expected embedding, over that of our whole head."""
    weight = (0.05 * torch.randn(shape.vocab_size, shape.width, device=device)).to(dtype)
    states = torch.randn(num_answers, shape.width, device=device, requires_grad=True)
    labels = torch.randint(shape.vocab_size, (num_answers,), device=device)
    wide, rows = weight.float(), states.detach()
    shares = torch.rand(num_answers, shape.vocab_size, device=device)

    def head() -> None:
        label_values(states, labels, Head(weight, None)).log_probs.sum().backward()

    def products() -> None:
        torch.mm(rows, wide.T)
        torch.mm(shares, wide)

    clock = clock_for(device)
    alone, ours = (min(timed(run, device)[0].on(clock) for _ in range(1 + repeats)) for run in (products, head))
    return alone / ours


def floor_flops(shape: Shape, num_tokens: float, num_answers: float) -> Flops:
    """Return the operations that a step of ours cannot do without: 4 N T + 4 V D A, and a twentieth of the reference
    pass's 2 N T + 2 V D A."""
    step = shape.step_flops(round(num_tokens), round(num_answers))
    reference = shape.reference_flops(round(num_tokens), round(num_answers))
    return Flops(step.trunk + reference.trunk / EPOCHS, step.head + reference.head / EPOCHS)


def profile(case: Case, *, steps: int = 3) -> str:
    """Return where the time of our step goes: by part of the step, then by operator."""
    optimiser = our_optimiser(case)
    chosen = [case.work.steps[number % len(case.work.steps)] for number in range(steps)]

    def run() -> None:
        for rows in chosen:
            our_step(case, rows, optimiser)

    with case.problem.engine.running():
        run()
        parts = split(run, case.device)
        return f"{to_markdown(parts)}\n{operators(run)}"


def table(results: list[StepResult]) -> Table:
    """Return the results as one table."""
    columns: dict[str, Callable[[StepResult], str | float | int]] = {
        "shape": lambda r: r.shape,
        "dtype": lambda r: r.precision,
        "threads, clock": lambda r: f"{r.threads}, {r.clock}",
        "batch": lambda r: r.batch_size,
        "tokens real / padded / answer": lambda r: f"{r.mean_tokens:.0f} / {r.mean_padded:.0f} / {r.mean_answers:.0f}",
        "plain s": lambda r: _cell(r.plain),
        "ours s": lambda r: _cell(r.ours),
        "speed-up": lambda r: _cell(r.speedup),
        "operations ratio": lambda r: f"{r.arithmetic_ratio:.2f}",
        "throughput ratio, 20 epochs": lambda r: f"{r.throughput_ratio:.2f}",
        "tokens/s": lambda r: f"{r.our_tokens_per_s:.0f}",
        "machine GFLOP/s": lambda r: f"{r.rates.square / 1e9:.0f}",
        "floor s": lambda r: f"{r.floor_s:.4g}",
        "share of floor": lambda r: f"{r.floor_share:.0%}",
        "head: share of its products": lambda r: f"{r.rates.head_share:.0%}",
        "gradient error": lambda r: _errors(r.gate),
    }
    return Table(
        "Our step against the plain one",
        tuple(columns),
        tuple(tuple(cell(result) for cell in columns.values()) for result in results),
        notes=("median (quartiles) of the pairs; a step is one batch, so times spread with its rows",),
    )


def _cell(values: Spread) -> str:
    return f"{values.median:.3g} ({values.low:.3g} to {values.high:.3g})"


def _errors(gate: Gate) -> str:
    beside = "" if gate.is_exact else f" (plain {gate.plain_gradient_error:.1e})"
    return f"{gate.our_gradient_error:.1e}{beside}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with lume/, tokenizers/ and targets/; made-up rows without")
    parser.add_argument("--shape", choices=SHAPES, default="6m")
    parser.add_argument("--dtype", choices=get_args(Precision), default="float32")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="different batches; one for each pair by default")
    parser.add_argument("--rows", type=int, help="draw from this many rows only")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", default="1", help="a number, or all")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
