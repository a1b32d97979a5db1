"""Peak memory of our step and the plain one, each in a process of its own.

    python -m bench.peak --data DIR --shape 1b --dtype bfloat16

Both take the step of an epoch that has the most padded tokens, twice: the second holds the optimiser's moments too.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from bench.case import LEARNING_RATE, WEIGHTS, adapt, build_case, our_optimiser, our_step, padded
from bench.machine import Precision, default_device, describe_machine, dtype_of, prepare_process, run_module
from bench.plain import plain_step
from bench.rows import Workload, largest_step
from bench.shapes import SHAPES, make_model, shape_of
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json
from letheon.storage.provenance import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

Which = Literal["nothing", "plain", "ours"]
NUM_STEPS = 2


@dataclass(frozen=True, slots=True)
class PeakResult:
    """Peak bytes of processes that do nothing but import, take plain steps, and take ours."""

    shape: str
    precision: Precision
    batch_size: int
    num_tokens: int
    num_padded: int
    num_answers: int
    weight_bytes: int
    imports: int
    plain: int
    ours: int

    @property
    def ratio(self) -> float:
        """Ours over plain's, all that a process holds counted."""
        return self.ours / self.plain

    @property
    def ratio_beyond_imports(self) -> float:
        """Ours over plain's, what any process that imports the libraries holds left out."""
        return (self.ours - self.imports) / (self.plain - self.imports)


def main(arguments: list[str] | None = None) -> None:
    """Measure in three processes and print the table, or be one of them."""
    given = _parse(arguments)
    if given.only:
        _be_one(given)
        return
    device, shape = default_device(), shape_of(given.shape, given.data)
    work = largest_step(shape, given.data, batch_size=given.batch_size)
    (rows,) = work.steps
    peaks = {which: _peak_of(which, given) for which in get_args(Which)}
    result = PeakResult(
        shape=shape.name,
        precision=given.dtype,
        batch_size=len(rows),
        num_tokens=work.num_tokens(rows),
        num_padded=work.num_padded(rows),
        num_answers=work.num_answers(rows),
        weight_bytes=shape.num_weights * dtype_of(given.dtype).itemsize,
        imports=peaks["nothing"],
        plain=peaks["plain"],
        ours=peaks["ours"],
    )
    print(to_markdown(table([result])))
    if given.json:
        write_json(given.json, {"machine": describe_machine(device), "peak": asdict(result)})


def table(results: list[PeakResult]) -> Table:
    """Return the results as one table."""
    columns: dict[str, Callable[[PeakResult], str]] = {
        "shape": lambda r: r.shape,
        "dtype": lambda r: r.precision,
        "tokens real / padded / answer": lambda r: f"{r.num_tokens} / {r.num_padded} / {r.num_answers}",
        "weights GiB": lambda r: f"{r.weight_bytes / 2**30:.3f}",
        "imports GiB": lambda r: f"{r.imports / 2**30:.3f}",
        "plain GiB": lambda r: f"{r.plain / 2**30:.3f}",
        "ours GiB": lambda r: f"{r.ours / 2**30:.3f}",
        "ours / plain": lambda r: f"{r.ratio:.0%}",
        "beyond imports": lambda r: f"{r.ratio_beyond_imports:.0%}",
    }
    rows = tuple(tuple(cell(result) for cell in columns.values()) for result in results)
    return Table("Peak memory of a process", tuple(columns), rows)


def _peak_of(which: Which, given: argparse.Namespace) -> int:
    data = ["--data", given.data] if given.data else []
    sizes = ["--shape", given.shape, "--dtype", given.dtype, "--batch-size", given.batch_size]
    printed = run_module("bench.peak", *data, *sizes, "--threads", given.threads, "--only", which)
    return int(json.loads(printed)["bytes"])


def _be_one(given: argparse.Namespace) -> None:
    prepare_process(threads=None if given.threads == "all" else int(given.threads), precision=given.dtype)
    if given.only != "nothing":
        shape = shape_of(given.shape, given.data)
        _take_steps(given.only, largest_step(shape, given.data, batch_size=given.batch_size), given)
    print(json.dumps({"bytes": peak_memory_bytes()}))


def _take_steps(which: Which, work: Workload, given: argparse.Namespace) -> None:
    shape, device = shape_of(given.shape, given.data), default_device()
    adapted = adapt(make_model(shape, dtype=dtype_of(given.dtype), device=device))
    rows = work.steps[0]
    if which == "plain":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(adapted.parameters(), lr=LEARNING_RATE)
        for _ in range(NUM_STEPS):
            plain_step(adapted.peft, padded(work, rows, device), optimiser=optimiser, weights=WEIGHTS)
        return
    case = build_case(adapted, work)
    optimiser = our_optimiser(case)
    with case.problem.engine.running():
        for _ in range(NUM_STEPS):
            our_step(case, rows, optimiser)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with lume/, tokenizers/ and targets/; made-up rows without")
    parser.add_argument("--shape", choices=SHAPES, default="6m")
    parser.add_argument("--dtype", choices=get_args(Precision), default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", default="all", help="a number, or all")
    parser.add_argument("--only", choices=get_args(Which), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
