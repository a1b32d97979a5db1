"""The layouts of rows that people have: which columns of a record are prompt and answer, conversation, or document."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from letheon.data.conversations import Answers, Exchange, Turn, exchanges, is_conversation, read_turns
from letheon.data.records import Record, check_text, describe_type, is_absent, require_column, text_from
from letheon.errors import DataError, SettingsError, nearest

FIELDS = ("id", "prompt", "answer", "task", "kind", "messages", "text")
"""What columns can be named for."""

DOCUMENT_COLUMNS = ("document", "text")

_PAIRS = (
    ("input", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
    ("prompt", "response"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)
_INSTRUCTED = ("output", "response", "answer", "completion")
"""What the answer to an `instruction` is called."""
_ADDED = ("input", "context")
"""Columns that belong to the prompt: they are put under an instruction, and may not be left out of another prompt."""
_CONVERSATIONS = ("messages", "conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_BESIDE = frozenset((*_SYSTEM, "history", "tools"))
"""Columns that say what comes before a prompt."""
_LABELS = ("id", "task", "kind")
_NUM_NAMED = 5
"""How many of the columns that are not read are named."""

ACCEPTED = (
    f"{', '.join('/'.join(pair) for pair in _PAIRS)}, instruction/output, "
    f"{', '.join((*_CONVERSATIONS, *DOCUMENT_COLUMNS[:-1]))} or {DOCUMENT_COLUMNS[-1]}"
)
"""The columns that rows can have, for errors."""

_KNOWN = (*(n for pair in _PAIRS for n in pair), "instruction", *_CONVERSATIONS, *DOCUMENT_COLUMNS)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the texts of a row stand in its record."""

    shape: Literal["pair", "instruction", "conversation", "document"]
    answer: str
    """The column of the answer, of the conversation, or of the document."""
    prompt: str = ""
    """The column of the prompt; empty for a conversation and a document."""
    is_named: bool = False
    """Whether the user named the column of the prompt, so that what else may belong to it is left out knowingly."""

    def describe(self, columns: Collection[str]) -> str:
        """Return the columns that are read, e.g. "question/answer", for a record that has `columns`."""
        if not self.prompt:
            return self.answer
        added = "".join(f"+{name}" for name in self._added(columns))
        return f"{self.prompt}{added}/{self.answer}"

    def unread(self, columns: Collection[str]) -> list[str]:
        """Return those of a record's columns that nothing is read from."""
        read = {self.prompt, self.answer, *self._added(columns), *_LABELS}
        if self.shape != "document":
            read |= {*_SYSTEM, "history"}
        return [str(name) for name in columns if name not in read]

    def _added(self, columns: Collection[str]) -> list[str]:
        return [name for name in _ADDED if name in columns] if self.shape == "instruction" else []


def check_fields(fields: Mapping[str, str]) -> None:
    """Check a mapping of columns as far as it can be without rows.

    Raises:
        SettingsError: it names something that is not in `FIELDS` or no column, or one column for prompt and answer.
    """
    for name, column in fields.items():
        if not column.strip():
            raise SettingsError(f"fields: expected the name of a column for '{name}', got nothing")
        if name not in FIELDS:
            hint = nearest(name, FIELDS)
            raise SettingsError(f"fields: expected one of {', '.join(FIELDS)} on the left, got '{name}'{hint}")
    for one, other in (("prompt", "answer"), ("messages", "text")):
        if one in fields and fields[one] == fields.get(other):
            raise SettingsError(
                f"fields: {one} and {other} would be read from one column, '{fields[one]}'; name a column for each, "
                "or leave one of them out"
            )


def find_layout(record: Record, fields: Mapping[str, str], where: str) -> Layout:
    """Return the layout of a record, as its columns or `fields` say.

    Of several layouts that `fields` names columns for, it is the first that the record has: prompt and answer, then
    messages, then text.

    Raises:
        DataError: a column that `fields` names is not there, or the columns are of no layout that is known.
    """
    for name in _LABELS:
        if name in fields:
            require_column(record, fields[name], where)
    groups = [[n for n in names if n in fields] for names in (("prompt", "answer"), ("messages",), ("text",))]
    named = [[fields[name] for name in names] for names in groups if names]
    if named and not any(all(column in record for column in columns) for columns in named):
        require_column(record, next(c for columns in named for c in columns if c not in record), where)
    layout = _layout_of(record, fields)
    if layout is None:
        _check_both_named(record, fields, where)
        raise DataError(
            f"{where}: expected columns {ACCEPTED}; found {_describe_columns(record)}; rename the columns or name "
            "them with `fields`, e.g. prompt=COLUMN,answer=COLUMN"
        )
    return layout


def _check_both_named(record: Record, fields: Mapping[str, str], where: str) -> None:
    """Ask for the other column where `fields` names one of prompt and answer, and the other is not to be guessed."""
    for one, other in (("prompt", "answer"), ("answer", "prompt")):
        if one in fields and other not in fields:
            rest = ", ".join(name for name in record if name != fields[one])[:200] or "none"
            raise DataError(
                f"{where}: expected a column for the {other} beside '{fields[one]}', which `fields` names for the "
                f"{one}; found {rest}; name it by {other}=COLUMN"
            )


def check_layout(layout: Layout, record: Record, fields: Mapping[str, str], where: str) -> None:
    """Check that a record with other columns than the first has the first's layout.

    Raises:
        DataError: it has another one, so that part of it would not be read as it is meant.
    """
    other = _layout_of(record, fields)
    if other is not None and other != layout:
        raise DataError(
            f"{where}: expected {layout.describe(())} as in the first row, found {other.describe(record)}; put rows of "
            "different columns into files of their own"
        )


def read_exchanges(record: Record, layout: Layout, where: str, *, answers: Answers) -> tuple[list[Exchange], int]:
    """Return the prompts and answers that a record holds, and how many turns of its conversation are in none of them.

    Raises:
        DataError: a text or message is missing, empty or unusable.
    """
    if layout.shape == "document":
        return [Exchange((), "", text_from(record, layout.answer, where))], 0
    before = () if record.keys().isdisjoint(_BESIDE) else _turns_before(record, layout, where)
    if layout.shape == "conversation":
        turns = read_turns(require_column(record, layout.answer, where), layout.answer, where)
        return exchanges(_joined(before, turns), answers=answers, column=layout.answer, where=where)
    asked = require_column(record, layout.prompt, where)
    answered = require_column(record, layout.answer, where)
    if is_conversation(asked) or is_conversation(answered):
        return _conversation(record, layout, before, where, answers=answers)
    _check_left_out(record, layout, where)
    names = [layout.prompt]
    if layout.shape == "instruction":
        # Alpaca's input is empty where the instruction says all; merged data sets have it the other way round too.
        names = [name for name in ("instruction", *_ADDED) if not is_absent(record.get(name))] or names
    prompt = "\n\n".join(check_text(record[name], name, where) for name in names)
    return [Exchange(before, prompt, check_text(answered, layout.answer, where))], 0


def describe_reading(
    layout: Layout,
    columns: Collection[str],
    *,
    answers: Answers,
    num_rows: int,
    num_documents: int,
    num_system: int,
    num_dropped: int,
) -> str:
    """Describe in one line how the rows were read, e.g. "254 rows: messages, last turn of each, 2 turns dropped".

    `columns` are those of all records, `num_system` counts rows with a system message.
    """
    parts = [f"{_count(num_rows, 'document' if layout.shape == 'document' else 'row')}: {layout.describe(columns)}"]
    if layout.answer == "chosen":
        parts.append("the answers that were preferred")
    if layout.shape == "conversation":
        parts.append("last turn of each" if answers == "last" else "every turn of the assistant")
    if layout.shape != "document" and num_documents:
        parts.append(f"{_count(num_documents, 'document')} without a prompt")
    if num_system:
        parts.append(f"{num_system:,} with a system message")
    if num_dropped:
        parts.append(f"{_count(num_dropped, 'turn')} dropped")
    unread = layout.unread(columns)
    more = [f"{len(unread) - _NUM_NAMED} more"] if len(unread) > _NUM_NAMED else []
    named = ", ".join((*(" ".join(name[:40].split()) for name in unread[:_NUM_NAMED]), *more))
    return ", ".join(parts) + (f"; not read: {named}" if named else "")


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _layout_of(record: Record, fields: Mapping[str, str]) -> Layout | None:
    names = [name for name in ("prompt", "answer", "messages", "text") if name in fields]
    if not names:
        return _pair(record, {}) or _conversation_or_document(record)
    pair = _pair(record, fields) if {"prompt", "answer"} & set(names) else None
    if pair is not None:
        return pair
    if fields.get("messages") in record:
        return Layout("conversation", fields["messages"])
    return Layout("document", fields["text"]) if fields.get("text") in record else None


def _pair(record: Record, fields: Mapping[str, str]) -> Layout | None:
    prompt, answer = fields.get("prompt"), fields.get("answer")
    if prompt is None and "instruction" in record:
        found = next((name for name in ([answer] if answer else _INSTRUCTED) if name in record), None)
        if found is not None:
            return Layout("instruction", found, "instruction")
    chosen = ((prompt or names[0], answer or names[1]) for names in _PAIRS)
    usable = ((one, other) for one, other in chosen if one != other)
    pair = next((names for names in usable if names[0] in record and names[1] in record), None)
    return Layout("pair", pair[1], pair[0], is_named=prompt is not None) if pair else None


def _conversation_or_document(record: Record) -> Layout | None:
    column = next((name for name in _CONVERSATIONS if name in record), None)
    if column is None and is_conversation(record.get("chosen")):
        column = "chosen"
    if column is not None:
        return Layout("conversation", column)
    if any(name in record for name in (*(prompt for prompt, _ in _PAIRS), "instruction")):
        return None  # a prompt whose answer has a name that is not known is no document
    document = next((name for name in DOCUMENT_COLUMNS if name in record), None)
    return Layout("document", document) if document is not None else None


def _describe_columns(record: Record) -> str:
    free = [name for name in _KNOWN if name not in record]
    names = [str(name) for name in list(record)[:10]]
    shown = [
        f"{name if name == name.strip() else repr(name)}{'' if name in _KNOWN else nearest(name, free)}"
        for name in names
    ]
    found = (", ".join(shown) or "none")[:400]
    prompts = [name for name in record if name in {"instruction", *(prompt for prompt, _ in _PAIRS)}]
    if prompts:
        return f"{found}, but no answer to '{prompts[0]}'"
    answers = [name for name in record if name in {answer for _, answer in _PAIRS}]
    return f"{found}, but no prompt of '{answers[0]}'" if answers else found


def _check_left_out(record: Record, layout: Layout, where: str) -> None:
    """Refuse what would be left out of a prompt in silence, so that different prompts become the same."""
    if layout.is_named:
        return
    others = ("question", "query") if layout.shape == "instruction" else ("instruction", *_ADDED)
    of_prompt = (*others, "history")
    for name in of_prompt:
        value = record.get(name)
        if name not in (layout.prompt, layout.answer) and not is_absent(value) and not isinstance(value, list):
            raise DataError(
                f"{where}: the column '{name}' seems to be part of the prompt, but only '{layout.prompt}' would be "
                "read; write both into one column, or say with `fields` prompt=COLUMN which of them is the prompt"
            )


def _turns_before(record: Record, layout: Layout, where: str) -> tuple[Turn, ...]:
    """Return the system message and the earlier turns that a record has in columns of their own."""
    if layout.shape == "conversation" and record.get("tools") not in (None, "", [], "[]"):
        raise DataError(f"{where}: holds definitions of tools, which Letheon does not read; take the row out")
    system = next((name for name in _SYSTEM if not is_absent(record.get(name))), None)
    turns = [Turn("system", check_text(record[system], system, where))] if system is not None else []
    history = record.get("history")
    if not isinstance(history, list) or not history:
        return tuple(turns)
    if is_conversation(history):
        return (*turns, *read_turns(history, "history", where))
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{where}: expected pairs [prompt, answer] in column 'history', got {describe_type(pair)}")
        turns += [Turn("user", check_text(pair[0], "history", where))]
        turns += [Turn("assistant", check_text(pair[1], "history", where))]
    return tuple(turns)


def _joined(before: tuple[Turn, ...], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Put what columns of their own say before a conversation, but no system message before its own."""
    has_own = turns[0].role == "system"
    return (*(turn for turn in before if not (has_own and turn.role == "system")), *turns)


def _conversation(
    record: Record, layout: Layout, before: tuple[Turn, ...], where: str, *, answers: Answers
) -> tuple[list[Exchange], int]:
    """Read a prompt or an answer, or both, that are lists of messages."""
    asked, answered = record[layout.prompt], record[layout.answer]
    turns = (
        read_turns(asked, layout.prompt, where)
        if is_conversation(asked)
        else (Turn("user", check_text(asked, layout.prompt, where)),)
    )
    said = (
        read_turns(answered, layout.answer, where)
        if is_conversation(answered)
        else (Turn("assistant", check_text(answered, layout.answer, where)),)
    )
    if said[0].role == "assistant":
        whole = _joined(before, turns)
        begin = len(whole)
        return exchanges((*whole, *said), answers=answers, column=layout.answer, where=where, begin=begin)
    if turns[-1] not in said:
        raise DataError(
            f"{where}: '{layout.answer}' begins with a turn of the {said[0].role}, so expected the whole "
            f"conversation, but the text of '{layout.prompt}' is not in it; correct the row"
        )
    return exchanges(_joined(before, said), answers=answers, column=layout.answer, where=where)
