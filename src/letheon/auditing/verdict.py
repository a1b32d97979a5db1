"""One word on an unlearned model, with its reason: from findings alone, without torch.

    gone             every attack that works recovers as much as from a model that never saw the rows, within a margin
    hidden           an attack recovers more
    not forgotten    the rows are still given without an attack
    can't tell       neither is shown: too few rows, attacks too weak, rows that were never known

`hidden` and `not forgotten` are shown by an interval that lies above the margin, `gone` by intervals that lie within it
(equivalence). All intervals have one level, corrected for the number of attacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from letheon.auditing.recovery import MIN_DOCUMENTS, MIN_KNOWN, Interval, fewest_documents, rows_for

Word = Literal["gone", "hidden", "not forgotten", "can't tell"]

NOT_FORGOTTEN_FROM = 0.5
"""Share of the knowledge still given without an attack from which no attack is needed to say so."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the verdict depends on; told in every report."""

    margin: float = 0.05
    """Largest recovery, share still given and shift of an AUC that count as nothing."""
    level: float = 0.95
    """Of all intervals together."""
    min_known: float = MIN_KNOWN
    """Least knowledge before, above the control's, for which there is something to forget."""
    not_forgotten_from: float = NOT_FORGOTTEN_FROM


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attack comes to in the verdict."""

    attack: str
    title: str
    num_rows: int
    """Asked rows; the smaller side of a membership attack."""
    num_documents: int
    """Documents that they are of: so many are independent."""
    effects: tuple[tuple[str, Interval], ...]
    """At each strength, in words: the recovery, or by score the shift of the AUC."""
    is_two_sided: bool = False
    """Whether an effect below zero shows something too (membership)."""
    counts: bool = True
    works: bool | None = True
    """Whether it brings back what is known to be hidden; None where that could not be tried."""

    @property
    def is_telling(self) -> bool:
        """Whether the verdict listens to it."""
        return self.counts and self.works is not False and bool(self.effects)

    def strongest(self, margin: float) -> tuple[str, Interval]:
        """Return the weakest strength at which nearly as much is shown as at any, or the score that shows most."""
        most = max(self._shown(interval) for _, interval in self.effects)
        enough = most if self.is_two_sided else most - margin
        return next(effect for effect in self.effects if self._shown(effect[1]) >= enough)

    def shows(self, margin: float) -> bool:
        """Whether an effect lies beyond the margin, with enough documents for an interval."""
        return self.num_documents >= MIN_DOCUMENTS and any(
            self._shown(interval) > margin for _, interval in self.effects
        )

    def excludes(self, margin: float) -> bool:
        """Whether every effect lies within the margin, with enough documents to say so."""
        if self.num_documents < fewest_documents(margin):
            return False
        if self.is_two_sided:
            return all(interval.is_within(margin) for _, interval in self.effects)
        return all(interval.high <= margin for _, interval in self.effects)

    def needed_rows(self, margin: float) -> int:
        """About how many rows would do to exclude an effect beyond the margin."""
        return max(rows_for(margin, interval, self.num_rows, self.num_documents) for _, interval in self.effects)

    def _shown(self, interval: Interval) -> float:
        return max(interval.low, -interval.high) if self.is_two_sided else interval.low


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, why, and by which attack."""

    word: Word
    reason: str
    attack: str | None = None
    """The attack that shows it."""
    needed_rows: int | None = None
    """About how many rows would be enough, where there were too few."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict is made of."""

    known: float
    """Knowledge before, above the control's, 0 to 1."""
    remaining: Interval
    """The share of it that is given without an attack."""
    num_rows: int
    """Rows that were asked without an attack."""
    num_documents: int
    """Documents that they are of."""
    findings: Sequence[Finding]
    leaked_plainly: int = 0
    """Rows that are given without an attack though no control gives anything like it."""
    leaked: Sequence[tuple[str, str, int]] = ()
    """Attack, title, and how many rows it brings back so."""

    def is_given(self, bound: float) -> bool:
        """Whether more than `bound` is given without an attack, with enough documents for an interval."""
        return self.num_documents >= MIN_DOCUMENTS and self.remaining.is_above(bound)


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Return the verdict: the first that the evidence allows, in this order."""
    for rule in (_never_known, _not_forgotten, _hidden, _partly_forgotten, _leaking, _untried, _gone):
        verdict = rule(evidence, thresholds)
        if verdict is not None:
            return verdict
    return _undecided(evidence, thresholds)


def _telling(evidence: Evidence) -> list[Finding]:
    return [finding for finding in evidence.findings if finding.is_telling]


def _never_known(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    if evidence.known >= thresholds.min_known:
        return None
    return Verdict(
        "can't tell",
        f"the model before knows the rows no better than the control ({max(evidence.known, 0):.2f} more, where 1 is "
        "all of them), so there is nothing to forget; give the model that was unlearned by --before, and the rows that "
        "it knew",
    )


def _not_forgotten(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    if not evidence.is_given(thresholds.not_forgotten_from):
        return None
    return Verdict("not forgotten", _given(evidence.remaining))


def _hidden(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    margin = thresholds.margin
    shown = [finding for finding in _telling(evidence) if finding.shows(margin)]
    if not shown:
        return None
    strongest = max(shown, key=lambda finding: (not finding.is_two_sided, abs(finding.strongest(margin)[1].value)))
    label, effect = strongest.strongest(margin)
    also = f"; {_given(evidence.remaining)}" if evidence.is_given(margin) else ""
    if strongest.is_two_sided:
        way = "cheaper" if effect.value > 0 else "dearer"
        found = f"tells forget rows from unseen ones by {label}: they are {way} for the model than they should be"
        shift = f"AUC {effect.value:+.2f} from the control's, {_range(effect)}"
        return Verdict("hidden", f"{strongest.title} {found} ({shift}){also}", strongest.attack)
    found = f"brings back {effect.value:.0%} of what was forgotten at {label} ({_range(effect)})"
    return Verdict("hidden", f"{strongest.title} {found}{also}", strongest.attack)


def _partly_forgotten(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    if evidence.is_given(thresholds.margin):
        return Verdict("not forgotten", _given(evidence.remaining))
    if not evidence.leaked_plainly:
        return None
    rows = _rows(evidence.leaked_plainly)
    return Verdict(
        "not forgotten", f"without any attack the model gives {rows} of {evidence.num_rows} that no control gives"
    )


def _leaking(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:  # noqa: ARG001 - one row is enough
    if not evidence.leaked:
        return None
    attack, title, count = max(evidence.leaked, key=lambda found: found[2])
    return Verdict("hidden", f"{title} brings back {_rows(count)} that no control gives", attack)


def _untried(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:  # noqa: ARG001
    if any(finding.works for finding in _telling(evidence)):
        return None
    return Verdict("can't tell", "no attack was shown to bring back rows that are known to be hidden")


def _gone(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    telling, margin = _telling(evidence), thresholds.margin
    is_nothing_left = evidence.num_documents >= fewest_documents(margin) and evidence.remaining.high <= margin
    if not is_nothing_left or not all(finding.excludes(margin) for finding in telling):
        return None
    attacks = f"{len(telling)} attack{'s' * (len(telling) != 1)} that would bring back hidden rows"
    return Verdict(
        "gone",
        f"{attacks} recover no more than from the control, within {margin:g} ({thresholds.level:.0%} for all "
        "together), and without an attack nothing is left",
    )


def _undecided(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    margin = thresholds.margin
    needed = {f.title: f.needed_rows(margin) for f in _telling(evidence) if not f.excludes(margin)}
    if evidence.remaining.high > margin or evidence.num_documents < fewest_documents(margin):
        needed["what is given without an attack"] = rows_for(
            margin, evidence.remaining, evidence.num_rows, evidence.num_documents
        )
    title = max(needed, key=needed.__getitem__)
    return Verdict(
        "can't tell",
        f"no attack is shown to recover more than from the control, but {len(needed)} findings are too uncertain to "
        f"exclude {margin:g}; {title} would need about {needed[title]} asked rows",
        needed_rows=needed[title],
    )


def _given(remaining: Interval) -> str:
    return f"without an attack the model still gives {remaining.value:.0%} ({_range(remaining)}) of what it knew before"


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"
