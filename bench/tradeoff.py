"""Draw what each method reached against what it cost: docs/figures/gpt2-general.svg and smollm2-lume.svg.

    python -m bench.tradeoff [--goal FILE ...] [--real FILE ...] --out DIR

Reads goal.json of bench.goal and real.json of bench.real; lines of several files are drawn together, the first of
each name. Across is the loss of unseen text above that of the target, up the AUC of the official membership attack.
Filled marks have a task aggregate of at least 0.95; diamonds had general text and the dial. The goals of unseen text
and membership meet in the shaded field: at most 0.3 nats, and an AUC in the interval of a model that never saw the
rows.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from bench.goal import GOAL_AGGREGATE, GOAL_TEXT
from bench.real.table import OTHER_SEED
from letheon.report.drawing import BLUE, GREEN, VERMILLION, new_figure, save_figure

_TICKS = (0, 0.1, 0.2, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True, slots=True)
class Point:
    """What one line of a table reached; means over its seeds."""

    name: str
    text: float
    """Loss of unseen text above that of the target, nats a token."""
    aggregate: float
    auc: float
    is_ours: bool
    is_held: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """The lines about one target."""

    points: tuple[Point, ...]
    interval: tuple[float, float] | None
    """In which the AUC of a model that never saw the rows lies; None where there is none."""


def main(arguments: list[str] | None = None) -> None:
    """Draw a figure for each kind of file that was given."""
    given = _parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, files, scatter_of in (("gpt2-general", given.goal, of_goal), ("smollm2-lume", given.real, of_real)):
        if files:
            found = scatter_of([json.loads(file.read_text(encoding="utf-8")) for file in files])
            save_figure(given.out, name, lambda found=found: draw(found))  # type: ignore[misc]


def of_goal(files: Iterable[Mapping[str, Any]]) -> Scatter:
    """Return the lines about the target that bench.goal makes."""
    known: dict[tuple[str, str], Mapping[str, Any]] = {}
    for file in files:
        for line in file["gpt2-general"]:
            known.setdefault((line["method"], line["how"]), line)
    lines = [line for line in known.values() if line["seeds"]]
    first = {line["method"]: line["seeds"][0] for line in lines}
    points = []
    for line in lines:
        if not line["method"].startswith("("):
            mean = {name: fmean(one[name] for one in line["seeds"]) for name in ("text", "aggregate", "auc")}
            mean["text"] -= first["(before)"]["text"]
            name = line["method"]
            points.append(Point(name, **mean, is_ours=_is_ours(name), is_held=line["how"] == "held"))
    low, high = first["(never knew)"]["auc_interval"]
    return Scatter(tuple(points), (low, high))


def of_real(files: Iterable[Mapping[str, Any]]) -> Scatter:
    """Return the lines of part `lume` of bench.real, those of ours as one."""
    models = {name: found for file in files for name, found in file["parts"]["lume"].items()}
    start = models["memorised"]["text"]["loss"]
    points = []
    for name, group in _groups(models):
        mean = {
            "text": fmean(one["text"]["loss"] for one in group) - start,
            "aggregate": fmean(one["official"]["task_aggregate"] for one in group),
            "auc": fmean(one["official"]["membership_auc"] for one in group),
        }
        points.append(Point(name, **mean, is_ours=_is_ours(name), is_held=_is_ours(name)))
    low, high = models["as it came"]["official"]["membership_auc_interval"]
    return Scatter(tuple(points), (low, high))


def draw(found: Scatter) -> Figure:
    """Draw the AUC of each line over what unseen text costs more; filled where the task aggregate is reached."""
    figure = new_figure(height_inches=4.6)
    axes = figure.subplots()
    if found.interval is not None:
        low, high = found.interval
        goal = Rectangle((-1, low), 1 + GOAL_TEXT, high - low, color=GREEN, alpha=0.15, linewidth=0)
        axes.add_patch(goal)
    for point in found.points:
        _mark(axes, point)
    axes.grid(visible=True)
    axes.set_ylabel("AUC of the official membership attack")
    axes.set_ylim(-0.05, 1.3)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_xscale("symlog", linthresh=GOAL_TEXT, linscale=1.2)
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min([-0.05, *(point.text for point in found.points)]), 80)
    axes.set_xlabel("loss of unseen text above the target, nats per token")
    return figure


def _mark(axes: Axes, point: Point) -> None:
    color = VERMILLION if point.is_ours else BLUE
    filling = color if point.aggregate >= GOAL_AGGREGATE else "none"
    axes.plot(point.text, point.auc, "D" if point.is_held else "o", color=color, markersize=6, markerfacecolor=filling)
    axes.annotate(
        point.name, (point.text, point.auc), xytext=(4, 4), textcoords="offset points", fontsize=7.5, color=color,
        rotation=30, rotation_mode="anchor", fontweight="bold" if point.is_ours else "normal",
    )  # fmt: skip


def _groups(models: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Yield each unlearned model that was scored officially, and the seeds of ours together."""
    scored = {name: found for name, found in models.items() if "official" in found and "cost" in found}
    ours = [found for name, found in scored.items() if name == "ours" or name.startswith(OTHER_SEED)]
    if ours:
        yield "ours", ours
    for name, found in scored.items():
        if found not in ours and name != "memorised":
            yield name, [found]


def _is_ours(name: str) -> bool:
    return name.startswith("ours")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--goal", type=Path, nargs="+", default=[])
    parser.add_argument("--real", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
