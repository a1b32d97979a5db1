"""The dial's line search: which share of what was trained to keep, by a few measurements along the line.

The dial is a scale s in [0, 1] on what training added to the model: an adapter's product, or the difference of weights.
At 0 the model is the one that training began with, at 1 the trained one. Telling forget texts from unseen ones by their
loss is easy at both ends (AUC 1 before training, often 0 after it) and hard somewhere between.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from math import isfinite
from typing import Any

from letheon.unlearning.interim import membership_score_of

MOST_SCALES = 12
"""At how many scales a model is measured at most."""
FIRST_SCALES = (1.0, 0.0, 0.5, 0.75)
"""Those measured in any search by membership, in this order."""
CLOSE_ENOUGH = 0.98
"""A membership score that ends the search: what is left is far below its sampling error."""
SAME_RECALL = 0.01
"""By how much forget recall may exceed its value at scale 1 and still be at that level."""
SAME_MATCH = 0.05
"""By how much what matches of the forget answers may exceed its value at scale 1 and still be at that level."""
_NARROWEST = 0.01
"""Intervals this narrow are not divided."""
_COARSEST = 0.05
"""Intervals beside a best value that lies inside the line are divided down to this width, though nothing shows that
they hold a better one."""
_QUARTER = 0.25
_NOTHING = -1.0
"""What an interval promises in which no state can be within the limits."""
_ROUNDING = 1e-9
"""Of means of recalls."""
_CLAMP = 0.1
"""How near to the end of an interval a new scale may lie, as a share of the width."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured of the model at one scale."""

    scale: float
    values: Mapping[str, float | None]
    """The interim scores by name (see interim.py); `membership` and `text_loss` are of the documents to choose by."""
    auc: float | None = None
    """AUC of telling forget texts from unseen documents by their loss; None without documents or where a loss is not
    finite."""
    member_losses: tuple[float, ...] = ()
    """Loss of each forget text, nats a token; empty without documents."""

    @property
    def forget_recall(self) -> float:
        """Mean recall of the forget rows, 0 to 1."""
        return self.values["forget_recall"] or 0.0

    @property
    def forget_match(self) -> float:
        """Mean share of the forget answers' tokens that are the likeliest, 0 to 1."""
        return self.values.get("forget_match") or 0.0

    @property
    def retain_recall(self) -> float:
        """Mean recall of the retain rows, 0 to 1."""
        return self.values["retain_recall"] or 0.0

    @property
    def instead_recall(self) -> float:
        """Mean recall of the other answers that --instead teaches, 0 to 1; 0 where it teaches none."""
        return self.values.get("instead_recall") or 0.0

    @property
    def membership(self) -> float:
        """1 - 2 |AUC - 0.5|; 0 where there is no AUC."""
        return membership_score_of(self.auc)

    def flat(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        numbers = {"scale": self.scale, "auc": self.auc, **self.values}
        return {name: value if value is None or isfinite(value) else None for name, value in numbers.items()}


Measure = Callable[[float], Point]


@dataclass(frozen=True, slots=True)
class DialBudgets:
    """What a search by membership may cost."""

    forget: float = 0.1
    """By how much the recall of the forget rows may exceed that at scale 1, and that of other answers fall below it."""
    retain: float = 0.05
    """By how much the recall of the retain rows may fall below those at scales 0 and 1."""
    text: float | None = None
    """By how much the loss of unseen documents may exceed that at scale 0, nats a token; None for any."""


class Fault(Enum):
    """Why a scale cannot be chosen."""

    RECALLS = "it is too small: the model recalls the forget rows, or loses the other answers"
    DAMAGES = "it costs too much: retain rows or unseen text"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a state must keep to be chosen."""

    most_forget_recall: float
    least_retain_recall: float
    most_text_loss: float | None
    """nats a token; None for any."""
    least_instead_recall: float = 0.0

    @classmethod
    def of(cls, start: Point, trained: Point, budgets: DialBudgets) -> "Limits":
        """Return the limits that budgets give, counted from the models at scales 0 and 1."""
        before, text = start.values["text_loss"], budgets.text
        return cls(
            trained.forget_recall + budgets.forget,
            min(start.retain_recall, trained.retain_recall) - budgets.retain,
            None if text is None or before is None else before + text,
            trained.instead_recall - budgets.forget,
        )

    def fault(self, point: Point) -> Fault | None:
        """Return why a state is past the limits, None if it is within all of them."""
        loss = point.values["text_loss"]
        # Written so that a loss that is not a number counts as above its limit.
        keeps_text = self.most_text_loss is None or (loss is not None and loss <= self.most_text_loss)
        if not keeps_text or point.retain_recall < self.least_retain_recall - _ROUNDING:
            return Fault.DAMAGES
        recalls = point.forget_recall > self.most_forget_recall + _ROUNDING
        return Fault.RECALLS if recalls or point.instead_recall < self.least_instead_recall - _ROUNDING else None


@dataclass(frozen=True, slots=True)
class Choice:
    """The scale that a search chose."""

    point: Point
    points: tuple[Point, ...]
    """All that was measured, smallest scale first."""
    reason: str | None = None
    """Why the scale stays at 1 although the search found nothing for it; None otherwise."""

    @classmethod
    def among(cls, points: Sequence[Point], chosen: Point | None, reason: str) -> "Choice":
        """Return the choice of one of the points, or of scale 1 for a reason."""
        ordered = tuple(sorted(points, key=lambda point: point.scale))
        return cls(ordered[-1], ordered, reason) if chosen is None else cls(chosen, ordered)


def choose_by_membership(
    measure: Measure, budgets: DialBudgets, *, goes_on: Callable[[], bool] = lambda: True
) -> Choice:
    """Return the scale above 0 with the best membership score within the budgets, 1 where none is.

    Of equal scores the one with the lower forget recall is taken, then the smaller scale. `goes_on` is asked before
    each measurement but the first.
    """
    points = [measure(FIRST_SCALES[0])]
    while len(points) < len(FIRST_SCALES) and goes_on():
        points.append(measure(FIRST_SCALES[len(points)]))
    if len(points) == 1:
        return Choice.among(points, None, "the time was up before another scale could be measured")
    limits = Limits.of(points[1], points[0], budgets)
    while len(points) < MOST_SCALES and (scale := next_scale(points, limits)) is not None and goes_on():
        points.append(measure(scale))
    return Choice.among(points, best_of(points, limits), "no scale that was measured is within the budgets")


def choose_by_recall(measure: Measure, *, goes_on: Callable[[], bool] = lambda: True) -> Choice:
    """Return the smallest scale at which forget recall is at its level at scale 1.

    At the level is at most `SAME_RECALL` above the recall at scale 1, and `SAME_MATCH` above what matches of the forget
    answers there, so that no text comes back that greedy decoding merely departs from, and the recall of taught answers
    is at most `SAME_RECALL` below it. The search comes down from 1 in quarters, so all scales measured above the chosen
    one are at the level too, then halves the last quarter.
    """
    points = [measure(1.0)]
    trained = points[0]

    def is_at_level(point: Point) -> bool:
        match = point.forget_match - trained.forget_match
        is_taught = point.instead_recall >= trained.instead_recall - SAME_RECALL
        return is_taught and point.forget_recall <= trained.forget_recall + SAME_RECALL and match <= SAME_MATCH

    if not goes_on():
        return Choice.among(points, None, "the time was up before another scale could be measured")
    points.append(measure(0.0))
    if is_at_level(points[1]):
        return Choice.among(points, None, "the model recalls no more of the forget rows without what was trained")
    low, chosen = points[1], points[0]
    while len(points) < MOST_SCALES and chosen.scale - low.scale > _NARROWEST and goes_on():
        comes_down = low.scale == 0.0 and chosen.scale > _QUARTER
        scale = chosen.scale - _QUARTER if comes_down else round((low.scale + chosen.scale) / 2, 3)
        points.append(measure(scale))
        if is_at_level(points[-1]):
            chosen = points[-1]
        else:
            low = points[-1]
    return Choice.among(points, chosen, "")


def best_of(points: Sequence[Point], limits: Limits) -> Point | None:
    """Return the point of the best membership score among those of scale above 0 within the limits; None if none is."""
    allowed = [point for point in points if point.scale > 0 and limits.fault(point) is None]
    return max(allowed, key=lambda p: (p.membership, -p.forget_recall, -p.scale), default=None)


def next_scale(points: Sequence[Point], limits: Limits) -> float | None:
    """Return where to measure next, None where nothing better is to be expected.

    An interval promises a better score where the AUC crosses 0.5 in it, or where a limit lies in it and its end past
    the limit scores better.
    """
    found = best_of(points, limits)
    reached = _NOTHING if found is None else found.membership
    if reached >= CLOSE_ENOUGH:
        return None
    ordered = sorted(points, key=lambda point: point.scale)
    intervals = [(low, high) for low, high in pairwise(ordered) if high.scale - low.scale > _NARROWEST]
    promising = [pair for pair in intervals if _promise(pair, limits) > reached]
    if promising:
        low, high = max(promising, key=lambda pair: (_promise(pair, limits), *_preference(pair, limits)))
        return _crossing(low, high) if _crosses(low, high) else _middle(low, high)
    beside = [pair for pair in intervals if found in pair and pair[1].scale - pair[0].scale > _COARSEST]
    if found is None or found.scale == 1.0 or not beside:
        return None
    return _middle(*max(beside, key=lambda pair: (pair[1].scale - pair[0].scale, pair[1].scale)))


def _promise(interval: tuple[Point, Point], limits: Limits) -> float:
    """The best membership score that may be expected inside an interval."""
    faults = [limits.fault(point) for point in interval]
    if faults[0] == faults[1]:
        is_within = faults[0] is None
        return 1.0 if is_within and _crosses(*interval) else _NOTHING
    past = [point.membership for point, fault in zip(interval, faults, strict=True) if fault is not None]
    return 1.0 if _crosses(*interval) else max(past)


def _preference(interval: tuple[Point, Point], limits: Limits) -> tuple[float, ...]:
    """Which of intervals of equal promise comes first: within the limits, then good already, then wide."""
    low, high = interval
    num_within = sum(limits.fault(point) is None for point in interval)
    return num_within, low.membership + high.membership, high.scale - low.scale


def _crosses(low: Point, high: Point) -> bool:
    return low.auc is not None and high.auc is not None and (low.auc - 0.5) * (high.auc - 0.5) < 0


def _crossing(low: Point, high: Point) -> float:
    """Where the AUC would be 0.5 if it changed evenly, but not too near to an end."""
    assert low.auc is not None and high.auc is not None, "it crosses"  # noqa: PT018 - one fact
    share = (low.auc - 0.5) / (low.auc - high.auc)
    return round(low.scale + min(max(share, _CLAMP), 1 - _CLAMP) * (high.scale - low.scale), 3)


def _middle(low: Point, high: Point) -> float:
    return round((low.scale + high.scale) / 2, 3)
