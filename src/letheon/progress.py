"""What a job shows while it lasts: a live view on a terminal, elsewhere a plain line at least every half minute.

`open_display` decides which. Both hear of stages: the steps of a run, its reference pass, a scoring, a generation.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Column

from letheon.storage.visible import visible, visible_line

INTERVAL_S = 30.0
"""How long a log may go without a line, seconds."""
FIRST_S = 5.0
"""How long a log may go without its first line, seconds; most mistakes are found by then, and said alone."""
STEP = "step"
"""The stage of training itself."""
_BEAT_S = 1.0
_BAR_WIDTH = 16
_STALE_S = 5.0

Progressed = Callable[[str, int, int], None]
"""Called with (stage, done, total); a total of 0 is one that is not known."""
Values = Mapping[str, float | None]


class Display(Protocol):
    """Who shows how a job goes; a context."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, stage: str, done: int, total: int, values: Values | None = None, *, at_most: bool = False) -> None:
        """Learn that `done` of `total` (0: not known; `at_most`: or fewer) are done, with the values of the last."""

    def note(self, message: str) -> None:
        """Learn of something worth saying."""


def is_live(console: Console) -> bool:
    """Whether printed text can be redrawn there; a file or pipe gets plain lines instead."""
    return console.is_terminal


def open_display(console: Console, title: str) -> Display:
    """Return the display that fits the console; inside its context it shows `title`, then the events that it gets."""
    return Bars(console, title) if is_live(console) else Lines(console, title)


@dataclass(slots=True)
class _Stage:
    name: str
    first: int
    """How many were done when the stage was first heard of."""
    began_s: float
    done: int
    total: int
    values: Values
    at_most: bool
    changed_s: float

    def describe(self, now_s: float) -> str:
        """Return the stage's line at `now_s` (seconds of the display's clock): count, values, time left, age."""
        counted = f" {self.done}/{self.total}" if self.total else ""
        parts = [self.name + counted, *shown_values(self.values)]
        left = self._left_s(now_s)
        if left is not None:
            parts.append(f"{'at most ' if self.at_most else ''}{duration(left)} left")
        age = now_s - self.changed_s
        parts += [f"{duration(age)} since then" if self.total else f"for {duration(age)}"] if age >= _STALE_S else []
        return ", ".join(parts)

    def _left_s(self, now_s: float) -> float | None:
        """How long the rest takes at the speed so far; None where that is not known."""
        passed_s = self.changed_s - self.began_s
        if self.done <= self.first or passed_s <= 0 or not self.done < self.total:
            return None
        whole_s = passed_s * (self.total - self.done) / (self.done - self.first)
        return max(whole_s - (now_s - self.changed_s), 0.0)


@dataclass(slots=True)
class Lines:
    """A line when a stage that counts begins, and then as often as `interval_s`, whether or not anything is heard."""

    console: Console
    title: str
    says_first: bool = True
    """Whether a stage's first count is a line of its own."""
    clock: Callable[[], float] = time.monotonic
    interval_s: float = INTERVAL_S
    first_s: float = field(default_factory=lambda: FIRST_S)
    _said_s: float = -math.inf
    _current: _Stage | None = None
    _stages: dict[str, _Stage] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._said_s = self.clock() + self.first_s - self.interval_s
        self.show(self.title, 0, 0)
        self._thread = threading.Thread(target=self._keep_beating, name="letheon-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None, "entered before"
        self._thread.join()

    def show(self, stage: str, done: int, total: int, values: Values | None = None, *, at_most: bool = False) -> None:
        """Print a line if the stage begins to count or the last line is old."""
        with self._lock:
            now_s, known = self.clock(), self._stages.get(stage)
            begins = known is None and total > 0
            if known is None or done < known.done:  # a stage that begins again has a speed of its own
                known = _Stage(stage, done, now_s, done, total, {}, at_most, now_s)
            known.done, known.total, known.values, known.changed_s = done, total, values or {}, now_s
            self._stages[stage] = self._current = known
            if (begins and self.says_first) or self._is_due(now_s):
                self._say(known.describe(now_s))

    def note(self, message: str) -> None:
        """Print it."""
        with self._lock:
            self._say(message)

    def beat(self) -> None:
        """Print where things stand if the last line is old."""
        with self._lock:
            now_s = self.clock()
            if self._current is not None and self._is_due(now_s):
                self._say(self._current.describe(now_s))

    def _keep_beating(self) -> None:
        while not self._over.wait(_BEAT_S):
            self.beat()

    def _is_due(self, now_s: float) -> bool:
        return now_s - self._said_s >= self.interval_s

    def _say(self, line: str) -> None:
        self._said_s = self.clock()
        self.console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar for each stage that is under way, with its values, the time it has taken and the time left.

    That of the steps is left on the screen.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH, table_column=Column(min_width=_BAR_WIDTH)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            # Only this column gives way where the screen is narrow.
            TextColumn("{task.fields[values]}", markup=False, table_column=Column(overflow="ellipsis")),
            TimeElapsedColumn(),
            RemainingColumn(),
            console=console,
        )
        self._title = title
        self._tasks: dict[str, TaskID] = {}
        self._current: str | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self.show(self._title, 0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        for stage, task in self._tasks.items():
            self._progress.update(task, visible=stage == STEP)
        self._progress.stop()

    def show(self, stage: str, done: int, total: int, values: Values | None = None, *, at_most: bool = False) -> None:  # noqa: ARG002
        """Move the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(visible_line(stage), total=None, values="")
        if stage != self._current:
            self._current = stage
            self._hide_others()
        shown = "  ".join(shown_values(values or {}))
        self._progress.update(self._tasks[stage], completed=done, total=total or None, values=shown, visible=True)

    def note(self, message: str) -> None:
        """Print it above the bars; text quoted from files cannot style it or move the cursor."""
        self._progress.console.print(visible(message), markup=False, highlight=False)

    def _hide_others(self) -> None:
        for task in self._progress.tasks:
            if task.id != self._tasks.get(self._current or "") and (task.finished or task.total is None):
                self._progress.update(task.id, visible=False)


def shown_values(values: Values) -> list[str]:
    """Return the values that are known, each after its name."""
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return [f"{name} {value:.0f}" if abs(value) >= 1000 else f"{name} {value:.4g}" for name, value in known.items()]


def duration(seconds: float) -> str:
    """Return a length of time in words, as exact as an estimate can be."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
