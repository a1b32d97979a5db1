"""Weights that follow measurements during training: pure functions of a small state that is saved with the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

State = Mapping[str, float]


class Control(Protocol):
    """Rules that turn measurements into factors on the weights of terms."""

    def begin(self) -> State:
        """Return the state before the first step."""

    def factors(self, state: State) -> Mapping[str, float]:
        """Return the factor of each controlled term, by its name."""

    def after_step(self, state: State, parts: Mapping[str, float | None], *, ends_epoch: bool) -> State:
        """Return the state after a step whose unweighted terms were `parts` (None: no row of that role)."""


@dataclass(frozen=True, slots=True)
class DualAscent:
    """A weight that grows while a loss is above its limit: lambda <- max(0, lambda + step (loss - limit)).

    The dual variable of a constraint loss <= limit (PDU, arXiv 2506.05314). It stays as it is for `warm_up_epochs`.
    """

    term: str
    """The constrained term, of weight 1; its factor is lambda."""
    initial: float
    step_size: float
    limit: float
    """Nats."""
    warm_up_epochs: int = 0

    def begin(self) -> State:
        """Return lambda before the first step."""
        return {"lambda": self.initial, "epochs": 0.0}

    def factors(self, state: State) -> Mapping[str, float]:
        """Return lambda."""
        return {self.term: state["lambda"]}

    def after_step(self, state: State, parts: Mapping[str, float | None], *, ends_epoch: bool) -> State:
        """Take a step by the loss just seen; the step's own loss was weighted by the lambda before."""
        value = parts.get(self.term)
        multiplier = state["lambda"]
        if value is not None and state["epochs"] >= self.warm_up_epochs:
            multiplier = max(0.0, multiplier + self.step_size * (value - self.limit))
        return {"lambda": multiplier, "epochs": state["epochs"] + ends_epoch}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A weight that is raised when a loss has grown since the first epoch: clip(0.3 * 6^D + 0.8, least, most).

    D is the mean of the loss over the last epoch minus its mean over the first; if D <= 0 the weight is `least`
    (SHA256's system at SemEval-2025 Task 4). Differs from their code, which takes D from one batch at a time against a
    first value that is too small by the rows of a batch, and rounds the weight to one decimal.
    """

    term: str
    """The guarded term, of weight 1."""
    least: float
    most: float

    def begin(self) -> State:
        """Return the state before the first step."""
        return {"factor": self.least, "sum": 0.0, "steps": 0.0, "epochs": 0.0, "first": 0.0}

    def factors(self, state: State) -> Mapping[str, float]:
        """Return the weight of this epoch."""
        return {self.term: state["factor"]}

    def after_step(self, state: State, parts: Mapping[str, float | None], *, ends_epoch: bool) -> State:
        """Collect the loss, and at the end of an epoch choose the weight of the next."""
        value = parts.get(self.term)
        total = state["sum"] + (value or 0.0)
        steps = state["steps"] + (value is not None)
        if not ends_epoch:
            return {**state, "sum": total, "steps": steps}
        mean = total / max(steps, 1)
        first = mean if state["epochs"] == 0 else state["first"]
        growth = mean - first
        # Of a collapsed model the power would overflow.
        raised = 0.3 * 6.0 ** min(growth, 100.0) + 0.8
        factor = min(max(raised, self.least), self.most) if growth > 0 else self.least
        return {"factor": factor, "sum": 0.0, "steps": 0.0, "epochs": state["epochs"] + 1, "first": first}
