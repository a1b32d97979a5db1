"""Setting the dial of a finished run anew, from what its folder holds."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from letheon.data.packing import probe_of
from letheon.engine.paths import build_engine
from letheon.errors import OutputError, SettingsError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import LoadedModel, load_model_of
from letheon.objective.methods import Method
from letheon.settings import DialSettings, UnlearnSettings
from letheon.signals import finishing
from letheon.storage.files import check_room, full_disk_is_an_error, sweep
from letheon.storage.fingerprints import CALLED, differences, hash_checkpoint
from letheon.storage.locks import folder_lock
from letheon.storage.run_folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    LOG_FILE,
    MODEL_FOLDER,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    write_entry,
    write_json_entry,
)
from letheon.storage.staged import finish_held, staged_result
from letheon.storage.yaml_text import parse_yaml
from letheon.training.checkpoint import load_checkpoint, step_folder
from letheon.training.judge import StateScore
from letheon.training.tracking import Log, Observer, Silent
from letheon.unlearning.dial.record import log_dial
from letheon.unlearning.dial.scaling import scaling_of
from letheon.unlearning.dial.turn import Dialled, turn_dial
from letheon.unlearning.folder import num_bytes_at_end
from letheon.unlearning.form_record import inputs_read, read_form
from letheon.unlearning.formed_rows import form_rows
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.merging import MergingDifference, measure_merging
from letheon.unlearning.prepare import adapt
from letheon.unlearning.probes import probes_of
from letheon.unlearning.reading import read
from letheon.unlearning.record import settings_text, write_weights
from letheon.unlearning.resolve import method_of, resolve_settings

_ADVICE = "the old result is intact: free space and dial again"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class _FinishedRun:
    """What the folder of a run says of it."""

    folder: Path
    settings: UnlearnSettings
    provenance: dict[str, Any]
    read: Mapping[str, Any]
    """Fingerprints of what the run read."""

    @property
    def result(self) -> dict[str, Any]:
        """What provenance.json says came of it."""
        found: dict[str, Any] = self.provenance["result"]
        return found

    @property
    def trained(self) -> StateScore:
        """The scores of the state at scale 1."""
        return StateScore.of(self.result["dial"]["trained"] if "dial" in self.result else self.result["kept"])

    @property
    def start(self) -> StateScore | None:
        """The scores of the state at scale 0; None where there are none."""
        before = self.provenance.get("before")
        return StateScore.of(before) if isinstance(before, dict) else None


def dial_again(folder: Path, asked: DialSettings | None = None, *, observer: Observer | None = None) -> Dialled | None:
    """Set the dial of the finished run in `folder`, and return how; None for "none", which undoes an earlier one.

    Where `asked` sets no dial, a run with holdout documents is dialled by "membership", another by "forgotten". A kill
    leaves the old result or the new one.

    Raises:
        LetheonError: there is no finished run, its rows, documents, model or adapter are not those that it had, or
            the new result cannot be written.
    """
    observer = observer or Silent()
    if not (folder / SETTINGS_FILE).is_file():
        raise OutputError(f"{folder}: expected the folder of a finished run, found no {SETTINGS_FILE}; check the path")
    with folder_lock(folder, note=observer.note), full_disk_is_an_error(folder, advice=_ADVICE):
        sweep(folder)
        finish_held(folder)
        run = _finished_run(folder, {} if asked is None else asked.model_dump(exclude_unset=True))
        if run.settings.dial != "none":
            return _dial(run, observer)
        _undo(run, observer)
        return None


def _finished_run(folder: Path, changes: Mapping[str, Any]) -> _FinishedRun:
    provenance = _mapping(folder / PROVENANCE_FILE)
    result = provenance.get("result")
    if not isinstance(result, dict) or str(result.get("reason", "")).startswith("signal "):
        raise OutputError(
            f"{folder}: expected a finished run, but it was ended before it was done; finish it by `letheon unlearn "
            f"--resume` first"
        )
    read_before = provenance.get("read")
    values = {**_mapping(folder / SETTINGS_FILE), "out": folder}
    return _FinishedRun(
        folder, _settings(values, changes), provenance, read_before if isinstance(read_before, dict) else {}
    )


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
        found = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise OutputError(f"{path}: expected a mapping of names to values, but it cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected a mapping of names to values, got {type(found).__name__}")
    return found


def _settings(values: Mapping[str, Any], changes: Mapping[str, Any]) -> UnlearnSettings:
    """The settings of a run with another dial; the budgets of one by membership go with it."""
    dial = changes.get("dial") or ("forgotten" if values.get("holdout") is None else "membership")
    ours = DialSettings.model_fields
    kept = {name: value for name, value in values.items() if name not in ours or dial == "membership"}
    return resolve_settings(UnlearnSettings.of({**kept, **changes, "dial": dial}))


def _dial(run: _FinishedRun, observer: Observer) -> Dialled:
    settings, method = run.settings, method_of(run.settings)
    # The run may have had several processes; this is one, which holds all weights.
    settings, inputs = read(settings.model_copy(update={"shard": False}), method, note=observer.note)
    _check_same(run, inputs_read(inputs))
    loaded, adapted = _loaded(run, observer, inputs=inputs)
    engine = build_engine(
        adapted.model,
        probe_of([s for s in inputs.sequences if s.num_answer_tokens]).to(adapted.model.device),
        adapter_off=adapted.off,
    )
    # Answers that the model made up are not written down.
    is_made_up = method.alternatives is not None and method.alternatives.kind == "generated"
    taught = replace(method, alternatives=None) if is_made_up else method
    form = form_rows(loaded, engine, inputs, settings, taught, found={})
    if not is_made_up:
        _check_same(run, {"sequences_sha256": form.sha256})
    _load_trained(run, adapted, method)
    probes = probes_of(inputs, form.sequences, settings, asked=form.asked, others=form.trained[len(inputs.rows) :])
    dialled = turn_dial(
        settings,
        engine=engine,
        probes=probes,
        halves=inputs.halves,
        set_scale=scaling_of(adapted, settings),
        trained=run.trained,
        start=run.start,
        progress=observer.stage,
    )
    merging = measure_merging(engine, adapted, probes, trained=dialled.kept)
    for note in (*dialled.notes(), *([] if merging is None else [merging.sentence])):
        observer.note(note)
    _write(run, loaded, adapted, dialled, observer, merging=merging)
    return dialled


def _undo(run: _FinishedRun, observer: Observer) -> None:
    loaded, adapted = _loaded(run, observer)
    _load_trained(run, adapted, method_of(run.settings))
    _write(run, loaded, adapted, None, observer)


def _loaded(run: _FinishedRun, observer: Observer, *, inputs: Inputs | None = None) -> tuple[LoadedModel, Adapted]:
    """The model that the run began with, and what is trained in it as it began."""
    settings = run.settings
    observer.stage("loading the model", 0, 0)
    loaded = load_model_of(
        settings, tokenizer=settings.tokenizer if inputs is None else inputs.tokenizer, note=observer.note
    )
    adapted = adapt(loaded.model, settings)
    _check_same(run, {"weights_sha256": fingerprint(adapted.model)})
    return loaded, adapted


def _check_same(run: _FinishedRun, now: Mapping[str, Any]) -> None:
    changed = differences({**(read_form(run.folder) or {}), **run.read}, now, CALLED)
    if changed:
        raise SettingsError(
            f"dial: what is there now is not what the run in {run.folder} was trained with ({'; '.join(changed)}); "
            f"restore it, or train again"
        )


def _load_trained(run: _FinishedRun, adapted: Adapted, method: Method) -> None:
    """Put in what was trained, at scale 1: an adapter's A and B do not change with the scale, weights do."""
    if isinstance(adapted, LoraAdapter):
        adapted.load_state(_saved_adapter(run, adapted))
        return
    assert method.finish == "keep", "other methods work on adapters"
    folder = step_folder(run.folder / CHECKPOINTS_FOLDER, run.trained.step)
    saved = load_checkpoint(folder)
    if saved is None:
        raise OutputError(
            f"{folder}: the weights as they were trained are in this checkpoint, which is not there or not whole; the "
            f"dial of this run cannot be set any more"
        )
    adapted.load_state(saved.parameters)


def _saved_adapter(run: _FinishedRun, adapted: LoraAdapter) -> dict[str, Any]:
    folder = run.folder / ADAPTER_FOLDER
    if hash_checkpoint(folder) != run.result.get("adapter_sha256"):
        raise OutputError(
            f"{folder}: expected the adapter that the run left ({PROVENANCE_FILE} has its hash), found another one or "
            f"none; restore it, or train again"
        )
    # PEFT leaves the adapter's name out of what it saves.
    saved = load_file(folder / _ADAPTER_WEIGHTS)
    return {name: saved[name.replace(".default.", ".")] for name in adapted.trained()}


def _write(
    run: _FinishedRun,
    loaded: LoadedModel,
    adapted: Adapted,
    dialled: Dialled | None,
    observer: Observer,
    *,
    merging: MergingDifference | None = None,
) -> None:
    """Stage model, adapter and what describes them, and put all of it in place."""
    folder = run.folder
    check_room(folder, num_bytes_at_end(adapted), what="the new result", advice=_ADVICE)
    observer.stage("writing the model", 0, 0)
    with finishing(), staged_result(folder) as staged:
        write_weights(staged, adapted, loaded.tokenizer)
        scale, said = (None if dialled is None else dialled.scale), (None if merging is None else merging.sentence)
        write_entry(staged, SETTINGS_FILE, settings_text(run.settings, run.read, scale=scale, merging=said))
        write_entry(staged, LOG_FILE, _log_text(run, dialled))
        # The answers that were looked at are those of the old result.
        rest = {name: value for name, value in run.provenance.items() if name != "fluency"}
        write_json_entry(staged, PROVENANCE_FILE, {**rest, "result": _result(run, staged, dialled, merging)})


def _log_text(run: _FinishedRun, dialled: Dialled | None) -> str:
    path = run.folder / LOG_FILE
    lines = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = io.StringIO(lines)
    text.seek(0, io.SEEK_END)
    log = Log(text)
    if dialled is None:
        log.write("note", message="dial (none): the scale is 1 again")
    else:
        log_dial(log, dialled)
    return text.getvalue()


def _result(
    run: _FinishedRun, staged: Path, dialled: Dialled | None, merging: MergingDifference | None
) -> dict[str, Any]:
    """What provenance.json says of the new result, in the order of any run's."""
    kept = run.trained if dialled is None else dialled.kept
    rest = {name: value for name, value in run.result.items() if name not in ("reason", "kept", "dial", "merging")}
    return {
        "reason": run.result["reason"],
        "kept": kept.flat(),
        **({} if dialled is None else {"dial": dialled.record()}),
        **({} if merging is None else {"merging": merging.record()}),
        **rest,
        "model_sha256": hash_checkpoint(staged / MODEL_FOLDER),
        "adapter_sha256": hash_checkpoint(staged / ADAPTER_FOLDER),
    }
