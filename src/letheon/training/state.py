"""What a run is made of: what is fixed while it trains, what changes, and how it ended."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from letheon.data.rows import Row
from letheon.data.schedules import Schedule
from letheon.data.sequences import Sequence
from letheon.model.adapted import Adapted
from letheon.model.engine import Engine
from letheon.model.reference import ReferenceStore
from letheon.objective.catalogue import get_method
from letheon.objective.control import Control, State
from letheon.objective.methods import Alternatives, Term
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import SaveClock
from letheon.training.interim import InterimScore, Probes
from letheon.training.resolve import steps_to_score, total_steps
from letheon.training.stopping import Pace, Start
from letheon.training.tracking import Log, Observer

_MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """All that is fixed while a run trains: rows are numbered forget rows first, then retain rows."""

    engine: Engine
    adapted: Adapted
    rows: Collection[Row]
    sequences: Collection[Sequence]
    """What is trained on: of each row the answer (span="text": all of it), then the alternatives of forget rows."""
    num_forget_rows: int
    reference: ReferenceStore
    terms: tuple[Term, ...]
    schedule: Schedule
    probes: Probes
    start: Start | None
    """What the reference scores; None in a problem that is made without it."""
    alternatives: Alternatives | None = None
    control: Control | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints of what the run read; empty in a problem that is made without a run."""
    forward_token_s: float = 0.0
    """How long a token takes in a forward without gradients, measured before the first step."""

    def ids_of(self, rows: Collection[int]) -> str:
        """Name the rows, other answers included, the first few of many."""
        named = [self._id_of(row) for row in list(rows)[:_MOST_NAMED]]
        return ", ".join(named) + (f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else "")

    def _id_of(self, row: int) -> str:
        if row < len(self.rows):
            return self.rows[row].id
        per_row = self.alternatives.per_row if self.alternatives else 1
        return f"{self.rows[(row - len(self.rows)) // per_row].id} (with another answer)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; the model then holds the kept state."""

    reason: str
    step: int
    kept: InterimScore
    history: tuple[InterimScore, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who hears of a run while it trains."""

    log: Log
    observer: Observer
    tracker: Accelerator | None = None
    on_best: Callable[[InterimScore], None] | None = None
    """Called whenever a state scores best so far, with the model holding it."""


@dataclass(slots=True)
class Run:
    """What changes while a run trains, and who watches it."""

    problem: Problem
    settings: UnlearnSettings
    hooks: Hooks
    checkpoints: Path
    optimiser: torch.optim.Optimizer
    control: State
    step: int = 0
    num_tokens: int = 0
    history: list[InterimScore] = field(default_factory=list)
    reason: str | None = None
    """Why it ends before its last step; None while it goes on."""
    pace: Pace = field(default_factory=Pace)
    dropouts: tuple[nn.Dropout, ...] = ()
    saves: SaveClock = field(default_factory=SaveClock)
    held_steps: frozenset[int] = frozenset()
    """Steps whose checkpoints stay whatever comes after: the one that all of its population can go on from, and what
    would be kept there."""

    @property
    def schedule(self) -> Schedule:
        """Which rows make its steps."""
        return self.problem.schedule

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.schedule.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps that it takes if nothing ends it."""
        return total_steps(self.settings, self.schedule)

    @property
    def due(self) -> set[int]:
        """After which steps it is scored and saved."""
        return steps_to_score(self.settings, self.schedule)

    @property
    def scoring_s(self) -> float:
        """How long scoring the state after the next step will take, and what the method makes of it where it does."""
        num_scorings = 1 if get_method(self.settings.method).finish == "keep" else 2
        return num_scorings * self.pace.scoring_s(self.problem.probes.num_tokens)

    @property
    def factors(self) -> Mapping[str, float]:
        """Of the next step, by term."""
        return self.problem.control.factors(self.control) if self.problem.control else {}
