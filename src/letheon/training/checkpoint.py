"""Checkpoints of a run: safetensors and JSON, complete or ignored.

checkpoints/step-N/parameters.safetensors the trained parameters
                   optimiser.safetensors  the optimiser's moments
                   state.json             step, history, events in the log
                   manifest.json          size and sha256 of the above, written last

The folder has a temporary name until all of it is on disk. There is no state of random numbers to keep: which rows make
a step, and which values dropout drops in it, follow from the seed and the step's number (schedules.py, randomness.py).
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from letheon.errors import OutputError
from letheon.storage.files import check_room, replace_folder
from letheon.storage.run_folder import (
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    OPTIMISER_FILE,
    PARAMETERS_FILE,
    STATE_FILE,
    STEP_PREFIX,
)
from letheon.training.judge import StateScore

_logger = logging.getLogger(__name__)

FILES = (PARAMETERS_FILE, OPTIMISER_FILE, STATE_FILE)
LARGEST_SHARE = 0.05
"""Of the time, that goes into saving between scorings."""
_ADVICE = "earlier checkpoints are intact: free space and continue with --resume"
_SMALL_FILES = 2**16
"""Room for what lies beside the tensors, bytes."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: everything beside tensors that it needs to go on."""

    step: int
    """Steps done."""
    num_tokens: int
    """Tokens seen."""
    log_events: int
    """Events in log.jsonl so far, resumptions left out."""
    history: tuple[StateScore, ...]
    """All interim scores so far that were due."""
    control: dict[str, float]
    """The state of the method's control; empty if it has none."""
    norms: tuple[float, ...] = ()
    """Norms of the gradients of the latest steps; empty in a checkpoint of an earlier version."""
    read: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of what the run read (see storage/fingerprints.py); empty in a checkpoint of an earlier version."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position with its tensors."""

    position: Position
    parameters: dict[str, Tensor]
    optimiser: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """How much it takes on disk, about."""
        tensors = (*self.parameters.values(), *self.optimiser.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + _SMALL_FILES


@dataclass(slots=True)
class SaveClock:
    """When a run is to be saved between its scorings, so that a kill loses little and saving costs little."""

    every_min: float | None = None
    """None for never."""
    saved_at_s: float = field(default_factory=time.monotonic)
    saving_s: float = 0.0
    """How long the last save took."""

    @property
    def is_due(self) -> bool:
        """Whether the time has come, counted from the last save; saving takes at most its share."""
        if self.every_min is None:
            return False
        return time.monotonic() - self.saved_at_s >= max(60 * self.every_min, self.saving_s / LARGEST_SHARE)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        began_s = time.monotonic()
        yield
        self.saved_at_s = time.monotonic()
        self.saving_s = self.saved_at_s - began_s


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write `folder`/step-N, whole or not at all, and return it; a whole one of the same step is the same.

    Raises:
        OutputError: it cannot be written, or there is no room; earlier checkpoints are untouched.
    """
    target = step_folder(folder, checkpoint.position.step)
    if target.exists() and damage(target) is None:
        return target
    check_room(folder, checkpoint.num_bytes, what=f"the checkpoint of step {checkpoint.position.step}", advice=_ADVICE)
    try:
        with replace_folder(target, advice=_ADVICE, private=CHECKPOINTS_FOLDER.is_private) as temporary:
            _write(checkpoint, temporary)
    except SafetensorError as error:
        raise OutputError(f"{target}: the checkpoint cannot be written ({error}); {_ADVICE}") from error
    return target


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    # What is saved are the live tensors: copies would double what full fine-tuning holds.
    save_file(_contiguous(checkpoint.parameters), folder / PARAMETERS_FILE)
    save_file(_contiguous(checkpoint.optimiser), folder / OPTIMISER_FILE)
    position = {**asdict(checkpoint.position), "history": [score.flat() for score in checkpoint.position.history]}
    (folder / STATE_FILE).write_text(json.dumps(position), encoding="utf-8")
    paths = {entry.name: folder / entry for entry in FILES}
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in paths.items()}
    (folder / MANIFEST_FILE).write_text(json.dumps(entries, indent=2), encoding="utf-8")


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies under `folder`."""
    return folder / f"{STEP_PREFIX}{step}"


def damage(target: Path) -> str | None:
    """Return the damage of the checkpoint in `target`, with the name of the file; None if it is complete."""
    try:
        manifest = json.loads((target / MANIFEST_FILE).read_text(encoding="utf-8"))
        for entry in FILES:
            path, written = target / entry, manifest[entry.name]
            if not path.is_file():
                return f"{path}: is missing"
            if path.stat().st_size != written["bytes"]:
                return f"{path}: is {path.stat().st_size} bytes long, but {written['bytes']} bytes were written"
            if _sha256(path) != written["sha256"]:
                return f"{path}: differs from its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{target / MANIFEST_FILE}: cannot be read ({type(error).__name__}: {error})"
    return None


def load_checkpoint(target: Path, *, note: Note = _logger.warning) -> Checkpoint | None:
    """Return the checkpoint in `target`; None if it is not whole, of which `note` is told, naming the file."""
    found = damage(target)
    if found is not None:
        note(f"{found}; this checkpoint is ignored")
        return None
    try:
        state = json.loads((target / STATE_FILE).read_text(encoding="utf-8"))
        history, norms = map(StateScore.of, state.pop("history")), state.pop("norms", ())
        return Checkpoint(
            position=Position(**state, history=tuple(history), norms=tuple(norms)),
            parameters=load_file(target / PARAMETERS_FILE),
            optimiser=load_file(target / OPTIMISER_FILE),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        note(f"{target}: is not a checkpoint of this version ({error}); it is ignored")
        return None


def checkpoint_of(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step under `folder`, which has been seen to be whole.

    Raises:
        OutputError: it is not, or lies on a disk that this process does not see.
    """
    target = step_folder(folder, step)
    saved = load_checkpoint(target)
    if saved is None:
        raise OutputError(
            f"{target}: the checkpoint to keep was damaged after it was written; run again with --resume, which makes "
            f"it again from an earlier one (of several machines all need to see the folder of the run)"
        )
    return saved


def newest_checkpoint(
    folder: Path,
    *,
    note: Note = _logger.warning,
    needs: Callable[[Position], Collection[int]] = lambda _: (),
    upto: int | None = None,
) -> Checkpoint | None:
    """Return the newest whole checkpoint under `folder`, None if there is none; `note` is told what is skipped.

    `needs` names the steps whose checkpoints a run must find to go on from a position: the one that it would keep.
    Those of steps after `upto` do not count.
    """
    for target in sorted(folder.glob(f"{STEP_PREFIX}*"), key=_step_of, reverse=True):
        if upto is not None and _step_of(target) > upto:
            continue
        checkpoint = load_checkpoint(target, note=note)
        if checkpoint is None:
            continue
        broken = next((d for step in needs(checkpoint.position) if (d := damage(step_folder(folder, step)))), None)
        if broken is None:
            return checkpoint
        note(f"{broken}; {target.name}, which builds on it, is skipped")
    return None


def drop_checkpoints(folder: Path, *, after: int) -> None:
    """Remove the checkpoints under `folder` of later steps, which cannot be gone on from."""
    for target in folder.glob(f"{STEP_PREFIX}*"):
        if _step_of(target) > after:
            shutil.rmtree(target, ignore_errors=True)


def prune_checkpoints(folder: Path, *, keep_last: int, keep_steps: Collection[int]) -> None:
    """Remove all checkpoints under `folder` but the newest few and those of the given steps."""
    kept = {*sorted(_step_of(target) for target in folder.glob(f"{STEP_PREFIX}*"))[-keep_last:], *keep_steps}
    for target in folder.glob(f"{STEP_PREFIX}*"):
        if _step_of(target) not in kept:
            shutil.rmtree(target, ignore_errors=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state itself as tensors named parameter.slot."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{index}.{slot}": torch.as_tensor(value).detach()
        for index, slots in state.items()
        for slot, value in slots.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _step_of(target: Path) -> int:
    number = target.name.removeprefix(STEP_PREFIX)
    return int(number) if number.isdigit() else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
