"""Loss curves, interim scores and score bars, drawn from result files.

Figures are made through matplotlib's object interface, never pyplot, so that a report drawn inside another program
leaves that program's figures alone. The same files give the same bytes: no date, fixed ids.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from letheon.report.audit_figure import audit_figure
from letheon.report.dial_figure import dial_figure
from letheon.report.drawing import (
    BLUE,
    GREEN,
    INK,
    METADATA,
    ORANGE,
    PALETTE,
    STYLE,
    VERMILLION,
    new_figure,
    save_figure,
)
from letheon.report.files import InterimRecord, RunFiles, RunLog, read_run
from letheon.report.text import shorten, visible_line
from letheon.scores.results import Results
from letheon.scores.score import FORGETTING, RETENTION, SHARE, Better, Role, Score, shown_of

_MAX_POINTS = 400

_Look = tuple[str, str, str, str]
"""Label, colour, marker and line style."""
_Draw = Callable[[RunFiles], Figure | None]

_PANELS: dict[tuple[Role, Better], str] = {
    (FORGETTING, "lower"): "Forget set: lower is better",
    (RETENTION, "higher"): "Retain set: higher is better",
}
"""The scores that are drawn as bars, by what they speak of and which way is better."""
LARGEST_DRAWN = 1e30
"""Axes overflow on the way to the largest floating-point numbers."""


def figure_svgs(run: RunFiles) -> dict[str, str]:
    """Return the figures that `run` has data for, by name, as SVG elements to be put into an HTML page."""
    with mpl.rc_context(STYLE):
        drawn = {name: draw(run) for name, draw in _FIGURES.items()}
        return {name: inline_svg(figure, name) for name, figure in drawn.items() if figure is not None}


def save_figures(run: Path, folder: Path) -> tuple[Path, ...]:
    """Write each figure of the run in folder `run` as SVG, PNG and PDF into `folder`, which is made if need be.

    Returns:
        The files written, none if the run has neither a log nor scores.

    Raises:
        EvaluationError: the run cannot be read.
    """
    files = read_run(run)
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(path for name, draw in _FIGURES.items() for path in save_figure(folder, name, partial(draw, files)))


def loss_figure(log: RunLog) -> Figure | None:
    """Draw the loss and each of its terms over epochs, a panel each; None without a finite loss in the log."""
    names = list(dict.fromkeys(name for step in log.steps for name in step.terms))
    named = [("loss (total)", [step.loss for step in log.steps])]
    named += [(name, [step.terms.get(name) for step in log.steps]) for name in names]
    epochs = [step.epoch for step in log.steps]
    series = [(name, points) for name, values in named if (points := _points(epochs, values)).size]
    if not series:
        return None
    num_columns = min(len(series), 2)
    num_rows = math.ceil(len(series) / num_columns)
    figure = new_figure(height_inches=2.1 * num_rows + 0.4)
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).ravel()
    for index, (name, points) in enumerate(series):
        _draw_curve(axes[index], name, points, color=PALETTE[index % len(PALETTE)])
    for unused in axes[len(series) :]:
        unused.remove()
    for index in range(max(0, len(series) - num_columns), len(series)):
        axes[index].set_xlabel(f"epoch ({log.steps[-1].step:,} steps in all)" if index == len(series) - 1 else "epoch")
        axes[index].tick_params(labelbottom=True)
    return figure


def interim_figure(log: RunLog) -> Figure | None:
    """Draw the recalls and the score measured between epochs; None if nothing was measured while training."""
    lines: tuple[tuple[_Look, Callable[[InterimRecord], float | None]], ...] = (
        (("forget recall (lower is better)", VERMILLION, "o", "-"), lambda r: r.forget_recall),
        (("retain recall (higher is better)", BLUE, "s", "-"), lambda r: r.retain_recall),
        (("score by which the run chose", GREEN, "D", "--"), lambda r: r.score),
    )
    epochs = [record.epoch for record in log.interims]
    curves = [(look, _points(epochs, [value(record) for record in log.interims])) for look, value in lines]
    if not any(points.size for _, points in curves):
        return None
    figure = new_figure(height_inches=3.2)
    axes = figure.subplots()
    for (label, color, marker, style), points in curves:
        axes.plot(*points.T, color=color, marker=marker, linestyle=style, markersize=4.5, label=label)
    kept = (log.end or {}).get("kept_epoch")
    if isinstance(kept, int | float):
        axes.axvline(kept, color=INK, alpha=0.45, linewidth=1, linestyle=":", label=f"kept: epoch {kept:g}")
    axes.set(xlabel="epoch", ylabel="0 to 1", ylim=(-0.03, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(visible=True, axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def score_figure(before: Results | None, after: Results | None) -> Figure | None:
    """Draw the scores by set and task as bars, forget and retain side by side; None without any such score."""
    named = [("before", ORANGE, before), ("after", BLUE, after)]
    sides = [(label, color, results.scores) for label, color, results in named if results is not None]
    shown = shown_of([scores for _, _, scores in sides])
    groups = [{_row_name(s): s for s in shown if (s.role, s.better) == side and s.bounds == SHARE} for side in _PANELS]
    names = list(dict.fromkeys(name for group in groups for name in group))
    values = {
        (label, s.name): scores.value(s.name) for label, _, scores in sides for group in groups for s in group.values()
    }
    if all(value is None for value in values.values()):
        return None
    figure = new_figure(height_inches=0.75 + 0.28 * len(names) * (len(sides) + 0.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, group, title in zip(panels, groups, _PANELS.values(), strict=True):
        for index, (label, color, _) in enumerate(sides):
            bars = [values[label, group[name].name] if name in group else None for name in names]
            _draw_bars(axes, bars, label=label, color=color, place=(index, len(sides)))
        axes.set(xlim=(0, 1.16), xticks=(0, 0.25, 0.5, 0.75, 1), xlabel="mean score")
        axes.set_title(title, loc="left")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    if len(sides) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the centred moving mean over `width` values (n,), over fewer at the ends."""
    window = np.ones(width)
    return np.convolve(values, window, mode="same") / np.convolve(np.ones_like(values), window, mode="same")


def _points(epochs: Sequence[float], values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return (epoch, value) pairs (n, 2) of the steps that have a value that can be drawn."""
    pairs = [
        (e, v)
        for e, v in zip(epochs, values, strict=True)
        if v is not None and abs(e) < LARGEST_DRAWN and abs(v) < LARGEST_DRAWN
    ]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _draw_curve(axes: Axes, name: str, points: NDArray[np.float64], *, color: str) -> None:
    epochs, values = points[:, 0], points[:, 1]
    # An odd width of a fortieth of the run keeps the epoch-to-epoch shape and takes out the batch-to-batch noise.
    width = min(2 * (len(values) // 80) + 1, len(values)) if len(values) > 20 else 1
    smoothed = smooth(values, width)
    shown = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_POINTS)).astype(int))
    axes.plot(epochs[shown], values[shown], ".", color=color, alpha=0.25, markersize=3, markeredgewidth=0)
    axes.plot(epochs[shown], smoothed[shown], color=color, linewidth=1.6, marker="o" if len(values) == 1 else "")
    axes.set_title(_label(name), loc="left")
    axes.set_ylabel("nats")
    axes.ticklabel_format(useOffset=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True)
    if values.min() >= 0:
        axes.set_ylim(bottom=0, top=max(float(values.max()) * 1.05, 1e-6))


def _draw_bars(axes: Axes, values: Sequence[object], *, label: str, color: str, place: tuple[int, int]) -> None:
    index, num_bars = place
    height = 0.8 / num_bars
    offsets = [row + (index - (num_bars - 1) / 2) * height for row in range(len(values))]
    numbers = [value if isinstance(value, float | int) else None for value in values]
    axes.barh(offsets, [number or 0.0 for number in numbers], height=height * 0.92, color=color, label=label)
    for offset, number in zip(offsets, numbers, strict=True):
        text = "not measured" if number is None else f"{number:.2f}"
        axes.text((number or 0.0) + 0.012, offset, text, va="center", ha="left", fontsize=8.5)


def _row_name(score: Score) -> str:
    """What a score's row is called, which it shares with the score of the other set that has the same name."""
    _, *task, kind = score.name.split(".") if "." in score.name else ("", score.label)
    return f"{_label('.'.join(task))}\n{kind}" if task else _label(kind)


def _label(name: str) -> str:
    return shorten(visible_line(name), 24).replace("_", " ")


def inline_svg(figure: Figure, name: str) -> str:
    """Return the figure as one <svg> element: no prologue, metadata, style sheet or background; ids of its own."""
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": f"letheon-{name}"}):
        figure.savefig(text, format="svg", metadata=METADATA["svg"])
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    # Figures on one page must not share ids, or one would be clipped by another's path.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").strip()


_FIGURES: dict[str, _Draw] = {
    "scores": lambda run: score_figure(
        run.before.results if run.before else None, run.after.results if run.after else None
    ),
    "losses": lambda run: loss_figure(run.log) if run.log else None,
    "interim": lambda run: interim_figure(run.log) if run.log else None,
    "dial": dial_figure,
    "audit": audit_figure,
}
