"""How much an attack recovers, beside controls, with bootstrap intervals: pure functions of numbers.

    recovery = (gain - gain of the control) / (before - after)

The gain of an attack is what rows are known better than without it. What the unlearned model knows without an attack
counts as no less than what the control does, so that an attack that only repairs broken answers gains nothing. The
control is the model that never saw the rows, row by row, or where there is none the unlearned model on placebo rows.

Rows of one document are not independent: who has it back has all of them. The bootstrap draws documents, rows and all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Units = NDArray[np.int64]
"""(R,) which document each row is of, by number; no two rows of one where they are independent."""

NUM_DRAWS = 4000
MIN_KNOWN = 0.05
"""Difference of knowledge before and after below which a recovery is a quotient of noise."""
MIN_DOCUMENTS = 4
"""Documents below which a bootstrap interval says nothing: one document gives an interval without width."""
FALSE_POSITIVES = 0.05
"""Rate at which the true positives of a membership attack are told."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its bootstrap interval; the draws have the level that the audit was corrected to."""

    value: float
    low: float
    high: float

    def is_above(self, bound: float) -> bool:
        """Return whether all of it lies above a bound."""
        return self.low > bound

    def is_within(self, margin: float, *, of: float = 0.0) -> bool:
        """Return whether all of it lies within a margin of a value."""
        return self.low >= of - margin and self.high <= of + margin


@dataclass(frozen=True, slots=True)
class Draws:
    """`NUM_DRAWS` bootstrap samples of the asked rows and of the control's."""

    rows: Values
    """(D, R) the share of each draw that each row has."""
    control: Values
    """(D, C); the same as `rows` where the control was asked the same rows."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What is known of the asked rows, in arrays of values from 0 to 1."""

    before: Values
    """(R,) by the model before, without an attack."""
    after: Values
    """(R,) by the unlearned model, without an attack."""
    attacked: Values
    """(P, R) by the unlearned model under an attack of P strengths."""
    control: Values
    """(C,) by the control, without an attack."""
    control_attacked: Values
    """(P, C) by the control under the attack."""


def corrected_level(level: float, num_findings: int) -> float:
    """Return the level of each of so many intervals that all hold at once with `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, num_findings)


def draw(units: Units, control_units: Units | None, *, seed: int) -> Draws:
    """Return draws with replacement, of as many documents as there are; the same for both sides if the control was
    asked the same rows (None)."""
    generator = np.random.default_rng(seed)
    rows = _drawn(units, generator)
    return Draws(rows, rows if control_units is None else _drawn(control_units, generator))


def remaining(before: Values, after: Values, control: Values, draws: Draws, *, level: float) -> Interval:
    """Return the share of what was known that is still given without an attack: (after - control) / (before - control).

    Takes (R,), (R,) and (C,) values; 1 where nothing was forgotten, 0 where no more is known than by the control. A
    control that knows as much as the model before gives 0.
    """

    def share(b: Values, a: Values, c: Values) -> Values:
        known = b - c
        return np.divide(a - c, known, out=np.zeros_like(known), where=known >= MIN_KNOWN)

    drawn = share(draws.rows @ before, draws.rows @ after, draws.control @ control)
    whole = share(*(np.array([values.mean()]) for values in (before, after, control)))
    return _interval(float(whole[0]), drawn, level=level)


def recoveries(sides: Sides, draws: Draws, *, level: float) -> list[Interval] | None:
    """Return the recovery at each strength; None where before less after is below `MIN_KNOWN`."""
    if float(sides.before.mean() - sides.after.mean()) < MIN_KNOWN:
        return None
    before, after = draws.rows @ sides.before, draws.rows @ sides.after
    control = draws.control @ sides.control
    known = np.maximum(before - after, MIN_KNOWN)
    found = []
    for attacked, control_attacked in zip(sides.attacked, sides.control_attacked, strict=True):
        drawn = _recovery(draws.rows @ attacked, after, draws.control @ control_attacked, control, known)
        a, u, c, base = (np.array([v.mean()]) for v in (attacked, sides.after, control_attacked, sides.control))
        whole = _recovery(a, u, c, base, np.array([sides.before.mean() - sides.after.mean()]))
        found.append(_interval(float(whole[0]), drawn, level=level))
    return found


def own_recoveries(
    attacked: Values, before: Values, control: Values, draws: Draws, *, level: float
) -> list[Interval] | None:
    """Return the recovery at each strength of an attack with a measure of its own: (attacked - control) / (before -
    control), all under the attack.

    Takes (P, R), (P, R) and (P, C) values. None where the measure hardly tells the model before from the control.
    """
    if float((before.mean(1) - control.mean(1)).max()) < MIN_KNOWN:
        return None
    found = []
    for a, b, c in zip(attacked, before, control, strict=True):
        base = draws.control @ c
        drawn = (draws.rows @ a - base) / np.maximum(draws.rows @ b - base, MIN_KNOWN)
        whole = (a.mean() - c.mean()) / max(b.mean() - c.mean(), MIN_KNOWN)
        found.append(_interval(float(whole), drawn, level=level))
    return found


def area(strengths: Sequence[float], values: Sequence[float]) -> float:
    """Return the mean height of a curve over the logarithm of strength; 0 of a curve without points."""
    return float(area_weights(strengths) @ np.asarray(values, dtype=np.float64))


def area_weights(strengths: Sequence[float]) -> Values:
    """Return (P,) what each point counts in the mean height of a curve over log(1 + strength), by trapezoids.

    They add up to 1; points of one strength alone count the same.
    """
    places = np.log1p(np.abs(np.asarray(strengths, dtype=np.float64)))
    gaps = np.diff(places)
    if not gaps.any():
        return np.full(len(places), 1 / max(1, len(places)))
    halves = np.concatenate([[0.0], gaps, [0.0]]) / 2
    return np.asarray((halves[:-1] + halves[1:]) / gaps.sum(), dtype=np.float64)


def auc(seen: Values, unseen: Values) -> float:
    """Return how often a seen row (m,) scores above an unseen one (n,), ties counting half."""
    return float(_wins(seen, unseen).mean())


def auc_shift(
    seen: Values, unseen: Values, control: tuple[Values, Values] | None, draws: Draws, *, level: float
) -> tuple[Interval, Interval]:
    """Return the AUC, and its difference to that of the control on the same rows; to 1/2 where there is none.

    `draws` are of the seen rows, and of the unseen ones as its control.
    """
    own = _wins(seen, unseen)
    difference = own - (0.5 if control is None else _wins(*control))
    found = []
    for wins in (own, difference):
        drawn = ((draws.rows @ wins) * draws.control).sum(1)
        found.append(_interval(float(wins.mean()), drawn, level=level))
    return found[0], found[1]


def true_positives(seen: Values, unseen: Values, draws: Draws, *, level: float) -> tuple[Interval, Interval]:
    """Return the share of seen rows found at 5% false positives, taking high scores for seen, and taking low ones.

    `draws` are those of `auc_shift`; each has a threshold of its own.
    """
    return _found(seen, unseen, draws, level=level), _found(-seen, -unseen, draws, level=level)


def rows_for(margin: float, interval: Interval, num_rows: int, num_documents: int) -> int:
    """Return about how many rows, of documents as long as these, would narrow an interval to a margin either side.

    Its width falls as 1 / sqrt(documents).
    """
    half = max(interval.high - interval.value, interval.value - interval.low)
    room = max(margin - abs(interval.value), margin / 5)
    fewest = fewest_documents(margin) * num_rows / num_documents
    return math.ceil(round(max(fewest, num_rows * (half / room) ** 2), 9))


def fewest_documents(margin: float) -> int:
    """Return the documents without which nothing can be said to be within a margin: 3 / margin.

    A share of `margin` would show in none of so many with a probability of 5% (the rule of three), and an interval over
    documents of which none shows anything has no width. Rows of one document come back together, so they count once.
    """
    return math.ceil(round(3 / margin, 9))


def _recovery(attacked: Values, after: Values, control_attacked: Values, control: Values, known: Values) -> Values:
    gain = attacked - np.maximum(after, control)
    return (gain - (control_attacked - control)) / known


def _drawn(units: Units, generator: np.random.Generator) -> Values:
    """(NUM_DRAWS, R) the share of each draw that each row has, its document drawn with all its rows."""
    count = int(units.max()) + 1
    chosen = generator.integers(count, size=(NUM_DRAWS, count)) + count * np.arange(NUM_DRAWS)[:, None]
    times = np.bincount(chosen.ravel(), minlength=NUM_DRAWS * count).reshape(NUM_DRAWS, count)
    weights = times[:, units].astype(np.float64)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float64)


def _found(seen: Values, unseen: Values, draws: Draws, *, level: float) -> Interval:
    """The share of seen rows above the lowest unseen value that at most 5% of the unseen rows are above."""
    falling = np.sort(unseen)[::-1]
    first = np.searchsorted(-falling, -falling)
    whole = np.full((1, len(unseen)), 1 / len(unseen))
    shares = []
    for rows, control in ((np.full((1, len(seen)), 1 / len(seen)), whole), (draws.rows, draws.control)):
        weights = control[:, np.argsort(unseen)[::-1]]
        above = (np.cumsum(weights, axis=1) - weights)[:, first]
        lowest = (above <= FALSE_POSITIVES + _ROUNDING).sum(1) - 1
        shares.append((rows * (seen > falling[lowest][:, None])).sum(1))
    return _interval(float(shares[0][0]), shares[1], level=level)


def _wins(seen: Values, unseen: Values) -> Values:
    """(m, n) 1 where the seen row scores above the unseen one, 1/2 for a tie, else 0."""
    return np.asarray((seen[:, None] > unseen[None]) + 0.5 * (seen[:, None] == unseen[None]), dtype=np.float64)


def _interval(value: float, drawn: Values, *, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
