"""Read a run's folder: settings, provenance, log and evaluations, as a report needs them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from letheon.errors import EvaluationError, shown
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions
from letheon.report.pairing import SIDES, Pairing, Side, pair, read_of
from letheon.scores.audits import AuditResults, read_audit
from letheon.scores.predictions import read_predictions
from letheon.scores.results import Evaluation, Results
from letheon.storage.json_lines import read_json_lines
from letheon.storage.run_folder import (
    ATTEMPTS_FILE,
    AUDIT_RESULTS_FILE,
    AUDITS_FOLDER,
    EVALUATIONS_FOLDER,
    FORM_FILE,
    FORM_PREDICTIONS_FILE,
    LOG_FILE,
    ORIGINALS_FOLDER,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    STUDY_FILE,
)
from letheon.storage.yaml_text import parse_yaml

"""The folder of a study that holds an evaluation of each model before unlearning, which its runs share."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step as log.jsonl has it; None where the run did not record the value."""

    step: int
    epoch: float
    """Passes over the data so far, fractional."""
    loss: float | None
    """nats."""
    terms: dict[str, float | None]
    """The parts of the loss by name; None where the batch held no row with that role."""
    duration_s: float | None
    num_tokens: int | None


@dataclass(frozen=True, slots=True)
class InterimRecord:
    """Scores measured while training, each 0 to 1."""

    epoch: float
    forget_recall: float | None
    retain_recall: float | None
    score: float | None


@dataclass(frozen=True, slots=True)
class RunLog:
    """log.jsonl, in order."""

    steps: tuple[StepRecord, ...] = ()
    interims: tuple[InterimRecord, ...] = ()
    notes: tuple[str, ...] = ()
    start: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    """The last event of a run that ended by itself; None if the run was stopped or is still going."""
    cut_short: bool = False
    """The last line is half a record, as a killed process leaves it; that line is not counted."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Everything that a report is made from; None or empty if the folder does not have it."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    log: RunLog | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    read: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of what the run read."""
    attempts: tuple[dict[str, Any], ...] = ()
    """When the run was begun and gone on with, as attempts.json has it."""
    pairings: tuple[Pairing, ...] = ()
    """How the evaluations in the folder go with the run, and for want of one before it that of its study; `before` and
    `after` are those that nothing speaks against."""
    contradictions: tuple[str, ...] = ()
    """Where an evaluation of its own is not what its predictions give."""
    audit: AuditResults | None = None
    is_evaluation_only: bool = False
    """The folder is an evaluation's own (results.json lies directly in it); `after` holds it."""

    @property
    def evaluations(self) -> list[tuple[str, Results]]:
        """The results that there are, each under "Before" or "After"."""
        sides = (("Before", self.before), ("After", self.after))
        return [(name, side.results) for name, side in sides if side is not None]


def read_run(folder: Path) -> RunFiles:
    """Read what `folder` has of a run; a folder with a results.json directly in it is read as one evaluation.

    Raises:
        EvaluationError: the folder has nothing to report, or a file in it is not readable as what it should be.
    """
    if (folder / RESULTS_FILE).exists():
        evaluation = _evaluation(folder)
        provenance = dict(evaluation.results.provenance) if evaluation else {}
        wrong, _ = _checked(folder, evaluation.results) if evaluation else ((), ())
        return RunFiles(folder, provenance=provenance, after=evaluation, contradictions=wrong, is_evaluation_only=True)
    log_file, provenance = folder / LOG_FILE, read_mapping(folder / PROVENANCE_FILE)
    recorded = provenance.get("read")
    read = dict(recorded) if isinstance(recorded, dict) else read_mapping(folder / FORM_FILE)
    sides: dict[Side, Evaluation | None] = {}
    pairings = []
    for side in SIDES:
        sides[side] = evaluation = _evaluation(folder / EVALUATIONS_FOLDER / side)
        if evaluation is not None:
            wrong, unchecked = _checked(folder / EVALUATIONS_FOLDER / side, evaluation.results)
            pairing = pair(
                side, evaluation.results, read=read, provenance=provenance, contradictions=wrong, unchecked=unchecked
            )
            pairings.append(pairing)
            sides[side] = None if pairing.differences else evaluation
    settings = read_settings(folder)
    if not any(pairing.side == "before" for pairing in pairings):
        sides["before"], of_study = _of_study(folder, settings, read, provenance, after=sides["after"])
        pairings = [*of_study, *pairings]
    run = RunFiles(
        folder,
        settings=settings,
        provenance=provenance,
        log=read_log(log_file) if log_file.exists() else None,
        before=sides["before"],
        after=sides["after"],
        read=read,
        attempts=_attempts(folder / ATTEMPTS_FILE, provenance),
        pairings=tuple(pairings),
        audit=read_audit(audited) if (audited := folder / AUDITS_FOLDER / AUDIT_RESULTS_FILE).is_file() else None,
    )
    if not run.settings and run.log is None and not run.pairings:
        raise EvaluationError(
            f"{folder}: expected a run's folder ({SETTINGS_FILE}, {LOG_FILE}, {EVALUATIONS_FOLDER}/) or an "
            f"evaluation's ({RESULTS_FILE}), found none of these files; give the folder that `letheon unlearn` "
            "or `letheon evaluate` got as --out"
        )
    return run


def originals_of(folder: Path) -> list[Path]:
    """List where the study of the run in `folder` evaluated models before unlearning; nothing if it is no study's."""
    study = folder.absolute().parent.parent
    return (
        sorted(path.parent for path in (study / ORIGINALS_FOLDER).glob(f"*/{RESULTS_FILE}"))
        if _is_of(study, folder)
        else []
    )


def _is_of(study: Path, run: Path) -> bool:
    return (study / STUDY_FILE).is_file() and (run / SETTINGS_FILE).is_file()


def _of_study(
    folder: Path,
    settings: Mapping[str, Any],
    read: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    after: Evaluation | None,
) -> tuple[Evaluation | None, list[Pairing]]:
    """Return the evaluation of the model that a study's run began with, and how it goes with the run; else nothing.

    One that does not go with the run is told of only if it is of a model of that name.
    """
    others: list[Pairing] = []
    for place in originals_of(folder):
        found = _evaluation(place)
        assert found is not None, "its scores were seen"
        wrong, unchecked = _checked(place, found.results)
        elsewhere = f"../../{ORIGINALS_FOLDER}/{place.name}"
        pairing = replace(
            pair("before", found.results, read=read, provenance=provenance, contradictions=wrong, unchecked=unchecked),
            elsewhere=elsewhere,
        )
        if not pairing.differences:
            # What it says of the rows is shown beside what the run itself says of them, and never without it.
            return (found if after is not None and after.telling else replace(found, predictions=(), in_form=())), [
                pairing
            ]
        if found.results.model == settings.get("model"):
            others.append(pairing)
    return None, others


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in `folder` as run.yaml has them; none if it is not there.

    Raises:
        EvaluationError: it is not readable as a mapping.
    """
    return read_mapping(folder / SETTINGS_FILE)


def read_log(path: Path) -> RunLog:
    """Read a log.jsonl; events of unknown kinds are passed over.

    Raises:
        EvaluationError: a line other than a last, half-written one is not a JSON object with the fields of its event.
    """
    records, cut_short = read_json_lines(path, expected=f"a {LOG_FILE} of a run", allow_cut=True)
    starts = [record for _, record in records if record.get("event") == "start"]
    ends = [record for _, record in records if record.get("event") == "end"]
    return RunLog(
        steps=tuple(_step(path, line, record) for line, record in records if record.get("event") == "step"),
        interims=tuple(_interim(path, line, record) for line, record in records if record.get("event") == "interim"),
        notes=tuple(str(record.get("message", "")) for _, record in records if record.get("event") == "note"),
        start=starts[0] if starts else {},
        end=ends[-1] if ends else None,
        cut_short=cut_short,
    )


def _evaluation(folder: Path) -> Evaluation | None:
    if not (folder / RESULTS_FILE).exists():
        return None
    return Evaluation(
        read_results(folder / RESULTS_FILE),
        *(
            read_predictions(path) if (path := folder / entry).exists() else ()
            for entry in (PREDICTIONS_FILE, FORM_PREDICTIONS_FILE)
        ),
    )


def _attempts(path: Path, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    # The file is ahead of provenance.json while an attempt lasts, and after one that was killed.
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else provenance.get("attempts")
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: expected a list of attempts, cannot read it ({error})") from error
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def _checked(folder: Path, results: Results) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where an evaluation's scores are not what its predictions give, and why that could not be found out."""
    is_recorded = bool(read_of(results))
    # Files of earlier versions may have been scored by other rules; nothing green is said of them.
    place = folder if is_recorded else folder / "none"
    gone = not (folder / PREDICTIONS_FILE).exists()
    unchecked = ("whether its scores follow from its predictions, which are gone",) if is_recorded and gone else ()
    return contradictions(place, results), unchecked


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a JSON or YAML file of names and values; an empty mapping if there is no file.

    Raises:
        EvaluationError: it is not readable as a mapping.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise EvaluationError(
            f"{path}: expected a mapping of names to values, cannot read it ({' '.join(str(error).split())}); restore "
            f"the file, or remove it to make the report without it"
        ) from error
    if not isinstance(data, dict):
        raise EvaluationError(f"{path}: expected a mapping of names to values, got {type(data).__name__}")
    return {str(name): value for name, value in data.items()}


def _step(path: Path, line: int, record: Mapping[str, Any]) -> StepRecord:
    terms = record.get("terms") or {}
    if not isinstance(terms, dict):
        raise EvaluationError(f"{path}:{line}: expected `terms` to map names to numbers, got {shown(terms)}")
    step = _number(path, line, record, "step")
    epoch = _number(path, line, record, "epoch")
    if step is None or epoch is None or not math.isfinite(step) or not math.isfinite(epoch):
        raise EvaluationError(f"{path}:{line}: expected a step event to have numbers `step` and `epoch`")
    num_tokens = _number(path, line, record, "num_tokens")
    return StepRecord(
        step=int(step),
        epoch=epoch,
        loss=_number(path, line, record, "loss"),
        terms={str(name): _number(path, line, terms, name) for name in terms},
        duration_s=_number(path, line, record, "duration_s"),
        num_tokens=None if num_tokens is None else int(num_tokens),
    )


def _interim(path: Path, line: int, record: Mapping[str, Any]) -> InterimRecord:
    epoch = _number(path, line, record, "epoch")
    if epoch is None or not math.isfinite(epoch):
        raise EvaluationError(f"{path}:{line}: expected an interim event to have a number `epoch`")
    recalls = (_number(path, line, record, name) for name in ("forget_recall", "retain_recall", "score"))
    return InterimRecord(epoch, *recalls)


def _number(path: Path, line: int, record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise EvaluationError(f"{path}:{line}: expected `{name}` to be a number or null, got {shown(value)}")
    try:
        return None if value is None else float(value)
    except OverflowError as error:
        raise EvaluationError(f"{path}:{line}: expected `{name}` to be a number, got {shown(value)}") from error


def flat_items(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value as text) for every leaf of nested mappings, in their order; lists stay one value.

    Of a list of mappings, whose place is a figure or a table, the length is told.
    """
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flat_items(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield f"{prefix}{name}", f"{len(value)} entries"
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", "none" if value is None or value == {} else str(value)
