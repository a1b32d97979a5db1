"""The scores of LUME's suite as data: names, labels, directions and roles, and the variants of each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from letheon.evaluation.suites.lume.scripts import script_notes
from letheon.scores.results import reason_in
from letheon.scores.score import FORGOTTEN, IN_FORM, RETAINED, UNICODE, Role, Score, Scores, variant_name

if TYPE_CHECKING:
    from letheon.evaluation.suites.lume.results import FormScores, LumeResults, SplitScores

    Tasks: TypeAlias = LumeResults | FormScores

KINDS = ("regurgitation", "knowledge")
NO_FORM = "the rows were asked with raw prompts only, or these are what their form gives; see --template"
NO_VARIANT = "scored before there was a Unicode variant; `letheon evaluate --predictions` scores it again"

_SPLITS: tuple[tuple[str, Role], ...] = (("forget", "forgetting"), ("retain", "retention"))
_VARIANTS: tuple[tuple[str, ...], ...] = ((UNICODE,), (IN_FORM,), (UNICODE, IN_FORM))
_UNICODE_PREFIX = "unicode_"

_Value = Callable[["Tasks", str], float | None]
"""Takes the scores by raw prompts or in form, and "" or "unicode_"."""


def scores_of(results: "LumeResults") -> Scores:
    """List the scores by task, the totals, and what studies show besides; each followed by its variants."""
    splits = (results.forget, results.retain)
    tasks = sorted({task for split in splits if split for task in split.tasks})
    notes = script_notes(results.forget, results.retain)
    found = [
        score
        for split, role in _SPLITS
        for task in tasks
        for kind in KINDS
        for score in _by_task(results, (split, task, kind), role, notes.get(split, {}).get(kind, ""))
    ]
    note = next((text for kinds in notes.values() for text in kinds.values()), "")
    return Scores((*found, *_totals(results, note), *_summaries(results, note)))


def task_terms(split: str, scores: "SplitScores | None", *, prefix: str = "") -> dict[str, float]:
    """Return the terms of the task aggregate that one split has; with prefix "unicode_" those of the variants."""
    tasks = {} if scores is None else scores.tasks
    means: dict[str, float] = {
        f"{split}.{name}.{score}": mean
        for name, task in tasks.items()
        for score in KINDS
        if (mean := getattr(task, f"{prefix}{score}")) is not None
    }
    return {name: 1 - mean if split == "forget" else mean for name, mean in means.items()}


def _by_task(results: "LumeResults", place: tuple[str, str, str], role: Role, note: str) -> list[Score]:
    split, task, kind = place

    def value(tasks: "Tasks", prefix: str) -> float | None:
        scores: SplitScores | None = getattr(tasks, split)
        found = scores.tasks.get(task) if scores else None
        number: float | None = getattr(found, f"{prefix}{kind}") if found else None
        return number

    label = f"{split.capitalize()} {task} {kind}"
    score = Score(f"{split}.{task}.{kind}", label, "lower" if role == "forgetting" else "higher", role)
    return _with_variants(results, score, value, note)


def _totals(results: "LumeResults", note: str) -> list[Score]:
    aggregate = Score("task_aggregate", "Task aggregate", "higher", "aggregate", short="Task score", is_headline=True)
    final = Score("final", "Final score", "higher", "final", results.final, is_headline=True)
    aggregates = _with_variants(results, aggregate, _aggregate, note)
    return [*aggregates, *_attack(results), _accuracy(results), _filled(results, final)]


def _attack(results: "LumeResults") -> list[Score]:
    auc = Score("mia.auc", "MIA AUC (95%)", 0.5, "privacy", short="AUC")
    score = Score("mia.score", "MIA score (95%)", "higher", "privacy", short="MIA score", is_headline=True)
    mia = results.mia
    if mia is None:
        return [_filled(results, auc), _filled(results, score)]
    losses = {
        f"Mean loss, {mia.num_members} members (nats a token)": mia.mean_member_loss,
        f"Mean loss, {mia.num_nonmembers} non-members (nats a token)": mia.mean_nonmember_loss,
    }
    sizes = (mia.num_members, mia.num_nonmembers)
    return [
        replace(auc, value=mia.auc, interval=mia.auc_interval, sizes=sizes, beside=losses),
        replace(score, value=mia.score, interval=mia.score_interval),
    ]


def _accuracy(results: "LumeResults") -> Score:
    value = None if results.mmlu is None else results.mmlu.accuracy
    return _filled(
        results, Score("mmlu.accuracy", "MMLU accuracy", "higher", "general", value, short="MMLU", is_headline=True)
    )


def _summaries(results: "LumeResults", note: str) -> list[Score]:
    """Variants of the final score, and what was forgotten and retained on average over the terms."""
    final = Score("final", "Final score", "higher", "summary", results.final, is_headline=True)
    found = _with_variants(results, final, lambda tasks, prefix: _final(results, _aggregate(tasks, prefix)), note)[1:]
    for name, split in ((FORGOTTEN, "forget"), (RETAINED, "retain")):
        score = Score(name, name.capitalize(), "higher", "summary")
        found += _with_variants(results, score, partial(_mean, split), note)
    return found


def _with_variants(results: "LumeResults", official: Score, value: _Value, note: str) -> list[Score]:
    """Return an official score and what is to be read in its place: over any script, in the rows' form, both."""
    if official.name != "final":
        official = _filled(results, replace(official, value=value(results, "")))
    found = [official]
    for variant in _VARIANTS:
        tasks = results.form if IN_FORM in variant else results
        number = None if tasks is None else value(tasks, _UNICODE_PREFIX if UNICODE in variant else "")
        missing = official.missing if official.value is None else NO_FORM if IN_FORM in variant else NO_VARIANT
        found.append(
            replace(
                official,
                name=variant_name(official.name, variant),
                label=official.label + "".join(f" ({one})" for one in variant),
                short=f"{official.short_label} ({', '.join(variant)})",
                value=number,
                missing=missing if number is None else None,
                variant_of=official.name,
                variant=variant,
                preferred=_why(results, variant, note),
            )
        )
    return found


def _why(results: "LumeResults", variant: tuple[str, ...], note: str) -> str:
    """Say why a variant is to be read in place of the official score; nothing if it need not be."""
    form = results.form
    in_form = f"the model knows the rows in form '{form.template}'" if form is not None and form.differs else ""
    reasons = {UNICODE: note, IN_FORM: in_form}
    return "; ".join(reasons[one] for one in variant) if all(reasons[one] for one in variant) else ""


def _filled(results: "LumeResults", score: Score) -> Score:
    return score if score.value is not None else replace(score, missing=reason_in(results.missing, score.name))


def _aggregate(tasks: "Tasks", prefix: str) -> float | None:
    value: float | None = getattr(tasks, f"{prefix}task_aggregate")
    return value


def _final(results: "LumeResults", aggregate: float | None) -> float | None:
    # A final score that could not be computed is not made up here.
    if results.final is None or aggregate is None or not (results.mia and results.mmlu):
        return None
    return fmean((aggregate, results.mia.score, results.mmlu.accuracy))


def _mean(split: str, tasks: "Tasks", prefix: str) -> float | None:
    terms: Mapping[str, Any] = task_terms(split, getattr(tasks, split), prefix=prefix)
    return fmean(terms.values()) if terms else None
