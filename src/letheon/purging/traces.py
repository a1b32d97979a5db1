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

from letheon.storage.cache import STORES, default_cache_dir, store_path
from letheon.storage.files import is_leftover, leftovers_of
from letheon.storage.outside import OUTSIDE, outside_of
from letheon.storage.outside import STORES as NOTED_STORES
from letheon.storage.yaml_text import parse_yaml

RUN_MARKS = ("run.yaml", "log.jsonl", "form.json", "provenance.json", OUTSIDE)
EVALUATION_MARK = "results.json"
STUDY_MARK = "study.json"
MARKS = (*RUN_MARKS, EVALUATION_MARK, STUDY_MARK)
"""Files by which the folder of a run, an evaluation or a study is known."""
RESULTS = ("model", "adapter")

_CHECKPOINT = re.compile(r"(step|member)-\d+")
_STORE_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_OF_CHECKPOINTS = "states from before the rows were forgotten, and moments of their gradients"
_PREDICTIONS = {
    "predictions.jsonl": "prompts, answers and what the model said",
    "predictions_in_form.jsonl": "prompts, answers and what the model said to the rows in their form",
}
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
    """A folder that a run, an evaluation or a study has."""

    path: Path
    is_run: bool
    is_evaluation: bool


def homes_below(folder: Path) -> list[Home]:
    """Return the folders of runs, evaluations and studies in `folder`, itself among them."""
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
                yield from (Trace(path, _size(path), _OF_CHECKPOINTS) for path in ours)


def store_paths(homes: Collection[Home]) -> list[Path]:
    """Return where the reference stores of the runs lie, or would, by the runs' own records; each once."""
    paths = [path for home in homes if home.is_run for path in _recorded_stores(home.path)]
    named = [path for path in paths if path.parent.name == STORES and _STORE_NAME.fullmatch(path.name)]
    return list({path.resolve(): path for path in named if not path.is_symlink()}.values())


def traces_of_store(path: Path) -> list[Trace]:
    """Return a reference store, if it reads as one, and what killed processes left that were making it."""
    store = [Trace(path, _size(path), "what the model said of the rows before")] if _is_store(path) else []
    return [
        *store,
        *(Trace(left, _size(left), "a store that a killed process was writing") for left in leftovers_of(path)),
    ]


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
        folders[:] = sorted(name for name in folders if name not in RESULTS and not is_leftover(Path(name)))
        yield Path(home), names


def _home(path: Path, names: Collection[str]) -> Home | None:
    is_run = any(mark in names for mark in RUN_MARKS)
    # An evaluation may have lost its scores: its predictions tell, or its place in the folder of a run.
    is_evaluation = (
        (EVALUATION_MARK in names and _is_ours(path / EVALUATION_MARK))
        or (path.parent.name == "evaluation" and any((path.parent.parent / mark).is_file() for mark in RUN_MARKS))
        or any(_are_predictions(path / name) for name in _PREDICTIONS if name in names)
    )
    return Home(path, is_run, is_evaluation) if is_run or is_evaluation or STUDY_MARK in names else None


def _what_it_holds(entry: Path, home: Home | None) -> str | None:
    if home is None:
        return None
    if home.is_run and _is_folder_of_checkpoints(entry) and are_checkpoints(entry):
        return _OF_CHECKPOINTS
    if home.is_run and entry.name == "population.json":
        return "where a run ended, and on which rows"
    if entry.name == "report.html":
        return "sample rows; written anew without them"
    is_ours = entry.name in _PREDICTIONS and (home.is_evaluation or _are_predictions(entry))
    return _PREDICTIONS[entry.name] if is_ours else None


def _is_folder_of_checkpoints(path: Path) -> bool:
    return path.name == "checkpoints" and path.is_dir()


def are_checkpoints(folder: Path) -> bool:
    """Whether nothing but a run's checkpoints is in `folder`; a link is ours to remove, not what it leads to."""
    return folder.is_symlink() or all(
        _CHECKPOINT.fullmatch(path.name) or is_leftover(path) for path in folder.iterdir()
    )


def _is_ours(results: Path) -> bool:
    return str(read_values(results).get("schema")).startswith("letheon.results/")


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
    yield from outside_of(run, NOTED_STORES)
    recorded = read_values(run / "provenance.json").get("reference_store")
    if isinstance(recorded, str):
        yield Path(recorded)
    name = _start_of(run / "log.jsonl").get("reference_store")
    if isinstance(name, str):
        cache_dir = read_values(run / "run.yaml").get("cache_dir")
        yield store_path(Path(cache_dir) if isinstance(cache_dir, str) else default_cache_dir(), Path(name).stem)


def _is_store(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return "log_probs" in set(file.keys()) and set(file.metadata() or {}) == {"sha256"}
    except (OSError, SafetensorError):
        return False


def _start_of(log: Path) -> dict[str, Any]:
    try:
        with log.open(encoding="utf-8") as file:
            value = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
