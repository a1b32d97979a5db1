"""Removing what Letheon itself wrote of the rows to forget, once a run's result is accepted.

The model, the adapter, scores, settings and hashes stay, so that it can still be shown what was done. What lies
elsewhere, the rows and the model before unlearning above all, is named and left to its owner.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from letheon.cache import STORES, default_cache_dir, store_path
from letheon.errors import LetheonError, OutputError
from letheon.files import is_leftover, write_json, write_text
from letheon.locks import folder_lock
from letheon.yaml_text import parse_yaml

RECORD = "purge.json"
MARKS = ("run.yaml", "log.jsonl", "results.json", "study.json")
"""Files by which the folder of a run, an evaluation or a study is known."""

REASON_REMOVED = "removed by letheon purge, since it may name rows"
"""What stands in the place of the reason of a run that failed."""

_RESULT = ("model", "adapter")
_FAILED = ("failed", "diverged")
_SHOWN = ("study.html", "study.md", "tables/unfinished.md", "tables/unfinished.tex", "tables/unfinished.csv")
"""Where a study's report shows the reasons."""
_STORE_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trace:
    """A file or folder that was made of the rows to forget."""

    path: Path
    num_bytes: int
    holds: str


@dataclass(frozen=True, slots=True)
class Purge:
    """What was removed, or would be, and what is known to be left elsewhere."""

    folder: Path
    traces: tuple[Trace, ...]
    remains: tuple[str, ...]
    reworded: tuple[Path, ...] = ()
    """Files whose reasons of failed runs are replaced."""


def purge(folder: Path, *, dry_run: bool = False, note: Note) -> Purge:
    """Remove every trace of the rows to forget that Letheon wrote for the run, study or evaluation in `folder`.

    These are the checkpoints, the predictions, the samples in the report (which is written anew without them),
    temporary files of killed processes, and in the cache the reference stores that its runs used. Symbolic links are
    removed, not followed. The reasons of failed runs, which may name rows, give way to a sentence that does not; their
    states stay. purge.json keeps what was removed. With `dry_run` nothing is changed.

    Raises:
        OutputError: the folder is none of these, is in use, or a file cannot be removed.
    """
    if not any((folder / mark).is_file() for mark in (*MARKS, RECORD)):
        raise OutputError(
            f"{folder}: expected the folder of a run, a study or an evaluation ({', '.join(MARKS)}), found none of "
            "these files; give what was --out"
        )
    held: AbstractContextManager[None] = nullcontext() if dry_run else folder_lock(folder, note=note)
    with held:
        homes = [Path(home) for home, names in _walk(folder) if set(names) & set(MARKS)]
        rewritten = dict(_without_reasons(homes))
        found = Purge(folder, (*_traces_below(folder), *_stores_of(homes)), _remains(homes), tuple(rewritten))
        if not dry_run:
            for trace in found.traces:
                _remove(trace.path)
            for path, text in rewritten.items():
                write_text(path, text, private=path.name == "log.jsonl")
            _write_reports(found, note)
            _record(found)
    return found


def describe_purge(found: Purge, *, dry_run: bool) -> Iterator[str]:
    """Yield what to say of it, line by line."""
    done = "would remove" if dry_run else "removed"
    for trace in found.traces:
        yield f"{done} {trace.path} ({trace.num_bytes / 1024:,.1f} KiB): {trace.holds}"
    for path in found.reworded:
        yield f"{'would replace' if dry_run else 'replaced'} the reasons of failed runs in {path}"
    if not found.traces and not found.reworded:
        yield f"{found.folder}: nothing of the rows to forget is left in it or in the cache"
    yield "not removed, since Letheon did not write it or it is the result:"
    yield from (f"  {line}" for line in found.remains)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) below `folder`, links not followed and results left out."""
    for home, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _RESULT)
        yield home, names


def _traces_below(folder: Path) -> Iterator[Trace]:
    for home, names in _walk(folder):
        here, marked = Path(home), bool(set(names) & set(MARKS))
        for entry in sorted(here.iterdir()):
            holds = _what_it_holds(entry, marked=marked)
            if holds is not None:
                yield Trace(entry, _size(entry), holds)


def _what_it_holds(entry: Path, *, marked: bool) -> str | None:
    if is_leftover(entry) or entry.name.startswith(".state"):
        return "what a killed process was writing"
    if not marked:
        return None
    return {
        "checkpoints": "states from before the rows were forgotten, and moments of their gradients",
        "predictions.jsonl": "prompts, answers and what the model said",
        "predictions_in_form.jsonl": "prompts, answers and what the model said to the rows in their form",
        "report.html": "sample rows; written anew without them",
        "population.json": "where a run ended, and on which rows",
    }.get(entry.name)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(home, name).lstat().st_size for home, _, names in os.walk(path) for name in names)


def _without_reasons(homes: list[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each file that gives reasons of failed runs, and its text without them."""
    for home in homes:
        study, failures = home / "study.json", sorted((home / "failures").glob("*.json"))
        for path in (study, *(failures if study.is_file() else ())):
            value = _read(path)
            runs = value.get("runs") if path == study else [value]
            num_reworded = sum(map(_reword, runs if isinstance(runs, list) else ()))
            if num_reworded and not path.is_symlink():
                yield path, json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        log = home / "log.jsonl"
        lines = _lines_of(log)
        reworded = [_without_rows(line) for line in lines]
        if reworded != lines and not log.is_symlink():
            yield log, "".join(reworded)


def _reword(run: Any) -> bool:
    """Replace the reason of a run that failed; whether there was anything to replace."""
    if not isinstance(run, dict) or run.get("state") not in _FAILED or run.get("reason") == REASON_REMOVED:
        return False
    run["reason"] = REASON_REMOVED
    return True


def _without_rows(line: str) -> str:
    """Return a line of a log; one that says on which rows a loss was not finite, without saying so."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line
    is_note = isinstance(event, dict) and event.get("event") == "note"
    if not is_note or " is not finite" not in str(event.get("message")):
        return line
    return json.dumps({**event, "message": REASON_REMOVED}, ensure_ascii=False) + "\n"


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []


def _stores_of(homes: list[Path]) -> list[Trace]:
    named = [path for home in homes for path in _store_paths(home) if _is_store(path)]
    paths = {path.resolve(): path for path in named}.values()
    return [Trace(path, _size(path), "what the model said of the rows before") for path in paths]


def _store_paths(home: Path) -> Iterator[Path]:
    """Yield where the reference store of a run lies, by its provenance or, where that was not written yet, its log."""
    recorded = _read(home / "provenance.json").get("reference_store")
    if isinstance(recorded, str):
        yield Path(recorded)
    name = _start_of(home / "log.jsonl").get("reference_store")
    if isinstance(name, str):
        cache_dir = _read(home / "run.yaml").get("cache_dir")
        yield store_path(Path(cache_dir) if isinstance(cache_dir, str) else default_cache_dir(), Path(name).stem)


def _is_store(path: Path) -> bool:
    """Whether `path` is a reference store by name, place and content: a run's folder may be someone else's work."""
    if path.parent.name != STORES or not _STORE_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return "log_probs" in set(file.keys()) and set(file.metadata() or {}) == {"sha256"}
    except (OSError, SafetensorError):
        return False


def _read(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; {} if there is none, since what cannot be read names nothing to remove."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _start_of(log: Path) -> dict[str, Any]:
    try:
        with log.open(encoding="utf-8") as file:
            value = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _remains(homes: list[Path]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for home in homes:
        settings = _read(home / "run.yaml")
        for name, what in (
            ("forget", "the rows to forget"),
            ("alternatives", "other answers to them"),
            ("model", "the model before unlearning, which knows them"),
        ):
            if settings.get(name):
                found[f"{settings[name]}: {what}"] = None
            if name != "model" and str(settings.get(name, "")).startswith("hub:"):
                found[f"{_hub_cache()}: the data set library's copy of {settings[name]}"] = None
        for name in settings.get("trackers") or ():
            if name != "tensorboard":
                found[f"{name}: the run's settings and losses, without rows, at that tracker"] = None
        for name in _RESULT:
            if (home / name).is_dir():
                found[f"{home / name}: the result"] = None
    found["evaluations written to other folders, copies and backups of any of this, and disk blocks not yet reused"] = (
        None
    )
    return tuple(found)


def _hub_cache() -> str:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return os.environ.get("HF_DATASETS_CACHE") or f"{home}/datasets"


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{error.filename or path}: cannot be removed ({error.strerror}); correct its permissions and purge again"
        ) from error


def _write_reports(found: Purge, note: Note) -> None:
    for trace in found.traces:
        if trace.path.name == "report.html":
            from letheon.api import write_report

            try:
                write_report(trace.path.parent)
            except LetheonError as error:
                note(f"{trace.path}: removed, but not written anew ({error})")
    for path in found.reworded:
        if path.name == "study.json":
            from letheon.sweep.report import report_study

            for name in _SHOWN:
                _remove(path.parent / name)
            try:
                report_study(path.parent)
            except LetheonError as error:
                note(f"{path.parent}: its tables that give reasons are removed, but not written anew ({error})")


def _record(found: Purge) -> None:
    before = _read(found.folder / RECORD).get("purges")
    names, reworded = [str(trace.path) for trace in found.traces], [str(path) for path in found.reworded]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": time, "removed": names, **({"reasons_replaced": reworded} if reworded else {})}
    write_json(found.folder / RECORD, {"purges": [*(before if isinstance(before, list) else []), entry]})
