"""outside.json: the files of a run outside its folder, recorded in the folder before they are made.

It holds absolute paths, so that `letheon purge` finds all of it from any folder, whatever --cache-dir or $LETHEON_CACHE
were in an attempt, and however that ended.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from letheon.errors import OutputError
from letheon.storage.run_folder import OUTSIDE_FILE, SETTINGS_FILE, write_json_entry

STORES = "reference_stores"
EVALUATIONS = "evaluations"
CACHED_SCORES = "cached_scores"


def note_store(folders: Collection[Path], store: Path) -> None:
    """Write down in each run's folder that the run is about to use the reference store `store`.

    Raises:
        OutputError: it cannot be written.
    """
    for folder in folders:
        _note(folder, STORES, store)


def note_cached_scores(folder: Path, cached: Path) -> None:
    """Write down in a run's folder that its scores before unlearning are read from, or kept in, the folder `cached`.

    Raises:
        OutputError: it cannot be written.
    """
    _note(folder, CACHED_SCORES, cached)


def note_evaluation(model: str, out: Path) -> None:
    """Write down, where `model` is the result of a run, that an evaluation of it is about to be written to `out`.

    One in the run's own folder needs no note, and a run's folder that is not ours to write to gets none.
    """
    folder = Path(model).absolute().parent
    if (folder / SETTINGS_FILE).is_file() and not out.resolve().is_relative_to(folder.resolve()):
        with suppress(OutputError):
            _note(folder, EVALUATIONS, out)


def outside_of(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the paths that are written down under `name` in `folder`; a file that cannot be read names none."""
    return tuple(Path(path) for path in _read(folder).get(name, ()) if Path(path).is_absolute())


def _note(folder: Path, name: str, path: Path) -> None:
    noted, found = _read(folder), str(path.absolute())
    if found not in noted.get(name, ()):
        changed = {**noted, name: [*noted.get(name, ()), found]}
        write_json_entry(folder, OUTSIDE_FILE, changed)


def _read(folder: Path) -> dict[str, list[str]]:
    try:
        value = json.loads((folder / OUTSIDE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    lists = value.items() if isinstance(value, dict) else ()
    return {name: [path for path in paths if isinstance(path, str)] for name, paths in lists if isinstance(paths, list)}
