"""Rows that come more than once: the same text in one file, the same question on both sides."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from letheon.errors import DataError

if TYPE_CHECKING:
    from letheon.data.rows import Row, Rows

_NUM_NAMED = 3
"""How many repeats are named by their places."""


def text_key(row: "Row") -> Hashable:
    """Return what two rows have in common that are the same text: conversation, prompt and answer, less space around.

    Of most rows the conversation is empty, and the tuple of it costs no memory.
    """
    return asked_key(row), row.answer.strip()


def asked_key(row: "Row") -> Hashable:
    """Return what two rows have in common that ask the same: conversation and prompt, less space around."""
    return tuple((turn.role, turn.text.strip()) for turn in row.turns), row.prompt.strip()


def describe_repeats(rows: Sequence["Row"], lines: Sequence[int], *, unit: str) -> str:
    """Return which rows are the same text as an earlier one, e.g. "1 repeated (line 7 of line 3)"; "" if none is."""
    found = list(_repeats(rows))
    if not found:
        return ""
    places = [f"{unit} {lines[again]} of {unit} {lines[first]}" for first, again in found[:_NUM_NAMED]]
    more = [f"{len(found) - _NUM_NAMED:,} more"] if len(found) > _NUM_NAMED else []
    return f"{len(found):,} repeated and counted each time ({', '.join([*places, *more])})"


def check_questions(forget: "Rows", retain: "Rows") -> None:
    """Check that no question is to be answered in one way and its answer forgotten in another.

    Raises:
        DataError: naming the first such question's place in both sources.
    """
    asked = {asked_key(row): i for i, row in enumerate(retain) if row.kind == "question" and not row.is_document}
    for i, row in enumerate(forget):
        match = asked.get(asked_key(row)) if row.kind == "question" and not row.is_document else None
        if match is not None:
            raise DataError(
                f"{forget.describe(i)}: expected a question either to forget or to keep, but {retain.describe(match)} "
                f"asks the same and has another answer; take it out of one of the two files, or, if the model should "
                f"give one answer and not the other, give both rows the kind 'completion' (column kind)"
            )


def check_unseen(documents: Sequence[str], sets: Iterable["Rows"], *, source: str) -> None:
    """Check that no document that the model must not know is the text of a row, apart from white space.

    `source` is how the error names where the documents come from.

    Raises:
        DataError: naming the first such document and the row's place.
    """
    numbers = {" ".join(document.split()): number for number, document in reversed([*enumerate(documents, 1)])}
    for rows in sets if numbers else ():
        for i, row in enumerate(rows):
            number = None if row.turns else numbers.get(whole_text(row))
            if number is not None:
                raise DataError(
                    f"{source}: document {number} is the text of {rows.describe(i)}, but the model must never have "
                    f"seen these documents; take it out"
                )


def whole_text(row: "Row") -> str:
    """Return prompt and answer, one after the other, with single spaces for all white space."""
    return " ".join(f"{row.prompt} {row.answer}".split())


def _repeats(rows: Sequence["Row"]) -> Iterator[tuple[int, int]]:
    """Yield (first, again) for each row that is the same text as an earlier one.

    Texts are compared only where their hashes are equal, so that of a million rows no more than hashes is held.
    """
    seen: set[int] = set()
    clashing: set[int] = set()
    for row in rows:
        found = hash(text_key(row))
        (clashing if found in seen else seen).add(found)
    firsts: dict[Hashable, int] = {}
    for index, row in enumerate(rows) if clashing else ():
        key = text_key(row)
        first = firsts.setdefault(key, index) if hash(key) in clashing else index
        if first != index:
            yield first, index
