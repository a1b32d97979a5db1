"""What comes of each run of a population, and who hears of one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from letheon.training.judge import StateScore
from letheon.training.tracking import Observer
from letheon.unlearning.record import RunReport


@dataclass(frozen=True, slots=True)
class DivergedRun:
    """A run that met a loss or gradient that is not finite: its folder is as `unlearn` leaves it then.

    That is run.yaml, log.jsonl and the checkpoints before, but no model, adapter or provenance. One that others were
    trained beside keeps population.json too, which tells those that go on that it has ended.
    """

    folder: Path
    reason: str
    """Step, rows and what is not finite."""
    exit_code: int = 0
    """Of what ended the process, which divergence does not."""


@dataclass(frozen=True, slots=True)
class GivenUpRun:
    """A run that was ended because others beside it do better: its folder is as that of a run that diverged."""

    folder: Path
    reason: str
    """After which epoch, and by which scores."""
    exit_code: int = 0
    """Of what ended the process, which this does not."""


Report = RunReport | DivergedRun | GivenUpRun
"""Of a run that came to its end or was stopped in it; of one that diverged; of one that was given up."""


@dataclass(frozen=True, slots=True)
class NamedObserver:
    """Hands on what is said of one run, under its name."""

    observer: Observer
    name: str

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        """Say nothing: the steps are counted over all runs."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Hand it on."""
        self.observer.stage(name, done, total)

    def scored(self, score: StateScore) -> None:
        """Hand it on."""
        self.observer.scored(score)

    def note(self, message: str) -> None:
        """Say whose it is."""
        self.observer.note(f"{self.name}: {message}")
