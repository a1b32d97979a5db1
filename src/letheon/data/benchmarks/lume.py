"""The LUME benchmark (SemEval-2025 Task 4): its splits, its submission folders, and where to get it."""

import shutil
import tempfile
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args

from letheon.data.benchmarks.downloading import fetch_from_hub, move_into_place
from letheon.data.records import read_lines
from letheon.data.rows import Rows, check_disjoint, read_rows
from letheon.errors import DataError, LetheonError, OutputError, nearest
from letheon.storage.files import check_output_folder, open_output_folder

SplitName = Literal["train", "validation", "all"]
SetName = Literal["forget", "retain"]
SourceName = Literal["github", "hub"]

OPEN_FILES = "https://raw.githubusercontent.com/amazon-science/lume-llm-unlearning/main/data"
HUB_REPOSITORY = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"

_SETS: tuple[SetName, ...] = get_args(SetName)
_SHORT = {"train": "train", "validation": "val"}
_OLD_RELEASE = (250, 250)
_TIMEOUT_S = 60.0
_CHUNK_BYTES = 2**20
_ELSEWHERE = "choose another folder"


@dataclass(frozen=True, slots=True)
class LumeSplits:
    """The two sets of one split, without a common row."""

    forget: Rows
    retain: Rows


def read_lume(folder: str | Path, split: SplitName = "train") -> LumeSplits:
    """Read one split of LUME from its open files or from the Parquet files of the SemEval task.

    The open files are forget.jsonl and retain.jsonl, cut by ids/{forget,retain}_{train,val}_ids.txt; "all" is every row
    of them, more than the public splits hold. The task's files are {forget,retain}_{train,validation}*.parquet, in the
    folder or in its folder data; there "all" is train, then validation. Rows keep the order of the id list or file.

    Raises:
        DataError: the folder holds neither layout, an id has no row, a row is not usable, or a row is in both sets.
    """
    folder = Path(folder)
    if split not in get_args(SplitName):
        hint = nearest(split, get_args(SplitName))
        raise DataError(f"split: expected {', '.join(get_args(SplitName))}, got '{split}'{hint}")
    _check_folder(folder)
    read = _read_open_set if (folder / "forget.jsonl").is_file() else _read_task_set
    splits = LumeSplits(forget=read(folder, "forget", split), retain=read(folder, "retain", split))
    check_disjoint(splits.forget, splits.retain)
    return splits


def read_sets(directory: str | Path, name: SetName) -> Rows:
    """Read the set `name`, "forget" or "retain", from a folder of the task's submission interface.

    It is the one file whose name begins with `name` and ends in .jsonl or .parquet, e.g. forget.jsonl or
    forget_train-00000-of-00001.parquet. The same rows in both formats under one name count as one file.

    Raises:
        DataError: there is no such file, or there are several that could be meant.
    """
    folder = Path(directory)
    _check_folder(folder)
    found = sorted(p for p in folder.iterdir() if p.name.startswith(name) and p.suffix in (".jsonl", ".parquet"))
    if not found:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{folder}: expected {name}*.jsonl or {name}*.parquet, found {names}")
    rows = read_rows(found[0])
    if len({path.stem for path in found}) > 1 or any(read_rows(path).rows != rows.rows for path in found[1:]):
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: expected one file of {name} rows, found {names}; keep only the one to read")
    return rows


def check_membership_sets(members: Collection[str], nonmembers: Collection[str]) -> None:
    """Refuse documents that make a membership score meaningless.

    The task's current release has 150 + 150 documents, 34 + 34 for validation. An older one of 250 + 250 circulates;
    half of its members are rows to retain, so a score on it cannot be compared with any published one.

    Raises:
        DataError: a set has fewer than two, a document is in both, or there are 250 of each.
    """
    if min(len(members), len(nonmembers)) < 2:
        raise DataError(
            f"members and nonmembers: expected two documents or more in both, got {len(members)} and {len(nonmembers)}"
        )
    if common := set(members) & set(nonmembers):
        start = min(common)[:60]
        raise DataError(f"members and nonmembers: {len(common)} documents are in both, e.g. '{start}'; take them out")
    if (len(members), len(nonmembers)) == _OLD_RELEASE:
        raise DataError(
            "members and nonmembers: 250 + 250 documents is an older release of the task, half of whose members are "
            "rows to retain, not to forget; use the current 150 + 150 (validation 34 + 34). If these are your "
            "own documents, leave one of them out"
        )


def download_lume(
    to: str | Path,
    *,
    source: SourceName = "github",
    token: str | None = None,
    base_url: str = OPEN_FILES,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Download LUME to the folder `to`, check that it reads, and record each file's SHA-256 in SOURCE.json.

    "github" fetches the open files. They do not say which row is in which public split: put the id lists of the task
    into `to`/ids to cut them. "hub" fetches the task's own, gated Parquet files; it needs access to the data set and
    its token, from `token` or HF_TOKEN. Everything arrives under a temporary name first, so a download that
    fails leaves `to` as it was.

    Returns:
        The files written, SOURCE.json last.

    Raises:
        DataError: the network, the token or what came is not right.
        OutputError: files are there already and `overwrite` is not set, or cannot be written.
    """
    folder = Path(to)
    was_there = folder.is_dir()
    _check_writable(folder, overwrite=overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=".lume-", dir=folder) as temporary:
            arrived = Path(temporary)
            origin = _fetch_open_files(arrived, base_url) if source == "github" else _fetch_hub_files(arrived, token)
            read_lume(arrived, "all")
            written = move_into_place(arrived, folder, origin)
    except LetheonError:
        if not was_there:
            folder.rmdir()
        raise
    return written


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder that holds a forget and a retain set, found no folder")


def _read_open_set(folder: Path, name: SetName, split: SplitName) -> Rows:
    rows = read_rows(folder / f"{name}.jsonl")
    if split == "all":
        return rows
    path = folder / "ids" / f"{name}_{_SHORT[split]}_ids.txt"
    if not path.is_file():
        raise DataError(
            f"{path}: expected a list of ids, one per line, that says which rows are in this split, but the file is "
            f"missing; put it there, or use the split 'all' or the task's Parquet files"
        )
    index = {row.id: i for i, row in enumerate(rows)}
    return rows.select(
        _index_of(line.strip(), index, f"{path}, line {n}") for n, line in read_lines(path) if line.strip()
    )


def _index_of(row_id: str, index: dict[str, int], where: str) -> int:
    if row_id not in index:
        raise DataError(f"{where}: no row has the id '{row_id}'; the list and the rows are from different releases")
    return index[row_id]


def _read_task_set(folder: Path, name: SetName, split: SplitName) -> Rows:
    parts = [_read_task_part(folder, name, part) for part in (("train", "validation") if split == "all" else (split,))]
    if len(parts) == 1:
        return parts[0]
    rows = tuple(row for part in parts for row in part)
    return Rows(f"{folder} ({name}, train then validation)", rows, tuple(range(1, len(rows) + 1)), "row")


def _read_task_part(folder: Path, name: SetName, split: str) -> Rows:
    pattern = f"{name}_{split}*.parquet"
    found = sorted(folder.glob(pattern)) or sorted((folder / "data").glob(pattern))
    if len(found) != 1:
        what = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: expected forget.jsonl and retain.jsonl with ids/, or one file {pattern}, found {what}; "
            "`letheon data lume --to DIR` downloads LUME"
        )
    return read_rows(found[0])


def _check_writable(folder: Path, *, overwrite: bool) -> None:
    check_output_folder(folder, advice=_ELSEWHERE)
    there = [p for p in folder.rglob("*") if p.name.startswith(_SETS) and p.suffix in (".jsonl", ".parquet")]
    if there and not overwrite:
        raise OutputError(f"{min(there)}: already exists; choose another folder, or pass overwrite=True in Python")
    open_output_folder(folder, advice=_ELSEWHERE)


def _fetch_open_files(folder: Path, base_url: str) -> str:
    for name in _SETS:
        _fetch(f"{base_url}/{name}.jsonl", folder / f"{name}.jsonl")
    return base_url


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, path.open("wb") as file:  # noqa: S310
            shutil.copyfileobj(response, file, _CHUNK_BYTES)
            expected = response.headers.get("Content-Length")
    except (OSError, HTTPException) as error:
        raise DataError(f"{url}: cannot be downloaded ({error}); check the network and try again") from error
    size = path.stat().st_size
    if expected is not None and size != int(expected):
        raise DataError(f"{url}: expected {expected} bytes, got {size}; the connection broke; try again")


def _fetch_hub_files(folder: Path, token: str | None) -> str:
    advice = "ask for access on the data set's page and set HF_TOKEN, or use the open files of LUME instead"
    return fetch_from_hub(HUB_REPOSITORY, folder, patterns=("*.parquet", "*.jsonl"), token=token, advice=advice)
