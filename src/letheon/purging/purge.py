"""Removing what Letheon itself wrote of the rows to forget, once a run's result is accepted.

The model, the adapter, scores, settings and hashes stay, so that it can still be shown what was done. What lies
elsewhere, the rows and the model before unlearning above all, is named and left to its owner.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from letheon.errors import LetheonError, OutputError
from letheon.evaluation.outputs import check_is_folder
from letheon.purging.traces import (
    Home,
    Trace,
    are_checkpoints,
    homes_below,
    read_values,
    store_paths,
    traces_below,
    traces_of_cached_scores,
    traces_of_store,
)
from letheon.report.files import originals_of
from letheon.storage.files import write_text
from letheon.storage.locks import file_lock_if_free, folder_lock
from letheon.storage.outside import EVALUATIONS, outside_of
from letheon.storage.run_folder import (
    AUDITS_FOLDER,
    CHECKPOINTS_FOLDER,
    EVALUATION,
    FAILURE_FILES,
    LOG_FILE,
    PREDICTIONS_FILE,
    PURGE_FILE,
    REPORT_FILE,
    RESULTS,
    RUN,
    SETTINGS_FILE,
    STUDY,
    STUDY_FILE,
    Entry,
    marks,
    write_json_entry,
)
from letheon.storage.staged import finish_held

REASON_REMOVED = "removed by letheon purge, since it may name rows"
"""What replaces the reason of a failed run."""

_FAILED = ("failed", "diverged")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Purge:
    """What was or would be removed, and what is known to be left elsewhere."""

    folder: Path
    traces: tuple[Trace, ...]
    remains: tuple[str, ...]
    reworded: tuple[Path, ...] = ()
    """Files whose reasons of failed runs are replaced."""


@dataclass(frozen=True, slots=True)
class _Reworded:
    """A file that stays without its reasons."""

    entry: Entry
    text: str


def purge(folder: Path, *, dry_run: bool = False, note: Note) -> Purge:
    """Remove every trace of the rows to forget that Letheon wrote for the run, study, evaluation or audit in `folder`.

    These are the checkpoints, the predictions, what attacks brought back, the samples in the report (which is written
    anew without them), temporary files of killed processes, and the reference stores and cached scores that its runs
    noted in outside.json, wherever they lie. Symbolic links are removed, not followed. The reasons of failed runs,
    which may name rows, give way to a sentence that does not; their states stay. purge.json keeps what was removed.
    With `dry_run` nothing is changed.

    Raises:
        EvaluationError: there is no such folder.
        OutputError: the folder is none of these or is in use, or files cannot be removed; all others are removed then.
    """
    check_is_folder(folder)
    own = (folder, folder / AUDITS_FOLDER)
    if not (folder / PURGE_FILE).is_file() and not any(home.path in own for home in homes_below(folder)):
        known = ", ".join(entry.name for entry in marks(RUN, EVALUATION, STUDY))
        raise OutputError(
            f"{folder}: expected the folder of a run, a study, an evaluation or an audit ({known}), found none of "
            "these files; give what was --out"
        )
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(folder_lock(folder, note=note))
        homes = homes_below(folder)
        if not dry_run:
            _check_idle([home.path for home in homes if home.is_run and home.path != folder], note)
            for run in (home.path for home in homes if home.is_run):
                finish_held(run)
        there = [path for path in store_paths(homes) if path.parent.is_dir()]
        stores = {path: stack.enter_context(file_lock_if_free(path)) for path in there}
        of_stores = [trace for path, is_free in stores.items() if is_free for trace in traces_of_store(path)]
        traces = (*traces_below(folder), *of_stores, *traces_of_cached_scores(homes))
        rewritten = dict(_without_reasons([home.path for home in homes]))
        left = (*_stores_left(stores, of_stores), *_remains(homes))
        found = Purge(folder, traces, left, tuple(rewritten))
        if not dry_run:
            _carry_out(found, rewritten, note)
    return found


def _check_idle(runs: Collection[Path], note: Note) -> None:
    """Refuse to purge a study while one of its runs goes on.

    Raises:
        OutputError: another process holds the folder of one.
    """
    for run in runs:
        with folder_lock(run, note=note):
            pass


def _carry_out(found: Purge, rewritten: dict[Path, _Reworded], note: Note) -> None:
    kept: dict[Path, str] = {}
    for trace in found.traces:
        try:
            _remove(trace.path)
        except OutputError as error:
            kept[trace.path] = str(error)
    for path, file in rewritten.items():
        write_text(path, file.text, private=file.entry.is_private)
    done = replace(found, traces=tuple(trace for trace in found.traces if trace.path not in kept))
    _write_reports(done, note)
    _record(done)
    if kept:
        raise OutputError(f"{len(done.traces)} of {len(found.traces)} traces are removed; {'; '.join(kept.values())}")


def describe_purge(found: Purge, *, dry_run: bool) -> Iterator[str]:
    """Describe it, line by line."""
    done = "would remove" if dry_run else "removed"
    for trace in found.traces:
        yield f"{done} {trace.path} ({trace.num_bytes / 1024:,.1f} KiB): {trace.holds}"
    for path in found.reworded:
        yield f"{'would replace' if dry_run else 'replaced'} the reasons of failed runs in {path}"
    if not found.traces and not found.reworded:
        yield f"{found.folder}: neither it nor the cache holds anything of the rows to forget"
    yield "not removed, because it is the result or Letheon did not write it:"
    yield from (f"  {line}" for line in found.remains)


def _without_reasons(homes: list[Path]) -> Iterator[tuple[Path, _Reworded]]:
    """Yield each file that gives reasons of failed runs, and its text without them."""
    for home in homes:
        for entry in (*RUN, *STUDY):
            for path in sorted(home.glob(entry.name)) if entry.fate == "reworded" else ():
                text = None if path.is_symlink() else _WORDING[entry](path)
                if text is not None:
                    yield path, _Reworded(entry, text)


def _study_without_reasons(path: Path) -> str | None:
    value = read_values(path)
    runs = value.get("runs")
    return _as_json(value) if sum(map(_reword, runs if isinstance(runs, list) else ())) else None


def _failure_without_reason(path: Path) -> str | None:
    is_of_study = (path.parent.parent / STUDY_FILE).is_file()
    return _as_json(value) if is_of_study and _reword(value := read_values(path)) else None


def _log_without_rows(path: Path) -> str | None:
    lines = _lines_of(path)
    reworded = [_without_rows(line) for line in lines]
    return "".join(reworded) if reworded != lines else None


_WORDING: Mapping[Entry, Callable[[Path], str | None]] = {
    LOG_FILE: _log_without_rows,
    STUDY_FILE: _study_without_reasons,
    FAILURE_FILES: _failure_without_reason,
}
"""How the text of a file reads without what names rows; None where it is that already."""


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _reword(run: Any) -> bool:
    """Replace the reason of a run that failed; whether there was anything to replace."""
    if not isinstance(run, dict) or run.get("state") not in _FAILED or run.get("reason") == REASON_REMOVED:
        return False
    run["reason"] = REASON_REMOVED
    return True


def _without_rows(line: str) -> str:
    """Return a line of a log: notes marked as naming rows without their text, lists of rows without their ids."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict):
        return line
    changed = dict(event)
    if event.get("names_rows"):
        changed["message"] = REASON_REMOVED
    if event.get("event") == "answerless":
        changed |= {side: [REASON_REMOVED] * len(ids) for side, ids in event.items() if isinstance(ids, list)}
    return line if changed == event else json.dumps(changed, ensure_ascii=False) + "\n"


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []


def _stores_left(stores: Mapping[Path, bool], removed: Collection[Trace]) -> Iterator[str]:
    """Yield the reference stores that stay, and why."""
    for path, is_free in stores.items():
        if not is_free:
            yield f"{path}: a reference store that is locked by another process or write-protected; purge again"
        elif path.exists() and path not in {trace.path for trace in removed}:
            yield f"{path}: recorded as a run's reference store, but it is not one"


def _remains(homes: Collection[Home]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for home in homes:
        found |= dict.fromkeys(_inputs_of(read_values(home.path / SETTINGS_FILE)))
        for path in outside_of(home.path, EVALUATIONS):
            if path.is_dir():
                found[f"{path}: an evaluation of the result, to be purged separately: letheon purge {path}"] = None
        for path in originals_of(home.path) if home.is_run else ():
            if (path / PREDICTIONS_FILE).exists() and not any(path == other.path for other in homes):
                found[f"{path}: what the model before unlearning said, for all runs of the study"] = None
        for name in RESULTS:
            if (home.path / name).is_dir():
                found[f"{home.path / name}: the result"] = None
        checkpoints = home.path / CHECKPOINTS_FOLDER
        if home.is_run and checkpoints.is_dir() and not are_checkpoints(checkpoints):
            found[f"{checkpoints}: holds files that are no checkpoints of a run"] = None
    found["copies and backups of any of this, and disk blocks not yet reused"] = None
    return tuple(found)


def _inputs_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the inputs of a run, and the other places that its settings name."""
    for name, what in (
        ("forget", "the rows to forget"),
        ("alternatives", "other answers to them"),
        ("instead", "other answers to them"),
        ("model", "the model before unlearning, which knows them"),
    ):
        if settings.get(name) and settings[name] not in ("auto", "refusal"):
            yield f"{settings[name]}: {what}"
        if name != "model" and str(settings.get(name, "")).startswith("hub:"):
            yield f"{_hub_cache()}: the data set library's copy of {settings[name]}"
    for name in settings.get("trackers") or ():
        if name != "tensorboard":
            yield f"{name}: the run's settings and losses, without rows, at that tracker"


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
        if trace.path.name == REPORT_FILE.name:
            from letheon.api import write_report

            try:
                write_report(trace.path.parent)
            except LetheonError as error:
                note(f"{trace.path}: removed, but could not be written again ({error})")
    for path in found.reworded:
        if path.name == STUDY_FILE.name:
            from letheon.studies.report import report_study

            shown = [entry for entry in STUDY if entry.fate == "rewritten"]
            for one in [one for entry in shown for one in path.parent.glob(entry.name)]:
                _remove(one)
            try:
                report_study(path.parent)
            except LetheonError as error:
                note(
                    f"{path.parent}: its tables that give reasons are removed, but could not be written again ({error})"
                )


def _record(found: Purge) -> None:
    before = read_values(found.folder / PURGE_FILE).get("purges")
    names, reworded = [str(trace.path) for trace in found.traces], [str(path) for path in found.reworded]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": time, "removed": names, **({"reasons_replaced": reworded} if reworded else {})}
    write_json_entry(found.folder, PURGE_FILE, {"purges": [*(before if isinstance(before, list) else []), entry]})
