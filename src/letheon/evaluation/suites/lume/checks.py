"""Where numbers of LUME's suite cannot be, whatever was measured."""

from collections.abc import Iterator
from dataclasses import asdict

from letheon.evaluation.suites.lume.results import LumeResults
from letheon.scores.numbers import TOLERANCE, is_same, numbers
from letheon.scores.results import Results


def impossible(results: Results) -> Iterator[str]:
    """Say which numbers are not between 0 and 1, and which contradict one another."""
    found = LumeResults.of(results)
    for name, value in _shares(found):
        yield f"{name} is {value:g}, which is not between 0 and 1"
    yield from _membership_contradictions(found)


def _shares(results: LumeResults) -> Iterator[tuple[str, float]]:
    """The numbers that have to lie between 0 and 1 and do not, with their names."""
    parts = {
        **{name: asdict(found) for name in ("forget", "retain") if (found := getattr(results, name)) is not None},
        "task_terms": results.task_terms,
        "task_aggregate": results.task_aggregate,
        "unicode_task_aggregate": results.unicode_task_aggregate,
        "final": results.final,
    }
    if results.mia is not None:
        mia = results.mia
        parts["mia"] = {"auc": mia.auc, "auc_interval": mia.auc_interval, "score": mia.score}
    if results.mmlu is not None:
        parts["mmlu"] = {"accuracy": results.mmlu.accuracy, "subjects": results.mmlu.subjects}
    for name, value in numbers(parts):
        if not name.rsplit(".", 1)[-1].startswith("num_") and isinstance(value, float) and not 0 <= value <= 1:
            yield name, value


def _membership_contradictions(results: LumeResults) -> list[str]:
    said = []
    if results.mia is not None:
        low, high = results.mia.auc_interval
        wanted = 1 - 2 * abs(results.mia.auc - 0.5)
        if not is_same(results.mia.score, wanted):
            said.append(f"mia.score is {results.mia.score:g}, its AUC gives {wanted:g}")
        if not low - TOLERANCE <= results.mia.auc <= high + TOLERANCE:
            said.append(f"mia.auc is {results.mia.auc:g}, outside its interval {low:g} to {high:g}")
    subjects = results.mmlu.subjects.values() if results.mmlu is not None else ()
    if results.mmlu is not None and subjects:
        accuracy = results.mmlu.accuracy
        if not min(subjects) - TOLERANCE <= accuracy <= max(subjects) + TOLERANCE:
            said.append(f"mmlu.accuracy is {accuracy:g}, which is not a mean of its subjects' accuracies")
    return said
