"""Where the time of our step goes."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from letheon.report.tables import Table

PARTS = {
    "letheon.unlearning.problem.pack": "packing",
    "letheon.engine.engine.Engine.states": "trunk forward",
    "letheon.engine.values.label_values": "head",
    "letheon.engine.values._stored_kl": "divergence",
    "letheon.unlearning.problem.compose": "objective",
    "torch.Tensor.backward": "backward",
    "bench.case.update": "optimiser",
}
"""Functions whose time is told apart; none calls another."""


def split(run: Callable[[], object], device: torch.device) -> Table:
    """Return the wall-clock time that `run` spends in each part of the step."""
    taken: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for target, name in PARTS.items():
            stack.enter_context(_measured(target, name, taken, device))
        whole = _measure(run, device)
    taken["the rest"] = whole - sum(taken.values())
    rows = tuple((name, f"{1e3 * seconds:.1f}", f"{seconds / whole:.1%}") for name, seconds in taken.items())
    return Table("Parts of our step", ("part", "ms", "share"), rows)


def operators(run: Callable[[], object], *, num_rows: int = 25) -> str:
    """Return torch.profiler's table of `run` by operator and shapes of its inputs, costliest first."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as found:
        run()
    averages = found.key_averages(group_by_input_shape=True)
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    shown: str = averages.table(sort_by=by, row_limit=num_rows, max_name_column_width=45, max_shapes_column_width=60)
    by_name: str = found.key_averages().table(sort_by=by, row_limit=num_rows, max_name_column_width=45)
    return f"{by_name}\n{shown}"


def _measured(target: str, name: str, taken: dict[str, float], device: torch.device) -> Any:
    module, _, attribute = target.rpartition(".")
    original = getattr(resolve_name(module), attribute)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        values: list[Any] = []
        taken[name] += _measure(lambda: values.append(original(*args, **kwargs)), device)
        return values[0]

    return patch(target, wrapper)


def _measure(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
