"""What a run says while it lasts: to observers, to log.jsonl and to accelerate's trackers."""

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

from letheon.errors import SettingsError, nearest
from letheon.progress import STEP, Display
from letheon.storage.run_folder import LOG_FILE, TENSORBOARD_FOLDER
from letheon.training.judge import StateScore

_logger = logging.getLogger(__name__)

RESUMED = "resumed"
"""What an event has that tells of a resumption, which a run that was never ended does not have."""


class Observer(Protocol):
    """Who wants to know how a run goes."""

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Learn that `done` of `total` steps are done, with the values of the last one."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Learn how far a pass beside the steps is: over the rows for the reference, a scoring; 0 where not known."""

    def note(self, message: str) -> None:
        """Learn of something worth saying."""

    def scored(self, score: StateScore) -> None:
        """Learn how a state does, once it is saved; an exception raised here ends the run."""


class Silent:
    """Says nothing."""

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Ignore it."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore it."""

    def note(self, message: str) -> None:
        """Log it."""
        _logger.info(message)

    def scored(self, score: StateScore) -> None:
        """Ignore it."""


@dataclass(slots=True)
class Log:
    """An append-only log.jsonl: one JSON object a line, each with its `event`."""

    file: TextIO
    num_events: int = 0
    """Lines but those of resumptions. Unlike the length in bytes, it is the same however long steps took."""

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        self.num_events += RESUMED not in values
        line = {"event": event, **{name: _finite(value) for name, value in values.items()}}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def flush(self) -> int:
        """Bring everything to disk and return the number of events so far, resumptions left out."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.num_events


@contextmanager
def open_log(path: Path, *, keep_events: int = 0) -> Iterator[Log]:
    """Open the log, its owner's alone, for appending after its first `keep_events` events; what lies behind is cut off.

    Of a log that has lost some of these events the whole lines that are left are kept.
    """
    with open(path, "a", encoding="utf-8", opener=_for_its_readers) as file:
        num_bytes, num_events = first_events(path, keep_events)
        if num_events < keep_events:
            _logger.warning("%s: the last line is incomplete; logging continues after the last whole one", path)
        file.truncate(num_bytes)
        yield Log(file, num_events)


def first_events(path: Path, num_events: int) -> tuple[int, int]:
    """Return the length in bytes of a log up to the end of its first `num_events` events, and how many it has of these.

    What is said of resumptions is no event; of a log with fewer events it is the length of its whole lines.
    """
    num_bytes = found = 0
    with path.open("rb") as lines:
        for line in lines:
            if found == num_events or not line.endswith(b"\n"):
                break
            num_bytes, found = num_bytes + len(line), found + (not _is_of_resumption(line))
    return num_bytes, found


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
            raise SettingsError(f"trackers: '{name}' needs a package that is not installed; install it with pip")


@contextmanager
def trackers(folder: Path, names: tuple[str, ...], config: Mapping[str, Any]) -> Iterator[Accelerator | None]:
    """Start accelerate's trackers of the given names (tensorboard, wandb, ...), None for no name."""
    if not names:
        yield None
        return
    accelerator = Accelerator(log_with=list(names), project_dir=folder)
    plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in config.items() if v is not None}
    accelerator.init_trackers(TENSORBOARD_FOLDER.name, config=plain)
    try:
        yield accelerator
    finally:
        # Not end_training, which disconnects the processes as well.
        for tracker in accelerator.trackers:
            tracker.finish()


@dataclass(frozen=True, slots=True)
class Shown:
    """Shows on a display how a run goes."""

    display: Display

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Show the step."""
        self.display.show(STEP, done, total, values)

    def stage(self, name: str, done: int, total: int) -> None:
        """Show the pass."""
        self.display.show(name, done, total)

    def note(self, message: str) -> None:
        """Show it."""
        self.display.note(message)

    def scored(self, score: StateScore) -> None:
        """Do nothing: the note says it."""


def _is_of_resumption(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and RESUMED in event


def _for_its_readers(name: str, flags: int) -> int:
    return os.open(name, flags, LOG_FILE.mode)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
