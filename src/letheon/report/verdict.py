"""What the numbers say, in words: each sentence is computed from the results and none is taken for granted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from letheon.report.answers import answers_reading
from letheon.scores.results import Results
from letheon.scores.score import FORGETTING, IN_FORM, RETENTION, SHARE, UNICODE, Better, Role, Score, Scores, shown_of

Level = Literal["good", "mixed", "bad", "unknown"]

FORGOTTEN_SHARE = 0.9
"""The part of a score on forget rows that has to be gone for them to be called forgotten."""
PARTLY_FORGOTTEN_SHARE = 0.5
KEPT_SHARE = 0.85
"""The part of a score on retain rows that has to be left for them to be called kept."""
PARTLY_KEPT_SHARE = 0.6
LITTLE_KNOWN = 0.1
"""A mean score before unlearning below which too little was known for a share of it to be gone or left."""
UNTELLING_SHARE = 0.15
"""How far from its target the interval of an attack's score may reach for the attack to be said not to tell, as a part
of the range of possible values: for an AUC, 0.35 to 0.65."""
CUT_SHORT = ("signal", "time limit", "collapse", "diverged")
"""How the reasons of runs begin that ended before they were done."""
SHORT_OF_GOALS = "finished without reaching"
"""How the reason of a run begins that took all its steps and missed a goal of its own (unlearning/automatic.py)."""
_SIDES: tuple[tuple[str, Role], ...] = (("forget", FORGETTING), ("retain", RETENTION))
_MEANS: Mapping[Role, Better] = {FORGETTING: "lower", RETENTION: "higher"}
"""Which scores of a role its mean is over: those of which less, or more, is better."""
_NOTHING_COMPARABLE = "no score on the forget or retain rows was measured both before and after"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence, and how good the news is."""

    level: Level
    sentence: str


@dataclass(frozen=True, slots=True)
class RunStart:
    """How well the model knew the rows before a run's first step."""

    template: str
    recalls: Mapping[str, float]
    """By side, "forget" and "retain", 0 to 1."""
    unknown: tuple[str, ...]
    """Sides of which the model recalled too little to forget or keep anything."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    reason: str | None
    """In the run's own words, such as "finished" or "signal 15"; None where it wrote none."""
    num_steps: int | None
    """Steps of the whole run; None where that is not recorded."""
    is_over: bool = True
    """Whether it ended by itself, in its last attempt."""

    @property
    def cut(self) -> str | None:
        """Say that it ended before it was done; None if it did not."""
        if not self.is_over:
            why = f" ({self.reason})" if self.reason else ""
            return f"the run is not over{why}, so what was scored is not its result; go on with it by --resume"
        if self.reason is not None and self.reason.startswith(SHORT_OF_GOALS):
            return f"the run {self.reason}"
        if self.reason is None or not self.reason.startswith(CUT_SHORT):
            return None
        steps = "" if self.num_steps is None else f" after {self.num_steps} steps"
        return f"the run was ended early{steps} ({self.reason})"


@dataclass(frozen=True, slots=True)
class _Clause:
    level: Level
    text: str


def verdict(
    before: Results | None,
    after: Results | None,
    *,
    start: RunStart | None = None,
    ending: Ending | None = None,
    refusal: str | None = None,
    doubt: str | None = None,
    general: Sequence[tuple[Level, str]] = (),
) -> Verdict:
    """Sum up a run in one sentence; without both evaluations it says what is known and that the rest is not.

    Rows that the model did not know in the run's own form, before its first step, cannot have been forgotten by it,
    whatever the evaluations say; neither can rows of a run that took no step. `refusal` says which evaluations are not
    of this run, `doubt` for which this cannot be checked: nothing good is said then. A run that ended early is at best
    mixed. `general` says whether its other answers have changed.
    """
    if refusal is not None:
        return Verdict("bad", _sentence(f"no verdict: {refusal}"))
    if ending is not None and ending.num_steps == 0:
        why = f" ({ending.reason})" if ending.reason else ""
        return Verdict(
            "bad", f"Nothing was trained: the run took no step{why}, so its result is the model it began with."
        )
    if start is not None and start.unknown:
        return Verdict("bad", _sentence(_unknown_rows(start)))
    found = _of_scores(before, after, general)
    level, sentence = found.level, found.sentence
    if ending is not None and (cut := ending.cut) is not None:
        level = "unknown" if not ending.is_over else "mixed" if level == "good" else level
        sentence = f"{_sentence(cut)} {sentence}"
    if doubt is not None:
        level, sentence = "unknown", f"{_sentence(f'cannot be checked: {doubt}')} {sentence}"
    return Verdict(level, sentence)


def _of_scores(before: Results | None, after: Results | None, general: Sequence[tuple[Level, str]]) -> Verdict:
    if before is None:
        if after is None:
            return Verdict("unknown", "Nothing has been measured: this folder holds no evaluation.")
        return Verdict("unknown", _one_sided(after, known="after", other="before"))
    if after is None:
        return Verdict("unknown", _one_sided(before, known="before", other="after"))
    forget, retain = _forget_clause(before, after), _retain_clause(before, after)
    scores = after.scores
    others = [
        *_membership_clauses(scores),
        *_general_clauses(before.scores, scores),
        *(_Clause(*found) for found in (*answers_reading(before.scores, scores), *general)),
    ]
    clauses = [clause for clause in (forget, retain) if clause] + others
    text = "; ".join([_joined(forget, retain), *(clause.text for clause in others)])
    text += "".join(
        f"; the {score.label.lower()} is {score.value:.3f}" for score in scores.of("final") if score.value is not None
    )
    text += _variant_note(before, after)
    return Verdict(_worst(clauses, is_complete=bool(forget and retain)), _sentence(text))


def _unknown_rows(start: RunStart) -> str:
    sides = " and ".join(start.unknown)
    recalls = ", ".join(f"{side} {value:.3f}" for side, value in start.recalls.items())
    return (
        "the model does not know these rows in any form that was tried: before the first step it recalled too little "
        f"of the {sides} rows (recall in form '{start.template}': {recalls}), so what was measured afterwards is not "
        "forgetting; give the rows as the model was trained on them, or set their form by --template"
    )


def evaluation_summary(results: Results, *, contradictions: Sequence[str] = ()) -> Verdict:
    """Sum up one evaluation that stands alone; there is nothing to compare it with, so it is neither good nor bad.

    It is bad where its scores are not what its predictions give.
    """
    if contradictions:
        return Verdict("bad", _sentence(f"these scores are not those of the evaluation: {'; '.join(contradictions)}"))
    return Verdict("unknown", _sentence(_levels(results)))


def attacks_in(scores: Scores) -> tuple[Score, ...]:
    """List the scores that say whether an attack can tell what a model was trained on: those to be near a number.

    Variants are among them only where they are preferred.
    """
    return tuple(s for s in shown_of([scores]) if s.role == "privacy" and _is_near(s) and s.value is not None)


def membership_reading(attack: Score) -> str:
    """Say what the attack's interval means for these documents; what its value is where it has no interval."""
    if attack.interval is None:
        return (
            f"{_name(attack)} is {attack.value:.3f}, where {attack.better:g} is what a model that never saw them gives."
        )
    (low, high), target = attack.interval, float(attack.better)
    name, interval = _name(attack), f"{low:.3f} to {high:.3f}"
    _, verb = membership_level(attack)
    if verb == "cannot":
        return (
            f"The 95% interval of {name}, {interval}, includes {target:g} and stays near it: from these losses the "
            "attack cannot tell the documents the model was trained on from documents it never saw. That is what "
            "forgetting should look like."
        )
    if verb == "may":
        return (
            f"The 95% interval of {name}, {interval}, includes {target:g} but reaches beyond "
            f"{' to '.join(f'{end:g}' for end in _untelling(attack))}: {_documents(attack)} are too few to say whether "
            "the attack can tell what the model was trained on."
        )
    if low > target:
        return (
            f"The 95% interval of {name}, {interval}, lies above {target:g}: the documents the model was trained on "
            "still have a lower loss than documents it never saw, so the attack can tell that it was trained on them."
        )
    return (
        f"The 95% interval of {name}, {interval}, lies below {target:g}: the documents the model was trained on have a "
        "higher loss than documents it never saw. Text made unlikelier than unseen text gives itself away as well."
    )


def mean_scores(role: Role, before: Results, after: Results) -> tuple[float, float] | None:
    """Return the plain mean over the scores of `role` that both results have, before and after; None without.

    Of forgetting only scores count of which less is better, of retention those of which more is. Where a variant is to
    be read in place of a score, the mean is over the variant.
    """
    means = _means(role, before, after)
    return None if means is None else (means[0], means[1])


def _forget_clause(before: Results, after: Results) -> _Clause | None:
    means = mean_scores(FORGETTING, before, after)
    if means is None:
        return None
    start, end = means
    went = f"their mean score went from {start:.3f} to {end:.3f}"
    if start < LITTLE_KNOWN:
        return _Clause("mixed", f"the model knew little of the forget rows to begin with ({went})")
    gone = 1 - end / start
    if gone >= FORGOTTEN_SHARE:
        return _Clause("good", f"the model forgot the forget rows ({went}, {_percent(gone)} of it gone)")
    if gone >= PARTLY_FORGOTTEN_SHARE:
        return _Clause("mixed", f"the model forgot the forget rows in part ({went}, {_percent(gone)} of it gone)")
    return _Clause("bad", f"the model did not forget the forget rows ({went})")


def _retain_clause(before: Results, after: Results) -> _Clause | None:
    means = mean_scores(RETENTION, before, after)
    if means is None:
        return None
    start, end = means
    if start < LITTLE_KNOWN:
        return _Clause("mixed", f"knew little of the retain rows to begin with ({start:.3f} to {end:.3f})")
    kept = end / start
    went = f"({start:.3f} to {end:.3f}, {_percent(kept)} of it left)"
    if kept >= KEPT_SHARE:
        return _Clause("good", f"kept the retain rows {went}")
    if kept >= PARTLY_KEPT_SHARE:
        return _Clause("mixed", f"lost a part of the retain rows {went}")
    return _Clause("bad", f"lost much of the retain rows {went}")


def _joined(forget: _Clause | None, retain: _Clause | None) -> str:
    if forget is None:
        return f"forgetting was not measured; the model {retain.text}" if retain else _NOTHING_COMPARABLE
    if retain is None:
        return f"{forget.text}; keeping was not measured"
    return f"{forget.text} {'and' if forget.level == retain.level else 'but'} {retain.text}"


def _membership_clauses(after: Scores) -> list[_Clause]:
    """One clause for each attack with an interval, and one for all others that can tell or cannot."""
    attacks = attacks_in(after)
    clauses = [_membership_clause(attack) for attack in attacks if attack.interval is not None]
    bare = [attack for attack in attacks if attack.interval is None]
    for verb in ("cannot", "can"):
        alike = [attack for attack in bare if membership_level(attack)[1] == verb]
        if len(alike) == 1:
            clauses.append(_membership_clause(alike[0]))
        elif alike:
            values = ", ".join(f"{attack.short_label} {attack.value:.3f}" for attack in alike)
            text = f"{len(alike)} membership attacks {verb} tell what it was trained on ({values})"
            clauses.append(_Clause(membership_level(alike[0])[0], text))
    return clauses


def _membership_clause(attack: Score) -> _Clause:
    level, verb = membership_level(attack)
    details = [f"{attack.short_label} {attack.value:.3f}"]
    details += [] if attack.interval is None else ["95% {:.3f} to {:.3f}".format(*attack.interval)]
    details += [_documents(attack)] if attack.sizes else []
    interval = ", ".join(details)
    if level == "good" or verb == "can":
        return _Clause(level, f"a membership attack {verb} tell what it was trained on ({interval})")
    return _Clause(
        level, f"whether a membership attack can tell what it was trained on is open: too few documents ({interval})"
    )


def membership_level(attack: Score) -> tuple[Level, Literal["can", "cannot", "may"]]:
    """Return how good the news of an attack is, and whether it can tell members from others.

    It can where the interval of its score leaves out what a model that never saw them gives, and cannot where all of
    the interval is near that. An interval that holds it and reaches further leaves it open: a larger attack may be able
    to. A score without an interval is taken for one of no width.
    """
    assert attack.value is not None, "attacks are scores with a value"
    target, (nearest, farthest) = float(attack.better), _untelling(attack)
    if attack.interval is None:
        return ("good", "cannot") if nearest <= attack.value <= farthest else ("mixed", "can")
    low, high = attack.interval
    # As shown: what reads ".500" is not taken for below it.
    if round(low, 3) > target or round(high, 3) < target:
        return "mixed", "can"
    return ("good", "cannot") if nearest <= low and high <= farthest else ("mixed", "may")


def _untelling(attack: Score) -> tuple[float, float]:
    """Within which the whole interval has to lie for an attack to be said not to tell."""
    low, high = attack.bounds or SHARE
    reach = UNTELLING_SHARE * (high - low)
    return float(attack.better) - reach, float(attack.better) + reach


def _is_near(score: Score) -> bool:
    return not isinstance(score.better, str)


def _name(attack: Score) -> str:
    return f"the {attack.short_label}"


def _documents(attack: Score) -> str:
    return f"{' + '.join(map(str, attack.sizes))} documents" if attack.sizes else "the documents"


def _general_clauses(before: Scores, after: Scores) -> list[_Clause]:
    """What became of scores of what the model knows besides the rows."""
    pairs = [(score, before.get(score.name)) for score in after.of("general") if score.is_headline]
    return [
        _Clause(
            "good" if score.merit(score.value) >= _least(score, start.value) else "mixed",
            f"{score.label} went from {start.value:.3f} to {score.value:.3f}",
        )
        for score, start in pairs
        if score.value is not None and start is not None and start.value is not None
    ]


def _least(score: Score, start: float) -> float:
    """The merit down to which a score is called kept."""
    merit = score.merit(start)
    return KEPT_SHARE * merit if merit >= 0 else merit / KEPT_SHARE


def _worst(clauses: list[_Clause], *, is_complete: bool) -> Level:
    if not is_complete:
        return "unknown"
    levels = {clause.level for clause in clauses}
    return "bad" if "bad" in levels else "mixed" if "mixed" in levels else "good"


def _one_sided(results: Results, *, known: str, other: str) -> str:
    return _sentence(
        f"only the model {known} unlearning was measured ({_levels(results)}), "
        f"so without the scores {other} it nothing can be said of what was forgotten or kept"
    )


def _levels(results: Results) -> str:
    means = [(split, _means(role, results)) for split, role in _SIDES]
    parts = [f"the mean score is {found[0]:.3f} on the {split} rows" for split, found in means if found]
    scores = results.scores
    parts += [f"{_name(attack)} of the membership attack is {attack.value:.3f}" for attack in attacks_in(scores)]
    parts += [
        f"{score.label} is {score.value:.3f}"
        for score in scores.of("general")
        if score.is_headline and score.value is not None
    ]
    return (", ".join(parts) or "no score could be computed") + _variant_note(results)


def _measured(role: Role, *results: Results) -> list[tuple[Score, ...]]:
    """The scores of `role` that all `results` have, each as every one of them has it, without the replaced ones."""
    several = [one.scores for one in results]
    shown = [score for score in shown_of(several) if score.role == role and score.better == _MEANS[role]]
    pairs = [tuple(found for scores in several if (found := scores.get(score.name)) is not None) for score in shown]
    known = [pair for pair in pairs if len(pair) == len(results) and all(one.value is not None for one in pair)]
    return [pair for pair in known if not any(other[0].stands_for(pair[0]) for other in known)]


def _means(role: Role, *results: Results) -> tuple[float, ...] | None:
    found = _measured(role, *results)
    return tuple(fmean(one.value or 0.0 for one in column) for column in zip(*found, strict=True)) or None


def _variant_note(*results: Results) -> str:
    variants = {one for _, role in _SIDES for pair in _measured(role, *results) for one in pair[0].variant}
    notes = []
    if UNICODE in variants:
        notes.append("take the Unicode scores, since the official ones miss a part of this script")
    forms = {one.form.template for one in results if one.form is not None and one.form.differs}
    if forms and IN_FORM in variants:
        notes.append(f"ask the rows in the form in which the model knows them ({', '.join(sorted(forms))})")
    return f"; these means {' and '.join(notes)}" if notes else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
