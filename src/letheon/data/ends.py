"""Answers that end in the text of a tokenizer's end of sequence, which is no part of a row."""

from collections.abc import Callable
from collections.abc import Sequence as Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from letheon.data.rows import Row, Rows
from letheon.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_ends(rows: Rows, ends: Collection[str]) -> tuple[Rows, int]:
    """Take the texts `ends` (of a tokenizer's end of sequence) off the ends of answers, and say of how many rows.

    White space after an end goes with it. Earlier turns of the assistant lose their ends too.

    Raises:
        DataError: an answer is nothing but such an end.
    """
    bare = [_without_ends(row, ends) for row in rows]
    for index, row in enumerate(bare):
        if not row.answer.strip():
            raise DataError(
                f"{rows.describe(index)}: the answer {rows[index].answer!r} is nothing but an end of sequence; give it "
                "some text or take the row out"
            )
    num_ended = sum(row.answer != given.answer for row, given in zip(bare, rows, strict=True))
    return replace(rows, rows=tuple(bare)), num_ended


def bare_rows(rows: Rows, tokenizer: "PreTrainedTokenizerBase", *, note: Callable[[str], None] | None = None) -> Rows:
    """Return `rows` without the tokenizer's end of sequence where answers end in its text; `note` hears of how many.

    What was understood of the rows says so from then on.

    Raises:
        DataError: an answer is nothing but the end of sequence.
    """
    end = tokenizer.eos_token
    if not isinstance(end, str) or not end.strip():
        return rows
    bare, num_ended = without_ends(rows, [end])
    if not num_ended:
        return bare
    said = f"{num_ended:,} {'answer' if num_ended == 1 else 'answers'} ended in '{end}', which was taken off"
    if note is not None:
        note(f"{rows.source}: {said}; unlearn trains ends by --end-of-sequence")
    return replace(bare, understood=f"{rows.understood}; {said}" if rows.understood else said)


def _without_ends(row: Row, ends: Collection[str]) -> Row:
    answer = _cut(row.answer, ends)
    turns = tuple(replace(t, text=_cut(t.text, ends)) if t.role == "assistant" else t for t in row.turns)
    return row if answer == row.answer and turns == row.turns else replace(row, answer=answer, turns=turns)


def _cut(text: str, ends: Collection[str]) -> str:
    while (end := next((end for end in ends if text.rstrip().endswith(end)), None)) is not None:
        text = text.rstrip().removesuffix(end)
    return text
