"""What a run writes down of itself: its settings, how it went, its model and where that comes from."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedTokenizerBase

from letheon.errors import ModelError
from letheon.model.adapted import Adapted
from letheon.model.loading import LoadedModel, save_model
from letheon.model.quantised_layers import kind_of
from letheon.model.widening import product_dtype, saved_dtype
from letheon.objective.catalogue import get_method
from letheon.scores.fluency import Fluencies
from letheon.settings import RowSettings, UnlearnSettings
from letheon.storage.fingerprints import hash_checkpoint
from letheon.storage.provenance import describe_environment
from letheon.storage.run_folder import (
    ADAPTER_FOLDER,
    FORM_FILE,
    MODEL_FOLDER,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    write_entry,
    write_json_entry,
)
from letheon.training.checkpoint import Checkpoint
from letheon.training.judge import StateScore
from letheon.training.state import Outcome
from letheon.training.stopping import Clock
from letheon.training.tracking import Log
from letheon.unlearning.attempts import Attempt, costs_by_now, costs_of, end_attempt
from letheon.unlearning.dial.turn import Dialled
from letheon.unlearning.fluent import kept_fluency
from letheon.unlearning.form_record import describe_form, keep_form
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.merging import MergingDifference, measure_merging
from letheon.unlearning.prepare import Prepared
from letheon.unlearning.resolve import effective

Side = Literal["forget", "retain"]

_MADE_WITH = ("python", "packages", "machine")


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run left behind and how it went."""

    folder: Path
    reason: str
    """Why training ended: "finished", the time limit, or a signal."""
    kept: StateScore
    num_steps: int
    num_tokens: int
    duration_s: float
    peak_memory_bytes: int
    provenance: dict[str, Any]
    """What provenance.json holds."""
    exit_code: int = 0
    fluency: Fluencies = field(default_factory=dict)
    """How fluently the kept state answers; empty where it was not asked: under a time limit, and after a signal."""
    merging: MergingDifference | None = None
    """What merging into dequantised weights changed; None where they are ordinary, or where it was not asked."""

    @property
    def model(self) -> Path:
        """The unlearned checkpoint."""
        return self.folder / MODEL_FOLDER


def write_run(settings: UnlearnSettings, prepared: Prepared) -> None:
    """Write run.yaml, the settings in full with the template that was chosen, and form.json, unless it is there.

    What the run read stands in both.

    Raises:
        OutputError: a file cannot be written.
        SettingsError: a run that is resumed began with other rows, tokens, weights or another form.
    """
    read = prepared.problem.read
    keep_form(settings.out, prepared.form, read)
    settings = settings.model_copy(update={"template": prepared.form.template})
    write_entry(settings.out, SETTINGS_FILE, settings_text(settings, read))


def settings_text(
    settings: UnlearnSettings, read: Mapping[str, Any], *, scale: float | None = None, merging: str | None = None
) -> str:
    """Return run.yaml: the settings, and as comments what the run `read`, the scale that its dial chose, and what
    `merging` changed."""
    text = yaml.safe_dump({**effective(settings), "resume": False}, sort_keys=False, allow_unicode=True)
    # Comments, so that the file stays what --config takes.
    said = (f"#   {name}: {value}\n" for name, value in read.items() if name.endswith("_sha256"))
    text += f"\n# What the run read; {FORM_FILE} holds the same.\n{''.join(said)}"
    if scale is not None:
        text += f"\n# The dial's scale; {PROVENANCE_FILE} says how it was chosen.\n#   scale: {scale:g}\n"
    if merging is not None:
        text += f"\n# What saving changed; {PROVENANCE_FILE} has the numbers.\n#   {merging}\n"
    return text


def log_start(
    log: Log, prepared: Prepared, resumed: Collection[Checkpoint | None], passed_over: Collection[str]
) -> None:
    """Write how the run begins, or where it goes on, and which checkpoints were not whole."""
    steps = [found.position.step for found in resumed if found]
    if steps:
        log.write("note", message=f"resumed after step {steps[-1]}", resumed=True)
    else:
        store, start = prepared.problem.reference.path, prepared.problem.start
        log.write(
            "start",
            time=describe_environment()["created_at"],
            num_rows=len(prepared.problem.rows),
            template=prepared.form.template,
            before=start.score.flat() if start else None,
            unknown=start.unknown if start else None,
            reference_store=store.name if store else None,
        )
        if prepared.form.answerless:
            log.write("answerless", **prepared.form.answerless.sides)
    answerless = prepared.form.answerless
    for note in () if steps else prepared.notes:
        log.write("note", message=note, **({"names_rows": True} if answerless and note == answerless.note else {}))
    for note in passed_over:
        log.write("note", message=note, resumed=True)
    log.flush()  # also of a run that is killed before its first checkpoint it is known which store it made


def log_end(log: Log, outcome: Outcome, clock: Clock, *, folder: Path) -> None:
    """Write how the run in `folder` ended, and the costs of all its attempts."""
    duration_s, peak = costs_by_now(folder, step=outcome.step, duration_s=clock.elapsed_s)
    log.write(
        "end",
        reason=outcome.reason,
        step=outcome.step,
        epoch=outcome.history[-1].epoch,
        kept_epoch=outcome.kept.epoch,
        duration_s=duration_s,
        peak_memory_bytes=peak,
        num_tokens=outcome.num_tokens,
    )
    log.flush()


def write_result(
    settings: UnlearnSettings,
    loaded: LoadedModel,
    prepared: Prepared,
    inputs: Inputs,
    outcome: Outcome,
    *,
    clock: Clock,
    exit_code: int = 0,
    more: Mapping[str, Any] | None = None,
    dialled: Dialled | None = None,
) -> RunReport:
    """Write the model, what was trained, and provenance.json, `more` in it, and return the report.

    `dialled` says how the dial was set, None where it was not.

    Raises:
        ModelError: the model would be the one it came from, or not have its tensors.
        OutputError: a file cannot be written.
    """
    problem, is_asked = prepared.problem, settings.time_limit_s is None and exit_code == 0
    write_weights(settings.out, problem.adapted, loaded.tokenizer)
    merging = None
    if is_asked:
        merging = measure_merging(problem.engine, problem.adapted, problem.probes, trained=outcome.kept)
    if dialled is not None or merging is not None:
        settings = settings.model_copy(update={"template": prepared.form.template})
        _note_in_settings(settings, problem.read, dialled, merging)
    fluent = kept_fluency(loaded, prepared.problem) if is_asked else {}
    attempts = end_attempt(settings.out, step=outcome.step, reason=outcome.reason, duration_s=round(clock.elapsed_s, 3))
    duration_s, peak = costs_of(attempts)
    provenance = {
        **_provenance(settings, prepared, inputs),
        **_made_in(settings.out, attempts),
        **(more or {}),
        **({"fluency": fluent} if fluent else {}),
        "attempts": [asdict(one) for one in attempts],
        "result": {
            **_outcome(settings.out, outcome, dialled, merging),
            "duration_s": duration_s,
            "peak_memory_bytes": peak,
        },
    }
    write_json_entry(settings.out, PROVENANCE_FILE, provenance)
    return RunReport(
        folder=settings.out,
        reason=outcome.reason,
        kept=outcome.kept,
        num_steps=outcome.step,
        num_tokens=outcome.num_tokens,
        duration_s=duration_s,
        peak_memory_bytes=peak,
        provenance=provenance,
        exit_code=exit_code,
        fluency=fluent,
        merging=merging,
    )


def _note_in_settings(
    settings: UnlearnSettings, read: Mapping[str, Any], dialled: Dialled | None, merging: MergingDifference | None
) -> None:
    """Write run.yaml again, with what became of the weights after training."""
    scale, said = (None if dialled is None else dialled.scale), (None if merging is None else merging.sentence)
    write_entry(settings.out, SETTINGS_FILE, settings_text(settings, read, scale=scale, merging=said))


def _outcome(
    folder: Path, outcome: Outcome, dialled: Dialled | None, merging: MergingDifference | None
) -> dict[str, Any]:
    """How training ended, and what lies in the folder after it."""
    return {
        "reason": outcome.reason,
        "kept": outcome.kept.flat(),
        **({} if dialled is None else {"dial": dialled.record()}),
        **({} if merging is None else {"merging": merging.record()}),
        "model_sha256": hash_checkpoint(folder / MODEL_FOLDER),
        "adapter_sha256": hash_checkpoint(folder / ADAPTER_FOLDER),
        "num_steps": outcome.step,
        "num_tokens": outcome.num_tokens,
    }


def write_weights(folder: Path, adapted: Adapted, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write adapter/ and model/ of a run to `folder`.

    Raises:
        ModelError, OutputError: as `write_result`.
    """
    adapted.save(folder / ADAPTER_FOLDER)  # first, so that it is there whatever becomes of the model
    merged = adapted.merged_state()
    if adapted.is_lost_in(merged):
        dtype = str(adapted.model.dtype).removeprefix("torch.")
        raise ModelError(
            f"{folder}: the model to save equals the original one, although training changed the adapter or "
            f"weights: rounding to {dtype} loses the changes; train longer, with a higher --learning-rate, "
            "or with --dtype float32 (the adapter and the checkpoints are kept)"
        )
    save_model(adapted.model, tokenizer, folder / MODEL_FOLDER, state=merged)


def _made_in(folder: Path, attempts: list[Attempt]) -> dict[str, Any]:
    """When and by which command the run was begun; where there was nothing left to do, also what it was made with."""
    last = attempts[-1]
    before = _written(folder) if len(attempts) > 1 and last.first_step == last.last_step else {}
    made: dict[str, Any] = {name: before[name] for name in _MADE_WITH if name in before}
    return {**made, "created_at": attempts[0].started, "command": attempts[0].command}


def _provenance(settings: UnlearnSettings, prepared: Prepared, inputs: Inputs) -> dict[str, Any]:
    problem = prepared.problem
    return {
        **describe_environment(),
        "model": {
            "source": settings.model,
            "sha256": prepared.fingerprint,
            "trust_remote_code": settings.trust_remote_code,
        },
        "forget": _describe_rows("forget", settings, prepared, inputs),
        "retain": _describe_rows("retain", settings, prepared, inputs),
        **_describe_general(settings, prepared),
        "seed": settings.seed,
        "method": {"name": settings.method, "paper": get_method(settings.method).paper},
        "adapt": settings.adapt,
        "read": dict(problem.read),
        "form": describe_form(prepared.form, problem.read),
        "before": prepared.problem.start.score.flat() if prepared.problem.start else None,
        "precision": {
            "setting": settings.dtype,
            "chosen": prepared.precision,
            "weights": str(problem.adapted.model.dtype).removeprefix("torch."),
            "products": str(product_dtype(problem.adapted.model)).removeprefix("torch."),
            **({} if (kind := kind_of(problem.adapted.model)) is None else {"quantised": kind}),
            "saved": str(saved_dtype(problem.adapted.model)).removeprefix("torch."),
        },
        "engine": {
            "path": problem.engine.path,
            "adapted": list(problem.adapted.targets),
            "notes": list(problem.adapted.notes),
        },
        "reference_store": None if problem.reference.path is None else str(problem.reference.path.absolute()),
        "reference_store_bytes": problem.reference.num_bytes,
    }


def _describe_rows(side: Side, settings: RowSettings, prepared: Prepared, inputs: Inputs) -> dict[str, Any]:
    """Where the rows of a side came from, their fingerprint, and how many are used for what."""
    problem = prepared.problem
    first, last = (0, len(inputs.forget)) if side == "forget" else (len(inputs.forget), len(inputs.rows))
    left_out = inputs.left_out[0 if side == "forget" else 1]
    is_empty = [one.answer_start >= len(one.input_ids) for one in problem.sequences[first:last]]
    return {
        "source": str(settings.forget if side == "forget" else settings.retain),
        "sha256": problem.read[f"{side}_sha256"],
        "num_given": last - first + len(left_out),
        "num_rows": last - first,
        "num_without_answer": sum(is_empty),
    }


def _describe_general(settings: UnlearnSettings, prepared: Prepared) -> dict[str, Any]:
    """Where the general text came from, and how much is trained on; nothing where there is none."""
    schedule, general = prepared.problem.general, prepared.general
    if schedule is None:
        return {}
    return {
        "general": {
            "source": str(settings.general),
            "sha256": prepared.problem.read["general_sha256"],
            "num_texts": len(general.trained) - general.num_openings,
            "num_openings": general.num_openings,
            "num_tokens": general.num_tokens,
            "texts_per_step": schedule.per_step,
        }
    }


def _written(folder: Path) -> dict[str, Any]:
    """What provenance.json holds of an earlier attempt; nothing where it cannot be read."""
    try:
        found = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
