"""The course of a job: optimiser, learning rate, when it is scored and saved, when it ends, which state is kept."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from letheon.training.judge import History, StateScore

RECENT_NORMS = 32
"""Of how many steps, the latest, the norms of the gradients are kept."""


class LoopSettings(Protocol):
    """What the loop itself is told."""

    @property
    def seed(self) -> int:
        """Seed of the random draws of a step."""

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens that go through the model at once."""

    @property
    def time_limit_s(self) -> float | None:
        """What the job's clock was set to, seconds."""

    @property
    def checkpoint_minutes(self) -> float | None:
        """How often states are saved between their scorings; None for never."""

    @property
    def keep_checkpoints(self) -> int:
        """How many of the newest checkpoints stay."""


class Course(Protocol):
    """The course of a job. Its decisions follow from the step and the scores so far, so the job can be resumed."""

    @property
    def total_steps(self) -> int:
        """Steps if nothing ends it before."""

    @property
    def held_steps(self) -> frozenset[int]:
        """Steps whose checkpoints stay whatever comes after."""

    @property
    def ends_on_collapse(self) -> bool:
        """Whether a state that has collapsed ends the job in the best one before it, so that it is no error."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimiser."""

    def learning_rate(self, step: int, history: History) -> float:
        """Return the learning rate of a step, counted from 0."""

    def max_gradient_norm(self, step: int, norms: Sequence[float]) -> float | None:
        """Return what the gradient of a step is clipped to after gradients of these norms; None for nothing.

        `norms` are those of the `RECENT_NORMS` steps before it, before clipping, or of all if they are fewer.
        """

    def factors(self, history: History) -> Mapping[str, float]:
        """Return what the weights of terms are multiplied by in the next step, by name; 1 for others."""

    def is_due(self, step: int, history: History) -> bool:
        """Return whether the state after `step` steps is scored and saved."""

    def why_stop(self, history: History) -> str | None:
        """Return why it ends after its latest scoring, None if it goes on."""

    def kept(self, history: History) -> StateScore:
        """Return which of the scored states, at least one, becomes the result."""

    def goes_back_to(self, history: History) -> StateScore | None:
        """Return which earlier state training goes on from after its latest scoring; None for the present one."""

    def needed(self, history: History) -> frozenset[int]:
        """Return the steps whose states it may still ask for: to keep one, or to go back to one."""
