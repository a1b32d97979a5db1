"""The dial of a run: what was measured at each scale, and the scale that was chosen."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from letheon.report.drawing import BLUE, GREEN, INK, ORANGE, VERMILLION, new_figure
from letheon.report.files import RunFiles

_LARGEST_DRAWN = 1e30
_Point = Mapping[str, Any]
_Value = Callable[[_Point], float | None]


def dial_figure(run: RunFiles) -> Figure | None:
    """Draw AUC, forgotten, retained and the loss of unseen text over the scale; None for a run without a dial."""
    dial = _dial(run)
    points = _mappings(dial, "points")
    curves: tuple[tuple[str, str, str, _Value], ...] = (
        ("AUC (0.5 is best)", VERMILLION, "o", lambda point: _number(point, "auc")),
        ("forgotten: 1 - forget recall", BLUE, "s", _forgotten),
        ("retained: retain recall", GREEN, "^", lambda point: _number(point, "retain_recall")),
    )
    loss = _curve(points, lambda point: _number(point, "text_loss"))
    drawn = [(label, color, marker, curve) for label, color, marker, v in curves if (curve := _curve(points, v)).size]
    if not drawn:
        return None
    figure = new_figure(height_inches=3.2)
    panels: list[Axes] = list(figure.subplots(1, 2 if loss.size else 1, squeeze=False).ravel())
    for label, color, marker, curve in drawn:
        panels[0].plot(*curve.T, color=color, marker=marker, markersize=4.5, label=label)
    panels[0].set(ylabel="0 to 1", ylim=(-0.03, 1.05))
    if loss.size:
        panels[1].plot(*loss.T, color=ORANGE, marker="D", markersize=4.5, label="loss of unseen text")
        panels[1].set(ylabel="nats a token")
        panels[1].yaxis.set_major_formatter("{x:g}")
    for axes in panels:
        _mark(axes, _number(dial, "scale"))
        axes.set(xlabel="scale of what was trained", xlim=(-0.03, 1.03))
        axes.grid(visible=True, axis="y")
    handles = [axes.get_legend_handles_labels() for axes in panels]
    shown = {label: handle for found, labels in handles for handle, label in zip(found, labels, strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=3)
    return figure


def dial_facts(run: RunFiles) -> tuple[tuple[str, str], ...]:
    """Return the chosen scale, and what the documents say by which nothing was chosen; nothing without a dial."""
    dial = _dial(run)
    scale = _number(dial, "scale")
    if scale is None:
        return ()
    reason = dial.get("reason")
    chosen = f"scale {scale:g}, chosen by {dial.get('dial')}{f'; it stays at 1: {reason}' if reason else ''}"
    facts = [("dial", chosen)]
    for one in _mappings(dial, "reported"):
        if (at := _number(one, "scale")) is not None:
            auc, loss = (_number(one, name) for name in ("auc", "text_loss"))
            facts.append((
                f"dial at scale {at:g}",
                f"AUC {_shown(auc)}, loss of unseen text {_shown(loss)} nats a token, on {one.get('num_documents')} "
                f"documents by which nothing was chosen",
            ))  # fmt: skip
    return tuple(facts)


def _dial(run: RunFiles) -> Mapping[str, Any]:
    result = run.provenance.get("result")
    dial = result.get("dial") if isinstance(result, Mapping) else None
    return dial if isinstance(dial, Mapping) else {}


def _mappings(dial: Mapping[str, Any], name: str) -> list[_Point]:
    """The mappings in a list of the dial; none where it is no list."""
    found = dial.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _mark(axes: Axes, scale: float | None) -> None:
    if scale is not None:
        axes.axvline(scale, color=INK, alpha=0.45, linewidth=1, linestyle=":", label=f"chosen: scale {scale:g}")


def _forgotten(point: _Point) -> float | None:
    recall = _number(point, "forget_recall")
    return None if recall is None else 1 - recall


def _curve(points: list[_Point], value: _Value) -> NDArray[np.float64]:
    """Return (scale, value) pairs (n, 2) of the points that have both."""
    pairs = [(s, v) for p in points if (s := _number(p, "scale")) is not None and (v := value(p)) is not None]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _number(mapping: Mapping[str, Any], name: str) -> float | None:
    """A number that can be drawn; None for anything else."""
    value = mapping.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < _LARGEST_DRAWN else None


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
