"""What was not measured of a run, why, and the command that would measure it."""

import shlex
from dataclasses import dataclass

from letheon.report.evidence import general_of
from letheon.report.files import RunFiles
from letheon.report.tables import NO_REASON
from letheon.scores.results import missing_reason
from letheon.scores.score import shown_of
from letheon.storage.run_folder import EVALUATIONS_FOLDER, LOG_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that was not measured, why, and the command that would measure it (or None)."""

    what: str
    why: str
    command: str | None = None


def gaps_of(run: RunFiles) -> tuple[Gap, ...]:
    """Return what a run or an evaluation did not measure, scores before unlearning first."""
    gaps = [] if run.is_evaluation_only else _missing_evaluations(run)
    for name, results in run.evaluations:
        prefix = "" if run.is_evaluation_only else f"{name} unlearning: "
        gaps += [Gap(f"{prefix}{score}", reason) for score, reason in results.missing.items()]
        unexplained = [s for s in shown_of([results.scores]) if s.value is None and not missing_reason(results, s.name)]
        gaps += [Gap(f"{prefix}{score.label}", NO_REASON) for score in unexplained]
        gaps += [Gap(f"{prefix}warning", warning) for warning in results.warnings]
    for name, side in (("Before", run.before), ("After", run.after)):
        if side and not side.telling:
            gaps.append(
                Gap(f"{name}: sample rows", f"the evaluation's folder has no {PREDICTIONS_FILE}, or an empty one")
            )
    return tuple(gaps + ([] if run.is_evaluation_only else [*_general_gaps(run), *_log_gaps(run)]))


def _missing_evaluations(run: RunFiles) -> list[Gap]:
    sides = (
        ("before", run.before, str(run.settings.get("model", "MODEL"))),
        ("after", run.after, str(run.folder / MODEL_FOLDER)),
    )
    there = {one.side for one in run.pairings}
    return [
        Gap(
            f"Every score {name} unlearning",
            f"{EVALUATIONS_FOLDER}/{name}{' is not of this run' if name in there else f'/{RESULTS_FILE} is not there'}"
            "; run this command, then the report again",
            _evaluate_command(run, model, name),
        )
        for name, side, model in sides
        if side is None
    ]


def _evaluate_command(run: RunFiles, model: str, name: str) -> str:
    asked = {
        "model": model,
        **{part: str(run.settings.get(part, part.upper())) for part in ("forget", "retain")},
        "out": str(run.folder / EVALUATIONS_FOLDER / name),
    }
    flags = (word for flag, value in asked.items() for word in (f"--{flag}", value))
    return shlex.join(["letheon", "evaluate", *flags])


def _general_gaps(run: RunFiles) -> list[Gap]:
    """Say that nothing is known of other text, of a run that left a result."""
    if "result" not in run.provenance or general_of(run):
        return []
    why = "the run had no general text (its notes say why; --general FILE gives some), or its dial was set again later"
    return [Gap("What the model says besides the rows", why)]


def _log_gaps(run: RunFiles) -> list[Gap]:
    if run.log is None:
        return [Gap("Loss curves", f"the run's folder has no {LOG_FILE}")]
    gaps = []
    if run.log.cut_short:
        gaps.append(
            Gap("The last log record", "the last line is incomplete, as after a killed process, and is left out")
        )
    if run.log.end is None:
        gaps.append(Gap("The end of training", f"{LOG_FILE} has no end event: the run was stopped or is still going"))
    return gaps
