"""How figures look: colours, type and sizes, and how they are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The palette of Okabe and Ito without black and yellow: told apart by colour-blind readers, on white and on dark.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

# Stands for the page's text colour; a page replaces it by `currentColor`, so that a figure follows a dark scheme.
INK = "#1b1c1d"

_WIDTH_INCHES = 8.0
_PNG_DPI = 150
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}

METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def new_figure(*, height_inches: float) -> Figure:
    """Return an empty figure of the common width."""
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(1.0)
    return figure


def save_figure(folder: Path, name: str, draw: Callable[[], Figure | None]) -> tuple[Path, ...]:
    """Draw a figure and write it as SVG, PNG and PDF into `folder`; return the files, none where there is no figure.

    The same figure gives the same bytes: no date, fixed ids.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"letheon-{name}"}):
        figure = draw()
        if figure is None:
            return ()
        figure.set_facecolor("white")
        paths = tuple(folder / f"{name}.{suffix}" for suffix in METADATA)
        for path in paths:
            figure.savefig(path, dpi=_PNG_DPI, metadata=METADATA[path.suffix[1:]])
    return paths
