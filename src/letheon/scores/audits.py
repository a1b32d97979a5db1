"""What an audit leaves behind: audit/results.json, of which reports know no more; without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from letheon.errors import EvaluationError, shown
from letheon.scores.score import Scores
from letheon.storage.run_folder import AUDIT_RESULTS_FILE

AUDIT_SCHEMAS = "letheon.audit/"
"""How the schemas of all versions begin."""
SCHEMA = f"{AUDIT_SCHEMAS}1"

CONTROLS = {
    "before": "before",
    "after": "unlearned",
    "never": "never knew",
    "placebo": "placebo rows",
    "hiding": "known to hide",
    "hiding-until-rounded": "hides until rounded",
}
"""What tables call the models that are attacked, and the unlearned model attacked for rows that it never knew."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A value with its bootstrap interval over documents, of the level that `Thresholds` were corrected to."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AuditPoint:
    """What an attack of one strength finds."""

    strength: float
    label: str
    """The strength in words: "20 steps", "nf4"."""
    values: Mapping[str, float]
    """Mean over the asked rows, 0 to 1, by control (`CONTROLS`)."""
    recovery: Effect | None = None
    """Share of what was forgotten that comes back, less the control's; None where nothing was forgotten."""
    of_before: float | None = None
    """min(attacked / before, 1), the share of what the model before gives without an attack; of rounding this is Q.
    None for a measure of an attack's own."""


@dataclass(frozen=True, slots=True)
class AuditSeparation:
    """What one score of a membership attack finds."""

    score: str
    auc: Mapping[str, float]
    """By control; 0.5 tells nothing, and both sides of it count."""
    interval: Effect
    """Of the unlearned model's AUC."""
    shift: Effect
    """Of that AUC less the control's on the same rows, or less 0.5."""
    true_positives: tuple[Effect, Effect]
    """Share of forget rows found at 5% false positives in the unlearned model: taking cheap rows for seen, and taking
    dear ones."""


@dataclass(frozen=True, slots=True)
class AuditedAttack:
    """One attack on all controls."""

    name: str
    title: str
    source: str
    unit: str
    """Of the strength; empty for membership."""
    num_rows: int
    counts: bool
    """Whether it is part of the verdict."""
    works: bool | None
    """Whether it brings back rows that are known to be hidden; None where that could not be tried."""
    points: tuple[AuditPoint, ...] = ()
    separations: tuple[AuditSeparation, ...] = ()
    area: float | None = None
    """Mean height of the curve of the unlearned model over the logarithm of strength."""
    control_area: float | None = None
    """The same of the control that recovery is measured against."""
    area_recovery: Effect | None = None
    """Mean height of the recovery over the logarithm of strength."""
    num_leaked: int = 0
    """Rows that it brings back although no control gives anything like their answers."""
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AuditResults:
    """All that an audit found."""

    verdict: str
    """"gone", "hidden", "not forgotten" or "can't tell"."""
    reason: str
    attack: str | None
    """The attack that shows it."""
    needed_rows: int | None
    thresholds: Mapping[str, float]
    """What the verdict depends on."""
    controls: Mapping[str, str]
    """What each control is: a checkpoint, or how it was made."""
    missing: Mapping[str, str]
    """Controls that there are none of, and why."""
    compared_with: str
    """The control that recovery is measured against: "never" or "placebo"."""
    num_rows: Mapping[str, int]
    """Rows by what they were used for: "forget", "asked", "placebo"; "documents" is how many those asked are of."""
    known: Mapping[str, float]
    """Knowledge without an attack, mean over the asked rows, 0 to 1, by control."""
    remaining: Effect
    """Share of the knowledge before that is given without an attack."""
    num_leaked: int
    """Rows that are given without an attack although no control gives anything like their answers."""
    attacks: tuple[AuditedAttack, ...]
    left_out: Mapping[str, str]
    """Attacks that were not run, and why."""
    warnings: tuple[str, ...] = ()
    form: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    scores: Scores = field(default_factory=Scores)

    def to_json(self) -> str:
        """Return the text of audit/results.json."""
        own = {name: value for name, value in asdict(self).items() if name != "scores"}
        return (
            json.dumps({"schema": SCHEMA, **own, "scores": self.scores.as_json()}, indent=2, ensure_ascii=False) + "\n"
        )


def read_audit(path: Path) -> AuditResults:
    """Read the results of an audit.

    Raises:
        EvaluationError: the file is missing, is not JSON, or has another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: the results of an audit cannot be read ({error}); audit again") from error
    schema = data.pop("schema", None) if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise EvaluationError(
            f"{path}: expected the {AUDIT_RESULTS_FILE} of an audit with schema {SCHEMA!r}, got {shown(schema)}; "
            "read it with the version of Letheon that wrote it, or audit again"
        )
    try:
        return TypeAdapter(AuditResults).validate_python({**data, "scores": {"all": data.get("scores", ())}})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EvaluationError(
            f"{path}: does not follow schema {SCHEMA!r} ({place}: {first['msg']}); audit again"
        ) from error
