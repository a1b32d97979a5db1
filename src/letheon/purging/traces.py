"""Finding what Letheon wrote of the rows to forget, by name, place and structure: not all in a folder need be ours."""

import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from letheon.storage.cache import default_cache_dir, store_path
from letheon.storage.files import is_leftover, leftovers_of
from letheon.storage.outside import CACHED_SCORES, STORES, outside_of
from letheon.storage.run_folder import (
    AUDIT,
    AUDIT_RESULTS_FILE,
    AUDITS_FOLDER,
    CACHED_FOLDERS,
    CHECKPOINTS_FOLDER,
    EVALUATION,
    EVALUATIONS_FOLDER,
    FORM_PREDICTIONS_FILE,
    LOG_FILE,
    MEMBER_PREFIX,
    OUTCOMES_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    RESULTS,
    RESULTS_FILE,
    RUN,
    SCORES_FOLDER,
    SETTINGS_FILE,
    STEP_PREFIX,
    STORE_FILES,
    STORES_FOLDER,
    STUDY,
    Entry,
    marks,
)
from letheon.storage.yaml_text import parse_yaml

_CHECKPOINT = re.compile(rf"({STEP_PREFIX}|{MEMBER_PREFIX})\d+")
_STORE_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_SCORES_NAME = re.compile(r"[0-9a-f]{32}")
_RESULTS = {entry.name for entry in RESULTS}
_PREDICTIONS = (PREDICTIONS_FILE.name, FORM_PREDICTIONS_FILE.name)
_PREDICTED = {"id", "split", "task", "kind", "prompt", "answer", "generation"}
"""Fields of a line of predictions."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A file or folder that was made of the rows to forget."""

    path: Path
    num_bytes: int
    holds: str


@dataclass(frozen=True, slots=True)
class Home:
    """A folder that a run, an evaluation, an audit or a study has."""

    path: Path
    is_run: bool
    is_evaluation: bool
    is_audit: bool = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What Letheon writes into it as a run, an evaluation or an audit."""
        return (
            *(RUN if self.is_run else ()),
            *(EVALUATION if self.is_evaluation else ()),
            *(AUDIT if self.is_audit else ()),
        )


def homes_below(folder: Path) -> list[Home]:
    """Return the folders of runs, evaluations, audits and studies in `folder`, itself among them."""
    return [home for path, names in _walk(folder) if (home := _home(path, names)) is not None]


def traces_below(folder: Path) -> Iterator[Trace]:
    """Yield what lies in `folder` of the rows to forget."""
    for path, names in _walk(folder):
        home = _home(path, names)
        for entry in sorted(path.iterdir()):
            holds = "what a killed process was writing" if is_leftover(entry) else _what_it_holds(entry, home)
            if holds is not None:
                yield Trace(entry, _size(entry), holds)
            elif home is not None and home.is_run and _is_folder_of_checkpoints(entry):
                ours = (path for path in sorted(entry.iterdir()) if _CHECKPOINT.fullmatch(path.name))
                yield from (Trace(path, _size(path), CHECKPOINTS_FOLDER.rows) for path in ours)


def store_paths(homes: Collection[Home]) -> list[Path]:
    """Return where the reference stores of the runs lie, or would, by the runs' own records; each once."""
    paths = [path for home in homes if home.is_run for path in _recorded_stores(home.path)]
    named = [path for path in paths if path.parent.name == STORES_FOLDER.name and _STORE_NAME.fullmatch(path.name)]
    return list({path.resolve(): path for path in named if not path.is_symlink()}.values())


def traces_of_store(path: Path) -> list[Trace]:
    """Return a reference store, if it reads as one, and what killed processes left that were making it."""
    store = [Trace(path, _size(path), STORE_FILES.rows)] if _is_store(path) else []
    return [
        *store,
        *(Trace(left, _size(left), "a store that a killed process was writing") for left in leftovers_of(path)),
    ]


def traces_of_cached_scores(homes: Collection[Home]) -> list[Trace]:
    """Return the cached scores that the runs noted, if evaluations left them, and leftovers beside them."""
    noted = [path for home in homes if home.is_run for path in outside_of(home.path, CACHED_SCORES)]
    named = [path for path in noted if path.parent.name == SCORES_FOLDER.name and _SCORES_NAME.fullmatch(path.name)]
    found = list({path.resolve(): path for path in named if not path.is_symlink()}.values())
    whole = [Trace(path, _size(path), CACHED_FOLDERS.rows) for path in found if _is_evaluation_alone(path)]
    left = [Trace(left, _size(left), CACHED_FOLDERS.rows) for path in found for left in leftovers_of(path)]
    return [*whole, *left]


def _is_evaluation_alone(path: Path) -> bool:
    """Whether a folder holds what an evaluation leaves, and nothing else."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= {found.name for found in EVALUATION}


def read_values(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; {} if there is none, since what cannot be read names nothing to remove."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield (folder, names of its files) below `folder`: links are not followed, results and leftovers not entered."""
    for home, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _RESULTS and not is_leftover(Path(name)))
        yield Path(home), names


def _home(path: Path, names: Collection[str]) -> Home | None:
    is_run = any(mark.name in names for mark in marks(RUN))
    # An evaluation may have lost its scores: its predictions tell, or its place in the folder of a run.
    is_evaluation = (
        (RESULTS_FILE.name in names and _is_ours(path / RESULTS_FILE))
        or (path.parent.name == EVALUATIONS_FOLDER.name and _is_marked(path.parent.parent))
        or any(_are_predictions(path / name) for name in _PREDICTIONS if name in names)
    )
    is_study = any(mark.name in names for mark in marks(STUDY))
    is_audit = _is_audit(path, names)
    if not (is_run or is_evaluation or is_study or is_audit):
        return None
    return Home(path, is_run, is_evaluation, is_audit)


def _is_audit(path: Path, names: Collection[str]) -> bool:
    """Whether an audit writes there; one that was ended has no results yet, but lies in a folder of its name."""
    if AUDIT_RESULTS_FILE.name in names and _schema_of(path / AUDIT_RESULTS_FILE).startswith("letheon.audit/"):
        return True
    return path.name == AUDITS_FOLDER.name and OUTCOMES_FILE.name in names


def _is_marked(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in marks(RUN))


def _what_it_holds(path: Path, home: Home | None) -> str | None:
    """Return what `path` holds of the rows, by the table; None for what stays or is not ours."""
    entries = home.entries if home is not None else ()
    found = next((one for one in entries if one.name == path.name and one.fate in ("removed", "rewritten")), None)
    if found is None or (found.is_folder and not _is_folder_of_ours(path)):
        return None
    return f"{found.rows}; written anew without them" if found.fate == "rewritten" else found.rows


def _is_folder_of_checkpoints(path: Path) -> bool:
    return path.name == CHECKPOINTS_FOLDER.name and path.is_dir()


def _is_folder_of_ours(path: Path) -> bool:
    return _is_folder_of_checkpoints(path) and are_checkpoints(path)


def are_checkpoints(folder: Path) -> bool:
    """Whether nothing but a run's checkpoints is in `folder`; a link is ours to remove, not what it leads to."""
    return folder.is_symlink() or all(
        _CHECKPOINT.fullmatch(path.name) or is_leftover(path) for path in folder.iterdir()
    )


def _is_ours(results: Path) -> bool:
    return _schema_of(results).startswith("letheon.results/")


def _schema_of(results: Path) -> str:
    return str(read_values(results).get("schema"))


def _are_predictions(path: Path) -> bool:
    """Whether a line of `path` reads as an evaluation writes them."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return any(_is_prediction(line) for line in lines)
    except OSError:
        return False


def _is_prediction(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= _PREDICTED


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(home, name).lstat().st_size for home, _, names in os.walk(path) for name in names)


def _recorded_stores(run: Path) -> Iterator[Path]:
    """Yield the stores that a run noted, and, for runs of earlier versions, that of its provenance or log."""
    yield from outside_of(run, STORES)
    recorded = read_values(run / PROVENANCE_FILE).get("reference_store")
    if isinstance(recorded, str):
        yield Path(recorded)
    name = _start_of(run / LOG_FILE).get("reference_store")
    if isinstance(name, str):
        cache_dir = read_values(run / SETTINGS_FILE).get("cache_dir")
        yield store_path(Path(cache_dir) if isinstance(cache_dir, str) else default_cache_dir(), Path(name).stem)


def _is_store(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return bool({"log_probs", "general_ids"} & set(file.keys())) and set(file.metadata() or {}) == {"sha256"}
    except (OSError, SafetensorError):
        return False


def _start_of(log: Path) -> dict[str, Any]:
    try:
        with log.open(encoding="utf-8") as file:
            value = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
