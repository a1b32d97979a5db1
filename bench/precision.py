"""Time and memory of our step in each precision of the weights, each in a process of its own.

python -m bench.precision --shape 50m --steps 6 --threads 1 [--data DIR]
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from bench.case import adapt, build_case, our_optimiser, our_step
from bench.machine import default_device, prepare_process, run_module, timed
from bench.rows import largest_step
from bench.shapes import SHAPES, make_model, shape_of
from letheon.model.precision import Precision, product_rates
from letheon.model.widening import widen
from letheon.report.tables import Table, to_markdown
from letheon.storage.provenance import peak_memory_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step takes in one precision."""

    precision: Precision
    step_s: float
    """Median, processor seconds."""
    peak: int
    """Bytes of the process, imports included."""


def main(arguments: list[str] | None = None) -> None:
    """Measure in a process for each precision and print the table, or be one of them."""
    given = _parse(arguments)
    if given.only:
        print(json.dumps(_measure(given)))
        return
    found = [_of(precision, given) for precision in get_args(Precision)]
    print(to_markdown(table(found)))
    rates = product_rates()
    print(f"products: bfloat16 {rates.bfloat16 / 1e9:.0f}, float32 {rates.float32 / 1e9:.0f} GFLOP/s")


def table(found: list[Measured]) -> Table:
    """Return the measurements beside those in float32."""
    exact = next(one for one in found if one.precision == "float32")
    rows = tuple(
        (one.precision, f"{one.step_s:.3f}", f"{one.step_s / exact.step_s:.2f}", f"{one.peak / 2**20:,.0f}")
        for one in found
    )
    return Table("A step by the precision of the weights", ("precision", "s a step", "of float32", "peak MiB"), rows)


def _of(precision: Precision, given: argparse.Namespace) -> Measured:
    data = ["--data", given.data] if given.data else []
    sizes = ["--shape", given.shape, "--steps", given.steps, "--threads", given.threads]
    return Measured(precision, **json.loads(run_module("bench.precision", *data, *sizes, "--only", precision)))


def _measure(given: argparse.Namespace) -> dict[str, float]:
    prepare_process(threads=None if given.threads == "all" else int(given.threads), precision="float32")
    shape, device = shape_of(given.shape, given.data), default_device()
    work = largest_step(shape, given.data, batch_size=4)
    dtype = torch.float32 if given.only == "float32" else torch.bfloat16
    model = make_model(shape, dtype=dtype, device=device)
    if given.only == "widened":
        widen(model, dtype)
    case = build_case(adapt(model), work)
    optimiser, taken = our_optimiser(case), []
    with case.problem.engine.running():
        for _ in range(given.steps):
            taken.append(timed(lambda: our_step(case, work.steps[0], optimiser), device)[0].process_s)
    return {"step_s": median(taken[1:]), "peak": peak_memory_bytes()}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with lume/, tokenizers/ and targets/; made-up rows without")
    parser.add_argument("--shape", choices=SHAPES, default="50m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", default="1", help="a number, or all")
    parser.add_argument("--only", choices=get_args(Precision), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
