"""An evaluation on disk, and scoring it again from its predictions without a model."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from letheon.data.rows import Kind, Row
from letheon.errors import EvaluationError, shown
from letheon.evaluation.official import complete_results, official_text, predict
from letheon.evaluation.results import Prediction, Results, SplitName, read_results
from letheon.files import write_text

PREDICTIONS_FILE = "predictions.jsonl"
RESULTS_FILE = "results.json"
OFFICIAL_FILE = "evaluation_results.jsonl"

_TEXT_FIELDS = ("id", "split", "task", "kind", "prompt", "answer", "generation")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores and every generation behind them, forget rows first."""

    results: Results
    predictions: tuple[Prediction, ...]


def write_evaluation(evaluation: Evaluation, out_dir: Path) -> None:
    """Write predictions.jsonl, results.json and evaluation_results.jsonl into `out_dir`, made if it is not there.

    Each file appears whole or not at all. A folder that is made here, and the predictions, which hold the rows, are
    their owner's alone.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in evaluation.predictions)
    write_text(out_dir / PREDICTIONS_FILE, "".join(lines), private=True)
    write_text(out_dir / RESULTS_FILE, evaluation.results.to_json())
    write_text(out_dir / OFFICIAL_FILE, official_text(evaluation.results))


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read a predictions.jsonl and score each line again; scores in the file are not looked at.

    Raises:
        EvaluationError: the file cannot be read or is empty, a line is not a prediction, or one row comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise EvaluationError(
            f"{path}: expected a predictions.jsonl of evaluate, but it cannot be read ({error.strerror}); check the "
            "path"
        ) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path}: expected a predictions.jsonl of evaluate in UTF-8 ({error}); run evaluate again"
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
        raise EvaluationError(f"{path}: expected one prediction a line, but the file is empty; run evaluate again")
    return tuple(predictions)


def rescore(predictions_path: Path, *, results_path: Path | None = None) -> Evaluation:
    """Score the generations of a predictions.jsonl again, without a model.

    Membership and MMLU scores, the model's name and the provenance are carried over from `results_path`, by default the
    results.json beside the predictions; where there is none they are missing, and `missing` says so.

    Raises:
        EvaluationError: a file is not what evaluate writes.
    """
    predictions = read_predictions(predictions_path)
    beside = predictions_path.parent / RESULTS_FILE
    earlier_path = results_path or (beside if beside.exists() else None)
    earlier = read_results(earlier_path) if earlier_path is not None else _unknown(beside)
    blank = replace(earlier, warnings=(), duration_s=None)
    results = complete_results(blank, predictions, mia=earlier.mia, mmlu=earlier.mmlu, missing=earlier.missing)
    return Evaluation(results, predictions)


def _unknown(beside: Path) -> Results:
    reason = f"scored again from predictions, and there is no {beside} to carry it over from"
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
