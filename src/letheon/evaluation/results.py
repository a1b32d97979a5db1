"""What an evaluation leaves behind: the schema of results.json and predictions.jsonl.

`results.json` holds one `Results` as JSON, field by field; `predictions.jsonl` one `Prediction` a line. A score that
could not be computed is null and `missing` says why, under the score's dotted name. Reports and re-scoring read only
these files, so this module needs neither torch nor transformers.

The official ROUGE knows the letters a-z and digits alone, the official exact match compares code points. Beside both
stand Unicode variants, in fields that begin with `unicode_`; they are None in files of earlier versions.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from letheon.data.rows import Kind
from letheon.errors import EvaluationError, shown
from letheon.storage.run_folder import RESULTS_FILE

SCHEMA = "letheon.results/1"

SplitName = Literal["forget", "retain"]

_SMALL_SHARE = 0.01

HIGHER_IS_BETTER: dict[str, bool] = {
    "forget.regurgitation": False,
    "forget.knowledge": False,
    "retain.regurgitation": True,
    "retain.knowledge": True,
    "task_aggregate": True,
    "mia.score": True,
    "mmlu.accuracy": True,
    "final": True,
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One generation beside the answer it is scored against."""

    id: str
    split: SplitName
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


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of the rows of one task within one split; each 0 to 1, None without rows of that kind."""

    regurgitation: float | None
    """Mean ROUGE-L recall over the completions."""
    rouge_1: float | None
    """Mean ROUGE-1 recall over the completions."""
    knowledge: float | None
    """Mean exact match over the questions."""
    num_completions: int
    num_questions: int
    unicode_regurgitation: float | None = None
    """Mean Unicode ROUGE-L recall over the completions."""
    unicode_knowledge: float | None = None
    """Mean Unicode exact match over the questions."""


@dataclass(frozen=True, slots=True)
class RougeDrops:
    """What the official ROUGE tokenizer drops of a split's completions: the answers, not the generations.

    A letter is a letter, digit or emoji with the marks that stand on it.
    """

    num_letters: int
    num_dropped: int
    """Letters of which not all is a-z or 0-9."""
    num_answers: int
    num_emptied: int
    """Answers with letters of which nothing is left, so that they score 0 whatever the model says."""

    @property
    def matters(self) -> bool:
        """Whether an answer is left with nothing, or one letter in a hundred is dropped.

        A name with an accent in an English text leaves the official score what it is; the counts still tell of it.
        """
        return self.num_emptied > 0 or self.num_dropped > _SMALL_SHARE * self.num_letters


@dataclass(frozen=True, slots=True)
class SplitScores:
    """Scores of one split: over all its rows, and by task (keys sorted)."""

    overall: TaskScores
    tasks: dict[str, TaskScores]
    rouge_drops: RougeDrops | None = None
    """None without completions, or in a file of an earlier version."""


@dataclass(frozen=True, slots=True)
class MembershipScores:
    """Loss-based membership attack on documents."""

    auc: float
    """Area under the ROC curve of -loss, members = 1; 0.5 is what a model that never saw them gives."""
    auc_interval: tuple[float, float]
    """95% interval of the AUC (DeLong)."""
    score: float
    """1 - 2 |AUC - 0.5|, 1 is best."""
    score_interval: tuple[float, float]
    """The range of `score` over `auc_interval`."""
    mean_member_loss: float
    """Mean over documents of the mean token cross-entropy, nats."""
    mean_nonmember_loss: float
    num_members: int
    num_nonmembers: int


@dataclass(frozen=True, slots=True)
class MmluScores:
    """Multiple-choice accuracy."""

    accuracy: float
    """Question-weighted mean over all subjects."""
    subjects: dict[str, float]
    num_questions: int
    num_shots: int
    limit_per_subject: int | None
    """How many questions of each subject were asked, the first ones; None: all of them."""


@dataclass(frozen=True, slots=True)
class FormScores:
    """The scores of the rows asked in the form in which the model knows them; its fields are those of `Results`."""

    template: str
    date: str
    """What a chat template that writes the date took for today."""
    source: str
    """Who named the form: a run, a setting, or the model, which knows the rows best in it."""
    differs: bool
    """Whether the model is given other tokens than the raw prompts; if not, the scores are the official ones."""
    forget: SplitScores | None = None
    retain: SplitScores | None = None
    task_aggregate: float | None = None
    unicode_task_aggregate: float | None = None
    known: dict[str, dict[str, float]] = field(default_factory=dict)
    """How well a sample of the rows is known in each form tried (loss in nats a token, recall); empty if none was."""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one evaluation found."""

    suite: str
    model: str
    forget: SplitScores | None = None
    retain: SplitScores | None = None
    task_terms: dict[str, float] = field(default_factory=dict)
    """The numbers whose harmonic mean is the task aggregate, in official order, named split.task.score; forget ones as
    1 - mean. Twelve in LUME."""
    task_aggregate: float | None = None
    mia: MembershipScores | None = None
    mmlu: MmluScores | None = None
    final: float | None = None
    """Arithmetic mean of task aggregate, MIA score and MMLU accuracy."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why a score is None, by its dotted name, e.g. {"mia": "no --members given"}."""
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    unicode_task_aggregate: float | None = None
    """The task aggregate of the Unicode variants; None also in a file of an earlier version."""
    form: FormScores | None = None
    """The scores of the rows asked in their form; None where that was not done, or in a file of an earlier version."""

    def to_json(self) -> str:
        """Return the text of results.json: the schema's name, then every field."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def read_results(path: Path) -> Results:
    """Read a results.json.

    Raises:
        EvaluationError: the file is missing, is not JSON, or has another schema.
    """
    data = _read_object(path)
    if data.pop("schema", None) != SCHEMA:
        raise EvaluationError(
            f"{path}: expected a results file with schema {SCHEMA!r}; is it a {RESULTS_FILE} of evaluate?"
        )
    try:
        return TypeAdapter(Results).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EvaluationError(
            f"{path}: does not follow schema {SCHEMA!r} ({place}: {first['msg']}, got {shown(first['input'])}); run "
            "evaluate again"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: expected JSON ({error})") from error
    if not isinstance(data, dict):
        raise EvaluationError(f"{path}: expected a JSON object, got {shown(data)}")
    return data
