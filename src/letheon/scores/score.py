"""A score as data: its value, its direction, its role, and the score that it replaces.

Reports, verdicts, cards and studies know scores by these facts alone, never by their names.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any, Literal

Better = Literal["higher", "lower"] | float
"""Which way is better, or the number that a score should be near."""

Role = Literal["forgetting", "retention", "privacy", "general", "fluency", "aggregate", "final", "summary"]
"""What a score speaks of.

forgetting: what is left of the rows to forget, where lower is better; where higher is better, how well they are gone.
retention: what is left of the rows to keep. privacy: what an attack can tell. general: what the model knows besides.
fluency: how its answers read, right or wrong.
aggregate: made of other scores. final: the one number that a suite ends with. summary: made of other scores for tables
of many runs; a table of one run leaves it out.
"""

FORGETTING: Role = "forgetting"
RETENTION: Role = "retention"

UNICODE, IN_FORM, SOUND = "Unicode", "in form", "sound"
"""Variants that the scores of any suite may have: over words of any script; of rows asked in the form in which the
model knows them; without a fault of the suite's own code that changes them."""

FORGOTTEN, RETAINED = "forgotten", "retained"
"""Names of the two summaries that every suite with such rows has: 1 - the mean score on the rows to forget, the mean
score on the rows to keep; 0 to 1, higher is better. Unlike a harmonic mean, they move where one score is 0."""

SHARE = (0.0, 1.0)
"""The bounds of most scores."""


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one evaluation; without a value, what is known of it beforehand."""

    name: str
    """Dotted, as in results.json and its `missing`."""
    label: str
    """What people call it."""
    better: Better
    role: Role
    value: float | None = None
    interval: tuple[float, float] | None = None
    """The 95% interval of the value."""
    missing: str | None = None
    """Why it has no value; None where that is not recorded, or it has one."""
    bounds: tuple[float, float] | None = SHARE
    """The smallest and the largest value that are possible; None where there are none."""
    short: str = ""
    """What it is called beside its group or in the columns of a study; the label if empty."""
    is_headline: bool = False
    """Whether it stands in the tables of studies, where there is no room for all of them."""
    variant_of: str = ""
    """The name of the score that this is a variant of; empty if of none."""
    variant: tuple[str, ...] = ()
    """In what it differs from that one."""
    preferred: str = ""
    """Why it is to be read in place of the scores that it is a variant of; empty if it need not be."""
    sizes: tuple[int, ...] = ()
    """How many documents of each kind an attack was given: members, others."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Numbers to be shown beside it, by what they are called."""

    @property
    def base(self) -> str:
        """The name of the score that this is a variant of, or its own."""
        return self.variant_of or self.name

    @property
    def short_label(self) -> str:
        """What it is called where there is little room."""
        return self.short or self.label

    def merit(self, value: float) -> float:
        """Return `value` such that higher is better: as it is, negated, or the negated distance from the target."""
        if self.better == "higher":
            return value
        return -value if self.better == "lower" else -abs(value - float(self.better))

    def stands_for(self, other: "Score") -> bool:
        """Whether it is to be read in place of `other`: the same score, of which this variant has more."""
        return self.base == other.base and set(other.variant) < set(self.variant)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one evaluation, in the order in which they are shown, with look-up by name."""

    all: tuple[Score, ...] = ()

    def __iter__(self) -> Iterator[Score]:
        """Yield the scores in their order."""
        return iter(self.all)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.all)

    def get(self, name: str) -> Score | None:
        """Return the score of that name; None without."""
        return next((score for score in self.all if score.name == name), None)

    def value(self, name: str) -> float | None:
        """Return the value of a score; None where it is not there or has none."""
        score = self.get(name)
        return None if score is None else score.value

    def of(self, *roles: Role) -> tuple[Score, ...]:
        """List the scores with one of these roles."""
        return tuple(score for score in self.all if score.role in roles)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the scores as JSON has them; what is as it is by default is left out."""
        return [_as_json(score) for score in self.all]


def summaries(scores: Iterable[Score]) -> tuple[Score, ...]:
    """Return what is forgotten and what is retained, from scores from 0 to 1 of which as much is left of the rows.

    Of rows without a score there is no value.
    """
    groups: dict[str, list[float]] = {FORGETTING: [], RETENTION: []}
    for score in scores:
        if score.role in groups and score.value is not None:
            groups[score.role].append(score.value)
    gone, left = groups.values()
    return (
        Score(FORGOTTEN, "Forgotten", "higher", "summary", 1 - fmean(gone) if gone else None),
        Score(RETAINED, "Retained", "higher", "summary", fmean(left) if left else None),
    )


def variant_name(name: str, variant: Sequence[str]) -> str:
    """Name a variant of a score: `unicode_` before the last part of the name, `_in_form` after it."""
    group, dot, last = name.rpartition(".")
    return f"{group}{dot}{'unicode_' if UNICODE in variant else ''}{last}{'_in_form' if IN_FORM in variant else ''}"


def merged(several: Iterable[Scores]) -> tuple[Score, ...]:
    """List the scores that any of several evaluations has, each once, a new one after the one that it follows there."""
    found: list[Score] = []
    for scores in several:
        place = 0
        for score in scores:
            at = next((index for index, known in enumerate(found) if known.name == score.name), None)
            if at is None:
                found.insert(place, score)
            place = (place if at is None else at) + 1
    return tuple(found)


def shown_of(several: Sequence[Scores]) -> tuple[Score, ...]:
    """List the scores by which evaluations are reported side by side.

    Variants stand among them where any of the evaluations prefers what they differ in; summaries do not.
    """
    preferred: dict[str, set[str]] = {}
    for score in (score for scores in several for score in scores if score.preferred):
        preferred.setdefault(score.base, set()).update(score.variant)
    return tuple(
        score
        for score in merged(several)
        if score.role != "summary" and set(score.variant) <= preferred.get(score.base, set())
    )


def _as_json(score: Score) -> dict[str, Any]:
    defaults = Score(score.name, score.label, score.better, score.role)
    kept = [f.name for f in fields(Score) if getattr(score, f.name) != getattr(defaults, f.name)]
    return {name: value for name, value in asdict(score).items() if name in (*_ALWAYS, *kept)}


_ALWAYS = ("name", "label", "better", "role", "value")
