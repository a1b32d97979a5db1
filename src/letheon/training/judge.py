"""How states are judged while something trains: scores by name, each with the direction in which it is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from letheon.progress import Progressed

Better = Literal["higher", "lower"]

SCORE = "score"
"""The name of what the best state is chosen by, which every judge gives."""


@dataclass(frozen=True, slots=True)
class StateScore:
    """How a state does."""

    step: int
    """Steps done."""
    epoch: float
    """Epochs done."""
    values: Mapping[str, float | None]
    """By name, `SCORE` among them; None for what was not measured."""

    @property
    def score(self) -> float:
        """What the best state is chosen by."""
        value = self.values[SCORE]
        assert value is not None, "every judge gives it"
        return value

    def flat(self) -> dict[str, float | None]:
        """Return it as one mapping, as the log and checkpoints hold it."""
        return {"step": self.step, "epoch": self.epoch, **self.values}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> "StateScore":
        """Return what `flat` was made from.

        Raises:
            KeyError: a name is missing.
        """
        values = {name: value for name, value in flat.items() if name not in ("step", "epoch")}
        values[SCORE]  # raises
        return cls(flat["step"], flat["epoch"], values)


History = Sequence[StateScore]
"""The scores of a run so far, oldest first."""


class Judge(Protocol):
    """Scores the model's present state."""

    @property
    def better(self) -> Mapping[str, Better]:
        """In which direction each of its scores is better."""

    @property
    def num_tokens(self) -> int:
        """How many tokens a scoring reads, as an upper bound."""

    def score(self, *, step: int, epoch: float, progress: Progressed | None = None) -> StateScore:
        """Score the present state; no random number is drawn, and `progress` hears of the rows that are done."""

    def collapse(self, score: StateScore) -> str | None:
        """Return why a state cannot be used whatever its score is, None if it can."""

    def noise(self, score: StateScore) -> float:
        """Return by how much the score may be off by chance; 0 where nothing but the score chooses a state."""

    def is_preferred(self, score: StateScore) -> bool:
        """Return whether a state is to be kept before those that are better by less than the noise."""

    def describe(self, score: StateScore) -> str:
        """Return a line on a state for whoever watches."""


def merit(judge: Judge, score: StateScore, name: str = SCORE) -> float:
    """Return a score as a number that is larger for a better state; minus infinity where it was not measured."""
    value = score.values.get(name)
    if value is None:
        return float("-inf")
    return value if judge.better[name] == "higher" else -value


def best(history: History, judge: Judge) -> StateScore:
    """Return the sound state of the best score, of equal ones the latest; within its noise, a preferred one.

    As scores are added, this is either the state that it was before or the new one, so no other has to be kept. That
    needs a noise that grows by less than the score does.
    """
    states = sound(history, judge)
    top = highest(states, judge)
    preferred = [one for one in states if judge.is_preferred(one)]
    close = [one for one in preferred if merit(judge, top) - merit(judge, one) <= judge.noise(top)]
    return highest(close or [top], judge)


def highest(history: History, judge: Judge) -> StateScore:
    """Return the state of the best score, of equal ones the latest."""
    return max(history, key=lambda score: (merit(judge, score), score.step))


def sound(history: History, judge: Judge) -> History:
    """Return the scores of states that have not collapsed; where all have, of all."""
    return [score for score in history if judge.collapse(score) is None] or history
