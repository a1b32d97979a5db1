"""The state of a running job, its observers, and how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from letheon.objective.control import State
from letheon.training.checkpoint import SaveClock
from letheon.training.course import Course, LoopSettings
from letheon.training.job import Job
from letheon.training.judge import StateScore
from letheon.training.stopping import Pace
from letheon.training.tracking import Log, Observer

JobT = TypeVar("JobT", bound=Job)
JobT_co = TypeVar("JobT_co", bound=Job, covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended; the model then holds the kept state."""

    reason: str
    step: int
    kept: StateScore
    history: tuple[StateScore, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who hears of a job while it runs."""

    log: Log
    observer: Observer
    tracker: Accelerator | None = None
    on_best: Callable[[StateScore], None] | None = None
    """Called whenever a state scores best so far, with the model holding it."""


@dataclass(slots=True)
class Run(Generic[JobT_co]):
    """The state of a running job, and its observer."""

    job: JobT_co
    settings: LoopSettings
    course: Course
    hooks: Hooks
    checkpoints: Path | None
    """Where states are saved; None for nowhere, which keeps the last one."""
    optimiser: torch.optim.Optimizer
    control: State
    step: int = 0
    num_tokens: int = 0
    history: list[StateScore] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Those of the gradients of the latest steps, before clipping."""
    reason: str | None = None
    """Why it ends before its last step; None while it goes on."""
    pace: Pace = field(default_factory=Pace)
    dropouts: tuple[nn.Dropout, ...] = ()
    saves: SaveClock = field(default_factory=SaveClock)
    held_steps: frozenset[int] = frozenset()
    """Steps whose checkpoints stay whatever comes after: the one that all of its population can go on from, and what
    would be kept there."""
    num_scorings: int = 1
    """How many scorings follow the last step."""
    most_tokens: int | None = None
    """How many tokens a step computes at once since a GPU's memory ran out; None for as many as the settings say."""

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.job.schedule.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps that it takes if nothing ends it."""
        return self.course.total_steps

    @property
    def scoring_s(self) -> float:
        """How long the scorings after the next step will take, if it is the last."""
        return self.num_scorings * self.pace.scoring_s(self.job.judge.num_tokens)

    @property
    def rows(self) -> list[int]:
        """Of the next step."""
        return self.job.rows_of_step(self.step, self.factors)

    @property
    def factors(self) -> Mapping[str, float]:
        """Of the next step, by term."""
        of_course = self.course.factors(self.history)
        of_control = self.job.control.factors(self.control) if self.job.control else {}
        both = of_course.keys() | of_control.keys()
        return {name: of_course.get(name, 1.0) * of_control.get(name, 1.0) for name in both}
