"""The benchmark suite: speed, memory and growth of our step against the plain one.

    python -m bench [--full] [--data DIR] [--out DIR]

Each measurement is a process of its own, one after the other. Writes DIR/bench.md and DIR/bench.json, by default to
runs/bench. The quick suite takes minutes, the full one an hour or two on two cores; where there is a GPU the suite is
another one, of the 1B and 7B shapes, under ten minutes.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import default_device, describe_machine, run_module
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json, write_text


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: a module of this package and its arguments."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    needs_data: bool = False
    """Whether it cannot be had without --data."""


def step(shape: str, dtype: str, *, pairs: int, threads: str = "1", extra: tuple[str, ...] = ()) -> Job:
    """Return the job that times a shape."""
    title = f"Step, {shape}, {dtype}, threads {threads}" + "".join(f" {word}" for word in extra)
    sizes = ("--shape", shape, "--dtype", dtype, "--pairs", str(pairs), "--threads", threads)
    return Job(title, "bench.step", (*sizes, *extra))


def peak(shape: str, dtype: str) -> Job:
    """Return the job that measures peak memory of a shape."""
    return Job(f"Peak memory, {shape}, {dtype}", "bench.peak", ("--shape", shape, "--dtype", dtype))


def population(shape: str, *runs: int, pairs: int, threads: str = "1") -> Job:
    """Return the job that trains runs at once and one after another."""
    sizes = ("--shape", shape, "--runs", *map(str, runs), "--pairs", str(pairs), "--threads", threads)
    return Job(f"Many runs at once, {shape}", "bench.population", sizes)


def evaluation(target: str, *, rows: int) -> Job:
    """Return the job that scores a model the official way and ours."""
    which = ("--target", target, "--rows", str(rows))
    return Job(f"Official scoring, {target}, {rows} rows", "bench.evaluation", which, needs_data=True)


def suites(shape: str, *, rows: int) -> Job:
    """Return the job that reads TOFU's answers in one pass and in a pass a score."""
    return Job(f"TOFU, {shape}, {rows} rows", "bench.suites", ("--shape", shape, "--rows", str(rows)), needs_data=True)


GROWTH = Job("Growth", "bench.growth")

QUICK = (
    step("6m", "float32", pairs=10),
    step("6m", "bfloat16", pairs=10),
    step("50m", "float32", pairs=3),
    peak("6m", "float32"),
    population("6m", 8, pairs=5),
    evaluation("lume-val-6m", rows=64),
    suites("6m", rows=32),
    Job("Growth", "bench.growth", ("--quick",)),
)

FULL = (
    *(step(shape, dtype, pairs=10) for shape in ("6m", "smollm2", "50m") for dtype in ("float32", "bfloat16")),
    *(step(shape, "float32", pairs=10, threads="all") for shape in ("6m", "smollm2", "50m")),
    *(step("1b", dtype, pairs=4) for dtype in ("float32", "bfloat16")),
    step("1b", "bfloat16", pairs=4, threads="all"),
    *(peak(shape, dtype) for shape in ("6m", "50m", "1b") for dtype in ("float32", "bfloat16")),
    population("6m", 2, 8, 32, pairs=5),
    population("50m", 2, 8, pairs=3),
    evaluation("lume-val-6m", rows=532),
    evaluation("50m", rows=48),
    suites("6m", rows=100),
    suites("50m", rows=16),
    GROWTH,
)

GPU = (
    *(step("1b", dtype, pairs=20, threads="all") for dtype in ("float32", "tf32", "bfloat16")),
    step("7b", "bfloat16", pairs=10, threads="all"),
    step("7b", "bfloat16", pairs=4, threads="all", extra=("--batch-size", "64")),
    *(peak(shape, dtype) for shape, dtype in (("1b", "float32"), ("1b", "bfloat16"), ("7b", "bfloat16"))),
    population("1b", 8, 32, pairs=5, threads="all"),
)

GPU_BUDGET_S = 570.0
"""What is not done by then is left out, so that the suite on a lent GPU stays under ten minutes."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a job printed and wrote; where it failed, why."""

    job: Job
    markdown: str
    found: dict[str, Any]


def main() -> None:
    """Run the suite and write the report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="minutes; the default")
    which.add_argument("--full", action="store_true", help="the 1B shape, all threads and all sizes too")
    parser.add_argument("--data", type=Path, help="folder with lume/, tokenizers/ and targets/; made-up rows without")
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench")
    given = parser.parse_args()
    device = default_device()
    done: list[Done] = []
    budget_s = GPU_BUDGET_S if device.type == "cuda" else None
    for job in run_all(jobs_for(device, full=given.full), given.data, budget_s=budget_s):
        done.append(job)
        print(f"## {job.job.title}\n\n{job.markdown}", flush=True)
    machine = describe_machine(device)
    write_json(
        given.out / "bench.json", {"machine": machine, "results": [{"title": d.job.title, **d.found} for d in done]}
    )
    write_text(given.out / "bench.md", report(done, machine))
    print(f"{to_markdown(across(done))}\nwritten to {given.out / 'bench.md'} and {given.out / 'bench.json'}")


def jobs_for(device: torch.device, *, full: bool) -> tuple[Job, ...]:
    """Return the measurements that suit the machine."""
    if device.type == "cuda":
        return GPU
    return FULL if full else QUICK


def run_all(jobs: Iterable[Job], data: Path | None, *, budget_s: float | None = None) -> Iterator[Done]:
    """Run the jobs one after another; one that fails does not stop the others, but the end of the budget does."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            written = Path(folder) / f"{number}.json"
            if job.needs_data and data is None:
                yield Done(job, "not measured: it needs --data\n", {"not_measured": "it needs --data"})
                continue
            takes_data = data is not None and job.module != GROWTH.module
            place = ("--data", str(data)) if takes_data else ()
            left_s = None if budget_s is None else max(1.0, budget_s - (time.monotonic() - began))
            try:
                markdown = run_module(job.module, *job.arguments, *place, "--json", written, timeout_s=left_s)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                reason = (
                    f"exit status {error.returncode}"
                    if isinstance(error, subprocess.CalledProcessError)
                    else "no time left"
                )
                yield Done(job, f"not measured: {reason}\n", {"not_measured": reason})
                continue
            yield Done(job, markdown, json.loads(written.read_text(encoding="utf-8")))


def across(done: Iterable[Done]) -> Table:
    """Return how our step in each precision compares with the plain one in float32, shape by shape, on one clock.

    The plain step in float32 and ours in another precision ran in different processes, on the same batches.
    """
    steps = [d.found["step"] for d in done if "step" in d.found]
    plain = {_batches(s): s for s in steps if s["precision"] == "float32"}
    rows = tuple(
        (
            s["shape"],
            s["precision"],
            s["threads"],
            s["batch_size"],
            f"{s['our_tokens_per_s'] / plain[_batches(s)]['plain_tokens_per_s']:.2f}",
            f"{s['throughput_ratio']:.2f}",
            f"{s['floor_share']:.0%}",
        )
        for s in steps
        if _batches(s) in plain
    )
    columns = ("shape", "dtype", "threads", "batch", "times plain float32", "times plain, same dtype", "share of floor")
    return Table("Throughput ratios", columns, rows)


def report(done: Iterable[Done], machine: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    done = list(done)
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    head = (
        f"# Benchmark\n\n{machine['gpu'] or machine['cpu']}, {machine['machine']['num_cpus']} CPUs, "
        f"{machine['machine']['platform']}, Python {machine['python']}, {packages}; commit {machine['commit']}; "
        f"{machine['created_at']}\n\n{to_markdown(across(done))}"
    )
    return "\n".join([head, *(f"## {d.job.title}\n\n{d.markdown}" for d in done)])


def _batches(step: dict[str, Any]) -> tuple[Any, ...]:
    """What two measurements must have in common to be compared."""
    return step["shape"], step["threads"], step["batch_size"], step["mean_tokens"]


if __name__ == "__main__":
    main()
