"""The folder of a run: held by one process at a time, and either new or that of the very run to go on with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from letheon.errors import OutputError, SettingsError
from letheon.model.adapted import Adapted
from letheon.model.precision import Precision
from letheon.model.quantised_layers import saved_bytes
from letheon.settings import UnlearnSettings
from letheon.settings.facts import FIXED, facts_of
from letheon.storage.files import check_output_folder, check_room, is_leftover, open_output_folder, sweep
from letheon.storage.locks import Note, folder_lock, is_lock_file
from letheon.storage.run_folder import (
    EVALUATIONS_FOLDER,
    FORM_FILE,
    LOG_FILE,
    OUTSIDE_FILE,
    POPULATION_FILE,
    SETTINGS_FILE,
    TENSORBOARD_FOLDER,
)
from letheon.storage.staged import finish_held
from letheon.storage.yaml_text import parse_yaml
from letheon.unlearning.resolve import effective, most_checkpoints

_BEFORE_THE_RUN = (EVALUATIONS_FOLDER, LOG_FILE, TENSORBOARD_FOLDER, POPULATION_FILE, FORM_FILE, OUTSIDE_FILE)
"""What may lie in a run's folder before its settings do."""
_WHAT, _ELSEWHERE = "a folder for the run", "choose another --out"


@contextmanager
def hold_folder(settings: UnlearnSettings, *, note: Note) -> Iterator[bool]:
    """Hold the run folder, made if need be, while the block lasts; the value says whether to go on with a run there.

    Raises:
        OutputError: it cannot be made, another process holds it, it lies inside the checkpoint, or it holds what is
            not to be overwritten.
        SettingsError: the run there has other settings.
    """
    folder = settings.out
    check_output_folder(folder, advice=_ELSEWHERE, what=_WHAT)
    if settings.resume and not folder.exists():
        raise OutputError(
            f"{folder}: no such folder, so there is no run to resume; give the --out of that run, or leave out "
            f"--resume to start a new one"
        )
    if _is_inside(folder, Path(settings.model)):
        raise OutputError(f"{folder}: lies inside the checkpoint {settings.model}; choose a folder outside it")
    open_output_folder(folder, advice=_ELSEWHERE, what=_WHAT)
    with folder_lock(folder, note=note):
        resumes = _goes_on(settings)
        if settings.resume:
            sweep(folder)
            finish_held(folder)
        yield resumes


def recorded_dtype(folder: Path) -> Precision | None:
    """Return the precision of the run in a folder, None where none is recorded."""
    try:
        before = parse_yaml((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = before.get("dtype") if isinstance(before, dict) else None
    return found if found in ("float32", "bfloat16", "widened") else None


def check_disk(settings: UnlearnSettings, adapted: Adapted, *, num_runs: int, num_held: int = 0) -> None:
    """Check that a run's checkpoints and model will fit on the disk, beside what lies in its folder already.

    A checkpoint holds the trained parameters and two moments of each; `num_held` are kept beside the usual ones.

    Raises:
        OutputError: there is too little room.
    """
    trained = sum(parameter.numel() * parameter.element_size() for parameter in adapted.parameters())
    model = saved_bytes(adapted.model)
    num_checkpoints = num_runs * most_checkpoints(settings) + num_held
    present = sum(path.stat().st_size for path in settings.out.rglob("*") if path.is_file())
    check_room(
        settings.out,
        num_checkpoints * 3 * trained + model + trained - present,
        what=f"the run's model and up to {num_checkpoints} checkpoints",
        advice="free space, choose another --out, or keep fewer by --keep-checkpoints",
    )


def num_bytes_at_end(adapted: Adapted) -> int:
    """Return how many bytes of weights a run reads and writes when it ends: its last checkpoint, the kept one, adapter
    and model."""
    trained = sum(parameter.numel() * parameter.element_size() for parameter in adapted.parameters())
    model = saved_bytes(adapted.model)
    return model + 7 * trained


def _goes_on(settings: UnlearnSettings) -> bool:
    """Return whether there is a run to go on with; a folder that may not be written to is refused."""
    folder = settings.out
    found = {path.name for path in folder.iterdir() if not is_lock_file(path) and not is_leftover(path)}
    # Scores of the model before the run may lie there already, and what a run that failed at once noted.
    begun = SETTINGS_FILE.name in found  # a run that was killed earlier than that has done nothing yet
    holds_only_logs = found <= {entry.name for entry in _BEFORE_THE_RUN}
    if found - {EVALUATIONS_FOLDER.name, OUTSIDE_FILE.name} and not (settings.resume and (begun or holds_only_logs)):
        raise OutputError(
            f"{folder}: already holds files; choose another --out, or use --resume to continue the run there"
        )
    if settings.resume and begun:
        _check_same_run(settings)
        return True
    return False


def _is_inside(folder: Path, checkpoint: Path) -> bool:
    return checkpoint.is_dir() and folder.resolve().is_relative_to(checkpoint.resolve())


def _check_same_run(settings: UnlearnSettings) -> None:
    path = settings.out / SETTINGS_FILE
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OutputError(
            f"{path}: expected the settings of the run to resume, but it cannot be read ({error})"
        ) from error
    if not isinstance(before, dict):
        raise OutputError(f"{path}: expected the settings of the run to resume, got {type(before).__name__}")
    try:
        before = UnlearnSettings.without_removed(before)
    except SettingsError as error:
        raise SettingsError(
            f"{path}: {error} of a new run: this one can only be resumed by the version that began it"
        ) from error
    now = effective(settings)
    # A setting that the run there did not know had the effect of its default.
    then = {name: before.get(name, UnlearnSettings.model_fields[name].get_default()) for name in now}
    facts = facts_of(UnlearnSettings)
    changed = [name for name in now if facts[name].change is FIXED and now[name] != then[name]]
    if changed:
        raise SettingsError(
            f"resume: {', '.join(changed)} differ from the run in {settings.out} "
            f"({', '.join(f'{n}: {then[n]!r} there, {now[n]!r} here' for n in changed)}); "
            "resume with the same settings or choose another --out"
        )
