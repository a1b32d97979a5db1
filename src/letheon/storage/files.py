"""Writing files and folders so that a reader never sees half of one."""

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from letheon.errors import OutputError

_ADVICE = "free space or choose another folder"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFLUSHABLE = (errno.EINVAL, errno.ENOTSUP)
"""What file systems answer that cannot flush a folder by itself."""
TEMPORARY_PREFIX = ".letheon."
"""Prefix of our temporary names, which tells them from other people's hidden files."""
_LEFTOVER = re.compile(re.escape(TEMPORARY_PREFIX) + r".+\.(tmp|old)")


@contextmanager
def replace_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    A private file is readable by its owner alone, from its first byte on. What a killed process of this machine left of
    the same file is removed.

    Raises:
        OutputError: the file cannot be written (folder missing, no permission, disk full); `path` is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}_{_here()}.tmp")
    try:
        if private:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
        for left in leftovers_of(path):
            if _is_of_dead_process(left):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {_ADVICE}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path, *, advice: str = _ADVICE, private: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; when the block ends well, flush all of it and put it in that place.

    A private folder, its files and the folders above it that are made here are their owner's alone.

    Raises:
        OutputError: it cannot be written; `folder` is as it was.
    """
    try:
        make_folder(folder.parent, private=private)
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); {advice}") from error
    try:
        yield temporary
        swap_folder(temporary, folder, private=private)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(complete: Path, folder: Path, *, private: bool = False) -> None:
    """Replace `folder` by the folder `complete` on the same disk, without a half-written state at any time."""
    os.chmod(complete, 0o700 if private else 0o755)
    for path in complete.rglob("*"):
        if path.is_file():
            os.chmod(path, 0o600 if private else 0o644)
            _flush(path)
        elif path.is_dir():
            _flush_folder(path)
    _flush_folder(complete)
    old = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(complete, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    _flush_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in `folder`, and below it, under temporary names."""
    for path in [path for path in folder.rglob(f"{TEMPORARY_PREFIX}*") if is_leftover(path)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `path` has a temporary name of ours, so that `sweep` would remove it."""
    return _LEFTOVER.fullmatch(path.name) is not None


def leftovers_of(path: Path) -> list[Path]:
    """Return what processes that were killed while they wrote `path` left beside it."""
    written = re.compile(re.escape(f"{TEMPORARY_PREFIX}{path.name}.") + r"\w+\.(tmp|old)")
    return sorted(found for found in path.parent.glob(f"{TEMPORARY_PREFIX}*") if written.fullmatch(found.name))


def _here() -> str:
    """A short name of this machine that does not give away its own."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_of_dead_process(leftover: Path) -> bool:
    """Whether a temporary file was being written by a process of this machine that is gone."""
    process, _, machine = leftover.suffixes[-2].removeprefix(".").partition("_")
    if machine != _here() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make `folder` and those above it that are not there; private ones are their owner's alone.

    Raises:
        OSError: one of them cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True, mode=0o700 if private else 0o777)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all; makes the folder, a private one for a private file."""
    try:
        make_folder(path.parent, private=private)
    except OSError as error:
        raise OutputError(
            f"{path.parent}: the folder cannot be made ({error.strerror}); choose another folder"
        ) from error
    with replace_file(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def check_room(folder: Path, num_bytes: int, *, what: str, advice: str = _ADVICE) -> None:
    """Refuse to begin writing `num_bytes` bytes to `folder`, or where it is to be, if the disk has less than that free.

    Raises:
        OutputError: it has; says how much is missing.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise OutputError(
            f"{folder}: {what} needs {_mib(num_bytes)}, but the disk has {_mib(free)} free, "
            f"{_mib(num_bytes - free)} too little; {advice}"
        )


@contextmanager
def full_disk_is_an_error(folder: Path, *, advice: str) -> Iterator[None]:
    """Turn the system's word that the disk of `folder` is full, wherever in the block it comes up, into an error.

    Raises:
        OutputError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); {advice}") from error


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in _UNFLUSHABLE:
            raise


def open_output_folder(folder: Path, *, advice: str, what: str = "a folder to write to", private: bool = False) -> None:
    """Make the folder that a command writes to, or see that it is there and can be written to.

    Raises:
        OutputError: it is a file or a link to nothing, lies below one, or cannot be made or written to; `what` says
            what was expected, and `advice` what to do.
    """
    check_output_folder(folder, advice=advice, what=what)
    try:
        make_folder(folder, private=private)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made ({error.strerror}); {advice}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: no permission to write there; {advice}")


def check_output_folder(folder: Path, *, advice: str, what: str = "a folder to write to") -> None:
    """Refuse what cannot become a folder, without making it.

    Raises:
        OutputError: it is a file or a link to nothing, or lies below one.
    """
    check_link(folder)
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        found = "found a file" if there == folder else f"but {there} is a file"
        raise OutputError(f"{folder}: expected {what}, {found}; {advice}")


def check_link(folder: Path) -> None:
    """Refuse a folder that is a broken link, or lies below one.

    Raises:
        OutputError: naming the link and what it leads to.
    """
    broken = next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None)
    if broken is not None:
        raise OutputError(
            f"{broken}: is a link to {broken.readlink()}, which is not there; make that folder, or give another one"
        )


def open_folder_outside(checkpoint: str | None, folder: Path, *, advice: str, private: bool = False) -> None:
    """Make the folder of a result now, so that hours of work do not end with one that cannot be written.

    Raises:
        OutputError: it cannot be made, or lies inside the `checkpoint` that is read.
    """
    check_output_folder(folder, advice=advice)
    source = Path(checkpoint) if checkpoint is not None else None
    if source is not None and source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{folder}: lies inside the checkpoint {source}; choose a folder outside it")
    open_output_folder(folder, advice=advice, private=private)


def made_folder(folder: Path) -> Path:
    """Return a folder of a study, made where it is not there yet.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    return folder
