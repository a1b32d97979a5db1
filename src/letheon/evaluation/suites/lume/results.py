"""What LUME's suite finds: the fields of its results.json.

A score that could not be computed is null and `missing` says why, under the score's dotted name. Reports and re-scoring
read only these files, so this module needs neither torch nor transformers.

The official ROUGE knows the letters a-z and digits alone, the official exact match compares code points. Beside both
stand Unicode variants, in fields that begin with `unicode_`; they are None in files of earlier versions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.found import MembershipScores, MmluScores, RougeDrops
from letheon.evaluation.suites.lume.listing import scores_of
from letheon.scores.fluency import Fluencies, fluency_scores
from letheon.scores.results import Form, Results, results_from, results_text
from letheon.scores.score import Scores

SplitName = Literal["forget", "retain"]


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
class SplitScores:
    """Scores of one split: over all its rows, and by task (keys sorted)."""

    overall: TaskScores
    tasks: dict[str, TaskScores]
    rouge_drops: RougeDrops | None = None
    """None without completions, or in a file of an earlier version."""


@dataclass(frozen=True, slots=True)
class FormScores(Form):
    """The scores of the rows asked in the form in which the model knows them; its fields are those of `LumeResults`."""

    forget: SplitScores | None = None
    retain: SplitScores | None = None
    task_aggregate: float | None = None
    unicode_task_aggregate: float | None = None


@dataclass(frozen=True, slots=True)
class LumeResults:
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
    fluency: Fluencies = field(default_factory=dict)
    """How fluent the answers to each set of rows are; empty in a file of an earlier version."""

    @property
    def scores(self) -> Scores:
        """Every score of the suite, in the order of its tables; totals also where they have no value."""
        return Scores((*scores_of(self), *fluency_scores(self.fluency)))

    @property
    def num_rows(self) -> dict[str, dict[str, int]]:
        """How many completions and questions of each split were scored."""
        splits = {"forget": self.forget, "retain": self.retain}
        overall = {name: split.overall for name, split in splits.items() if split is not None}
        return {
            name: {"completions": scores.num_completions, "questions": scores.num_questions}
            for name, scores in overall.items()
        }

    @property
    def measured(self) -> dict[str, Any]:
        """The attack's numbers and MMLU's, of which there are no predictions."""
        return {name: found for name, found in (("mia", self.mia), ("mmlu", self.mmlu)) if found is not None}

    def with_fluency(self, found: Fluencies) -> Self:
        """Return the results with how fluent the answers are; the scores follow."""
        return replace(self, fluency=found)

    def to_json(self) -> str:
        """Return the text of results.json."""
        return results_text(asdict(self), self.scores)

    @classmethod
    def of(cls, results: Results) -> Self:
        """Return results that are known to be this suite's.

        Raises:
            EvaluationError: they are of another suite.
        """
        if not isinstance(results, cls):
            raise EvaluationError(f"expected results of the suite lume, got those of {shown(results.suite)}")
        return results


def read_lume(data: Mapping[str, Any], source: Path) -> LumeResults:
    """Return the fields of a results.json as results; its scores are made of them again.

    Raises:
        EvaluationError: a field is missing or not what it should be; `source` names the file.
    """
    own = {f.name for f in fields(LumeResults)}
    return results_from({name: value for name, value in data.items() if name in own}, LumeResults, source=source)
