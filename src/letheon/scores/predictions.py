"""What a model said to a row, beside the answer that was wanted."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from letheon.data.rows import Kind
from letheon.errors import EvaluationError, shown
from letheon.storage.json_lines import read_json_lines
from letheon.storage.run_folder import PREDICTIONS_FILE

EXPECTED = f"a {PREDICTIONS_FILE} of evaluate"
TEXT_FIELDS = ("id", "split", "task", "kind", "prompt", "answer", "generation")
_SCORE_FIELDS = ("rouge_l_recall", "rouge_1_recall", "exact_match")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One generation beside the answer it is scored against."""

    id: str
    split: str
    """The set of rows that it belongs to, such as "forget"."""
    task: str
    kind: Kind
    prompt: str
    answer: str
    generation: str
    """The new tokens decoded without special tokens, exactly as the model gave them; if cut, the first of them."""
    rouge_l_recall: float
    """ROUGE-L recall with stemming, 0 to 1."""
    rouge_1_recall: float
    """ROUGE-1 recall with stemming, 0 to 1."""
    exact_match: float
    """1.0 if generation and answer are equal after strip and lower, else 0.0."""
    unicode_rouge_l_recall: float | None = None
    """ROUGE-L recall over the words of any script, 0 to 1; None in a file of an earlier version."""
    unicode_exact_match: float | None = None
    """1.0 if they are equal after strip, NFKC and case folding, else 0.0; None in a file of an earlier version."""
    is_cut: bool = False
    """Whether a question's generation was left as soon as nothing that could follow would match.

    Both exact matches are 0.0 then, as of the whole generation. The recalls, which count for completions alone, are
    those of the part that is there. A completion is never cut.
    """
    values: Mapping[str, float] = field(default_factory=dict)
    """What else a suite scores its row by, by name."""
    has_ended: bool | None = None
    """Whether it ended by itself before the longest that was asked for; None where that is not known."""

    def as_json(self) -> dict[str, Any]:
        """Return it as a line of predictions.jsonl has it."""
        left_out = {"values"} if not self.values else set()
        left_out |= {"has_ended"} if self.has_ended is None else set()
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read a predictions.jsonl as it is, with the scores in it; an empty file gives no predictions.

    Raises:
        EvaluationError: a line is not a JSON object with the fields of `Prediction`.
    """
    return tuple(
        _prediction(f"{path}:{line}", record) for line, record in read_json_lines(path, expected=EXPECTED).records
    )


def check_texts(where: str, record: Mapping[str, Any]) -> None:
    """Check that what a prediction says in words is there, and is text.

    Raises:
        EvaluationError: it is not; `where` names the line.
    """
    for name in TEXT_FIELDS:
        if not isinstance(record.get(name), str):
            raise EvaluationError(
                f"{where}: expected text in the field {name!r}, got {shown(record.get(name))}; a prediction has the "
                f"fields {', '.join(TEXT_FIELDS)}"
            )


def _prediction(where: str, record: Mapping[str, Any]) -> Prediction:
    known = fields(Prediction)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(needed - record.keys())
    if missing:
        raise EvaluationError(
            f"{where}: expected a prediction with {', '.join(f.name for f in known)}; it lacks {', '.join(missing)}. "
            "Run `letheon evaluate` again to write the file anew"
        )
    check_texts(where, record)
    for name in _SCORE_FIELDS:
        if isinstance(record[name], bool) or not isinstance(record[name], int | float):
            raise EvaluationError(f"{where}: expected `{name}` to be a number, got {shown(record[name])}")
    return Prediction(**{f.name: record[f.name] for f in known if f.name in record})
