"""SIGTERM and SIGINT: jobs that can stop between two steps hear of them, everything else is ended by an exception."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

HEEDED = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The process was asked to end by a signal; no `except Exception` on the way out holds it up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


@dataclass(slots=True)
class Interruption:
    """Whether the process was asked to end."""

    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self.signal_number or 0)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let a SIGTERM or SIGINT raise `Interrupted`, so that files that are half written are removed on the way out."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    with _handled(end):
        yield


@contextmanager
def heed_signals() -> Iterator[Interruption]:
    """Note the first SIGTERM or SIGINT instead of dying, so that the step is finished and saved; a second one kills."""
    interruption = Interruption()

    def note(number: int, _: FrameType | None) -> None:
        interruption.signal_number = number
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    with _handled(note) as previous:
        yield interruption


@contextmanager
def finishing() -> Iterator[None]:
    """Delay a SIGTERM or SIGINT until the block is finished; a second signal does not wait."""
    with heed_signals() as interruption:
        yield
    if interruption.signal_number is not None:
        signal.raise_signal(interruption.signal_number)


@contextmanager
def _handled(handler: Any) -> Iterator[dict[int, Any]]:
    """Handle the signals so while the block lasts; the value holds the handlers that were there before."""
    previous: dict[int, Any] = {}
    try:
        for number in HEEDED:
            previous[number] = signal.signal(number, handler)
    except ValueError:
        previous.clear()  # only the main thread can set handlers; elsewhere the caller's stay
    try:
        yield previous
    finally:
        for caught, before in previous.items():
            signal.signal(caught, before)
