"""Data sets from the Hugging Face hub: all of a download or nothing, with a record of where it came from."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from letheon.errors import DataError, LetheonError, OutputError
from letheon.storage.files import check_output_folder, open_output_folder, write_json

SOURCE_FILE = "SOURCE.json"
"""Where a download came from, and the size and SHA-256 of each of its files."""
_WITHOUT_NETWORK = "download it on another machine by the same command and copy the folder here"
_ELSEWHERE = "choose another folder"


@dataclass(frozen=True, slots=True)
class Download:
    """What `letheon data NAME` downloads; the reader NAME.py declares it as `DOWNLOAD`."""

    help: str
    """What it is, its licence and where it comes from, in a sentence."""
    fetch: Callable[[Path, str], Sequence[Path]]
    """Writes the named part to a folder and returns the files; the name is empty where there are no parts."""
    parts: tuple[str, ...] = ()
    """Parts of which one is downloaded at a time, the default first."""
    doubt: Callable[[Path], str | None] = lambda _: None
    """Says why scores on what came cannot be compared with published ones; None where they can."""


def download_from_hub(
    repository: str,
    to: str | Path,
    *,
    patterns: Sequence[str],
    check: Callable[[Path], object],
    token: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Download the files of a hub data set that match `patterns` to the folder `to`.

    Everything arrives under a temporary name and goes through `check`, which raises if it is not usable, so a download
    that fails leaves `to` as it was. `token` is by default HF_TOKEN.

    Returns:
        The files written, SOURCE.json last.

    Raises:
        DataError: the network, the token or what came is not right.
        OutputError: files of an earlier download are there and `overwrite` is not set, or cannot be written.
    """
    folder = Path(to)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    check_output_folder(folder, advice=_ELSEWHERE)
    if (folder / SOURCE_FILE).exists() and not overwrite:
        raise OutputError(f"{folder / SOURCE_FILE}: already exists; choose another folder, or remove this one first")
    open_output_folder(folder, advice=_ELSEWHERE)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            arrived = Path(temporary)
            origin = fetch_from_hub(repository, arrived, patterns=patterns, token=token)
            check(arrived)
            return move_into_place(arrived, folder, origin)
    except LetheonError:
        for path in made:
            path.rmdir()
        raise


def fetch_from_hub(
    repository: str, folder: Path, *, patterns: Sequence[str], token: str | None = None, advice: str = _WITHOUT_NETWORK
) -> str:
    """Fetch the files of a hub data set that match `patterns` into `folder`; return where they come from.

    Raises:
        DataError: they cannot be had; `advice` says what to do besides checking the network.
    """
    import huggingface_hub

    token = token or os.environ.get("HF_TOKEN")
    try:
        revision = huggingface_hub.HfApi(token=token).dataset_info(repository).sha
        huggingface_hub.snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            local_dir=folder,
            token=token,
            allow_patterns=list(patterns),
        )
    except Exception as error:  # network, permission and storage errors of the library share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{repository}: cannot be downloaded ({reason}); check the network, or {advice}") from error
    return f"hub:{repository} (revision {revision})"


def move_into_place(arrived: Path, folder: Path, origin: str) -> tuple[Path, ...]:
    """Move what has arrived to `folder`, and record its source, sizes and hashes; returns the files, the record last.

    Raises:
        DataError: the download holds a symbolic link, which could lead out of the folder.
    """
    _check_plain_files(arrived)
    names = sorted(
        path.relative_to(arrived)
        for path in arrived.rglob("*")
        if path.is_file() and ".cache" not in path.relative_to(arrived).parts  # the hub's own bookkeeping
    )
    record = {name.as_posix(): _facts(arrived / name) for name in names}
    written = [_move(arrived / name, folder / name) for name in names]
    write_json(folder / SOURCE_FILE, {"source": origin, "files": record})
    return (*written, folder / SOURCE_FILE)


def _check_plain_files(folder: Path) -> None:
    """Refuse symbolic links in a download, which could lead out of the folder."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise DataError(f"{path.relative_to(folder)}: the download holds a symbolic link, which is refused")


def _facts(path: Path) -> dict[str, str | int]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _move(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return source.replace(target)
