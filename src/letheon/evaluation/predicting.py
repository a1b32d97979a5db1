"""A generation scored against its row, and predictions read back; needs no model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from letheon.data.rows import Kind, Row
from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.exact_match import exact_match, unicode_exact_match
from letheon.evaluation.metrics.rouge import rouge_recall, unicode_rouge_l
from letheon.scores.predictions import EXPECTED, Prediction, check_texts
from letheon.storage.json_lines import read_json_lines

SETS = ("forget", "retain")


def predict(
    row: Row, split: str, generation: str, *, is_cut: bool = False, has_ended: bool | None = None
) -> Prediction:
    """Score one generation against its row; both scores are kept whatever the row's kind.

    `is_cut` marks a generation that was stopped early because it could no longer match exactly, `has_ended` one that
    ended by itself; None where that is not known.
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
        has_ended=has_ended,
    )


def score_again(path: Path, *, sets: Sequence[str] = SETS) -> tuple[Prediction, ...]:
    """Read a predictions.jsonl and score each line again; scores in the file are not looked at.

    `sets` are the sets of rows that there may be.

    Raises:
        EvaluationError: the file cannot be read or is empty, a line is not a prediction, or one row comes twice.
    """
    predictions = []
    line_of: dict[tuple[str, str], int] = {}
    for number, record in read_json_lines(path, expected=EXPECTED).records:
        prediction = _scored(record, f"{path}:{number}", sets)
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


def _scored(record: Mapping[str, Any], where: str, sets: Sequence[str]) -> Prediction:
    check_texts(where, record)
    split = _one_of(record["split"], sets, f"{where}: split")
    kind = cast("Kind", _one_of(record["kind"], get_args(Kind), f"{where}: kind"))
    is_cut = record.get("is_cut", False)
    if not isinstance(is_cut, bool):
        raise EvaluationError(f"{where}: expected true or false in the field 'is_cut', got {shown(is_cut)}")
    has_ended = record.get("has_ended")
    if has_ended is not None and not isinstance(has_ended, bool):
        raise EvaluationError(f"{where}: expected true or false in the field 'has_ended', got {shown(has_ended)}")
    row = Row(id=record["id"], prompt=record["prompt"], answer=record["answer"], task=record["task"], kind=kind)
    return predict(row, split, record["generation"], is_cut=is_cut, has_ended=has_ended)


def _one_of(value: str, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise EvaluationError(f"{what} is {shown(value)}, expected one of {', '.join(known)}")
    return value
