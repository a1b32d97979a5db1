"""A study's figures: scores over epochs, what is forgotten against what is kept, two settings, the seeds one by one."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from letheon.report.drawing import INK, PALETTE, STYLE, new_figure, save_figure
from letheon.report.figures import inline_svg
from letheon.report.text import shorten, visible_line
from letheon.studies.aggregate import ConfigurationRow, rows_of
from letheon.studies.known import known_scores, plot_of
from letheon.studies.records import StateScores, StudyRecord
from letheon.studies.shown_scores import label_of_score, scores_in, trade_off_in
from letheon.studies.statistics import pareto_front

_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")
_LABEL_CHARACTERS = 34
_MOST_LINES = 24
_MOST_TICKS = 11
_MOST_ROWS = 40
"""More rows than that are no figure any more: of a search the best are shown, of a study the first."""
_ON_BRIGHT = "#101112"
"""Text on a bright cell; unlike `INK` it stays dark on a dark page, as the cell stays bright."""
_SMALLEST_SPAN = 0.1
"""Scores closer together than that part of their range are not pulled apart to fill a panel, nor is a scale drawn
beyond their bounds."""

_SMALLEST_DECIMAL = 0.01
"""Scores below are written as powers of ten."""
_SMALLEST_TICK = 0.001
"""Ticks below are written as 10 with an exponent."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST_P = 1e-30
"""What p-values below are drawn as: there is no 0 on a logarithmic axis."""

Bounds = tuple[float, float] | None
Draw = Callable[[StudyRecord], Figure | None]


def save_study_figures(record: StudyRecord, folder: Path) -> tuple[Path, ...]:
    """Write each figure that the study has numbers for as SVG, PNG and PDF into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(path for name, draw in FIGURES.items() for path in save_figure(folder, name, partial(draw, record)))


def study_svgs(record: StudyRecord) -> dict[str, str]:
    """Return each figure that the study has numbers for, by name, as an SVG element to be put into an HTML page."""
    with mpl.rc_context(STYLE):
        drawn = {name: draw(record) for name, draw in FIGURES.items()}
        return {name: inline_svg(figure, name) for name, figure in drawn.items() if figure is not None}


def epochs_figure(record: StudyRecord) -> Figure | None:
    """Draw each score over epochs, a line a configuration, error bars of one standard deviation over seeds.

    None where the study scores fewer than two epochs. Lines begin at the model before unlearning where it is scored.
    """
    scores = scores_in(record)
    rows = [row for row in rows_of(record, scores) if row.epoch is not None and row.summaries]
    labels = list(dict.fromkeys(row.label for row in rows))[:_MOST_LINES]
    if not scores or len({row.epoch for row in rows}) < 2:
        return None
    num_columns = min(len(scores), 2)
    num_rows = -(-len(scores) // num_columns)
    num_legend_columns = 2 if max(map(len, labels)) > 22 else 4
    num_legend_rows = -(-len(labels) // num_legend_columns)
    figure = new_figure(height_inches=2.5 * num_rows + 0.22 * num_legend_rows + 0.3)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).ravel()
    start = next(iter(record.original.values()), None) if len(record.original) == 1 else None
    for axes, score in zip(panels, scores, strict=False):
        for index, label in enumerate(labels):
            own = [row for row in rows if row.label == label and score in row.summaries]
            _draw_line(axes, own, score, start, place=(index, len(labels)))
        axes.set_title(label_of_score(score, record), loc="left")
        axes.grid(visible=True)
        axes.set_ylim(_span(*axes.get_ylim(), bounds=_bounds(score, record)))
        _set_epochs(axes, [0.0] * (start is not None) + [row.epoch for row in rows if row.epoch is not None])
    for axes in panels[len(scores) :]:
        axes.remove()
    for axes in panels[max(0, len(scores) - num_columns) : len(scores)]:
        axes.set_xlabel("epoch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=num_legend_columns)
    return figure


def trade_off_figure(record: StudyRecord) -> Figure | None:
    """Draw what each configuration forgot against what it retained, the seeds faintly, and the Pareto front of means.

    None where that was not scored. Up and to the right is better.
    """
    names = trade_off_in(record)
    if names is None:
        return None
    figure = _scatter(record, names)
    return None if figure is None else _with_legend(figure)


def suite_figure(record: StudyRecord) -> Figure | None:
    """Draw each configuration as the suite's publications do, for TOFU its forget quality against its model utility.

    None where the suite has no such figure, or one of the two was not scored. The model before unlearning and scores
    that the study did not take are stars.
    """
    plot = plot_of(record.study)
    figure = None if plot is None else _scatter(record, (plot.across, plot.up), is_log=plot.is_log)
    if plot is None or figure is None:
        return None
    axes = figure.axes[0]
    for index, (label, scores) in enumerate(record.study.others.items()):
        if {plot.across, plot.up} <= scores.keys():
            color, _, _ = _look(index)
            places = [scores[plot.across]], [scores[plot.up]]
            axes.plot(*places, "*", color=color, markersize=9, label=_short(label))
    if plot.is_log:
        _make_logarithmic(axes)
    if plot.level is not None:
        axes.axhline(plot.level, color=INK, alpha=0.45, linewidth=1, linestyle=":", label=f"{plot.level:g}")
    return _with_legend(figure)


def _scatter(record: StudyRecord, names: tuple[str, str], *, is_log: bool = False) -> Figure | None:
    rows = [row for row in rows_of(record, names, by_epoch=False) if all(name in row.summaries for name in names)]
    if not rows:
        return None
    rows = rows[:_MOST_ROWS]
    figure = new_figure(height_inches=max(4.2, 0.21 * len(rows) + 1.0))
    axes = figure.subplots()
    means = [(row.summaries[names[0]].mean, row.summaries[names[1]].mean) for row in rows]
    of_forgetting = [mean for row, mean in zip(rows, means, strict=True) if not row.is_unknown]
    better = [known_scores(record.study)[name].better for name in names]
    if of_forgetting and better == ["higher", "higher"]:
        _draw_front(axes, [of_forgetting[index] for index in pareto_front(of_forgetting)])
    for index, (row, mean) in enumerate(zip(rows, means, strict=True)):
        color, marker, _ = _look(index)
        seeds = [seed for seed in row.scores[names[0]] if seed in row.scores[names[1]]]
        own = np.array([[row.scores[name][seed] for name in names] for seed in seeds])
        axes.plot(*own.T, linestyle="", marker=marker, color=color, alpha=0.3, markersize=4, markeredgewidth=0)
        spread = [row.summaries[name].deviation or 0.0 for name in names]
        label = _short(row.label) + " (baseline)" * (row.role == "baseline") + " (rows not known)" * row.is_unknown
        if not is_log:
            axes.errorbar(*mean, xerr=spread[0], yerr=spread[1], color=color, linewidth=0.9, alpha=0.6)
        axes.plot(*mean, linestyle="", color=color, marker=marker, markersize=7.5, markeredgecolor="white", label=label)
    _draw_original(axes, record, names, is_log=is_log)
    said = [f"{_axis(name, record)} ({way} is better)" for name, way in zip(names, better, strict=True)]
    axes.set(xlabel=said[0], ylabel=said[1])
    axes.margins(0.06)
    axes.grid(visible=True)
    return figure


def _with_legend(figure: Figure) -> Figure:
    figure.legend(loc="outside right upper", fontsize=8.5)
    return figure


def heat_figure(record: StudyRecord) -> Figure | None:
    """Draw the mean of each score over the values of two settings; None unless the study varies exactly two.

    Cells that were not run are left empty.
    """
    scores = scores_in(record)
    rows = [row for row in rows_of(record, scores, by_epoch=False) if row.role == "study"]
    settings = list(dict.fromkeys(name for row in rows for name in row.values))
    if len(settings) != 2 or not scores or record.study.search:
        return None
    down, across = (_values(rows, name) for name in settings)
    if min(len(down), len(across)) < 2:
        return None
    num_columns = min(len(scores), 2)
    num_rows = -(-len(scores) // num_columns)
    figure = new_figure(height_inches=(0.42 * len(down) + 1.15) * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, score in zip(panels, scores, strict=False):
        grid = np.full((len(down), len(across)), np.nan)
        for row in rows:
            if score in row.summaries:
                place = down.index(row.values.get(settings[0])), across.index(row.values.get(settings[1]))
                grid[place] = row.summaries[score].mean
        _draw_heat(axes, grid, _bounds(score, record))
        axes.set_title(label_of_score(score, record), loc="left")
        axes.set_xticks(np.arange(len(across)) + 0.5, [_short(str(value)) for value in across])
        axes.set_yticks(np.arange(len(down)) + 0.5, [_short(str(value)) for value in down])
        axes.set(xlabel=settings[1], ylabel=settings[0])
    for axes in panels[len(scores) :]:
        axes.remove()
    return figure


def seeds_figure(record: StudyRecord) -> Figure | None:
    """Draw the score of every seed, a line a configuration, with the mean and its 95% interval; None without scores."""
    scores = scores_in(record)
    rows = [row for row in rows_of(record, scores, by_epoch=False) if row.summaries][:_MOST_ROWS]
    if not rows:
        return None
    figure = new_figure(height_inches=0.27 * len(rows) + 1.0)
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False).ravel()
    for axes, score in zip(panels, scores, strict=True):
        for place, row in enumerate(rows):
            if score in row.summaries:
                _draw_seeds(axes, row, score, place)
        axes.set_title(label_of_score(score, record), loc="left")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.margins(x=0.08)
        axes.set_xlim(_span(*axes.get_xlim(), bounds=_bounds(score, record)))
    panels[0].set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw_line(
    axes: Axes, rows: Sequence[ConfigurationRow], score: str, start: StateScores | None, *, place: tuple[int, int]
) -> None:
    index, num = place
    color, marker, line = _look(index)
    epochs = [row.epoch or 0.0 for row in rows]
    means = [row.summaries[score].mean for row in rows]
    spreads = [row.summaries[score].deviation or 0.0 for row in rows]
    if start is not None and score in start.scores and rows:
        epochs, means, spreads = [0.0, *epochs], [start.scores[score], *means], [0.0, *spreads]
    # Error bars of one epoch stand beside each other, by a small part of the distance between epochs.
    gap = min((b - a for a, b in itertools.pairwise(epochs)), default=1.0)
    shift = 0.16 * gap * ((index + 0.5) / num - 0.5)
    places = [epoch + shift if epoch else 0.0 for epoch in epochs]
    label = _short(rows[0].label) if rows else ""
    axes.errorbar(
        places,
        means,
        yerr=spreads,
        color=color,
        marker=marker,
        linestyle=line,
        markersize=4.5,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )


def _set_epochs(axes: Axes, epochs: Sequence[float]) -> None:
    found = sorted(set(epochs))
    if len(found) <= _MOST_TICKS:
        axes.set_xticks(found, [f"{epoch:g}" for epoch in found])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(labelbottom=True)


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A staircase with its corners inside: between two points of the front, what the worse of them reaches is sure."""
    # Wide and pale below all else: a thin line would be lost among the error bars, which run the same ways.
    x, y = np.array(points).T
    axes.step(x, y, where="post", color=INK, alpha=0.18, linewidth=5, zorder=1, label="Pareto front of means")


def _make_logarithmic(axes: Axes) -> None:
    """Make the axis that goes up logarithmic; values of 0 stand at its lower end."""
    for line in axes.lines:
        line.set_ydata(np.maximum(np.asarray(line.get_ydata(), dtype=np.float64), _SMALLEST_P))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: _power_of_ten(value))
    axes.relim()
    axes.autoscale_view()


def _power_of_ten(value: float) -> str:
    """Return a tick's label; small powers with superscripts, since figures read no formulas."""
    if value >= _SMALLEST_TICK:
        return f"{value:g}"
    exponent = str(round(math.log10(value)))
    return f"10{exponent.translate(_SUPERSCRIPTS)}"


def _draw_original(axes: Axes, record: StudyRecord, names: tuple[str, str], *, is_log: bool) -> None:
    for state in record.original.values():
        if all(name in state.scores for name in names):
            x, y = (state.scores[name] for name in names)
            # Drawn to scale on a linear axis it would leave a corner of the figure to all others.
            places: tuple[list[float], list[float]] = ([x], [y]) if is_log else ([], [])
            axes.plot(*places, "*", color=INK, markersize=9, label=f"original model: ({x:.2f}, {_digits(y)})")
            return


def _digits(score: float) -> str:
    """Return a score with two decimals, or as a power of ten where these would hide it."""
    return f"{score:.2f}" if score == 0 or abs(score) >= _SMALLEST_DECIMAL else f"{score:.1e}"


def _draw_heat(axes: Axes, grid: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", bounds: Bounds) -> None:
    low, high = _span(np.nanmin(grid), np.nanmax(grid), bounds=bounds) if np.isfinite(grid).any() else (0.0, 1.0)
    # Cells drawn one by one: an image within the SVG is not shown on a page that loads nothing.
    cells = axes.pcolormesh(np.ma.masked_invalid(grid), cmap="cividis", vmin=low, vmax=high, edgecolors="face")
    axes.invert_yaxis()
    middle = (low + high) / 2
    for (row, column), value in np.ndenumerate(grid):
        text = f"{value:.3f}" if np.isfinite(value) else "–"
        color = INK if not np.isfinite(value) else _ON_BRIGHT if value > middle else "white"
        alpha = 1.0 if np.isfinite(value) else 0.45
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=color, alpha=alpha)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(cells, ax=axes, pad=0.02)
    assert bar.solids is not None, "drawn from a mesh"
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.outline.set_visible(False)


def _span(low: float, high: float, *, bounds: Bounds) -> tuple[float, float]:
    """Return the ends of a scale of scores: wide enough, and within their bounds but for a hair where marks stand."""
    smallest, largest = bounds or (-np.inf, np.inf)
    width = largest - smallest if bounds else 1.0
    narrowest, hair = _SMALLEST_SPAN * width, 0.01 * width
    spare = max(0.0, narrowest - (high - low)) / 2
    low, high = low - spare, high + spare
    if low < smallest <= high:
        low, high = smallest - hair, max(high, smallest + narrowest)
    if high > largest >= low:
        low, high = min(low, largest - narrowest), largest + hair
    return low, high


def _bounds(score: str, record: StudyRecord) -> Bounds:
    return known_scores(record.study)[score].bounds


def _draw_seeds(axes: Axes, row: ConfigurationRow, score: str, place: int) -> None:
    color, marker, _ = _look(place)
    values, found = list(row.scores[score].values()), row.summaries[score]
    # Equal scores would hide each other on one line.
    shifts = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
    axes.plot(values, place + shifts, linestyle="", marker=marker, color=color, markersize=4, alpha=0.75)
    axes.plot([found.mean] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.6)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place, place], color=INK, linewidth=1, alpha=0.6)


def _look(index: int) -> tuple[str, str, str]:
    """Colour, marker and line: no two of the first 42 configurations share colour and marker."""
    return PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)], _LINES[index // len(PALETTE) % len(_LINES)]


def _values(rows: Sequence[ConfigurationRow], setting: str) -> list[object]:
    found = list(dict.fromkeys(row.values.get(setting) for row in rows))
    numbers = sorted(value for value in found if isinstance(value, int | float))
    return list(numbers) if len(numbers) == len(found) else list(found)


def _axis(score: str, record: StudyRecord) -> str:
    return label_of_score(score, record).lower()


def _short(label: str) -> str:
    return shorten(visible_line(label), _LABEL_CHARACTERS)


FIGURES: Mapping[str, Draw] = {
    "epochs": epochs_figure,
    "trade-off": trade_off_figure,
    "suite": suite_figure,
    "settings": heat_figure,
    "seeds": seeds_figure,
}

CAPTIONS: Mapping[str, str] = {
    "epochs": "Scores over epochs; error bars are one standard deviation over seeds.",
    "trade-off": "Forgotten against retained: means with one standard deviation, seeds faintly, Pareto front of means.",
    "suite": "The suite's own figure: means, seeds faintly; stars are the original model and others.",
    "settings": "Means over two settings.",
    "seeds": "Every seed; bars are means, lines their 95% bootstrap intervals.",
}
