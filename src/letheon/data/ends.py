"""Rows whose texts hold what a tokenizer writes around a text: "Mira</s>", "<s>[INST] Who? [/INST]".

Such a mark becomes a token of its own. As part of an answer no generation can match it, since it ends there; before a
prompt it comes twice, since the tokenizer adds its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from letheon.data.rows import Row, Rows
from letheon.data.sequences import leading_special_ids
from letheon.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def bare_rows(rows: Rows, tokenizer: "PreTrainedTokenizerBase", *, note: Callable[[str], None] | None = None) -> Rows:
    """Return `rows` without the tokenizer's own marks: ends of sequences and turns, and the beginning that it adds.

    `note` hears of how many rows had them, and what was understood of the rows says so from then on.

    Raises:
        DataError: an answer is nothing but the end of sequence.
    """
    ends, begin = _ends_of(tokenizer), _begin_of(tokenizer)
    bare, num_ended = without_ends(rows, ends)
    bare, num_begun = without_begin(bare, begin) if begin else (bare, 0)
    said = []
    if num_ended:
        found = [end for end in ends if any(row.answer.rstrip().endswith(end) for row in rows)]
        said.append(f"{num_ended:,} ended in {' or '.join(found)}, which was removed")
    if num_begun:
        said.append(f"{num_begun:,} began with {begin}, which was removed")
    if not said:
        return bare
    if note is not None:
        advice = "; unlearn trains ends by --end-of-sequence" if num_ended else ""
        note(f"{rows.source}: of {len(rows):,} rows {', '.join(said)}{advice}")
    return replace(bare, understood="; ".join(part for part in (rows.understood, *said) if part))


def without_ends(rows: Rows, ends: Sequence[str]) -> tuple[Rows, int]:
    """Take the marks `ends` off the ends of answers, and say of how many rows.

    White space after a mark goes with it. Earlier turns of the assistant lose their ends too.

    Raises:
        DataError: an answer is nothing but such a mark.
    """
    bare = [_without_ends(row, ends) for row in rows]
    for index, row in enumerate(bare):
        if not row.answer.strip():
            raise DataError(
                f"{rows.describe(index)}: the answer {rows[index].answer!r} is only an end of sequence; give it some "
                f"text or take the row out"
            )
    num_ended = sum(row.answer != given.answer for row, given in zip(bare, rows, strict=True))
    return replace(rows, rows=tuple(bare)), num_ended


def without_begin(rows: Rows, begin: str) -> tuple[Rows, int]:
    """Take the mark `begin` off the beginning of each row's first text, and say of how many rows."""
    bare = tuple(_without_begin(row, begin) for row in rows)
    num_begun = sum(row != given for row, given in zip(bare, rows, strict=True))
    return replace(rows, rows=bare), num_begun


def _ends_of(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the end of sequence, and the other special tokens that may end a turn, as texts."""
    others = {tokenizer.bos_token, tokenizer.unk_token, tokenizer.mask_token, tokenizer.cls_token}
    marks = [tokenizer.eos_token, *(token for token in tokenizer.all_special_tokens if token not in others)]
    return [mark for mark in dict.fromkeys(marks) if isinstance(mark, str) and mark.strip()]


def _begin_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the text of the BOS token if the tokenizer puts it before every text."""
    is_added = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in leading_special_ids(tokenizer)
    return str(tokenizer.bos_token) if is_added else None


def _without_ends(row: Row, ends: Sequence[str]) -> Row:
    answer = _cut(row.answer, ends)
    turns = tuple(replace(t, text=_cut(t.text, ends)) if t.role == "assistant" else t for t in row.turns)
    return row if answer == row.answer and turns == row.turns else replace(row, answer=answer, turns=turns)


def _cut(text: str, ends: Sequence[str]) -> str:
    while (end := next((end for end in ends if text.rstrip().endswith(end)), None)) is not None:
        text = text.rstrip().removesuffix(end)
    return text


def _without_begin(row: Row, begin: str) -> Row:
    first = row.turns[0].text if row.turns else row.prompt or row.answer
    bare = first.removeprefix(begin)
    if bare == first or not bare.strip():  # a prompt of nothing would make the row a document
        return row
    if row.turns:
        return replace(row, turns=(replace(row.turns[0], text=bare), *row.turns[1:]))
    return replace(row, prompt=bare) if row.prompt else replace(row, answer=bare)
