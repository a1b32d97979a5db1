"""attempts.json: when a run was begun and gone on with, by which command, which steps it took and why it ended.

An attempt is written down before its first step, so that one that is killed is known too; its end is then missing.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from letheon.errors import DivergenceError, GivenUpError, OutputError
from letheon.storage.provenance import describe_environment, peak_memory_bytes
from letheon.storage.run_folder import ATTEMPTS_FILE, write_json_entry


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process that worked on a run."""

    started: str
    """ISO 8601, UTC."""
    command: list[str]
    first_step: int
    """Steps done when it began."""
    ended: str | None = None
    """None of one that was killed, or has not ended."""
    last_step: int | None = None
    """Steps done when it ended."""
    reason: str | None = None
    duration_s: float | None = None
    peak_memory_bytes: int | None = None


@contextmanager
def recorded_attempt(folder: Path, *, first_step: int) -> Iterator[None]:
    """Write down that an attempt begins, and why it ends where that is an error.

    Raises:
        OutputError: attempts.json cannot be written.
    """
    begin_attempt(folder, first_step=first_step)
    try:
        yield
    except BaseException as error:
        with suppress(OutputError):  # of a full disk, which is what ended it
            fail_attempt(folder, error)
        raise


def begin_attempt(folder: Path, *, first_step: int) -> None:
    """Write down that an attempt begins.

    Raises:
        OutputError: attempts.json cannot be written.
    """
    here = describe_environment()
    _write(folder, [*read_attempts(folder), Attempt(str(here["created_at"]), here["command"], first_step)])


def fail_attempt(folder: Path, error: BaseException) -> None:
    """Write down that the attempt ended in an error.

    Raises:
        OutputError: attempts.json cannot be written.
    """
    # Its kind alone: the message may quote rows, which the log has and purge removes there.
    named: dict[type[BaseException], str] = {DivergenceError: "diverged", GivenUpError: "given up"}
    what = named.get(type(error), type(error).__name__)
    _end(folder, Attempt("", [], 0, reason=what))


def end_attempt(folder: Path, *, step: int, reason: str, duration_s: float) -> list[Attempt]:
    """Write down how the attempt ended, after `step` steps of the run, and return all attempts.

    Raises:
        OutputError: attempts.json cannot be written.
    """
    peak = peak_memory_bytes()
    return _end(
        folder, Attempt("", [], 0, last_step=step, reason=reason, duration_s=duration_s, peak_memory_bytes=peak)
    )


def costs_of(attempts: Sequence[Attempt]) -> tuple[float, int]:
    """Return the seconds and the peak memory of a run by its attempts.

    One that found nothing to do counts only if it is alone; one whose end is not known does not count.
    """
    ended = [one for one in attempts if one.duration_s is not None]
    done = [one for one in ended if one.last_step != one.first_step] or ended[:1]
    seconds = sum(one.duration_s or 0.0 for one in done)
    return round(seconds, 3), max((one.peak_memory_bytes or 0 for one in done), default=0)


def costs_by_now(folder: Path, *, step: int, duration_s: float) -> tuple[float, int]:
    """Return what `costs_of` gives if the run's last attempt ended now, after `step` steps of the run."""
    *earlier, last = read_attempts(folder) or [Attempt("", [], 0)]
    now = replace(last, last_step=step, duration_s=duration_s, peak_memory_bytes=peak_memory_bytes())
    return costs_of([*earlier, now])


def read_attempts(folder: Path) -> list[Attempt]:
    """Return the attempts at the run in `folder`, in order; none where they cannot be read."""
    try:
        found = json.loads((folder / ATTEMPTS_FILE).read_text(encoding="utf-8"))
        return [Attempt(**one) for one in found]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _end(folder: Path, how: Attempt) -> list[Attempt]:
    *earlier, last = read_attempts(folder) or [Attempt("", [], 0)]
    ended = str(describe_environment()["created_at"])
    now = replace(how, started=last.started, command=last.command, first_step=last.first_step, ended=ended)
    _write(folder, [*earlier, now])
    return [*earlier, now]


def _write(folder: Path, attempts: list[Attempt]) -> None:
    write_json_entry(folder, ATTEMPTS_FILE, [asdict(one) for one in attempts])
