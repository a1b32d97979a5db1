"""What a run says while it lasts: log.jsonl, accelerate's trackers, and a progress bar."""

import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn

from letheon.errors import SettingsError, nearest
from letheon.training.interim import InterimScore
from letheon.visible import visible

_logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Who wants to know how a run goes."""

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Learn that `done` of `total` steps are done, with the values of the last one."""

    def note(self, message: str) -> None:
        """Learn of something worth saying."""

    def scored(self, score: InterimScore) -> None:
        """Learn how a state does, once it is saved; an exception raised here ends the run."""


class Silent:
    """Says nothing."""

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Ignore it."""

    def note(self, message: str) -> None:
        """Log it."""
        _logger.info(message)

    def scored(self, score: InterimScore) -> None:
        """Ignore it."""


@dataclass(slots=True)
class Log:
    """An append-only log.jsonl: one JSON object a line, each with its `event`."""

    file: TextIO

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        line = {"event": event, **{name: _finite(value) for name, value in values.items()}}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def flush(self) -> int:
        """Bring everything to disk and return the log's length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()


@contextmanager
def open_log(path: Path, *, keep_bytes: int = 0) -> Iterator[Log]:
    """Open the log, its owner's alone, for appending after its first `keep_bytes` bytes; what lies behind is cut off.

    Of a log that has lost some of these bytes the whole lines that are left are kept.
    """
    with open(path, "a", encoding="utf-8", opener=_for_its_owner) as file:
        if path.stat().st_size < keep_bytes:
            _logger.warning("%s: its end is lost; it goes on after the last whole line", path)
            keep_bytes = path.read_bytes().rfind(b"\n") + 1
        file.truncate(keep_bytes)
        yield Log(file)


def check_trackers(names: Collection[str]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is not installed.

    Raises:
        SettingsError: naming the first of them.
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise SettingsError(f"trackers: expected some of {', '.join(known)}, got '{name}'{nearest(name, known)}")
        if name not in installed:
            raise SettingsError(f"trackers: '{name}' needs its own package, which is not installed; pip install it")


@contextmanager
def trackers(folder: Path, names: tuple[str, ...], config: Mapping[str, Any]) -> Iterator[Accelerator | None]:
    """Start accelerate's trackers of the given names (tensorboard, wandb, ...), None for no name."""
    if not names:
        yield None
        return
    accelerator = Accelerator(log_with=list(names), project_dir=folder)
    plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in config.items() if v is not None}
    accelerator.init_trackers("tensorboard", config=plain)
    try:
        yield accelerator
    finally:
        accelerator.end_training()


class Bar:
    """A progress bar with each term, speed and time left."""

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            RemainingColumn(),
            console=console,
        )
        self._title = title
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Move the bar."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=total, values="")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
        self._progress.update(self._task, completed=done, values=shown)

    def note(self, message: str) -> None:
        """Print it above the bar; what it quotes of files cannot style it or move the cursor."""
        self._progress.console.print(visible(message), markup=False, highlight=False, soft_wrap=True)

    def scored(self, score: InterimScore) -> None:
        """Do nothing: the note says it."""


def _for_its_owner(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
