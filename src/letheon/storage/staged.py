"""A new result for a finished run: staged beside the old one, then put in its place, never half of it.

What replaces model/, adapter/ and the files that describe them is written to a folder of its own. That folder gets its
name, in one step, once it is complete: before that the run has the old result. From then on the new one holds, and
whoever opens the run next finishes what a killed process left.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from letheon.storage.files import TEMPORARY_PREFIX, replace_folder, swap_folder
from letheon.storage.locks import Note, folder_lock
from letheon.storage.run_folder import (
    ADAPTER_FOLDER,
    LOG_FILE,
    MODEL_FOLDER,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    STAGED_FOLDER,
    write_entry,
)

_FOLDERS = (ADAPTER_FOLDER, MODEL_FOLDER)
_FILES = (SETTINGS_FILE, LOG_FILE, PROVENANCE_FILE)
_DROPPED = f"{TEMPORARY_PREFIX}{STAGED_FOLDER}.old"


@contextmanager
def staged_result(run: Path) -> Iterator[Path]:
    """Give a folder to write a new result of the run to, and put it in place when the block ends well.

    The caller holds the run's folder.

    Raises:
        OutputError: it cannot be written.
    """
    with replace_folder(run / STAGED_FOLDER, private=True) as temporary:
        yield temporary
    _put_in_place(run)


def finish_staged(run: Path, *, note: Note) -> None:
    """Put a new result in place that a killed process staged; does nothing where there is none.

    Raises:
        OutputError: another process holds the run's folder, or it cannot be written to.
    """
    if (run / STAGED_FOLDER).is_dir():
        with folder_lock(run, note=note):
            finish_held(run)


def finish_held(run: Path) -> None:
    """Do as `finish_staged` for a run whose folder the caller holds."""
    if (run / STAGED_FOLDER).is_dir():
        _put_in_place(run)


def _put_in_place(run: Path) -> None:
    """Move what is staged; doing it again after a kill comes to the same."""
    staged = run / STAGED_FOLDER
    for entry in _FOLDERS:
        if (staged / entry).is_dir():
            swap_folder(staged / entry, run / entry)
    for entry in _FILES:
        if (staged / entry).is_file():
            write_entry(run, entry, (staged / entry).read_text(encoding="utf-8"))
    os.replace(staged, run / _DROPPED)
    shutil.rmtree(run / _DROPPED, ignore_errors=True)
