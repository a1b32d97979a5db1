"""What a study shows while it runs: a table with a row a run on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from letheon.progress import STEP, Lines, is_live
from letheon.report.text import to_rich_text, visible_line
from letheon.studies.records import State

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "elsewhere": "dim",
    "running": "bold cyan",
    "scoring": "cyan",
    "finished": "green",
    "failed": "red",
    "diverged": "red",
    "pruned": "yellow",
}
_BAR_WIDTH = 16
_OTHER_LINES = 6
"""Lines of the screen that are not rows of runs."""


class View(Protocol):
    """Who shows how a study goes."""

    def show(self, name: str, state: State, detail: str = "") -> None:
        """Learn in what state a run is."""

    def progress(self, name: str, done: int, total: int, *, stage: str = STEP) -> None:
        """Learn how many of its steps a run has done, or how far another stage of it is (0: total not known)."""

    def note(self, message: str) -> None:
        """Learn something about the study as a whole."""


class Quiet:
    """Shows nothing."""

    def show(self, name: str, state: State, detail: str = "") -> None:
        """Ignore it."""

    def progress(self, name: str, done: int, total: int, *, stage: str = STEP) -> None:
        """Ignore it."""

    def note(self, message: str) -> None:
        """Ignore it."""


@dataclass(slots=True)
class RunStatus:
    """What is shown of one run."""

    state: State = "waiting"
    detail: str = ""
    stage: str = ""
    """What the run is at beside its steps."""
    done: int = 0
    total: int = 0
    began_s: float | None = None
    ended_s: float | None = None

    def enter(self, state: State, detail: str) -> None:
        """Note a state and when it was reached."""
        if state != self.state or state in ("running", "scoring"):
            self.began_s = self.began_s or (time.monotonic() if state in ("running", "scoring") else None)
            self.ended_s = None if state in ("running", "scoring", "waiting") else time.monotonic()
        self.state, self.detail, self.stage = state, detail, ""

    @property
    def seconds(self) -> str:
        """How long the run has taken in this process."""
        if self.began_s is None:
            return ""
        return f"{(self.ended_s or time.monotonic()) - self.began_s:.0f} s"


@dataclass(slots=True)
class LiveView:
    """A table that is drawn anew while the study runs, to be used as a context."""

    title: str
    console: Console
    statuses: dict[str, RunStatus] = field(default_factory=dict)
    _live: Live | None = None

    def __enter__(self) -> "LiveView":
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=False)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._live is not None, "entered before"
        self._live.stop()

    def show(self, name: str, state: State, detail: str = "") -> None:
        """Change a run's row."""
        self.statuses.setdefault(name, RunStatus()).enter(state, detail)

    def progress(self, name: str, done: int, total: int, *, stage: str = STEP) -> None:
        """Move a run's bar, or say beside it how far the stage is."""
        status = self.statuses.setdefault(name, RunStatus())
        if stage == STEP:
            status.done, status.total, status.stage = done, total, ""
        else:
            status.stage = f"{stage} {done}/{total}" if total else stage

    def note(self, message: str) -> None:
        """Print it above the table."""
        self.console.print(to_rich_text(visible_line(message)))

    def render(self) -> RenderableType:
        """Return the table: of more runs than the screen has room for, those around the ones at work."""
        table = Table(title=to_rich_text(self.title), title_justify="left", box=None, pad_edge=False, expand=False)
        for column in ("Run", "State", "Steps", "Time", ""):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for name in self._shown(max(self.console.size.height - _OTHER_LINES, 4)):
            status = self.statuses[name]
            state = Text(status.state, style=_STYLES[status.state])
            table.add_row(
                to_rich_text(name),
                state,
                _bar(status),
                status.seconds,
                to_rich_text(visible_line(status.stage or status.detail)),
            )
        counts = Counter(status.state for status in self.statuses.values())
        table.caption = f"{len(self.statuses)} runs: " + ", ".join(f"{counts[s]} {s}" for s in _STYLES if counts[s])
        table.caption_justify = "left"
        return table

    def _shown(self, num_rows: int) -> list[str]:
        names = list(self.statuses)
        at_work = [i for i, status in enumerate(self.statuses.values()) if status.state in ("running", "scoring")]
        centre = at_work[0] if at_work else len(names) - 1
        first = min(max(centre - num_rows // 2, 0), max(len(names) - num_rows, 0))
        return names[first : first + num_rows]


@dataclass(slots=True)
class PlainView:
    """A line whenever a run's state changes, and at least every half minute, for logs and pipes; a context."""

    lines: Lines
    _said: dict[str, tuple[State, str]] = field(default_factory=dict)

    def __enter__(self) -> "PlainView":
        self.lines.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.__exit__()

    def show(self, name: str, state: State, detail: str = "") -> None:
        """Print the line, unless it would say what the last one of that run said or there is nothing to it yet."""
        if self._said.get(name) == (state, detail) or state in ("waiting", "elsewhere"):
            return
        self._said[name] = state, detail
        end = f": {visible_line(detail)}" if detail else ""
        self.lines.note(f"{visible_line(name)}: {state}{end}")
        if state in ("running", "scoring"):
            self.lines.show(f"{visible_line(name)}: {state}{end}", 0, 0)

    def progress(self, name: str, done: int, total: int, *, stage: str = STEP) -> None:
        """Say how far it is, where the last line is old."""
        self.lines.show(f"{visible_line(name)}: {stage}", done, total)

    def note(self, message: str) -> None:
        """Print the line."""
        self.lines.note(visible_line(message))


def open_view(title: str, console: Console) -> AbstractContextManager[View]:
    """Return the view that fits the console, as a context."""
    return LiveView(title, console) if is_live(console) else PlainView(Lines(console, title, says_first=False))


def _bar(status: RunStatus) -> Text:
    if not status.total:
        return Text("")
    filled = _BAR_WIDTH * status.done // status.total
    return (
        Text("━" * filled, style="cyan")
        + Text("━" * (_BAR_WIDTH - filled), style="dim")
        + f" {status.done}/{status.total}"
    )
