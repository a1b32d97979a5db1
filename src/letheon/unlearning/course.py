"""The course of a run: what its settings fix in advance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from letheon.data.schedules import Schedule
from letheon.settings import CourseSettings
from letheon.training.judge import History, Judge, StateScore
from letheon.training.optimiser import build_optimiser, learning_rate_at
from letheon.training.stopping import choose_kept, why_stop
from letheon.unlearning.scoring_steps import is_to_score, named_steps, total_steps


@dataclass(frozen=True, slots=True)
class SetCourse:
    """A course that the settings fix in advance."""

    settings: CourseSettings
    schedule: Schedule
    judge: Judge

    @property
    def total_steps(self) -> int:
        """Steps if nothing ends it before."""
        return total_steps(self.settings, self.schedule)

    @property
    def held_steps(self) -> frozenset[int]:
        """Those that `score_at` names."""
        return frozenset(named_steps(self.settings, self.schedule))

    @property
    def ends_on_collapse(self) -> bool:
        """Whether there is a budget."""
        return self.settings.retain_budget is not None or self.settings.text_budget is not None

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimiser."""
        return build_optimiser(
            parameters,
            name=self.settings.optimiser,
            learning_rate=self._peak,
            weight_decay=self.settings.weight_decay,
        )

    def learning_rate(self, step: int, history: History) -> float:  # noqa: ARG002 - it depends on the step alone
        """Return the learning rate of a step: each block has a warm-up and a decay of its own."""
        first, end = self.schedule.block(step)
        return learning_rate_at(
            step - first,
            total_steps=min(end, self.total_steps) - first,
            peak=self._peak,
            schedule=self.settings.learning_rate_schedule,
            warm_up_steps=round(self.settings.warm_up * self.schedule.steps_per_epoch),
        )

    @property
    def _peak(self) -> float:
        assert self.settings.learning_rate != "auto", "such a run has another course"
        return self.settings.learning_rate

    def max_gradient_norm(self, step: int, norms: Sequence[float]) -> float | None:  # noqa: ARG002 - it is set
        """Return what the gradient is clipped to; None for no clipping."""
        return self.settings.max_gradient_norm

    def factors(self, history: History) -> Mapping[str, float]:  # noqa: ARG002 - none changes
        """Return nothing: weights are fixed, or follow the method's control."""
        return {}

    def is_due(self, step: int, history: History) -> bool:  # noqa: ARG002 - it depends on the step alone
        """Return whether the state after `step` steps is scored and saved."""
        return is_to_score(self.settings, self.schedule, step)

    def why_stop(self, history: History) -> str | None:
        """Return which budget or whose patience is over."""
        return why_stop(history, self.judge, patience=self.settings.patience, waits_on=self.settings.patience_on)

    def kept(self, history: History) -> StateScore:
        """Return the best or the last of the sound states."""
        return choose_kept(history, self.judge, keep=self.settings.keep)

    def goes_back_to(self, history: History) -> StateScore | None:  # noqa: ARG002 - it never does
        """Return None: training goes on from where it is."""
        return None

    def needed(self, history: History) -> frozenset[int]:
        """Return the step of the state that would be kept if the run ended now; nothing before the first scoring."""
        return frozenset({self.kept(history).step} if history else ())
