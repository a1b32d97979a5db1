"""What an evaluation leaves behind, whatever the suite: results.json, of which reports and studies know no more.

`results.json` holds the fields of the suite's results, the version of the layout, and the list of scores. A file
without a version is of version 1, which had no list.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from letheon.errors import EvaluationError, shown
from letheon.scores.fluency import PREFIX, Fluencies, fluency_scores
from letheon.scores.predictions import Prediction
from letheon.scores.score import Scores
from letheon.storage.run_folder import RESULTS_FILE

_Results = TypeVar("_Results")

SCHEMA = "letheon.results/1"
VERSION = 2


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which the rows were asked beside the suite's own prompts."""

    template: str
    date: str
    """What a chat template that writes the date took for today."""
    source: str
    """Who named the form: a run, a setting, or the model, which knows the rows best in it."""
    differs: bool
    """Whether the model is given other tokens than by the suite's own prompts; if not, the scores are the same."""
    known: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """How well a sample of the rows is known in each form tried (loss in nats a token, recall); empty if none was."""


class Results(Protocol):
    """What the results of every suite have."""

    @property
    def suite(self) -> str:
        """The name of the suite."""

    @property
    def model(self) -> str:
        """What was evaluated."""

    @property
    def scores(self) -> Scores:
        """Every score that the suite knows, also those that have no value here."""

    @property
    def num_rows(self) -> Mapping[str, Mapping[str, int]]:
        """How many rows were scored, by set ("forget", "retain") and kind, in the plural ("questions")."""

    @property
    def form(self) -> Form | None:
        """The form in which the rows were asked too; None where they were not."""

    @property
    def measured(self) -> Mapping[str, Any]:
        """What was measured besides predictions, by name; these can be scored again with it."""

    @property
    def fluency(self) -> Fluencies:
        """How fluent the answers to each set of rows are; empty in a file of an earlier version."""

    @property
    def missing(self) -> Mapping[str, str]:
        """Why a score has no value, by its dotted name or that of its group."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the scores has to know."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What was read, and by which software."""

    @property
    def duration_s(self) -> float | None:
        """How long the evaluation took."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was measured."""

    def with_fluency(self, found: Fluencies) -> Self:
        """Return the results with how fluent the answers are, and its scores."""

    def to_json(self) -> str:
        """Return the text of results.json."""


@dataclass(frozen=True, slots=True)
class PlainResults:
    """The results of a suite that needs no structure of its own."""

    suite: str
    model: str
    scores: Scores = field(default_factory=Scores)
    num_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    form: Form | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What was measured besides predictions, as plain values by name; these can be scored again with it."""
    fluency: Fluencies = field(default_factory=dict)

    def with_fluency(self, found: Fluencies) -> Self:
        """Return the results with how fluent the answers are, and its scores."""
        own = (score for score in self.scores if not score.name.startswith(PREFIX))
        return replace(self, fluency=found, scores=Scores((*own, *fluency_scores(found))))

    def to_json(self) -> str:
        """Return the text of results.json."""
        return results_text(asdict(self), self.scores)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores and every generation behind them, forget rows first."""

    results: Results
    predictions: tuple[Prediction, ...]
    """To the raw prompts."""
    in_form: tuple[Prediction, ...] = ()
    """To the rows in the form in which the model knows them; empty where that gives the model the same tokens."""

    @property
    def telling(self) -> tuple[Prediction, ...]:
        """What tells how well the rows are known: what was said to them in their form, else to the raw prompts."""
        return self.in_form or self.predictions


def results_text(values: Mapping[str, Any], scores: Scores) -> str:
    """Return the text of results.json: schema and version, the fields of the results, the list of scores."""
    own = {name: value for name, value in values.items() if name != "scores"}
    whole = {"schema": SCHEMA, "version": VERSION, **own, "scores": scores.as_json()}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def read_fields(path: Path) -> tuple[dict[str, Any], int]:
    """Return the fields of a results.json, without its schema, and its version.

    Raises:
        EvaluationError: the file is missing, is not JSON, or has another schema or a later version.
    """
    data = _read_object(path)
    if data.pop("schema", None) != SCHEMA:
        raise EvaluationError(
            f"{path}: expected a results file with schema {SCHEMA!r}; is it a {RESULTS_FILE} of evaluate?"
        )
    version = data.pop("version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise EvaluationError(
            f"{path}: expected version 1 to {VERSION} of the results, got {shown(version)}; read it with the version "
            "of Letheon that wrote it, or run evaluate again"
        )
    return data, version


def read_plain(data: Mapping[str, Any], source: Path) -> "PlainResults":
    """Return the fields of a results.json as results without a structure of their own.

    Raises:
        EvaluationError: a field is missing or not what it should be; `source` names the file.
    """
    return results_from({**data, "scores": {"all": data.get("scores", ())}}, PlainResults, source=source)


def results_from(data: Mapping[str, Any], kind: type[_Results], *, source: Path) -> _Results:
    """Return the fields of a results.json as results of the class `kind`.

    Raises:
        EvaluationError: a field is missing or not what it should be; `source` names the file.
    """
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EvaluationError(
            f"{source}: does not follow schema {SCHEMA!r} ({place}: {first['msg']}, got {shown(first['input'])}); run "
            "evaluate again"
        ) from error


def missing_reason(results: Results, name: str) -> str | None:
    """Return why score `name` has no value: what `missing` says of it or of its group; None if nothing."""
    return reason_in(results.missing, name)


def reason_in(missing: Mapping[str, str], name: str) -> str | None:
    """Return what `missing` says of score `name` or of the group it belongs to, None if nothing."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        reason = missing.get(".".join(parts[:length]))
        if reason:
            return reason
    return None


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
