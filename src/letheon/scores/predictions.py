"""What a model said to a row, beside the answer that was wanted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from letheon.data.rows import Kind


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

    def as_json(self) -> dict[str, Any]:
        """Return it as a line of predictions.jsonl has it."""
        found = asdict(self)
        return found if self.values else {name: value for name, value in found.items() if name != "values"}
