"""Records with their place from JSONL, JSON, CSV, TSV, Parquet, and data sets of the Hugging Face library."""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from letheon.errors import DataError, nearest

Record = dict[str, object]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
PACKED = ".gz"
"""What the name of a packed text file ends in, after its own ending."""

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NUM_SAMPLE_LINES = 200
"""How many lines of a table tell what separates its columns."""
_QUOTED = re.compile(r'"[^"]*(?:"|$)')
"""A quoted value, or the part of one up to a doubled quotation mark; up to the end of the text where none closes it."""
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
    header: int | None = None
    """The line that names the columns, where they are not named in each record."""

    def where(self, number: int) -> str:
        """Return "rows.jsonl, line 12"."""
        return f"{self.source}, {self.unit} {number}"

    def where_named(self, number: int) -> str:
        """Return where the columns of a record have their names: in the record, or "rows.csv, line 1 (the header)"."""
        return self.where(number) if self.header is None else f"{self.where(self.header)} (the header)"


def open_records(source: str | Path) -> Records:
    """Open a .jsonl, .json, .parquet, .csv or .tsv, a folder of `save_to_disk`, or `hub:OWNER/NAME[:CONFIG]@SPLIT`.

    A .jsonl or .json holds either a list of objects or one object a line. The columns of a .csv may be separated by
    semicolons or tabs too. All but .parquet may be packed, with .gz at the end of the name. A byte order mark is
    skipped, and so are blank lines.

    Raises:
        DataError: here if there is no such source or its kind is not known; while reading if a record is not readable.
    """
    if str(source).startswith("hub:"):
        return _hub_records(str(source))
    path = Path(source)
    if path.is_dir():
        return _folder_records(path)
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES)
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got '{suffix}'{hint}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path{_neighbour(path)}")
    if suffix == ".parquet":
        return Records(str(path), "row", _parquet(path))
    if suffix in (".csv", ".tsv"):
        header = next((n for n, line in read_lines(path) if line.strip()), 1)
        return Records(str(path), "line", _csv(path, header, _delimiter(path)), header)
    if _first_character(path) == "[":
        return Records(str(path), "item", _json_list(path))
    return Records(str(path), "line", _json_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end) of a UTF-8 text file, which may be packed (.gz).

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or holds a NUL byte.
    """
    for number, raw in enumerate(_raw_lines(path), 1):
        yield number, _decode(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, f"{path}, line {number}")


def _neighbour(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _suffix(path: Path) -> str:
    """Return the ending that tells what a file holds: ".jsonl" for rows.jsonl and for rows.jsonl.gz."""
    last, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if last == PACKED and inner in SUFFIXES and inner != ".parquet" else last


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _raw_lines(path: Path) -> Iterator[bytes]:
    with _open(path) as file:
        if path.suffix.lower() != PACKED:
            yield from file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield from unpacked
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: expected a gzip file ({_first_line(error)}); compress it again") from error


def _decode(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        raise DataError(f"{where}: expected text, found a NUL byte; is it binary, or UTF-16? save the file as UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        raise DataError(f"{where}: expected UTF-8, found {byte}; save the file as UTF-8") from error


def _first_character(path: Path) -> str:
    for raw in _raw_lines(path):
        if text := raw.removeprefix(codecs.BOM_UTF8).strip():
            return text[:1].decode("latin-1")
    return ""


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
            f"{where}: expected JSON, one object per line or a list of objects ({_reason(error)}); correct it or take "
            f"it out"
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
        raise ValueError(f"the name '{twice[:60]}' occurs twice in one object")
    return record


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with named fields, got {describe_type(value)}")
    return value


def is_absent(value: object) -> bool:
    """Whether a value is null or blank: an empty cell is all that CSV has for a missing value."""
    return value is None or (isinstance(value, str) and not value.strip())


def require_column(record: Record, column: str, where: str) -> object:
    """Return what stands in a column.

    Raises:
        DataError: the record has no such column.
    """
    if column not in record:
        found, hint = (", ".join(str(name) for name in record) or "none")[:200], nearest(column, record)
        raise DataError(f"{where}: expected a column '{column}', found {found}{hint}; correct the name or the row")
    return record[column]


def text_from(record: Record, column: str, where: str) -> str:
    """Return the text in a column.

    Raises:
        DataError: there is no such column or no text in it.
    """
    return check_text(require_column(record, column, where), column, where)


def check_text(value: object, column: str, where: str, *, may_be_empty: bool = False) -> str:
    """Return `value` if it is a text that a tokenizer can take.

    Raises:
        DataError: it is none, or it is blank though it may not be.
    """
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected text in column '{column}', got {describe_type(value)}, which is not text; put it in "
            f"quotation marks or take the row out"
        )
    if not may_be_empty and not value.strip():
        raise DataError(f"{where}: column '{column}' is empty; give it some text or take the row out")
    if "\0" in value:
        raise DataError(f"{where}: column '{column}' holds a NUL character; take it out")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(
            f"{where}: column '{column}' holds half of a surrogate pair, which is not a character; correct it"
        )
    return value


def describe_type(value: object) -> str:
    """Name the type of a value in the words of JSON, e.g. "a number (3)"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({str(value)[:30]})"
    name = type(value).__name__
    return {"str": "text", "list": "a list", "dict": "an object"}.get(name, f"a value of type {name}")


def _csv(path: Path, header_line: int, delimiter: str) -> Iterator[tuple[int, Record]]:
    # The limit is the csv module's own global, 128 KiB by default, which a long document exceeds.
    previous_limit = csv.field_size_limit(_FIELD_SIZE_LIMIT)
    reader = csv.reader((line for _, line in read_lines(path)), strict=True, delimiter=delimiter)
    try:
        header = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
        _check_header(header, f"{path}, line {header_line}")
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield start, _csv_record(header, cells, f"{path}, line {start}", delimiter)
            start = reader.line_num + 1
    except csv.Error as error:
        name = _DELIMITERS[delimiter]
        raise DataError(f"{path}, line {reader.line_num}: expected {name}-separated values ({error})") from error
    finally:
        csv.field_size_limit(previous_limit)


def _delimiter(path: Path) -> str:
    """Return what separates the columns: the mark that comes as often in the rows as in the header.

    Marks inside quotation marks do not count. Where two marks do equally well it is the one that the file's name says.
    """
    usual = "\t" if _suffix(path) == ".tsv" else ","
    header, *rows = _unquoted_records(path)
    candidates = [mark for mark in _DELIMITERS if mark in header]
    if not candidates:
        return usual

    def agreement(mark: str) -> tuple[int, bool, int]:
        num_agreeing = sum(row.count(mark) == header.count(mark) for row in rows)
        return num_agreeing, mark == usual, header.count(mark)

    return max(candidates, key=agreement)


def _unquoted_records(path: Path) -> list[str]:
    """Return the first records of a table, the header first, without what stands in quotation marks."""
    lines: list[str] = []
    with suppress(DataError):  # said with its place when the row is read
        lines.extend(line for _, line in islice(read_lines(path), _NUM_SAMPLE_LINES))
    is_whole = len(lines) < _NUM_SAMPLE_LINES
    records = [line for line in _QUOTED.sub('""', "".join(lines)).split("\n") if line.strip()]
    return (records if is_whole else records[:-1]) or [""]


def _check_header(header: list[str], where: str) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{where}: expected each column name once, found '{repeated[0]}' more than once")


def _csv_record(header: list[str], cells: list[str], where: str, delimiter: str) -> Record:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: expected {len(header)} values as in the header ({', '.join(header)[:200]}), got {len(cells)}; "
            f"put quotation marks around values that hold {_DELIMITERS[delimiter]}s"
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
