"""Records with their place from JSONL, JSON, CSV, Parquet, and data sets of the Hugging Face library."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from letheon.errors import DataError, nearest

Record = dict[str, object]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")

_FIELD_SIZE_LIMIT = 2**31 - 1
_HUB = re.compile(r"hub:(?P<name>[^:@\s]+)(?::(?P<config>[^@\s]+))?@(?P<split>\S+)")
_NAME_ENDS = re.compile(r'"\s*:')
_HUB_FORM = "hub:OWNER/NAME@SPLIT or hub:OWNER/NAME:CONFIG@SPLIT"


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one source, read while they are asked for, so that only one is held at a time."""

    source: str
    """The file, folder or hub data set as the user named it."""
    unit: str
    """What `number` counts, from 1: "line" of a text file, "item" of a JSON list, "row" of a table."""
    entries: Iterator[tuple[int, Record]]
    """(number, record), in the order of the source; read once."""

    def where(self, number: int) -> str:
        """Return "rows.jsonl, line 12"."""
        return f"{self.source}, {self.unit} {number}"


def open_records(source: str | Path) -> Records:
    """Open a local .jsonl, .json, .parquet or .csv, a folder of `save_to_disk`, or `hub:OWNER/NAME[:CONFIG]@SPLIT`.

    A .json holds either a list of objects or one object a line. A byte order mark is skipped, and so are blank lines.

    Raises:
        DataError: here if there is no such source or its kind is not known; while reading if a record is not readable.
    """
    if str(source).startswith("hub:"):
        return _hub_records(str(source))
    path = Path(source)
    if path.is_dir():
        return _folder_records(path)
    if path.suffix.lower() not in SUFFIXES:
        hint = nearest(path.suffix.lower(), SUFFIXES)
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got '{path.suffix}'{hint}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path{_neighbour(path)}")
    match path.suffix.lower():
        case ".parquet":
            return Records(str(path), "row", _parquet(path))
        case ".csv":
            return Records(str(path), "line", _csv(path))
        case ".json" if _first_character(path) == b"[":
            return Records(str(path), "item", _json_list(path))
    return Records(str(path), "line", _json_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end) of a UTF-8 text file.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or holds a NUL byte.
    """
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            yield number, _decode(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, f"{path}, line {number}")


def _neighbour(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _decode(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        raise DataError(f"{where}: expected text, found a NUL byte; is it binary, or UTF-16? save the file as UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        raise DataError(f"{where}: expected UTF-8, found {byte}; save the file as UTF-8") from error


def _first_character(path: Path) -> bytes:
    with _open(path) as file:
        for line in file:
            if text := line.removeprefix(codecs.BOM_UTF8).strip():
                return text[:1]
    return b""


def _json_lines(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, _object(_parse(line, where), where)


def _json_list(path: Path) -> Iterator[tuple[int, Record]]:
    items = _parse("".join(line for _, line in read_lines(path)), str(path))
    for number, item in enumerate(items, 1):
        yield number, _object(item, f"{path}, item {number}")


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        # Looking at every name in Python takes twice the time; most records show by a count that none comes twice.
        if isinstance(value, dict) and len(value) == len(_NAME_ENDS.findall(text)):
            return value
        return json.loads(text, object_pairs_hook=_with_names_once)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: expected JSON, one object a line or a list of objects ({_reason(error)}); correct it or take it "
            "out"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return f"{error.msg} at {place}"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error).partition(";")[0]  # what else Python suggests is not for users


def _with_names_once(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice[:60]}' comes twice in one object")
    return record


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with named fields, got {describe_type(value)}")
    return value


def describe_type(value: object) -> str:
    """Name the type of a value as someone would who writes JSON, e.g. "a number (3)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({str(value)[:30]})"
    name = type(value).__name__
    return {"str": "text", "list": "a list", "dict": "an object"}.get(name, f"a value of type {name}")


def _csv(path: Path) -> Iterator[tuple[int, Record]]:
    # The limit is the csv module's own global, 128 KiB by default, which a long document exceeds.
    previous_limit = csv.field_size_limit(_FIELD_SIZE_LIMIT)
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    try:
        header = next(reader, [])
        _check_header(header, path)
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield start, _csv_record(header, cells, f"{path}, line {start}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: expected comma-separated values ({error})") from error
    finally:
        csv.field_size_limit(previous_limit)


def _check_header(header: list[str], path: Path) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: expected each column name once, found '{repeated[0]}' several times")


def _csv_record(header: list[str], cells: list[str], where: str) -> Record:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: expected {len(header)} values as in the header ({', '.join(header)[:200]}), got {len(cells)}; "
            "put quotation marks around values that hold commas"
        )
    return dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, after row {number} ({error.reason})") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: expected a Parquet file, stopped after row {number} ({_first_line(error)})"
        ) from error


def _folder_records(path: Path) -> Records:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        named = f"name one, e.g. {path / splits[0]}" if splits else "but none is there; save the data set again"
        raise DataError(f"{path}: holds several splits ({', '.join(splits)}); {named}")
    if not (path / "dataset_info.json").is_file():
        raise DataError(
            f"{path}: is a folder; expected a file ({', '.join(SUFFIXES)}) or a folder made by the data set library's "
            "save_to_disk; name the file inside it"
        )
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # the library lets errors of its storage layers through
        raise DataError(f"{path}: cannot be loaded as a saved data set ({_first_line(error)})") from error
    return Records(str(path), "row", _numbered(dataset))


def _hub_records(source: str) -> Records:
    form = _HUB.fullmatch(source)
    if form is None:
        raise DataError(f"{source}: expected {_HUB_FORM}, e.g. hub:locuslab/TOFU:forget10@train")
    import datasets

    try:
        dataset = datasets.load_dataset(form["name"], form["config"], split=form["split"])
    except Exception as error:  # connection, permission, name, configuration and split errors share no base class
        raise DataError(
            f"{source}: cannot be loaded from the Hugging Face hub ({_first_line(error)}); check the network, the "
            "name, the configuration and the split, and HF_TOKEN if the data set is gated, or give a local file instead"
        ) from error
    return Records(source, "row", _numbered(dataset))


def _numbered(dataset: Any) -> Iterator[tuple[int, Record]]:
    yield from enumerate(dataset, 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
