"""A generation scored against its row, and predictions read back; needs no model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from letheon.data.rows import Kind, Row
from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.exact_match import exact_match, unicode_exact_match
from letheon.evaluation.metrics.rouge import rouge_recall, unicode_rouge_l
from letheon.scores.predictions import Prediction
from letheon.storage.run_folder import PREDICTIONS_FILE

SETS = ("forget", "retain")

_TEXT_FIELDS = ("id", "split", "task", "kind", "prompt", "answer", "generation")


def predict(row: Row, split: str, generation: str, *, is_cut: bool = False) -> Prediction:
    """Score one generation against its row; both scores are kept whatever the row's kind.

    `is_cut` marks a generation that was stopped early because it could no longer match exactly.
    """
    recall = rouge_recall(generation, row.answer)
    return Prediction(
        id=row.id,
        split=split,
        task=row.task,
        kind=row.kind,
        prompt=row.prompt,
        answer=row.answer,
        generation=generation,
        rouge_l_recall=recall.rouge_l,
        rouge_1_recall=recall.rouge_1,
        exact_match=exact_match(generation, row.answer),
        unicode_rouge_l_recall=unicode_rouge_l(generation, row.answer),
        unicode_exact_match=unicode_exact_match(generation, row.answer),
        is_cut=is_cut,
    )


def read_predictions(path: Path, *, sets: Sequence[str] = SETS) -> tuple[Prediction, ...]:
    """Read a predictions.jsonl and score each line again; scores in the file are not looked at.

    `sets` are the sets of rows that there may be.

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
            prediction = _prediction(line, f"{path}:{number}", sets)
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


def _prediction(line: str, where: str, sets: Sequence[str]) -> Prediction:
    data = _fields(line, where)
    for name in _TEXT_FIELDS:
        if not isinstance(data.get(name), str):
            raise EvaluationError(
                f"{where}: expected text in the field {name!r}, got {shown(data.get(name))}; a prediction has the "
                f"fields {', '.join(_TEXT_FIELDS)}"
            )
    split = _one_of(data["split"], sets, f"{where}: split")
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
