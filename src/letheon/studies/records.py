"""study.json: what a study has done so far, in one file that tables and figures are made from, without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from letheon.errors import EvaluationError
from letheon.report.pairing import named_form
from letheon.scores.results import Results
from letheon.scores.score import UNICODE
from letheon.storage.run_folder import STUDY_FILE, write_json_entry
from letheon.studies.grid import Role
from letheon.studies.known import INTERIM_FORGOTTEN, INTERIM_RETAINED
from letheon.studies.spec import StudySettings

SCHEMA = "letheon.study/1"

State = Literal["waiting", "elsewhere", "running", "scoring", "finished", "failed", "diverged", "pruned"]
"""Elsewhere: another process is at it."""


@dataclass(frozen=True, slots=True)
class StateScores:
    """The scores of one state of a model."""

    epoch: float
    """0 is the model before unlearning."""
    is_result: bool
    """Whether this is the state that the run kept."""
    scores: Mapping[str, float]
    """By the names of `known_scores`; what could not be computed is left out."""
    script_notes: tuple[str, ...] = ()
    """What the official scores miss of the rows' script, in the words of the evaluation; none for English."""
    forget_rows: str | None = None
    """Which forget rows were scored: their fingerprint, else where they came from; None if the evaluation tells not."""
    form: str | None = None
    """The form that the rows were asked in beside raw prompts, with its date where it writes one; None if in none."""
    form_differs: bool = False
    """Whether the model is given other tokens in that form than by raw prompts."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as study.json has it."""

    name: str
    identity: str
    folder: str
    """Relative to the study's."""
    configuration: str
    values: Mapping[str, Any]
    """What the study varies."""
    seed: int
    role: Role
    state: State
    reason: str = ""
    """Why it ended, or what went wrong."""
    duration_s: float | None = None
    states: tuple[StateScores, ...] = ()
    notes: tuple[str, ...] = ()
    model: str | None = None
    """The model that the run begins from; None in a file of an earlier version."""
    recalls: Mapping[str, float] = field(default_factory=dict)
    """How much the model recalled before the first step, by side, 0 to 1; empty where the run's log does not say."""
    unknown: tuple[str, ...] = ()
    """Sides of which that was too little for anything to be forgotten or kept."""
    study_sha256: str | None = None
    """The fingerprint of the study under which it was begun; None where that is not recorded."""
    scale: float | None = None
    """What its dial chose; None for a run without one, or one that is not finished."""

    @property
    def is_unknown(self) -> bool:
        """Whether the model did not know the rows, so that the run's scores are not of forgetting."""
        return bool(self.unknown)

    @property
    def result(self) -> StateScores | None:
        """The scores of the state that the run kept; None while there are none."""
        return next((state for state in self.states if state.is_result), None)


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as study.json has it."""

    study: StudySettings
    runs: tuple[RunRecord, ...] = ()
    original: Mapping[str, StateScores] = field(default_factory=dict)
    """The models before unlearning by name; one, unless the study varies the model."""
    sha256: str | None = None
    """The fingerprint of the study as read when it was run; None in a file of an earlier version."""


def write_study(record: StudyRecord, out: Path) -> None:
    """Write study.json, whole or not at all."""
    study = record.study.model_dump(mode="json", by_alias=True)
    runs = [asdict(run) for run in record.runs]
    original = {name: asdict(state) for name, state in record.original.items()}
    identified = {"schema": SCHEMA, "sha256": record.sha256}
    write_json_entry(out, STUDY_FILE, {**identified, "study": study, "original": original, "runs": runs})


def read_study_record(out: Path) -> StudyRecord:
    """Read the study.json in folder `out`.

    Raises:
        EvaluationError: there is none, or it is not one.
    """
    path = out / STUDY_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error.strerror}); expected the folder of a study that has been run"
        ) from error
    except ValueError as error:
        raise EvaluationError(f"{path}: expected JSON ({error}); run the study again, which writes it anew") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise EvaluationError(f"{path}: expected schema {SCHEMA!r}; run the study again, which writes it anew")
    try:
        return StudyRecord(
            study=StudySettings.of(data["study"]),
            runs=tuple(run_from(run) for run in data["runs"]),
            original={name: _state_from(state) for name, state in data["original"].items()},
            sha256=data.get("sha256"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{path}: does not follow schema {SCHEMA!r} ({error}); run the study again, which writes it anew"
        ) from error


def scores_of_results(results: Results) -> dict[str, float]:
    """Return the scores of an evaluation that a study shows, by name; what could not be computed is left out."""
    shown = (score for score in results.scores if score.is_headline or score.role == "summary")
    return {score.name: score.value for score in shown if score.value is not None}


def state_scores(
    results: Results, *, epoch: float, is_result: bool, interim: Mapping[str, float] | None = None
) -> StateScores:
    """Return what an evaluation found of one state, with what the run itself found of it."""
    form = results.form
    return StateScores(
        epoch,
        is_result,
        {**scores_of_results(results), **(interim or {})},
        script_notes_of(results),
        forget_rows_of(results),
        form=None if form is None else named_form(form.template, form.date),
        form_differs=form is not None and form.differs,
    )


def scores_of_interim(score: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores that a run took of a state itself, by the names of `known_scores`."""
    found = {
        "interim.score": score.get("score"),
        INTERIM_FORGOTTEN: None if score.get("forget_recall") is None else 1 - score["forget_recall"],
        INTERIM_RETAINED: score.get("retain_recall"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def forget_rows_of(results: Results) -> str | None:
    """Return which forget rows an evaluation scored: their fingerprint, else where they came from."""
    source = results.provenance.get("forget")
    found = (source.get(name) for name in ("rows_sha256", "sha256", "source")) if isinstance(source, Mapping) else ()
    return next((str(value) for value in found if value), None)


def script_notes_of(results: Results) -> tuple[str, ...]:
    """Return what the official scores of an evaluation miss of the rows' script; the Unicode variants do not."""
    notes = (score.preferred for score in results.scores if score.variant == (UNICODE,))
    return tuple(dict.fromkeys(note for note in notes if note))


def run_from(data: Mapping[str, Any]) -> RunRecord:
    """Return a run from its fields as JSON has them."""
    states = tuple(map(_state_from, data["states"]))
    lists = {"notes": tuple(data["notes"]), "unknown": tuple(data.get("unknown", ()))}
    return RunRecord(**{**data, **lists, "states": states})


def _state_from(data: Mapping[str, Any]) -> StateScores:
    return StateScores(**{**data, "script_notes": tuple(data.get("script_notes", ()))})
