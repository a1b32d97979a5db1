"""What a machine has: free memory, what this process holds of it, and how fast it multiplies matrices."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from letheon.devices import choose_device, finish, free_bytes
from letheon.model.precision import Precision
from letheon.model.widening import widened_linear
from letheon.settings import RowSettings

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
RATE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Rates:
    """Floating-point operations a second in large matrix products."""

    trunk: float
    """In the dtype of the weights, or in float32 with 16-bit weights widened for each product."""
    head: float
    """In float32, which the head runs in."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run can have; None where the system does not say."""

    device: str
    """Its kind, such as "cuda"."""
    memory: int | None
    """Bytes of main memory that are free or can be made free at once."""
    swap: int = 0
    """Bytes of free swap: slow, but a run that needs them does run."""
    gpu_memory: int | None = None
    """Free bytes of the GPU, where one is used."""


def num_processes() -> int:
    """Return how many processes a launcher starts for the run; 1 without one."""
    return max(int(os.environ.get("WORLD_SIZE") or 1), 1)


def this_machine(device: str | None) -> Machine:
    """Return what a run on `device` can have here; None takes a GPU where there is one.

    Of main memory it is the share of one of the processes on this machine; each has a GPU of its own.
    """
    chosen = choose_device(device)
    sharing = max(int(os.environ.get("LOCAL_WORLD_SIZE") or num_processes()), 1)
    memory, swap = free_memory(), _meminfo().get("SwapFree", 0)
    free = free_bytes(chosen)
    return Machine(chosen.type, None if memory is None else memory // sharing, swap // sharing, gpu_memory=free)


def machine_of(settings: RowSettings) -> Machine:
    """Return what a run of these settings can have here."""
    return this_machine(settings.device)


def free_memory() -> int | None:
    """Return the bytes of main memory that this process could still take.

    On Linux what the kernel holds to be available, or less where a control group (a container, a batch system) allows
    less: its limit, less what it uses, page cache left out. Elsewhere all memory there is, which is too much to promise
    but enough to see what can never fit.
    """
    available = _meminfo().get("MemAvailable")
    if available is None:
        return _all_memory()
    return min([available, *_cgroup_rests()])


def process_memory() -> int:
    """Return the resident bytes of this process; 0 where the system does not say."""
    try:
        pages = int((PROC / "self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_rates(precision: Precision, device: str, *, width: int) -> Rates:
    """Measure both rates, each for a quarter of a second, with products of about the model's `width`."""
    trunk = _rate(precision, device, width=width)
    return Rates(trunk=trunk, head=trunk if precision == "float32" else _rate("float32", device, width=width))


def _rate(precision: Precision, device: str, *, width: int) -> float:
    # On a CPU larger products than these take longer than the whole measurement may.
    rows, inner = (4096, min(width, 8192)) if device != "cpu" else (256, min(width, 2048))
    states = torch.randn(rows, inner, device=device).to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    weight = torch.randn(2 * inner, inner, device=device).to(
        torch.float32 if precision == "float32" else torch.bfloat16
    )
    widened_linear(states, weight, None)
    finish(states.device)
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < RATE_SECONDS or not count:
        widened_linear(states, weight, None)
        finish(states.device)
        count += 1
    return 2 * rows * inner * 2 * inner * count / taken


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if line.rstrip().endswith("kB")]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _all_memory() -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _cgroup_rests() -> list[int]:
    """What is left under each memory limit that this process stands under, version 2 and 1."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rests: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root = CGROUPS if not controllers else CGROUPS / "memory"
        own = root / path.lstrip("/")
        # A container sees its own group as the root, whatever its path says.
        for folder in {root, own, *(parent for parent in own.parents if parent.is_relative_to(root))}:
            rest = _rest_of(folder, is_second=not controllers)
            rests += [] if rest is None else [rest]
    return rests


def _rest_of(folder: Path, *, is_second: bool) -> int | None:
    limit_name, used_name = ("memory.max", "memory.current") if is_second else (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    )  # fmt: skip
    try:
        limit, used = (folder / limit_name).read_text().strip(), int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    names = ("active_file", "inactive_file") if is_second else ("total_active_file", "total_inactive_file")
    cache = sum(int(stat.get(name, 0)) for name in names)
    return max(0, int(limit) - used + cache)
