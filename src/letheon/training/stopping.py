"""When a run ends before its last epoch."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from letheon.data.probing import unknown_sides
from letheon.settings import UnlearnSettings
from letheon.training.interim import InterimScore

_LOWER_IS_BETTER = ("forget_recall", "retain_loss", "retain_kl")


@dataclass(slots=True)
class Clock:
    """Time since the run began against its limit.

    The limit covers what comes after training too: `closing_s` is kept back for scoring, merging and writing.
    """

    limit_s: float | None
    started: float = field(default_factory=time.monotonic)
    closing_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def is_over(self, *, next_s: float = 0.0) -> bool:
        """Whether something of `next_s` seconds no longer fits before the limit."""
        return self.limit_s is not None and self.elapsed_s + next_s + self.closing_s > self.limit_s

    def share(self, num_parts: int) -> "Clock":
        """Return a clock that is over after one of `num_parts` equal parts of the time that is left."""
        if self.limit_s is None:
            return self
        left_s = max(0.0, self.limit_s - self.closing_s - self.elapsed_s)
        return Clock(self.elapsed_s + left_s / num_parts + self.closing_s, self.started, self.closing_s)


@dataclass(slots=True)
class Interruption:
    """Whether the process was asked to end."""

    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self.signal_number or 0)


@contextmanager
def heed_signals() -> Iterator[Interruption]:
    """Note the first SIGTERM or SIGINT instead of dying, so that the step is finished and saved; a second one kills."""
    interruption = Interruption()
    previous: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        interruption.signal_number = number
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    except ValueError:
        previous.clear()  # only the main thread can set handlers; elsewhere the caller's stay
    try:
        yield interruption
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)


@dataclass(frozen=True, slots=True)
class Start:
    """What the reference scores: how well the rows are known, and what budgets are counted against."""

    score: InterimScore

    @property
    def unknown(self) -> list[str]:
        """The sides, "forget" and "retain", that the model does not know."""
        return unknown_sides(self.score.forget_recall, self.score.retain_recall)


def why_stop(history: Sequence[InterimScore], start: Start | None, settings: UnlearnSettings) -> str | None:
    """Return why a run should end after its latest scoring, None if it should go on.

    A collapse (retain loss, or the loss on unseen documents, past its budget) comes before patience.
    """
    collapse = why_collapsed(history[-1], start, settings)
    if collapse is not None:
        return collapse
    if settings.patience is not None:
        values = [_merit(score, settings.patience_on) for score in history]
        waited = len(values) - 1 - values.index(max(values))
        if waited >= settings.patience:
            return f"patience: {settings.patience_on} not better for {waited} scorings"
    return None


def why_collapsed(score: InterimScore, start: Start | None, settings: UnlearnSettings) -> str | None:
    """Return which budget a state is past, None if it is within both or none is set."""
    if start is None:
        return None
    budgets = (
        ("retain loss", score.retain_loss, start.score.retain_loss, settings.retain_budget),
        ("loss of unseen documents", score.text_loss, start.score.text_loss, settings.text_budget),
    )
    for name, now, before, budget in budgets:
        # Written so that a loss that is not a number counts as past its budget.
        if budget is not None and now is not None and before is not None and not now - before <= budget:
            return f"collapse: {name} {now:.3g} nats a token, {before:.3g} at the start, budget {budget:g}"
    return None


def choose_kept(history: Sequence[InterimScore], start: Start | None, settings: UnlearnSettings) -> InterimScore:
    """Return the scored state that becomes the result: the best or the last of the sound ones."""
    return sound(history, start, settings)[-1] if settings.keep == "last" else best(history, start, settings)


def best(history: Sequence[InterimScore], start: Start | None, settings: UnlearnSettings) -> InterimScore:
    """Return the sound state of the highest score, of equal ones the latest."""
    return max(sound(history, start, settings), key=lambda score: (score.score, score.step))


def sound(history: Sequence[InterimScore], start: Start | None, settings: UnlearnSettings) -> Sequence[InterimScore]:
    """Return the scores of states that have not collapsed; where all have, of all."""
    return [score for score in history if why_collapsed(score, start, settings) is None] or history


def _merit(score: InterimScore, metric: str) -> float:
    value = getattr(score, metric)
    return -math.inf if value is None else (-value if metric in _LOWER_IS_BETTER else value)
