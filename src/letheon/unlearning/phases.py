"""Where a run that finds its own learning rate stands, and what it reads off its scores."""

from dataclasses import dataclass, replace
from typing import Self

from letheon.training.judge import StateScore

_IN_SCORINGS = 3
"""In how many more scorings the rows must be forgotten, or hidden, at the present pace, or the learning rate rises."""
_TIGHTER = 16
"""By what the weight of the KL on general text is multiplied in a cool-down, where it no longer stands in the way."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Where a run stands after its latest scoring."""

    rate: float
    """The learning rate outside cool-downs."""
    highest: float
    """The learning rate above which retain rows were damaged, or the highest that is tried."""
    factor: float = 1.0
    """What the weights of the forget terms are multiplied by."""
    anchor: float = 0.0
    """What the weight of the KL on general text is multiplied by; 0 until forgetting has begun."""
    taught: float = 0.0
    """What the weight of the NLL on other answers is multiplied by; 0 until the rows are forgotten."""
    cooling_from: int | None = None
    """The step at which the present cool-down began; None outside one."""
    is_over: bool = False
    """Whether the goals are reached and the cool-down is over."""

    @property
    def held(self) -> float:
        """What the weight of the KL on general text is multiplied by in the next step: by more in a cool-down."""
        return self.anchor if self.cooling_from is None else min(1.0, self.anchor * _TIGHTER)

    def slower(self, least: float) -> Self:
        """Return the phase with half its learning rate, not below `least`, as the highest from now on."""
        rate = max(self.rate / 2, least)
        return replace(self, rate=rate, highest=rate)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands after a scoring."""

    score: StateScore | None
    """The scoring; None before the first."""
    phase: Phase
    path: tuple[StateScore, ...]
    """The states that led to the present one, without those that training went back from."""


def falls_soon(last: float, value: float, goal: float) -> bool:
    """Whether a value that goes on falling as it did lately soon reaches its goal."""
    return last - value >= (value - goal) / _IN_SCORINGS


def rises_soon(last: float, value: float, goal: float) -> bool:
    """Whether a value that goes on rising as it did lately soon reaches its goal."""
    return falls_soon(-last, -value, -goal)


def auc_of(score: StateScore) -> float:
    """Return the AUC of telling forget texts from holdout documents; 1, where they are told best, without one."""
    auc = score.values.get("membership_auc")
    return 1.0 if auc is None else auc


def match_of(score: StateScore) -> float:
    """Return the share of the forget answers' tokens that are the likeliest; 0 where that is not known."""
    return score.values.get("forget_match") or 0.0


def recall_of(score: StateScore, side: str) -> float:
    """Return the mean recall of the rows of a side, "forget" or "retain"."""
    return score.values[f"{side}_recall"] or 0.0


def recalls_of(score: StateScore) -> str:
    """Return the recalls of both sides in words."""
    return (
        f"recall forget {recall_of(score, 'forget'):.3f} ({match_of(score):.3f} of tokens), "
        f"retain {recall_of(score, 'retain'):.3f}"
    )
