"""A plan as a table on the terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from letheon.unlearning.planning.advice import fits_of, gib
from letheon.unlearning.planning.estimate import Place, Plan
from letheon.unlearning.planning.machine import Machine


def render(plan: Plan, machine: Machine) -> Group:
    """Return what a run needs, part by part."""
    shown: list[Table | Text] = [_memory(name, places, plan) for name, places in plan.pools]
    shown += [_disk(plan), _time(plan), Text(_summary(plan, machine))]
    shown += [Text(f"Note: {note}.") for note in plan.notes]
    return Group(*shown)


def _memory(name: str, places: tuple[Place, ...], plan: Plan) -> Table:
    table = _table(name.capitalize(), "", "while", "size")
    peak = plan.peak_stage(places)
    for one in plan.allocations:
        if one.place in places:
            mark = " (peak)" if one.when == peak else ""
            table.add_row(one.name, one.when + mark, gib(one.bytes))
    table.add_section()
    table.add_row("its tensors at the peak", "", gib(plan.least(places)))
    table.add_row("with what allocators and kernels take", "", gib(plan.needed(places)), style="bold")
    if "host" in places:
        table.add_row("this program itself, already held", "", gib(plan.process))
    return table


def _disk(plan: Plan) -> Table:
    table = _table("Disk", "", "", "size")
    for one in plan.allocations:
        if one.place == "disk":
            table.add_row(one.name, "", gib(one.bytes))
    return table


def _time(plan: Plan) -> Table:
    table = _table("Work", "", "operations", "at least")
    for work in plan.work:
        seconds = "" if plan.rates is None else duration(work.seconds(plan.rates) / plan.num_processes)
        table.add_row(work.name, f"{work.flops:.3g}", seconds)
    table.add_section()
    total = "" if plan.seconds is None else duration(plan.seconds)
    table.add_row("in all", f"{plan.flops:.3g}", total, style="bold")
    return table


def _summary(plan: Plan, machine: Machine) -> str:
    demand = plan.demand
    lines = [
        f"{plan.num_parameters:,} parameters, {plan.num_trained:,} of them or beside them trained; "
        f"{demand.num_steps:,} steps over {demand.trained.read:,} tokens ({demand.trained.answers:,} answer tokens), "
        f"at most {demand.largest.num_tokens:,} at once"
    ]
    if plan.num_processes > 1:
        weights = "its share of the weights" if plan.is_sharded else "all weights"
        lines.append(
            f"memory is that of one of {plan.num_processes} processes, each with {weights} and its share of a step's "
            f"rows"
        )
    if plan.rates is not None:
        rates = (
            f"{plan.rates.trunk / 1e9:,.0f} GFLOP/s in the weights' precision, {plan.rates.head / 1e9:,.0f} in float32"
        )
        lines.append(
            f"time is the least possible, at the speed of this machine's matrix products ({rates}); a run takes longer"
        )
    lines += [f"{fit.memory} that is free: {gib(fit.free)}" for fit in fits_of(plan, machine)]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number == len(columns) - 1 else "left")
    return table
