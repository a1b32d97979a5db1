"""When a job ends before its last step, and which state is kept."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from letheon.training.judge import History, Judge, StateScore, best, merit, sound

_SAMPLE_BYTES = 8 * 2**20
_SMALL_FILES_S = 0.5


@dataclass(slots=True)
class Clock:
    """Time since the run began against its limit.

    The limit covers what comes after training too: `closing_s` is kept back for merging and writing.
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
class Pace:
    """How long steps and scorings take, measured while the run lasts."""

    forward_token_s: float = 0.0
    """A token in a forward without gradients, before the first step."""
    slowest_step_s: float = 0.0
    steps_s: float = 0.0
    """All steps together."""
    num_tokens: int = 0
    """Of all steps together."""
    slowest_scoring_s: float | None = None
    """None before the first scoring."""

    def add_step(self, duration_s: float, *, num_tokens: int) -> None:
        """Count a step."""
        self.slowest_step_s = max(self.slowest_step_s, duration_s)
        self.steps_s += duration_s
        self.num_tokens += num_tokens

    def add_scoring(self, duration_s: float) -> None:
        """Count a scoring."""
        self.slowest_scoring_s = max(self.slowest_scoring_s or 0.0, duration_s)

    def scoring_s(self, num_tokens: int) -> float:
        """Return how long a scoring that reads `num_tokens` tokens will take, 0 where nothing has been measured.

        Before the first one: half of what steps took for as many tokens, which they read forwards and backwards.
        """
        if self.slowest_scoring_s is not None:
            return self.slowest_scoring_s
        return num_tokens * (self.steps_s / self.num_tokens / 2 if self.num_tokens else self.forward_token_s)

    def step_s(self, num_tokens: int) -> float:
        """Return how long a step will take at most: the slowest so far; the first, of `num_tokens`, three forwards."""
        return self.slowest_step_s if self.num_tokens else 3 * self.forward_token_s * num_tokens


def writing_s(folder: Path, num_bytes: int) -> float:
    """Return how long merging, writing and checking `num_bytes` bytes of weights in `folder` will take, seconds.

    A sample is written there to measure the disk. The weights are read, merged, written, and read and compared again,
    for which three times the writing is allowed; small files and their flushing take the rest.

    Raises:
        OSError: nothing can be written there.
    """
    size = max(1, min(num_bytes, _SAMPLE_BYTES))
    sample, began = os.urandom(size), time.monotonic()
    with TemporaryFile(dir=folder) as file:  # without a name where the system can, so that a kill leaves nothing
        file.write(sample)
        file.flush()
        os.fsync(file.fileno())
    duration_s = time.monotonic() - began
    return _SMALL_FILES_S + 3 * duration_s * num_bytes / size


def why_stop(history: History, judge: Judge, *, patience: int | None, waits_on: str) -> str | None:
    """Return why a job should end after its latest scoring, None if it should go on.

    A collapse comes before patience, which is over after so many scorings without a better value of `waits_on`.
    """
    collapse = judge.collapse(history[-1])
    if collapse is not None:
        return collapse
    if patience is not None:
        values = [merit(judge, score, waits_on) for score in history]
        waited = len(values) - 1 - values.index(max(values))
        if waited >= patience:
            return f"patience: {waits_on} not better for {waited} scorings"
    return None


def choose_kept(history: History, judge: Judge, *, keep: Literal["best", "last"]) -> StateScore:
    """Return the scored state that becomes the result: the best or the last of the sound ones."""
    return sound(history, judge)[-1] if keep == "last" else best(history, judge)
