"""Rows to forget and rows to keep: what a row is, and reading, checking and writing files of them."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, overload

from letheon.data.records import Record, describe_type, open_records, read_lines
from letheon.errors import DataError, SettingsError, nearest
from letheon.files import write_text

Kind = Literal["completion", "question"]
Role = Literal["system", "user", "assistant"]

FIELDS = ("id", "prompt", "answer", "task", "kind")
NOTED_ROWS = 100_000
"""After each so many rows it is said how far the reading is."""

_PAIRS = (("input", "output"), ("prompt", "answer"), ("question", "answer"))
_EXPECTED_COLUMNS = "columns input and output (or prompt and answer, or question and answer)"
_DOCUMENT_COLUMNS = ("document", "text")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and the answer that a model gives, or must no longer give, to it.

    `task` is a free label by which scores are grouped ("Task1" to "Task3" in LUME). `kind` decides the score:
    a completion is scored by ROUGE-L recall, a question by exact match (LUME, SCORING rules). A row without a prompt is
    a document: all of its text, the `answer`, is to be forgotten or kept.
    """

    id: str
    prompt: str
    answer: str
    task: str
    kind: Kind
    turns: tuple[Turn, ...] = ()
    """The conversation before the prompt, system message included; empty for most rows."""

    @property
    def is_document(self) -> bool:
        """Whether the row is a text without a prompt."""
        return not self.prompt


@dataclass(frozen=True, slots=True)
class Rows(Collection[Row]):
    """The rows of one source in order, with the place of each; behaves as a collection of `Row`."""

    source: str
    """The file, folder or hub data set as the user named it."""
    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    """Where each row stands in the source, from 1."""
    unit: str = "line"
    """What `lines` counts: "line" of a text file, "item" of a JSON list, "row" of a table."""
    ids_given: bool = True
    """False if the source has no ids, so that they are "row1", "row2", ... and mean nothing across files."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def describe(self, index: int) -> str:
        """Return where row `index` (from 0) comes from, e.g. "rows.jsonl, line 12 (id x)"."""
        return f"{self.source}, {self.unit} {self.lines[index]} (id {self.rows[index].id})"

    def select(self, indices: Iterable[int]) -> "Rows":
        """Return the rows at `indices`, in that order, each with its place."""
        chosen = tuple(indices)
        rows, lines = tuple(self.rows[i] for i in chosen), tuple(self.lines[i] for i in chosen)
        return Rows(self.source, rows, lines, self.unit, self.ids_given)


def read_rows(
    source: str | Path, *, fields: Mapping[str, str] | None = None, note: Callable[[str], None] | None = None
) -> Rows:
    """Read and check rows from a .jsonl, .json, .csv or .parquet file, a folder made by `save_to_disk`, or the hub.

    A hub data set is named `hub:OWNER/NAME@SPLIT` or `hub:OWNER/NAME:CONFIG@SPLIT`. Prompt and answer are read from the
    first pair of columns that is there: input and output, prompt and answer, question and answer; `fields` names the
    columns otherwise, e.g. {"prompt": "Frage"}. The columns id, task and kind are optional: without ids rows are named
    "row1", "row2", ...; without a task it is "default". The kind is what the column `kind` says; else "completion" or
    "question" if the id without its last character ends in "sc" or "qa" (the official rule); else "question" if the
    column is named question or the prompt ends in a question mark; else "completion". Texts are kept as they are.

    Records are read one at a time, so that memory holds the rows and nothing else; `note` hears of every 100,000.

    Raises:
        DataError: the source or a row in it is not usable; the message names file and line.
        SettingsError: `fields` maps something that is not in `FIELDS`.
    """
    _check_fields(fields or {})
    records = open_records(source)
    rows: list[Row] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    columns, ids_given = _Columns("", "", "id", "task", "kind"), True
    for number, record in records.entries:
        if not rows:
            columns = _resolve_columns(record, fields or {}, records.where(number))
            ids_given = not _is_absent(record.get(columns.id))
        row = _row_from(record, columns, records.where(number), None if ids_given else f"row{len(rows) + 1}")
        if row.id in seen:
            where = records.where(number)
            raise DataError(
                f"{where}: the id '{row.id}' is also that of {records.unit} {seen[row.id]}; ids must differ"
            )
        seen[row.id] = number
        rows.append(row)
        lines.append(number)
        if note is not None and len(rows) % NOTED_ROWS == 0:
            note(f"{records.source}: {len(rows):,} rows read")
    if not rows:
        raise DataError(f"{records.source}: expected rows with {_EXPECTED_COLUMNS}, found none; the file is empty")
    return Rows(records.source, tuple(rows), tuple(lines), records.unit, ids_given)


def check_disjoint(forget: Rows, retain: Rows) -> None:
    """Check that no row is both to be forgotten and to be kept: neither the same text nor, where given, the same id.

    Space around prompt and answer does not count.

    Raises:
        DataError: naming the first such row's place in both sources.
    """
    texts = {_text_key(row): i for i, row in enumerate(retain)}
    ids = {row.id: i for i, row in enumerate(retain)} if forget.ids_given and retain.ids_given else {}
    for i, row in enumerate(forget):
        for what, match in (("prompt and answer", texts.get(_text_key(row))), ("id", ids.get(row.id))):
            if match is not None:
                raise DataError(
                    f"{forget.describe(i)}: a row is to be either forgotten or kept, but {retain.describe(match)} "
                    f"has the same {what}; take it out of one of the two"
                )


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write `rows` as JSONL in LUME's columns (id, input, output, task); reading it back gives the same rows.

    The column kind is added where the reader would otherwise take another kind for some row.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = list(rows)
    with_kind = any(_kind_of(row.id, row.prompt, "input") != row.kind for row in rows)
    write_text(path, "".join(_json_line(row, with_kind=with_kind) for row in rows))


def hash_rows(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows as they were read, in order."""
    digest = hashlib.sha256()
    for row in rows:
        turns = [[turn.role, turn.text] for turn in row.turns]
        digest.update(json.dumps([row.id, row.prompt, row.answer, row.task, row.kind, turns]).encode())
    return digest.hexdigest()


def read_documents(path: str | Path) -> list[str]:
    """Read the documents of a membership attack: the column `document`, or `text`, of any file that rows can be in.

    Raises:
        DataError: the file or a document in it is not usable, or there is none; the message names file and line.
    """
    records = open_records(path)
    documents = [_document_from(record, records.where(number)) for number, record in records.entries]
    if not documents:
        raise DataError(
            f"{path}: expected documents in a column '{_DOCUMENT_COLUMNS[0]}', found none; the file is empty"
        )
    return documents


def read_text(path: str | Path) -> list[str]:
    """Read general text: a .txt whose documents are separated by blank lines, or any file that documents can be in.

    Raises:
        DataError: the file is not usable or holds no text.
    """
    path = Path(path)
    if path.suffix.lower() != ".txt":
        return read_documents(path)
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file; expected general text as .txt, or as .jsonl with a column text"
        )
    blocks: list[list[str]] = [[]]
    for _, line in read_lines(path):
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    documents = ["".join(block).strip() for block in blocks if block]
    if not documents:
        raise DataError(f"{path}: expected text, found none; the file is empty")
    return documents


@dataclass(frozen=True, slots=True)
class _Columns:
    prompt: str
    answer: str
    id: str
    task: str
    kind: str


def _check_fields(fields: Mapping[str, str]) -> None:
    for name in fields:
        if name not in FIELDS:
            hint = nearest(name, FIELDS)
            raise SettingsError(f"fields: expected one of {', '.join(FIELDS)} on the left, got '{name}'{hint}")


def _resolve_columns(record: Record, fields: Mapping[str, str], where: str) -> _Columns:
    for column in fields.values():
        _require_column(record, column, where)
    pair = next((p for p in _PAIRS if all(_chosen(fields, p, i) in record for i in (0, 1))), None)
    if pair is None:
        known = [name for names in _PAIRS for name in names]
        found = ", ".join(f"{name}{nearest(str(name), known)}" for name in list(record)[:10]) or "none"
        raise DataError(
            f"{where}: expected {_EXPECTED_COLUMNS}, found {found[:400]}; rename the columns or say with `fields` "
            "which hold prompt and answer"
        )
    optional = {name: fields.get(name, name) for name in ("id", "task", "kind")}
    return _Columns(_chosen(fields, pair, 0), _chosen(fields, pair, 1), **optional)


def _chosen(fields: Mapping[str, str], pair: tuple[str, str], index: int) -> str:
    return fields.get(("prompt", "answer")[index], pair[index])


def _require_column(record: Record, column: str, where: str) -> object:
    if column not in record:
        hint = nearest(column, record)
        raise DataError(
            f"{where}: expected a column '{column}', found {_names(record)}{hint}; correct the name or the row"
        )
    return record[column]


def _names(record: Record) -> str:
    return (", ".join(str(name) for name in record) or "none")[:200]


def _row_from(record: Record, columns: _Columns, where: str, made_up_id: str | None) -> Row:
    given = record.get(columns.id)
    if _is_absent(given) != (made_up_id is not None):
        raise DataError(f"{where}: expected an id in every row or in none, and this row differs from the first")
    row_id = made_up_id or _id_from(given, where)
    prompt = _text_from(record, columns.prompt, where)
    task, kind = record.get(columns.task), record.get(columns.kind)
    return Row(
        id=row_id,
        prompt=prompt,
        answer=_text_from(record, columns.answer, where),
        task="default" if _is_absent(task) else sys.intern(_text_from(record, columns.task, where)),
        kind=_kind_of(row_id, prompt, columns.prompt) if _is_absent(kind) else _check_kind(kind, where),
    )


def _is_absent(value: object) -> bool:
    # An empty cell is all that CSV has for a missing value.
    return value is None or (isinstance(value, str) and not value.strip())


def _id_from(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _check_text(value, "id", where)


def _text_from(record: Record, column: str, where: str) -> str:
    return _check_text(_require_column(record, column, where), column, where)


def _check_text(value: object, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected text in column '{column}', got {describe_type(value)}, which is non-text; "
            "put it in quotation marks or take the row out"
        )
    if not value.strip():
        raise DataError(f"{where}: column '{column}' is empty; give it some text or take the row out")
    if "\0" in value:
        raise DataError(f"{where}: column '{column}' holds a NUL character; take it out")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f"{where}: column '{column}' holds half of a surrogate pair, which is not a character; fix it")
    return value


def _check_kind(value: object, where: str) -> Kind:
    for kind in get_args(Kind):
        if value == kind:
            return kind  # type: ignore[no-any-return]
    kinds = get_args(Kind)
    raise DataError(
        f"{where}: expected {' or '.join(kinds)} in column 'kind', got '{value}'{nearest(str(value), kinds)}"
    )


def _kind_of(row_id: str, prompt: str, prompt_column: str) -> Kind:
    stem = row_id[:-1]
    if stem.endswith("sc"):
        return "completion"
    if stem.endswith("qa") or prompt_column == "question" or prompt.rstrip().endswith("?"):
        return "question"
    return "completion"


def _text_key(row: Row) -> tuple[str, str]:
    return row.prompt.strip(), row.answer.strip()


def _json_line(row: Row, *, with_kind: bool) -> str:
    record = {"id": row.id, "input": row.prompt, "output": row.answer, "task": row.task}
    return json.dumps(record | ({"kind": row.kind} if with_kind else {}), ensure_ascii=False) + "\n"


def _document_from(record: Record, where: str) -> str:
    column = next((name for name in _DOCUMENT_COLUMNS if name in record), _DOCUMENT_COLUMNS[0])
    return _text_from(record, column, where)
