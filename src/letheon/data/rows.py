"""Rows to forget and rows to keep: the row type, and reading, checking and writing files of rows."""

import hashlib
import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import overload

from letheon.data.conversations import Answers, Role, Turn
from letheon.data.kinds import Kind, check_kind, kind_of
from letheon.data.layouts import (
    DOCUMENT_COLUMNS,
    FIELDS,
    check_fields,
    describe_reading,
)
from letheon.data.records import check_text, is_absent, open_records, read_lines, text_from
from letheon.data.repeats import check_questions, describe_repeats, text_key, whole_text
from letheon.data.tables import Entry, Table, begin_table
from letheon.errors import DataError
from letheon.storage.files import write_text

__all__ = [
    "FIELDS",
    "NOTED_ROWS",
    "Answers",
    "Kind",
    "Role",
    "Row",
    "Rows",
    "Turn",
    "check_disjoint",
    "hash_rows",
    "read_documents",
    "read_rows",
    "read_text",
    "write_rows",
]

NOTED_ROWS = 100_000
"""Rows between two notes on how far reading is."""


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
class Rows(Sequence[Row]):
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
    understood: str = ""
    """How many rows the source holds and what was read as what, e.g. "254 rows: question/answer"."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def summary(self) -> str:
        """Describe the rows and their file, e.g. "forget.jsonl: 254 rows: question/answer"."""
        return f"{self.source}: {self.understood}"

    def describe(self, index: int) -> str:
        """Return where row `index` (from 0) comes from, e.g. "rows.jsonl, line 12 (id x)"."""
        return f"{self.source}, {self.unit} {self.lines[index]} (id {self.rows[index].id})"

    def select(self, indices: Iterable[int]) -> "Rows":
        """Return the rows at `indices`, in that order, each with its place."""
        chosen = tuple(indices)
        return replace(self, rows=tuple(self.rows[i] for i in chosen), lines=tuple(self.lines[i] for i in chosen))


def read_rows(
    source: str | Path,
    *,
    fields: Mapping[str, str] | None = None,
    turns: Answers = "last",
    note: Callable[[str], None] | None = None,
) -> Rows:
    """Read and check rows from a .jsonl, .json, .csv, .tsv or .parquet file, a `save_to_disk` folder, or the hub.

    A hub data set is named `hub:OWNER/NAME@SPLIT` or `hub:OWNER/NAME:CONFIG@SPLIT`. The first record's columns decide
    how all are read, the first of these that is there:

    * Prompt and answer, in this order: instruction/output (Alpaca; `input` or `context` goes under the instruction),
      input/output, prompt/answer, question/answer, prompt/completion, prompt/chosen (the answer that was preferred),
      prompt/response, question/response, query/response, query/answer. Either may be a list of messages.
    * messages or conversations: a list of {"role", "content"} or {"from", "value"}. `turns` says which turns of the
      assistant are answers, the last or every one; the user's turn before it is the prompt, and what stands before
      that the row's `turns`. Turns after the last answer are dropped and counted.
    * document or text: all of it is the row.

    A column `system`, and Alpaca's `history`, come before the prompt. `fields` names the columns otherwise, e.g.
    {"prompt": "Frage"}, {"messages": "dialog"} or {"text": "body"}; where it names several of these, each file is read
    by the first that it has. The columns id, task and kind are optional: without ids rows are named "row1", "row2",
    ...; several rows of one conversation are ID#1, ID#2, ...; without a task it is "default". The kind is what the
    column `kind` says; else "completion" or "question" if the id without its last character ends in "sc" or "qa" (the
    official rule); else "question" if the column is named question or the prompt ends in a question mark; else
    "completion". Texts are kept as they are.

    Records are read one at a time, so that memory holds the rows and nothing else; `note` hears of every 100,000, and
    at the end what was understood.

    Raises:
        DataError: the source or a row in it is not usable; the message names file and line.
        SettingsError: `fields` maps something that is not in `FIELDS`.
    """
    fields = fields or {}
    check_fields(fields)
    table = begin_table(open_records(source), fields)
    source, unit = table.records.source, table.records.unit
    rows: list[Row] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    for entry in table.entries(turns):
        for row in _rows_from(entry, table):
            if row.id in seen:
                raise DataError(
                    f"{entry.where}: the id '{row.id}' is also that of {unit} {seen[row.id]}; give each row its own id"
                )
            seen[row.id] = entry.number
            rows.append(row)
            lines.append(entry.number)
            if note is not None and len(rows) % NOTED_ROWS == 0:
                note(f"{source}: {len(rows):,} rows read")
    found = Rows(source, tuple(rows), tuple(lines), unit, table.ids_given, _describe(rows, lines, table, turns))
    if note is not None:
        note(found.summary())
    return found


def _describe(rows: Sequence[Row], lines: Sequence[int], table: Table, answers: Answers) -> str:
    """Say how many rows were read, which columns with texts became what, and which rows repeat others."""
    reading = describe_reading(
        table.layout,
        table.text_columns,
        answers=answers,
        num_rows=len(rows),
        num_documents=sum(row.is_document for row in rows),
        num_system=sum(any(turn.role == "system" for turn in row.turns) for row in rows),
        num_dropped=table.num_dropped,
    )
    repeats = describe_repeats(rows, lines, unit=table.records.unit)
    return f"{reading}; {repeats}" if repeats else reading


def check_disjoint(forget: Rows, retain: Rows) -> None:
    """Check that no row is both to be forgotten and to be kept: neither the same text nor, where given, the same id.

    Nor may one question stand on both sides with two answers. A completion may: of one beginning there are many ends.

    Two rows are the same text if their conversations, prompts and answers are, but for space around them; a document
    is the same as a row if it is prompt and answer, one after the other, but for white space.

    Raises:
        DataError: naming the first such row's place in both sources.
    """
    texts = {text_key(row): i for i, row in enumerate(retain)}
    wholes = _whole_texts(forget, retain)
    ids = {row.id: i for i, row in enumerate(retain)} if forget.ids_given and retain.ids_given else {}
    for i, row in enumerate(forget):
        same_text = texts.get(text_key(row))
        same_whole = wholes.get((_whole(row), not row.is_document)) if wholes else None
        for what, match in (
            ("prompt and answer" if row.prompt else "text", same_text),
            ("text", same_whole),
            ("id", ids.get(row.id)),
        ):
            if match is not None:
                raise DataError(
                    f"{forget.describe(i)}: expected a row either to forget or to keep, but {retain.describe(match)} "
                    f"has the same {what}; take it out of one of the two files"
                )
    check_questions(forget, retain)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write `rows` as JSONL; reading it back gives the same rows.

    The columns are LUME's (id, input, output, task). Where all rows are documents they are id, text, task; where some
    are, or some have earlier turns, they are id, messages, task, and a document is one turn of the assistant. The
    column kind is added where the reader would otherwise take another kind for some row.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = list(rows)
    with_kind = any(kind_of(row.id, row.prompt, "input") != row.kind for row in rows)
    texts = _pair_texts
    if any(row.turns or row.is_document for row in rows):
        texts = _document_text if all(row.is_document for row in rows) else _messages
    lines = (
        {"id": row.id, **texts(row), "task": row.task, **({"kind": row.kind} if with_kind else {})} for row in rows
    )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def hash_rows(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows as they were read, in whatever order."""
    digest = hashlib.sha256()
    for line in sorted(json.dumps(astuple(row)) for row in rows):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def read_documents(path: str | Path) -> list[str]:
    """Read the documents of a membership attack: the column `document`, or `text`, of any file that rows can be in.

    Raises:
        DataError: the file or a document in it is not usable, or there is none; the message names file and line.
    """
    records = open_records(path)
    documents = [
        text_from(
            record,
            next((name for name in DOCUMENT_COLUMNS if name in record), DOCUMENT_COLUMNS[0]),
            records.where(number),
        )
        for number, record in records.entries
    ]
    if not documents:
        raise DataError(
            f"{path}: expected documents in a column '{DOCUMENT_COLUMNS[0]}', found none; the file is empty"
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


def _rows_from(entry: Entry, table: Table) -> Iterable[Row]:
    labels, where = table.labels, entry.where
    task, kind = entry.record.get(labels.task), entry.record.get(labels.kind)
    for number, exchange in enumerate(entry.exchanges, 1):
        yield Row(
            id=entry.id if len(entry.exchanges) == 1 else f"{entry.id}#{number}",
            prompt=exchange.prompt,
            answer=exchange.answer,
            task="default" if is_absent(task) else sys.intern(check_text(task, labels.task, where)),
            kind=kind_of(entry.id, exchange.prompt, table.layout.prompt)
            if is_absent(kind)
            else check_kind(kind, where),
            turns=exchange.turns,
        )


def _whole_texts(forget: Rows, retain: Rows) -> dict[Hashable, int]:
    """Return where each whole text of `retain` stands, and whether it is a document; {} where neither has documents."""
    if not any(row.is_document for rows in (forget, retain) for row in rows):
        return {}
    return {(_whole(row), row.is_document): i for i, row in enumerate(retain) if not row.turns}


def _whole(row: Row) -> str:
    return "" if row.turns else whole_text(row)


def _pair_texts(row: Row) -> dict[str, object]:
    return {"input": row.prompt, "output": row.answer}


def _document_text(row: Row) -> dict[str, object]:
    return {"text": row.answer}


def _messages(row: Row) -> dict[str, object]:
    asked = () if row.is_document else (Turn("user", row.prompt),)
    turns = (*row.turns, *asked, Turn("assistant", row.answer))
    return {"messages": [{"role": turn.role, "content": turn.text} for turn in turns]}
