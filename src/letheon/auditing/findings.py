"""From what attacks found on every control to what they come to: recoveries, leaks, findings for the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from letheon.auditing.attack import HIDING, AnyAttack, Attack, Knowledge, Separated, Separation
from letheon.auditing.outcomes import Asked
from letheon.auditing.recovery import (
    Draws,
    Interval,
    Sides,
    Units,
    Values,
    area,
    area_weights,
    auc,
    auc_shift,
    corrected_level,
    draw,
    own_recoveries,
    recoveries,
    remaining,
    true_positives,
)
from letheon.auditing.verdict import Evidence, Finding, Thresholds
from letheon.scores.audits import AuditedAttack, AuditPoint, AuditSeparation, Effect

CLEARLY = 0.5
"""How much more of a row than any control gives counts as a leak of that row."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One attack with what it found, by control."""

    attack: AnyAttack
    knowledge: Mapping[str, Knowledge] = field(default_factory=dict)
    separated: Mapping[str, Mapping[str, Separated]] = field(default_factory=dict)
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Leak:
    """A row that one attack, or none, brings back although no control gives anything like its answer."""

    row: int
    value: float
    text: str
    strength: str


@dataclass(frozen=True, slots=True)
class Assessor:
    """What all attacks of an audit are judged by."""

    telling: frozenset[int]
    """Places of the rows whose answers cannot be guessed."""
    telling_placebo: frozenset[int]
    """The same of the placebo rows."""
    units: Mapping[str, Units]
    """The document of each row, by its place: "asked", "placebo", "members" and "nonmembers"."""
    asked: Mapping[str, Asked]
    """What each control says without an attack, to all rows."""
    num_asked: int
    """How many of the rows are asked by attacks that do not train on half of them."""
    control: str
    """What recovery is measured against: "never" or "placebo"."""
    thresholds: Thresholds
    num_findings: int
    seed: int
    has_holdout: bool = True
    """Whether the rows that no model saw are drawn as the forget rows were; made-up ones are told from them anyway."""

    @property
    def level(self) -> float:
        """Of each interval."""
        return corrected_level(self.thresholds.level, self.num_findings)

    @property
    def is_paired(self) -> bool:
        """Whether the control was asked the same rows."""
        return self.control != "placebo"

    def num_documents(self, side: str, rows: Sequence[int] | None = None) -> int:
        """Return how many documents some rows of a side are of, by their places, or all of them."""
        units = self.units[side]
        return len(np.unique(units if rows is None else units[list(rows)]))

    def known(self) -> dict[str, float]:
        """Return the mean knowledge of each control without an attack."""
        return {name: float(self._plain(name).mean()) for name in self.asked}

    def remaining(self) -> Interval:
        """Return the share of the knowledge before that is given without an attack."""
        before, after, control = (self._plain(name) for name in ("before", "after", self.control))
        places = range(self.num_asked)
        return remaining(before, after, control, self._draws(places, places), level=self.level)

    def plain_leaks(self) -> list[Leak]:
        """Return the rows that are given without an attack."""
        after, places = self.asked["after"], range(self.num_asked)
        never = self.asked["never"].values if self.is_paired else None
        highest = self._highest_placebo(self.asked["placebo"].values[: self.num_asked], range(self.num_asked))
        return [
            Leak(place, after.values[place], after.texts[place], "")
            for place in places
            if self._is_leak(place, after.values[place], highest, None if never is None else never[place])
        ]

    def leaks(self, tried: Tried) -> list[Leak]:
        """Return the rows that an attack brings back, each at the lowest strength at which it gives most."""
        found = tried.knowledge.get("after")
        if not isinstance(tried.attack, Attack) or tried.attack.measure != "answers" or not found or not found.points:
            return []
        placebo, never = tried.knowledge["placebo"], tried.knowledge["never"] if self.is_paired else None
        highest = self._highest_placebo(_best(placebo), placebo.rows)
        theirs = dict(zip(never.rows, _best(never), strict=True)) if never is not None else {}
        leaks = []
        for index, place in enumerate(found.rows):
            point = max(found.points, key=lambda point: point.values[index])
            value = point.values[index]
            if value - self.asked["after"].values[place] >= CLEARLY and self._is_leak(
                place, value, highest, theirs.get(place)
            ):
                text = point.texts[index] if point.texts else ""
                leaks.append(Leak(place, value, text, _label(tried.attack, point.strength, point.label)))
        return leaks

    def assess(self, tried: Tried) -> tuple[AuditedAttack, Finding]:
        """Return what an attack comes to, for the results and for the verdict."""
        if isinstance(tried.attack, Separation):
            return self._separation(tried, tried.attack)
        return self._recovery(tried, tried.attack)

    def _recovery(self, tried: Tried, attack: Attack) -> tuple[AuditedAttack, Finding]:
        found = tried.knowledge["after"]
        whole = self._recoveries(tried, attack, "after", is_whole_curve=True)
        effects, works = self._recoveries(tried, attack, "after") or [], self._works(tried, attack)
        labels = [_label(attack, point.strength, point.label) for point in found.points]
        points = tuple(
            AuditPoint(
                point.strength,
                label,
                {name: _mean(of.points[i].values) for name, of in tried.knowledge.items() if i < len(of.points)},
                _effect(effects[i]) if i < len(effects) else None,
                self._of_before(attack, found, i),
            )
            for i, (point, label) in enumerate(zip(found.points, labels, strict=True))
        )
        strengths = [point.strength for point in found.points]
        audited = AuditedAttack(
            attack.name,
            attack.title,
            attack.source,
            attack.unit,
            len(found.rows),
            counts=attack.counts,
            works=works,
            points=points,
            area=area(strengths, [point.values["after"] for point in points]),
            area_recovery=None if not whole else _effect(whole[0]),
            control_area=area(strengths, [point.values.get(self.control, 0.0) for point in points]),
            num_leaked=len(self.leaks(tried)),
            notes=found.notes,
            duration_s=tried.duration_s,
        )
        named = tuple(zip(labels, effects, strict=False))
        return audited, Finding(
            attack.name,
            attack.title,
            len(found.rows),
            self.num_documents("asked", found.rows),
            named,
            counts=attack.counts,
            works=works,
        )

    def _works(self, tried: Tried, attack: Attack) -> bool | None:
        """Whether an attack brings rows back on a model that is known to hide them; None where there is none."""
        tries = [self._recoveries(tried, attack, name) for name in attack.hidden_in if name in tried.knowledge]
        found = [effects for effects in tries if effects is not None]
        return any(one.is_above(self.thresholds.margin) for effects in found for one in effects) if found else None

    def _of_before(self, attack: Attack, found: Knowledge, number: int) -> float | None:
        """The share of what the model before gives of the rows that one strength of an attack does, at most 1."""
        before = float(self._at("before", found.rows).mean())
        if attack.measure == "own" or before < self.thresholds.min_known:
            return None
        return min(_mean(found.points[number].values) / before, 1.0)

    def _recoveries(
        self, tried: Tried, attack: Attack, name: str, *, is_whole_curve: bool = False
    ) -> list[Interval] | None:
        """The recovery of one control at each strength that both it and the control that is compared with have.

        Of the whole curve: that of its mean height, which is the mean height of the recoveries (for a measure of its
        own, the quotient of the mean heights).
        """
        found, control = tried.knowledge[name], tried.knowledge[self.control]
        count = min(len(found.points), len(control.points))
        if not count:
            return []
        weights = area_weights([point.strength for point in found.points[:count]])
        at = weights[None] if is_whole_curve else np.eye(count)
        attacked, control_attacked = at @ _curve(found)[:count], at @ _curve(control)[:count]
        draws = self._draws(found.rows, control.rows)
        if attack.measure == "own":
            before = at @ _curve(tried.knowledge["before"])[:count]
            return own_recoveries(attacked, before, control_attacked, draws, level=self.level)
        sides = Sides(
            self._at("before", found.rows),
            self._at(name, found.rows),
            attacked,
            self._at(self.control, control.rows),
            control_attacked,
        )
        return recoveries(sides, draws, level=self.level)

    def _separation(self, tried: Tried, attack: Separation) -> tuple[AuditedAttack, Finding]:
        after = tried.separated["after"]
        found = {score: self._shift(tried, "after", score) for score in after}
        tells = [
            max(shift.low, -shift.high) > self.thresholds.margin
            for name in ("before", HIDING)
            for score in after
            if score in tried.separated.get(name, {})
            for _, shift in [self._shift(tried, name, score)]
        ]
        separations = tuple(
            AuditSeparation(
                score,
                {name: _auc(of[score]) for name, of in tried.separated.items() if score in of},
                _effect(own),
                _effect(shift),
                self._true_positives(after[score]),
            )
            for score, (own, shift) in found.items()
        )
        counts = attack.counts and (self.is_paired or self.has_holdout)
        one = next(iter(after.values()))
        num_rows = min(len(one.seen), len(one.unseen))
        audited = AuditedAttack(
            attack.name,
            attack.title,
            attack.source,
            "",
            num_rows,
            counts=counts,
            works=any(tells) if tells else None,
            separations=separations,
            duration_s=tried.duration_s,
        )
        effects = tuple((score, shift) for score, (_, shift) in found.items())
        return audited, Finding(
            attack.name,
            attack.title,
            num_rows,
            min(self.num_documents("members"), self.num_documents("nonmembers")),
            effects,
            is_two_sided=True,
            counts=counts,
            works=any(tells) if tells else None,
        )

    def _true_positives(self, found: Separated) -> tuple[Effect, Effect]:
        draws = self._member_draws()
        high, low = true_positives(np.array(found.seen), np.array(found.unseen), draws, level=self.level)
        return _effect(high), _effect(low)

    def _member_draws(self) -> Draws:
        return draw(self.units["members"], self.units["nonmembers"], seed=self.seed)

    def _shift(self, tried: Tried, name: str, score: str) -> tuple[Interval, Interval]:
        one = tried.separated[name][score]
        other = tried.separated["never"].get(score) if self.is_paired else None
        control = None if other is None else (np.array(other.seen), np.array(other.unseen))
        return auc_shift(np.array(one.seen), np.array(one.unseen), control, self._member_draws(), level=self.level)

    def _draws(self, rows: Sequence[int], control_rows: Sequence[int]) -> Draws:
        """Draws of asked rows and the control's, by their places; no more placebo rows than there are."""
        asked, placebo = self.units["asked"], self.units["placebo"]
        if self.is_paired:
            return draw(_numbered(asked[list(rows)]), None, seed=self.seed)
        there = [place for place in control_rows if place < len(placebo)]
        return draw(_numbered(asked[list(rows)]), _numbered(placebo[there]), seed=self.seed)

    def _plain(self, name: str) -> Values:
        return self._at(name, range(self.num_asked))

    def _at(self, name: str, places: Sequence[int]) -> Values:
        values = self.asked[name].values
        return np.array([values[place] for place in places if place < len(values)])

    def _highest_placebo(self, values: Sequence[float], places: Sequence[int]) -> float:
        pairs = zip(values, places, strict=False)
        return max((value for value, place in pairs if place in self.telling_placebo), default=0.0)

    def _is_leak(self, place: int, value: float, highest: float, never: float | None) -> bool:
        bound = max(highest if never is None else never, 0.0) + CLEARLY
        return value >= bound and place in self.telling and self.asked["before"].values[place] >= CLEARLY


def evidence_of(assessor: Assessor, tried: Sequence[Tried], findings: Sequence[Finding]) -> Evidence:
    """Return what the verdict is made of."""
    known = assessor.known()
    counted = [(one, assessor.leaks(one)) for one in tried if one.attack.counts]
    return Evidence(
        known=known["before"] - known[assessor.control],
        remaining=assessor.remaining(),
        num_rows=assessor.num_asked,
        num_documents=assessor.num_documents("asked", range(assessor.num_asked)),
        findings=findings,
        leaked_plainly=len(assessor.plain_leaks()),
        leaked=tuple((one.attack.name, one.attack.title, len(leaks)) for one, leaks in counted if leaks),
    )


def count_findings(tried: Sequence[Tried]) -> int:
    """Return how many findings the level is corrected for: attacks that count, each score of those on membership, and
    what is given without an attack."""
    return 1 + sum(len(one.separated.get("after", ())) or 1 for one in tried if one.attack.counts)


def _numbered(units: Units) -> Units:
    """Units from 0 without gaps."""
    return np.unique(units, return_inverse=True)[1]


def _best(found: Knowledge) -> list[float]:
    return [max(values) for values in zip(*(point.values for point in found.points), strict=True)]


def _curve(found: Knowledge) -> Values:
    return np.array([point.values for point in found.points], dtype=np.float64)


def _auc(found: Separated) -> float:
    return auc(np.array(found.seen), np.array(found.unseen))


def _label(attack: Attack, strength: float, label: str) -> str:
    return label or f"{strength:g} {attack.unit.removesuffix('s') if strength == 1 else attack.unit}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _effect(interval: Interval) -> Effect:
    return Effect(interval.value, interval.low, interval.high)
