"""The curves of an audit: what comes back over the strength of each attack, by control."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from letheon.report.drawing import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, new_figure
from letheon.report.files import RunFiles
from letheon.report.text import visible_line
from letheon.scores.audits import CONTROLS, AuditedAttack

_LOOKS = {
    "after": (VERMILLION, "o", "-"),
    "never": (BLUE, "s", "-"),
    "placebo": (GREEN, "D", "--"),
    "hiding": (ORANGE, "^", ":"),
    "hiding-until-rounded": (SKY, "P", ":"),
    "before": (PURPLE, "v", ":"),
}
_NUM_COLUMNS = 2


def audit_figure(run: RunFiles) -> Figure | None:
    """Draw knowledge over strength, a panel an attack; None without an attack of several strengths."""
    attacks = [attack for attack in run.audit.attacks if len(attack.points) > 1] if run.audit is not None else []
    if not attacks:
        return None
    num_rows = math.ceil(len(attacks) / _NUM_COLUMNS)
    figure = new_figure(height_inches=2.1 * num_rows + 0.5)
    panels = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False, sharey=True).ravel()
    for axes, attack in zip(panels, attacks, strict=False):
        _draw(axes, attack)
    for unused in panels[len(attacks) :]:
        unused.remove()
    handles = [axes.get_legend_handles_labels() for axes in panels[: len(attacks)]]
    shown = {label: handle for found, labels in handles for handle, label in zip(found, labels, strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=4)
    return figure


def _draw(axes: Axes, attack: AuditedAttack) -> None:
    """Draw one attack, at even steps since strengths are far apart; what has no number is drawn in its order too."""
    for name, (color, marker, style) in _LOOKS.items():
        places = [(i, p.values[name]) for i, p in enumerate(attack.points) if name in p.values]
        if places:
            axes.plot(*zip(*places, strict=True), color=color, marker=marker, linestyle=style, label=CONTROLS[name])
    axes.set_title(visible_line(attack.title))
    axes.set_xticks(range(len(attack.points)), [visible_line(point.label) for point in attack.points])
    axes.set(ylabel="known", ylim=(-0.03, 1.05))
    axes.grid(visible=True, axis="y")
