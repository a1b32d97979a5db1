"""What the numbers say, in words: each sentence is computed from the results and none is taken for granted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from letheon.evaluation.results import MembershipScores, Results
from letheon.report.tables import Score, scores_of

Level = Literal["good", "mixed", "bad", "unknown"]

FORGOTTEN_SHARE = 0.9
"""The part of a score on forget rows that has to be gone for them to be called forgotten."""
PARTLY_FORGOTTEN_SHARE = 0.5
KEPT_SHARE = 0.85
"""The part of a score on retain rows that has to be left for them to be called kept."""
PARTLY_KEPT_SHARE = 0.6
LITTLE_KNOWN = 0.1
"""A mean score before unlearning below which too little was known for a share of it to be gone or left."""
UNTELLING_AUC = (0.35, 0.65)
"""Within which the whole interval of an AUC has to lie for an attack to be said not to tell."""
CUT_SHORT = ("signal", "time limit", "collapse", "diverged")
"""How the reasons of runs begin that ended before they were done."""
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
) -> Verdict:
    """Sum up a run in one sentence; without both evaluations it says what is known and that the rest is not.

    Rows that the model did not know in the run's own form, before its first step, cannot have been forgotten by it,
    whatever the evaluations say; neither can rows of a run that took no step. `refusal` says which evaluations are not
    of this run, `doubt` for which this cannot be checked: nothing good is said then. A run that ended early is at best
    mixed.
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
    found = _of_scores(before, after)
    level, sentence = found.level, found.sentence
    if ending is not None and (cut := ending.cut) is not None:
        level = "unknown" if not ending.is_over else "mixed" if level == "good" else level
        sentence = f"{_sentence(cut)} {sentence}"
    if doubt is not None:
        level, sentence = "unknown", f"{_sentence(f'cannot be checked: {doubt}')} {sentence}"
    return Verdict(level, sentence)


def _of_scores(before: Results | None, after: Results | None) -> Verdict:
    if before is None:
        if after is None:
            return Verdict("unknown", "Nothing has been measured: this folder holds no evaluation.")
        return Verdict("unknown", _one_sided(after, known="after", other="before"))
    if after is None:
        return Verdict("unknown", _one_sided(before, known="before", other="after"))
    forget, retain = _forget_clause(before, after), _retain_clause(before, after)
    clauses = [c for c in (forget, retain, _membership_clause(after), _mmlu_clause(before, after)) if c]
    text = "; ".join([_joined(forget, retain), *(clause.text for clause in clauses if clause not in (forget, retain))])
    final = "" if after.final is None else f"; the final score is {after.final:.3f}"
    text += final + _variant_note(before, after)
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


def membership_reading(mia: MembershipScores) -> str:
    """Say what the attack's interval means for these documents."""
    low, high = mia.auc_interval
    interval = f"{low:.3f} to {high:.3f}"
    _, verb = membership_level(mia)
    if verb == "cannot":
        return (
            f"The 95% interval of the AUC, {interval}, includes 0.5 and stays near it: from these losses the attack "
            "cannot tell the documents the model was trained on from documents it never saw. That is what forgetting "
            "should look like."
        )
    if verb == "may":
        return (
            f"The 95% interval of the AUC, {interval}, includes 0.5 but reaches beyond "
            f"{UNTELLING_AUC[0]:g} to {UNTELLING_AUC[1]:g}: {mia.num_members} + {mia.num_nonmembers} documents are too "
            "few to say whether the attack can tell what the model was trained on."
        )
    if low > 0.5:
        return (
            f"The 95% interval of the AUC, {interval}, lies above 0.5: the documents the model was trained on still "
            "have a lower loss than documents it never saw, so the attack can tell that it was trained on them."
        )
    return (
        f"The 95% interval of the AUC, {interval}, lies below 0.5: the documents the model was trained on have a "
        "higher loss than documents it never saw. Text made unlikelier than unseen text gives itself away as well."
    )


def chance_auc_error(num_members: int, num_nonmembers: int) -> float:
    """Return the standard error of the AUC where losses do not depend on membership (Mann-Whitney, no ties).

    sqrt((n + m + 1) / (12 n m)).
    """
    return math.sqrt((num_members + num_nonmembers + 1) / (12 * num_members * num_nonmembers))


def expected_perfect_score(num_members: int, num_nonmembers: int) -> float:
    """Return the mean MIA score of a model that never saw any of the documents.

    1 - 2 E|AUC - 0.5| = 1 - 2 sqrt(2 / pi) times the AUC's standard error (normal approximation).
    """
    return 1 - 2 * math.sqrt(2 / math.pi) * chance_auc_error(num_members, num_nonmembers)


def mean_scores(split: str, before: Results, after: Results) -> tuple[float, float] | None:
    """Return the plain mean over the task scores of `split` that both results have, before and after; None without.

    Where the official score misses something of the script, the mean is over its Unicode variant.
    """
    scores = _measured(split, before, after)
    return (_mean(scores, before), _mean(scores, after)) if scores else None


def _forget_clause(before: Results, after: Results) -> _Clause | None:
    means = mean_scores("forget", before, after)
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
    means = mean_scores("retain", before, after)
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


def _membership_clause(after: Results) -> _Clause | None:
    if after.mia is None:
        return None
    mia = after.mia
    low, high = mia.auc_interval
    level, verb = membership_level(mia)
    interval = f"AUC {mia.auc:.3f}, 95% {low:.3f} to {high:.3f}, {mia.num_members} + {mia.num_nonmembers} documents"
    if level == "good" or verb == "can":
        return _Clause(level, f"a membership attack {verb} tell what it was trained on ({interval})")
    return _Clause(
        level, f"whether a membership attack can tell what it was trained on is open: too few documents ({interval})"
    )


def membership_level(mia: MembershipScores) -> tuple[Level, Literal["can", "cannot", "may"]]:
    """Return how good the news of an attack is, and whether it can tell members from others.

    It can where the interval of the AUC leaves out 0.5, and cannot where all of the interval is near 0.5. An interval
    that holds 0.5 and reaches further leaves it open: a larger attack may be able to.
    """
    low, high = mia.auc_interval
    # As shown: what reads ".500" is not taken for below it.
    if round(low, 3) > 0.5 or round(high, 3) < 0.5:
        return "mixed", "can"
    return ("good", "cannot") if UNTELLING_AUC[0] <= low and high <= UNTELLING_AUC[1] else ("mixed", "may")


def _mmlu_clause(before: Results, after: Results) -> _Clause | None:
    if before.mmlu is None or after.mmlu is None:
        return None
    start, end = before.mmlu.accuracy, after.mmlu.accuracy
    is_kept = end >= KEPT_SHARE * start
    return _Clause("good" if is_kept else "mixed", f"MMLU accuracy went from {start:.3f} to {end:.3f}")


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
    parts = [
        f"the mean score is {_mean(scores, results):.3f} on the {split} rows"
        for split in ("forget", "retain")
        if (scores := _measured(split, results))
    ]
    parts += [f"the AUC of the membership attack is {results.mia.auc:.3f}"] if results.mia else []
    parts += [f"MMLU accuracy is {results.mmlu.accuracy:.3f}"] if results.mmlu else []
    return (", ".join(parts) or "no score could be computed") + _variant_note(results)


def _measured(split: str, *results: Results) -> list[Score]:
    """The task scores of `split` that all `results` have, without those whose Unicode variant they have too."""
    scores = [score for score in scores_of(results) if score.name.startswith(f"{split}.")]
    known = [score for score in scores if all(score.value(r) is not None for r in results)]
    replaced = {name for other in known for name in other.replaces}
    return [score for score in known if score.name not in replaced]


def _mean(scores: list[Score], results: Results) -> float:
    values = [v for score in scores if isinstance(v := score.value(results), float | int)]
    return sum(values) / len(values)


def _variant_note(*results: Results) -> str:
    variants = [score for split in ("forget", "retain") for score in _measured(split, *results) if score.replaces]
    notes = []
    if any("unicode" in score.name for score in variants):
        notes.append("take the Unicode scores, since the official ones miss a part of this script")
    forms = {r.form.template for r in results if r.form is not None and r.form.differs}
    if forms and any("in_form" in score.name for score in variants):
        notes.append(f"ask the rows in the form in which the model knows them ({', '.join(sorted(forms))})")
    return f"; these means {' and '.join(notes)}" if notes else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
