"""An evaluation on disk, and scoring it again from its predictions without a model."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from letheon.data.rows import Kind, Row
from letheon.errors import EvaluationError, shown
from letheon.evaluation.official import complete_results, official_text, predict, score_in_form
from letheon.evaluation.results import FormScores, Prediction, Results, SplitName, read_results
from letheon.storage.run_folder import FORM_PREDICTIONS_FILE, OFFICIAL_FILE, PREDICTIONS_FILE, RESULTS_FILE, write_entry

_MOST_NAMED = 4
_TOLERANCE = 1e-9
"""Between two computations of one score: sums of up to a million rows in double precision."""
_TEXT_FIELDS = ("id", "split", "task", "kind", "prompt", "answer", "generation")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores and every generation behind them, forget rows first."""

    results: Results
    predictions: tuple[Prediction, ...]
    """To the raw prompts."""
    in_form: tuple[Prediction, ...] = ()
    """To the rows in the form in which the model knows them; empty where that gives the model the same tokens."""


def write_evaluation(evaluation: Evaluation, out_dir: Path) -> None:
    """Write predictions.jsonl, results.json and evaluation_results.jsonl into `out_dir`, made if it is not there.

    What the model said to the rows in another form than the raw prompts is in predictions_in_form.jsonl.

    Each file appears whole or not at all. A folder that is made here, and the predictions, which hold the rows, are
    their owner's alone.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    for entry, predictions in ((PREDICTIONS_FILE, evaluation.predictions), (FORM_PREDICTIONS_FILE, evaluation.in_form)):
        lines = (json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in predictions)
        if predictions:
            write_entry(out_dir, entry, "".join(lines))
        else:
            (out_dir / entry).unlink(missing_ok=True)  # of an evaluation before, in the same folder
    write_entry(out_dir, RESULTS_FILE, evaluation.results.to_json())
    write_entry(out_dir, OFFICIAL_FILE, official_text(evaluation.results))


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read a predictions.jsonl and score each line again; scores in the file are not looked at.

    Raises:
        EvaluationError: the file cannot be read or is empty, a line is not a prediction, or one row comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise EvaluationError(
            f"{path}: expected a {PREDICTIONS_FILE} of evaluate, but it cannot be read ({error.strerror}); check the "
            "path"
        ) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path}: expected a {PREDICTIONS_FILE} of evaluate in UTF-8 ({error}); run evaluate again"
        ) from error
    predictions = []
    line_of: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prediction = _prediction(line, f"{path}:{number}")
            first = line_of.setdefault((prediction.split, prediction.id), number)
            if first != number:
                raise EvaluationError(
                    f"{path}:{number}: {prediction.split} row {prediction.id!r} was already on line {first}; "
                    "keep one generation for each row"
                )
            predictions.append(prediction)
    if not predictions:
        raise EvaluationError(f"{path}: expected one prediction per line, but the file is empty; run evaluate again")
    return tuple(predictions)


def rescore(predictions_path: Path, *, results_path: Path | None = None) -> Evaluation:
    """Score the generations of a predictions.jsonl again, without a model.

    Predictions in the rows' form are read from predictions_in_form.jsonl beside them. Membership and MMLU scores, the
    model's name and the provenance are carried over from `results_path`, by default the results.json beside the
    predictions; where there is none they are missing, and `missing` says so.

    Raises:
        EvaluationError: a file is not what evaluate writes.
    """
    predictions = read_predictions(predictions_path)
    form_path = predictions_path.parent / FORM_PREDICTIONS_FILE
    in_form = read_predictions(form_path) if form_path.exists() else ()
    beside = predictions_path.parent / RESULTS_FILE
    earlier_path = results_path or (beside if beside.exists() else None)
    earlier = read_results(earlier_path) if earlier_path is not None else _unknown(beside)
    blank = replace(earlier, warnings=(), duration_s=None, form=_form_again(earlier.form, in_form or predictions))
    results = complete_results(blank, predictions, mia=earlier.mia, mmlu=earlier.mmlu, missing=earlier.missing)
    return Evaluation(results, predictions, in_form if results.form else ())


def contradictions(folder: Path, results: Results) -> tuple[str, ...]:
    """Say where the scores of an evaluation's folder are not possible, or not what its predictions give.

    Membership and MMLU scores have no predictions; they are held against one another. Without a predictions.jsonl only
    what is in `results` itself is looked at.

    Raises:
        EvaluationError: the predictions are not what evaluate writes.
    """
    outside = [f"{name} is {value:g}, which is not between 0 and 1" for name, value in _shares(results)]
    outside += _membership_contradictions(results)
    if outside or not (folder / PREDICTIONS_FILE).exists():
        return tuple(outside)
    again = rescore(folder / PREDICTIONS_FILE, results_path=folder / RESULTS_FILE).results
    told, found = (dict(_numbers(asdict(replace(one, settings={}, provenance={})))) for one in (results, again))
    names = [name for name in {**told, **found} if name != "duration_s" and not _same(told.get(name), found.get(name))]
    return tuple(f"{n} is {told.get(n)}, its predictions give {found.get(n)}" for n in names[:_MOST_NAMED])


def _shares(results: Results) -> Iterator[tuple[str, float]]:
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
    for name, value in _numbers(parts):
        if not name.rsplit(".", 1)[-1].startswith("num_") and isinstance(value, float) and not 0 <= value <= 1:
            yield name, value


def _membership_contradictions(results: Results) -> list[str]:
    said = []
    if results.mia is not None:
        low, high = results.mia.auc_interval
        wanted = 1 - 2 * abs(results.mia.auc - 0.5)
        if not _same(results.mia.score, wanted):
            said.append(f"mia.score is {results.mia.score:g}, its AUC gives {wanted:g}")
        if not low - _TOLERANCE <= results.mia.auc <= high + _TOLERANCE:
            said.append(f"mia.auc is {results.mia.auc:g}, outside its interval {low:g} to {high:g}")
    subjects = results.mmlu.subjects.values() if results.mmlu is not None else ()
    if results.mmlu is not None and subjects:
        accuracy = results.mmlu.accuracy
        if not min(subjects) - _TOLERANCE <= accuracy <= max(subjects) + _TOLERANCE:
            said.append(f"mmlu.accuracy is {accuracy:g}, which is not a mean of its subjects' accuracies")
    return said


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the dotted names and values of all numbers, and of what is None, in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{name}.{index}")
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield name, None if value is None else float(value)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=0, abs_tol=_TOLERANCE)


def _form_again(form: FormScores | None, predictions: tuple[Prediction, ...]) -> FormScores | None:
    if form is None:
        return None
    return score_in_form(
        predictions,
        template=form.template,
        date=form.date,
        source=form.source,
        differs=form.differs,
        known=form.known,
    )


def _unknown(beside: Path) -> Results:
    reason = f"scored again from predictions, and there is no {beside} to take it from"
    return Results(suite="lume", model="unknown", missing={"mia": reason, "mmlu": reason})


def _prediction(line: str, where: str) -> Prediction:
    data = _fields(line, where)
    for name in _TEXT_FIELDS:
        if not isinstance(data.get(name), str):
            raise EvaluationError(
                f"{where}: expected text in the field {name!r}, got {shown(data.get(name))}; a prediction has the "
                f"fields {', '.join(_TEXT_FIELDS)}"
            )
    split = cast("SplitName", _one_of(data["split"], get_args(SplitName), f"{where}: split"))
    kind = cast("Kind", _one_of(data["kind"], get_args(Kind), f"{where}: kind"))
    is_cut = data.get("is_cut", False)
    if not isinstance(is_cut, bool):
        raise EvaluationError(f"{where}: expected true or false in the field 'is_cut', got {shown(is_cut)}")
    row = Row(id=data["id"], prompt=data["prompt"], answer=data["answer"], task=data["task"], kind=kind)
    return predict(row, split, data["generation"], is_cut=is_cut)


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{where}: expected a prediction as a JSON object ({error})") from error
    if not isinstance(data, dict):
        raise EvaluationError(f"{where}: expected a prediction as a JSON object, got {type(data).__name__}")
    return data


def _one_of(value: str, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise EvaluationError(f"{what} is {shown(value)}, expected one of {', '.join(known)}")
    return value
