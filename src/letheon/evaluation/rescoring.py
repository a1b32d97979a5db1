"""An evaluation on disk, and scoring it again from its predictions without a model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from letheon.errors import EvaluationError, shown
from letheon.evaluation.fluency import answer_fluency
from letheon.evaluation.predicting import score_again
from letheon.evaluation.registry import read_results, suites
from letheon.evaluation.suite import Measured, Suite
from letheon.scores.fluency import LOSS_BEFORE
from letheon.scores.numbers import is_same, numbers
from letheon.scores.results import Evaluation, PlainResults, Results
from letheon.settings import DEFAULT_SUITE
from letheon.storage.run_folder import FORM_PREDICTIONS_FILE, PREDICTIONS_FILE, RESULTS_FILE, write_entry

_MOST_NAMED = 4


def write_evaluation(evaluation: Evaluation, out_dir: Path) -> None:
    """Write predictions.jsonl, results.json and what else the suite writes into `out_dir`, made if it is not there.

    What the model said to the rows in another form than the raw prompts is in predictions_in_form.jsonl.

    Each file appears whole or not at all. A folder that is made here, and the predictions, which hold the rows, are
    their owner's alone.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    for entry, predictions in ((PREDICTIONS_FILE, evaluation.predictions), (FORM_PREDICTIONS_FILE, evaluation.in_form)):
        lines = (json.dumps(prediction.as_json(), ensure_ascii=False) + "\n" for prediction in predictions)
        if predictions:
            write_entry(out_dir, entry, "".join(lines))
        else:
            (out_dir / entry).unlink(missing_ok=True)  # of an evaluation before, in the same folder
    write_entry(out_dir, RESULTS_FILE, evaluation.results.to_json())
    suite = suites().get(evaluation.results.suite)
    for entry, text in ({} if suite is None else suite.files(evaluation)).items():
        write_entry(out_dir, entry, text)


def rescore(predictions_path: Path, *, results_path: Path | None = None) -> Evaluation:
    """Score the generations of a predictions.jsonl again, without a model.

    Predictions in the rows' form are read from predictions_in_form.jsonl beside them. What was measured besides, the
    model's name and the provenance are carried over from `results_path`, by default the results.json beside the
    predictions; where there is none they are missing, and `missing` says so.

    Raises:
        EvaluationError: a file is not what evaluate writes.
    """
    beside = predictions_path.parent / RESULTS_FILE
    earlier_path = results_path or (beside if beside.exists() else None)
    earlier = read_results(earlier_path) if earlier_path is not None else None
    suite = _suite_of(DEFAULT_SUITE if earlier is None else earlier.suite, earlier_path)
    predictions = score_again(predictions_path, sets=suite.sets)
    form_path = predictions_path.parent / FORM_PREDICTIONS_FILE
    in_form = score_again(form_path, sets=suite.sets) if form_path.exists() else ()
    if earlier is None:
        reason = f"scored again from predictions, and there is no {beside} to take it from"
        blank, form, others = PlainResults(suite.name, "unknown"), None, {}
        missing = dict.fromkeys(suite.unpredicted, reason)
    else:
        blank, form, others = _blank(earlier), earlier.form, dict(earlier.measured)
        missing = dict(earlier.missing)
    found = answer_fluency(in_form or predictions, losses_before=_losses_before(earlier))
    results = suite.aggregate(blank, Measured(predictions, in_form, form, others, missing)).with_fluency(found)
    return Evaluation(results, predictions, in_form if results.form else ())


def contradictions(folder: Path, results: Results) -> tuple[str, ...]:
    """Say where the scores of an evaluation's folder are not possible, or not what its predictions give.

    Membership and MMLU scores have no predictions; they are held against one another. Without a predictions.jsonl only
    what is in `results` itself is looked at.

    Raises:
        EvaluationError: the predictions are not what evaluate writes.
    """
    suite = suites().get(results.suite)
    outside = [*_outside(results), *(suite.impossible(results) if suite is not None else ())]
    if outside or suite is None or not (folder / PREDICTIONS_FILE).exists():
        return tuple(outside)
    again = rescore(folder / PREDICTIONS_FILE, results_path=folder / RESULTS_FILE).results
    if not results.fluency:  # of an earlier version
        again = again.with_fluency({})
    told, found = (dict(numbers(_compared(one))) for one in (results, again))
    names = [name for name in {**told, **found} if not is_same(told.get(name), found.get(name))]
    return tuple(f"{n} is {told.get(n)}, its predictions give {found.get(n)}" for n in names[:_MOST_NAMED])


def _losses_before(earlier: Results | None) -> Mapping[str, float | None]:
    """What the answers cost the model before, which the predictions do not tell."""
    return {side: numbers.get(LOSS_BEFORE) for side, numbers in (earlier.fluency if earlier else {}).items()}


def _outside(results: Results) -> Iterator[str]:
    """Say which scores are not between their bounds; a suite says itself of scores that it makes of others."""
    for score in results.scores if isinstance(results, PlainResults) else ():
        if score.value is not None and score.bounds is not None:
            low, high = score.bounds
            if not low <= score.value <= high:
                yield f"{score.name} is {score.value:g}, which is not between {low:g} and {high:g}"


def _compared(results: Results) -> dict[str, Any]:
    """The fields of results in which two computations have to agree."""
    values = asdict(cast("PlainResults", results))
    if isinstance(results, PlainResults):
        values["scores"] = {score.name: asdict(score) for score in results.scores}
    return {name: value for name, value in values.items() if name not in ("settings", "provenance", "duration_s")}


def _suite_of(name: str, path: Path | None) -> Suite:
    if name not in suites():
        raise EvaluationError(
            f"{path}: expected results of one of the suites {', '.join(suites())}, got those of {shown(name)}"
        )
    return suites()[name]


def _blank(earlier: Results) -> PlainResults:
    return PlainResults(
        earlier.suite, earlier.model, settings=dict(earlier.settings), provenance=dict(earlier.provenance)
    )
