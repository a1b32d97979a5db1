"""How time and memory of our step grow, one size at a time, on a small model; and what the reference store takes.

python -m bench.growth [--quick] [--json FILE]
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from bench.case import WEIGHTS, Case, adapt, build_case, our_optimiser, our_step, terms
from bench.machine import clock_for, default_device, describe_machine, peak_bytes_of, prepare_process, timed
from bench.rows import Workload, random_row
from bench.shapes import Shape, make_model
from letheon.data.schedules import batches
from letheon.engine.reference_cache import load_or_build_reference
from letheon.model.fingerprint import fingerprint
from letheon.objective.parts import needs_of
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json

REPEATS = 5
SMALL = Shape("small", width=128, num_layers=2, num_heads=4, intermediate=512, vocab_size=8192, is_tied=True)


@dataclass(frozen=True, slots=True)
class Point:
    """A setting of all sizes."""

    prompt: int = 96
    answer: int = 32
    vocabulary: int = SMALL.vocab_size
    batch_size: int = 4
    rank: int = 5
    num_rows: int = 4
    """Rows of the data set; all are visited once an epoch."""
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One size, what it takes, and what the arithmetic says of it."""

    name: str
    unit: str
    values: tuple[int, ...]
    expected: str
    point: Callable[[int], Point]


AXES = (
    Axis("sequence length", "tokens a row", (128, 256, 512, 1024, 2048), "linear; attention adds a square",
         lambda n: Point(prompt=n - 32)),
    Axis("answer length", "answer tokens a row of 2048", (64, 128, 256, 512, 1024),
         "what the head takes is linear; memory stops at 1,024 rows of logits", lambda n: Point(2048 - n, n)),
    Axis("vocabulary", "entries", (8192, 16384, 32768, 65536), "what the head takes is linear",
         lambda n: Point(vocabulary=n)),
    Axis("rows a step", "rows", (2, 4, 8, 16, 32, 64), "linear", lambda n: Point(batch_size=n, num_rows=n)),
    Axis("rank", "rank of the adapter", (4, 16, 64, 256), "small beside the frozen weights until rank nears the width",
         lambda n: Point(rank=n)),
    Axis("rows", "rows of the data set", (16, 32, 64, 128), "linear; one epoch with its reference pass",
         lambda n: Point(num_rows=n)),
    Axis("epochs", "epochs", (1, 2, 4, 8), "linear; the reference pass once", lambda n: Point(num_rows=16, epochs=n)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """What one point takes."""

    value: int
    duration_s: float
    """Median of the repeats: of the steps of all epochs, and the reference pass where there is more than one step."""
    peak_bytes: int | None
    """By which a step raises memory; None where the system does not tell."""
    store_bytes_per_row: float


@dataclass(frozen=True, slots=True)
class Growth:
    """The points along one axis."""

    axis: str
    unit: str
    expected: str
    points: tuple[Measured, ...]
    time_exponent: float
    """Slope of log time over log size, by least squares over the upper half of the points."""
    memory_exponent: float | None


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The reference store on the first run and on a second run of the same rows."""

    num_rows: int
    num_answers: int
    file_bytes: int
    built_s: float
    found_s: float


def main(arguments: list[str] | None = None) -> None:
    """Measure all axes and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, without the largest sizes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    device = default_device()
    prepare_process(threads=1)
    axes = [replace(axis, values=axis.values[:-1]) for axis in AXES] if given.quick else AXES
    found = [grow(axis, device, repeats=3 if given.quick else REPEATS) for axis in axes]
    store = measure_store(device, num_rows=64 if given.quick else 256)
    for growth in found:
        print(f"### {growth.axis}\n\n{to_markdown(table(growth))}")
    print(f"### Reference store\n\n{to_markdown(store_table(store))}")
    if given.json:
        write_json(
            given.json,
            {
                "machine": describe_machine(device),
                "growth": [asdict(growth) for growth in found],
                "store": asdict(store),
            },
        )


def grow(axis: Axis, device: torch.device, *, repeats: int) -> Growth:
    """Measure the points of one axis."""
    points = [measure(axis.point(value), value, device, repeats=repeats) for value in axis.values]
    peaks = [point.peak_bytes for point in points]
    return Growth(
        axis=axis.name,
        unit=axis.unit,
        expected=axis.expected,
        points=tuple(points),
        time_exponent=exponent(axis.values, [point.duration_s for point in points]),
        memory_exponent=None if None in peaks else exponent(axis.values, [float(peak or 0) for peak in peaks]),
    )


def measure(point: Point, value: int, device: torch.device, *, repeats: int) -> Measured:
    """Time one point and measure the memory of one of its steps."""
    case, clock = case_of(point, device), clock_for(device)
    optimiser = our_optimiser(case)

    def run() -> None:
        for _ in range(point.epochs):
            for rows in case.work.steps:
                our_step(case, rows, optimiser)

    with case.problem.engine.running():
        our_step(case, case.work.steps[0], optimiser)
        duration_s = median(timed(run, device)[0].on(clock) for _ in range(repeats))
        peak_bytes = peak_bytes_of(lambda: our_step(case, case.work.steps[0], optimiser), device)
    is_run = len(case.work.steps) * point.epochs > 1
    return Measured(
        value=value,
        duration_s=duration_s + (case.reference_time.on(clock) if is_run else 0.0),
        peak_bytes=peak_bytes,
        store_bytes_per_row=case.problem.reference.num_bytes / point.num_rows,
    )


def case_of(point: Point, device: torch.device) -> Case:
    """Return the small model with rows of one length, half of them to forget."""
    shape = replace(SMALL, vocab_size=point.vocabulary)
    generator = torch.Generator().manual_seed(0)
    rows = [
        random_row(point.prompt, point.answer, vocab_size=shape.vocab_size, generator=generator)
        for _ in range(point.num_rows)
    ]
    # Rows of both sets in each step: odd and even numbers, taken in turn.
    half = point.num_rows // 2
    order = [row for pair in zip(range(half), range(half, point.num_rows), strict=True) for row in pair]
    work = Workload(rows, half, batches(order, point.batch_size))
    return build_case(adapt(make_model(shape, dtype=torch.float32, device=device), rank=point.rank), work)


def exponent(sizes: Collection[float], values: Collection[float]) -> float:
    """Return the slope of log value over log size, by least squares over the upper half of the points, at least two."""
    kept = max(2, -(-len(sizes) // 2))
    x, y = ([math.log(value) for value in list(of)[-kept:]] for of in (sizes, values))
    mean_x, mean_y = sum(x) / kept, sum(y) / kept
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure_store(device: torch.device, *, num_rows: int) -> StoreResult:
    """Fill the reference store of some rows, then look it up as the next run of a sweep does."""
    case, clock = case_of(Point(num_rows=num_rows), device), clock_for(device)
    weights = fingerprint(case.adapted.model)
    with tempfile.TemporaryDirectory() as folder, case.problem.engine.running():

        def get() -> object:
            return load_or_build_reference(
                case.problem.engine,
                case.work.sequences,
                num_forget_rows=case.work.num_forget,
                needs=needs_of(terms(WEIGHTS)),
                model_fingerprint=weights,
                cache_dir=Path(folder),
            )

        built, found = (timed(get, device)[0].on(clock) for _ in range(2))
        (file,) = Path(folder).rglob("*.safetensors")
        file_bytes = file.stat().st_size
    return StoreResult(
        num_rows=num_rows,
        num_answers=case.work.num_answers(range(num_rows)),
        file_bytes=file_bytes,
        built_s=built,
        found_s=found,
    )


def table(growth: Growth) -> Table:
    """Return one axis as a table."""
    rows = tuple(
        (
            point.value,
            f"{1e3 * point.duration_s:.1f}",
            None if point.peak_bytes is None else f"{point.peak_bytes / 2**20:.1f}",
            f"{point.store_bytes_per_row / 2**10:.1f}",
        )
        for point in growth.points
    )
    memory = "" if growth.memory_exponent is None else f", memory {growth.memory_exponent:.2f}"
    return Table(
        growth.axis,
        (growth.unit, "ms", "step's memory MiB", "store KiB a row"),
        rows,
        notes=(f"exponent over the upper half: time {growth.time_exponent:.2f}{memory}; expected: {growth.expected}",),
    )


def store_table(store: StoreResult) -> Table:
    """Return what the store takes as a table."""
    row = (
        store.num_rows,
        store.num_answers,
        f"{store.file_bytes / 2**20:.2f}",
        f"{store.built_s:.3f}",
        f"{store.found_s:.3f}",
    )
    return Table("Reference store", ("rows", "answer tokens", "file MiB", "first run s", "second run s"), (row,))


if __name__ == "__main__":
    main(sys.argv[1:])
