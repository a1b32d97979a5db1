"""Locks: one run in a folder, one builder of a shared file.

The lock itself is the operating system's (flock through `filelock`), which a process holds no longer than it lives.
Beside the lock of a folder lies owner.json, which says who holds it and is touched every few seconds: it tells others
whom to ask, and settles who is alive where machines share a disk that keeps locks to one machine.
"""

import getpass
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from filelock import FileLock, Timeout

from letheon.errors import OutputError
from letheon.storage.files import write_json
from letheon.storage.run_folder import LOCK_FILE, OWNER_FILE

HEARTBEAT_S = 5.0
"""How often an owner says that it is alive, seconds."""
SILENCE_S = 60.0
"""After how long without a word an owner on another machine counts as gone, seconds."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock."""

    pid: int
    host: str
    user: str
    since: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


@contextmanager
def folder_lock(folder: Path, *, note: Note, silence_s: float = SILENCE_S) -> Iterator[None]:
    """Hold `folder`, which exists, for this process alone; the lock's files are gone afterwards.

    An owner that is gone without having let go is passed over, which `note` is told. One on another machine is waited
    for up to `silence_s` seconds to show that it is alive.

    Raises:
        OutputError: another process holds the folder, or no lock can be made in it.
    """
    lock = FileLock(folder / LOCK_FILE)
    _acquire(lock, folder)
    try:
        before = _owner_of(folder)
        if before is not None:
            _check_gone(before, folder, note=note, silence_s=silence_s)
        with _signed(folder / OWNER_FILE):
            yield
    finally:
        _let_go(lock)


def clear_locks(folder: Path) -> None:
    """Remove the files of locks in `folder` and below whose owners, on this machine, were killed."""
    for held in sorted({path.parent for entry in (LOCK_FILE, OWNER_FILE) for path in folder.rglob(entry.name)}):
        owner, lock = _owner_of(held), FileLock(held / LOCK_FILE)
        if owner is not None and owner.host != socket.gethostname():
            continue
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            continue
        with suppress(OSError):
            (held / OWNER_FILE).unlink(missing_ok=True)
        _let_go(lock)


def is_lock_file(path: Path) -> bool:
    """Whether `path` is one of the files of `folder_lock`."""
    return path.name in (LOCK_FILE.name, OWNER_FILE.name)


@contextmanager
def file_lock(path: Path, *, note: Note, what: str) -> Iterator[None]:
    """Be the only process that builds `path`; waits for another one that does, which `note` is told.

    Raises:
        OutputError: no lock can be made beside `path`.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            note(f"waiting for {what}, which another process is making ({path})")
            lock.acquire(poll_interval=0.1)
    except OSError as error:
        raise OutputError(f"{path}: cannot be locked ({error.strerror}); choose another folder for it") from error
    try:
        yield
    finally:
        _let_go(lock)


@contextmanager
def file_lock_if_free(path: Path) -> Iterator[bool]:
    """Hold what `file_lock` holds where no process has it; the value says whether."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        _let_go(lock)


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise _held(folder, _owner_of(folder)) from error
    except OSError as error:
        raise OutputError(f"{folder}: cannot be locked ({error.strerror}); choose another folder") from error


def _let_go(lock: FileLock) -> None:
    """Remove the lock's file and release it, in this order: who waits sees that what it got has no name any more."""
    with suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()


def _myself() -> Owner:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"  # containers run as users without a name
    return Owner(os.getpid(), socket.gethostname(), user, datetime.now(UTC).isoformat(timespec="seconds"))


def _owner_of(folder: Path) -> Owner | None:
    try:
        return Owner(**json.loads((folder / OWNER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _held(folder: Path, owner: Owner | None) -> OutputError:
    whom = f"is in use by {owner}" if owner else "is in use by another process"
    return OutputError(f"{folder}: {whom}; wait for it, stop it, or choose another --out")


def _check_gone(owner: Owner, folder: Path, *, note: Note, silence_s: float) -> None:
    """Having got the lock, see that the one who left its name in the folder is gone.

    On this machine the lock says so; on another one only silence does.

    Raises:
        OutputError: it is alive.
    """
    if owner.host != socket.gethostname():
        note(f"{folder}: waiting up to {silence_s:g} s to see whether {owner} is still alive")
        last_word, until = _touched_ns(folder), monotonic() + silence_s
        while monotonic() < until:
            word = _touched_ns(folder)
            if word is None:
                return
            if word != last_word:
                raise _held(folder, owner)
            sleep(min(HEARTBEAT_S, silence_s) / 10)
    note(f"{folder}: {owner} ended without releasing it; this process takes it over")


def _touched_ns(folder: Path) -> int | None:
    """When the owner last said that it is alive; None once it has let go."""
    try:
        with (folder / OWNER_FILE).open("rb") as file:  # network file systems look anew when a file is opened
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


@contextmanager
def _signed(path: Path) -> Iterator[None]:
    """Keep this process's name at `path`, and the file's time fresh, while the block lasts."""
    write_json(path, asdict(_myself()))
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="letheon-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)
