"""Clocks, peaks and rates of the machine that a measurement runs on."""

import ctypes
import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, TypeVar

import torch
from torch.nn.functional import linear

from letheon.storage.provenance import describe_environment

Clock = Literal["process", "wall"]
Precision = Literal["float32", "tf32", "bfloat16"]
Value = TypeVar("Value")

SQUARE = {"cpu": 2048, "cuda": 8192}
"""Sides of the square product whose rate stands for what a machine can do."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long something took, seconds."""

    process_s: float
    """Of all threads of this process together: what it cost, whatever else ran beside it."""
    wall_s: float

    def on(self, clock: Clock) -> float:
        """Return the time by one of the clocks."""
        return self.process_s if clock == "process" else self.wall_s


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float
    num: int


def spread(values: Collection[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(median(values), low, high, len(values))


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_process(*, threads: int | None, precision: Precision = "float32") -> None:
    """Use `threads` threads, None for all, and the float32 products of `precision`."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype that weights have in this precision."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def clock_for(device: torch.device) -> Clock:
    """Return process time on one CPU thread, where it leaves out what other programs take; wall clock elsewhere."""
    return "process" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def timed(function: Callable[[], Value], device: torch.device) -> tuple[Timing, Value]:
    """Return how long `function` takes, work that it leaves to a GPU included, and its value."""
    _finish(device)
    process, wall = time.process_time(), time.perf_counter()
    value = function()
    _finish(device)
    return Timing(time.process_time() - process, time.perf_counter() - wall), value


def product_rate(
    rows: int, inner: int, columns: int, *, dtype: torch.dtype, device: torch.device, repeats: int = 5
) -> float:
    """Return the highest rate seen, FLOP/s, of a product (rows, inner) x (inner, columns) as a linear layer does it."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(columns, inner, device=device).to(dtype)
    flops = 2 * rows * inner * columns
    # One product of a small shape is over before a clock can tell.
    count = max(1, round(2e8 / flops))
    clock = clock_for(device)

    def run() -> None:
        for _ in range(count):
            linear(left, weight)

    run()
    return max(count * flops / timed(run, device)[0].on(clock) for _ in range(repeats))


def square_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate, FLOP/s, of a large square product."""
    side = SQUARE[device.type]
    return product_rate(side, side, side, dtype=dtype, device=device)


def peak_bytes_of(function: Callable[[], object], device: torch.device) -> int | None:
    """Return by how many bytes memory rises at most while `function` runs; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return int(torch.cuda.max_memory_allocated()) - before
    if not _CLEAR.exists():
        return None
    # What was freed but not handed back to the system would hide what is asked for next.
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - before


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return versions, commit, processor and threads."""
    return {
        **describe_environment(),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def run_module(module: str, *arguments: object, timeout_s: float | None = None) -> str:
    """Return what a module of this package prints in a process of its own.

    Raises:
        subprocess.CalledProcessError: it fails; its messages went to the terminal.
        subprocess.TimeoutExpired: it took longer than `timeout_s`.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout_s).stdout


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _status_bytes(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
