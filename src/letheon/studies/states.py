"""The states of a run as checkpoints of their own, made when they are wanted and removed afterwards."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from letheon.errors import EvaluationError
from letheon.model.loading import load_model_of, save_model
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.storage.run_folder import (
    CHECKPOINTS_FOLDER,
    DROPPED_FOLDER,
    LOG_FILE,
    MANIFEST_FILE,
    MODEL_FOLDER,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    STATE_FOLDER,
)
from letheon.storage.yaml_text import parse_yaml
from letheon.training.checkpoint import load_checkpoint, step_folder
from letheon.unlearning.dial.scaling import scaling_of
from letheon.unlearning.prepare import adapt


@dataclass(frozen=True, slots=True)
class RunState:
    """A state that a run scored, and perhaps kept."""

    step: int
    epoch: float
    is_result: bool
    interim: Mapping[str, Any]
    """What the run itself found of it, as its log has it."""


def is_finished(run: Path) -> bool:
    """Whether the run in this folder ended by itself: neither killed nor asked to end before it was done."""
    result = _result_of(run)
    return result is not None and not str(result.get("reason", "")).startswith("signal ")


def result_of(run: Path) -> dict[str, Any]:
    """Return what provenance.json says came of a finished run.

    Raises:
        EvaluationError: the run is not finished.
    """
    result = _result_of(run)
    if result is None:
        raise EvaluationError(f"{run}: expected a finished run; its {PROVENANCE_FILE} has no result")
    return result


def scale_of(result: Mapping[str, Any]) -> float | None:
    """Return the scale that the dial of a run chose, by what came of the run; None where it has no dial."""
    dial = result.get("dial")
    return float(dial["scale"]) if isinstance(dial, Mapping) else None


def start_of(run: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return how much the model recalled before a run's first step, by side, and the sides that it did not know.

    Both are empty where the log does not say.
    """
    try:
        start = next(_events(run, "start"), {})
    except EvaluationError:  # there is no log yet, or a killed process left half a line of it
        return {}, ()
    before, unknown = start.get("before"), start.get("unknown")
    if not isinstance(before, Mapping) or not isinstance(unknown, list):
        return {}, ()
    recalls = {side: before.get(f"{side}_recall") for side in ("forget", "retain")}
    known = {side: float(value) for side, value in recalls.items() if isinstance(value, int | float)}
    return known, tuple(map(str, unknown))


def states_of(run: Path, *, epochs: tuple[float, ...]) -> tuple[list[RunState], list[float]]:
    """Return the kept state of a finished run and those at `epochs`, earliest first, and the epochs that it has not."""
    result = result_of(run)
    kept = result["kept"]
    scored = {int(line["step"]): line for line in _events(run, "interim")}
    steps: dict[int, None] = {}
    absent: list[float] = []
    for epoch in epochs:
        step = _step_at(scored, epoch)
        if step is None or not _is_there(run, step, kept_step=int(kept["step"])):
            absent.append(epoch)
        else:
            steps[step] = None
    steps[int(kept["step"])] = None
    if scale_of(result) is not None or int(kept["step"]) not in scored:
        scored[int(kept["step"])] = kept  # the log tells of the state before the dial
    return [
        RunState(step, float(scored[step]["epoch"]), step == kept["step"], scored[step]) for step in sorted(steps)
    ], absent


@contextmanager
def checkpoint_of(run: Path, state: RunState) -> Iterator[Path]:
    """Give the folder of an ordinary checkpoint that holds this state of the run in `run`.

    It is the run's own model/ where that is this state and still there. Otherwise it is put together from the run's
    checkpoint and the model it began from, in a folder that is removed when the block ends.

    Raises:
        EvaluationError: the run's checkpoint of that state is not there or not whole.
        ModelError: the model that the run began from cannot be loaded.
    """
    if state.is_result and (run / MODEL_FOLDER / "config.json").is_file():
        yield run / MODEL_FOLDER
        return
    folder = run / STATE_FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        _write_state(run, state, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drop_model(run: Path) -> None:
    """Remove model/ of a finished run where its checkpoints can give it back."""
    kept = int(result_of(run)["kept"]["step"])
    if not is_dropped(run) and load_checkpoint(_checkpoint(run, kept)) is not None:
        # Renamed first, so that what a kill leaves of it is never taken for a model.
        shutil.rmtree(run / DROPPED_FOLDER, ignore_errors=True)
        if (run / MODEL_FOLDER).exists():
            os.replace(run / MODEL_FOLDER, run / DROPPED_FOLDER)
            shutil.rmtree(run / DROPPED_FOLDER, ignore_errors=True)


def is_dropped(run: Path) -> bool:
    """Whether `drop_model` has nothing to do for a finished run; its method may change the model when all is over."""
    there = [path for path in (run / MODEL_FOLDER, run / DROPPED_FOLDER) if path.exists()]
    return not there or get_method(_settings_of(run).method).finish != "keep"


def _write_state(run: Path, state: RunState, folder: Path) -> None:
    saved = load_checkpoint(_checkpoint(run, state.step))
    if saved is None:
        raise EvaluationError(
            f"{_checkpoint(run, state.step)}: expected a whole checkpoint to score; remove {run} to run it again"
        )
    settings = _settings_of(run)
    loaded = load_model_of(settings, tokenizer=settings.tokenizer)
    adapted = adapt(loaded.model, settings)
    adapted.load_state(saved.parameters)
    scale = scale_of(result_of(run)) if state.is_result else None
    if scale is not None:
        scaling_of(adapted, settings)(scale)
    save_model(adapted.model, loaded.tokenizer, folder, state=adapted.merged_state())


def _settings_of(run: Path) -> UnlearnSettings:
    path = run / SETTINGS_FILE
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise EvaluationError(f"{path}: expected the settings of a run, but it cannot be read ({error})") from error
    return UnlearnSettings.of({**values, "out": run})


def _result_of(run: Path) -> dict[str, Any] | None:
    try:
        provenance = json.loads((run / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    result = provenance.get("result") if isinstance(provenance, dict) else None
    return result if isinstance(result, dict) else None


def _events(run: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        with (run / LOG_FILE).open(encoding="utf-8") as lines:
            for line in lines:
                if f'"{name}"' in line:
                    event = json.loads(line)
                    if event.get("event") == name:
                        yield event
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{run / LOG_FILE}: expected the log of a run ({error})") from error


def _step_at(scored: Mapping[int, Mapping[str, Any]], epoch: float) -> int | None:
    """The scored step nearest to an epoch, which falls between two steps by half of one at most."""
    for step, line in scored.items():
        if step and abs(float(line["epoch"]) - epoch) <= 0.5 * float(line["epoch"]) / step + 1e-9:
            return step
    return None


def _is_there(run: Path, step: int, *, kept_step: int) -> bool:
    return step == kept_step or (_checkpoint(run, step) / MANIFEST_FILE).is_file()


def _checkpoint(run: Path, step: int) -> Path:
    return step_folder(run / CHECKPOINTS_FOLDER, step)
