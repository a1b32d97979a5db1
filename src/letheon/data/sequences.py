"""Rows as token sequences with the place where the answer begins."""

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from letheon.data.forms import Rendered, render
from letheon.errors import DataError
from letheon.settings import DEFAULT_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from letheon.data.rows import Row

NOTED_ROWS = 100_000
"""Rows between two notes on how far tokenising is."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One row tokenised: `input_ids` (T,), of which `input_ids[answer_start:]` are the answer tokens.

    `answer_start` is at least 1, since the first token of a sequence has no position that predicts it.
    """

    input_ids: tuple[int, ...]
    answer_start: int
    end: tuple[int, ...] = ()
    """The tokens that would end the answer in its form; not part of `input_ids`."""
    padding: int | None = None
    """How many of the tokens, at the end, are padding, which no token sees, itself included. Such a row is scored after
    its last token too, where none follows; its label there, the last token again, means nothing. None: not padded."""

    @property
    def num_answer_tokens(self) -> int:
        """How many places are scored."""
        return len(self.input_ids) - self.answer_start + (self.padding is not None)

    @property
    def labels(self) -> tuple[int, ...]:
        """(A,) the tokens at the scored places."""
        end = () if self.padding is None else self.input_ids[-1:]
        return (*self.input_ids[self.answer_start :], *end)

    def cut(self, length: int, *, longest_prompt: int | None = None) -> "TokenSequence":
        """Return the first `length` tokens, counted from the prompt's last `longest_prompt` where that is given.

        No answer token may be left.
        """
        first = 0 if longest_prompt is None else max(0, self.answer_start - longest_prompt)
        ids = self.input_ids[first : first + length]
        return replace(self, input_ids=ids, answer_start=min(self.answer_start - first, len(ids)))

    def ended(self, max_length: int) -> "TokenSequence":
        """Return the sequence with its end as the last of its answer tokens, cut to `max_length` tokens."""
        return TokenSequence((*self.input_ids, *self.end)[:max_length], self.answer_start)


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation asked with the chat template's generation prompt, beyond which its own text goes on.

    The model may give the answer at once, or first write what the template would write there (an empty think block).
    """

    at_once: TokenSequence
    """The generation prompt, then the answer."""
    written: TokenSequence
    """The generation prompt, then what the template writes and the answer, all of it to be said by the model."""
    opening: TokenSequence
    """The generation prompt, then what the template writes without the answer, to be said by the model."""

    def each(self, change: Callable[[TokenSequence], TokenSequence]) -> "Asked":
        """Return both ways of asking, with the answer, after `change`."""
        return replace(self, at_once=change(self.at_once), written=change(self.written))

    @property
    def is_whole(self) -> bool:
        """Whether there is something to score in both."""
        return bool(self.at_once.num_answer_tokens and self.written.num_answer_tokens)


def tokenise(
    row: "Row",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str,
    max_length: int,
    date: str = DEFAULT_DATE,
    where: str | None = None,
) -> TokenSequence:
    """Return the token sequence of `row` in the form `template`, without its end; a BOS only if the tokenizer adds one.

    A token that holds the end of the prompt and the beginning of the answer counts as answer. So does, for a tokenizer
    without offsets (a slow one), what stands at the end of the prompt and is tokenised otherwise when nothing follows
    it, such as a space that the tokenizer strips. Under "pair" prompt and answer are texts of their own: a tokenizer
    that marks the beginning of a text marks that of the answer too. The end of a conversation is what the chat template
    writes after the answer, up to the first special token; elsewhere it is the tokenizer's end of sequence. `where`
    names the row in errors; None: its id.

    Raises:
        DataError: the sequence is longer than `max_length` tokens, or the answer has no token of its own, or none that
            is more than "unknown" or a space (a tokenizer that does not know the answer's script).
        SettingsError: template "chat" with a tokenizer that has no chat template.
    """
    where = where or f"row '{row.id}'"
    rendered = render(row, template, tokenizer, date=date, where=where)
    ids, start, end = _tokens(rendered, tokenizer)
    if len(ids) > max_length:
        raise DataError(
            f"{where}: prompt and answer take {len(ids)} tokens with template '{template}', at most {max_length} fit, "
            "so the answer would be cut off; shorten the row or raise --max-length, up to the model's context"
        )
    if max(start, 1) >= len(ids):  # nothing predicts the first token of a text
        raise DataError(f"{where}: the answer {row.answer!r} has no token of its own, so it cannot be scored")
    if not str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip():
        raise DataError(
            f"{where}: the tokenizer turns the answer {row.answer!r} into unknown tokens and spaces only, so it "
            f"cannot be unlearned; take the row out or use a model whose tokenizer knows its script"
        )
    return _sequence(ids, start, end)


def tokenise_all(
    rows: Iterable["Row"],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str,
    max_length: int,
    date: str = DEFAULT_DATE,
    places: Iterable[str] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[TokenSequence]:
    """Return the sequences of `rows`, in order; `places` names each row in errors, `note` hears of every 100,000."""
    found: list[TokenSequence] = []
    rows = list(rows)
    named = places if places is not None else (f"row '{row.id}'" for row in rows)
    for row, where in zip(rows, named, strict=True):
        found.append(tokenise(row, tokenizer, template=template, max_length=max_length, date=date, where=where))
        if note is not None and len(found) % NOTED_ROWS == 0:
            note(f"{len(found):,} of {len(rows):,} rows tokenised")
    return found


def tokenise_asked(
    row: "Row", tokenizer: "PreTrainedTokenizerBase", *, template: str, date: str = DEFAULT_DATE
) -> Asked | None:
    """Return how `row` is asked with the bare generation prompt; None where that is how it is trained on anyway."""
    rendered = render(row, template, tokenizer, date=date)
    if rendered.asked is None:
        return None
    text = rendered.before + rendered.answer
    shared = _common_prefix(rendered.asked, text)
    at_once = replace(rendered, before=rendered.asked)
    written = replace(rendered, before=text[:shared], answer=text[shared:])
    as_trained, said_at_once, said = (_sequence(*_tokens(one, tokenizer)) for one in (rendered, at_once, written))
    return Asked(said_at_once, said, said.cut(as_trained.answer_start))


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: Collection[str]) -> list[list[int]]:
    """Return the tokens of each text that is to go on: a BOS where the tokenizer puts one, never an end of sequence.

    The tokens are those of `tokenizer(text)`, without template or truncation, but for special tokens that it appends:
    a model that is asked after an end of sequence has nothing more to say.
    """
    if not texts:
        return []
    lead = leading_special_ids(tokenizer)
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [[*lead, *found] for found in ids]


def text_sequence(text: str, tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> TokenSequence:
    """Return a whole text as one answer, its first `max_length` tokens."""
    return TokenSequence(input_ids=tuple(text_ids(tokenizer, [text])[0][:max_length]), answer_start=1)


def hash_sequences(sequences: Iterable[TokenSequence]) -> str:
    """Return the sha256 of token sequences with their answers, ends and padding, in order."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(repr((sequence.answer_start, sequence.input_ids, sequence.end, sequence.padding)).encode())
    return digest.hexdigest()


def _sequence(ids: list[int], start: int, end: list[int]) -> TokenSequence:
    return TokenSequence(input_ids=tuple(ids), answer_start=max(start, 1), end=tuple(end))


def _tokens(rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int, list[int]]:
    """Tokens of prompt and answer, where the answer begins among them, and the tokens that end it."""
    lead = [] if rendered.is_whole else leading_special_ids(tokenizer)
    if rendered.as_pair:
        before = _plain_ids(tokenizer, rendered.before)
        ids, start = [*before, *_plain_ids(tokenizer, rendered.answer)], len(before)
        stop = len(ids)
    else:
        ids, start, stop = _cut_tokens(rendered, tokenizer)
    return [*lead, *ids[:stop]], len(lead) + start, _end_of(ids[stop:], rendered, tokenizer)


def _cut_tokens(rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int, int]:
    """Tokens of the whole text, and where its answer begins and ends among them."""
    asked, answered = rendered.before, rendered.before + rendered.answer
    text = answered + (rendered.end or "")
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])
        spans = encoded["offset_mapping"]
        start = sum(1 for _ in takewhile(lambda span: span[1] <= len(asked), spans))
        return ids, start, start + sum(1 for _ in takewhile(lambda span: span[0] < len(answered), spans[start:]))
    ids = _plain_ids(tokenizer, text)
    start = _common_prefix(ids, _plain_ids(tokenizer, asked))
    stop = len(ids) if not rendered.end else _common_prefix(ids, _plain_ids(tokenizer, answered))
    return ids, start, stop


def _end_of(after: list[int], rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if rendered.end is None:
        return eos
    special = _special_ids(tokenizer)
    place = next((i for i, token in enumerate(after) if token in special), None)
    return after[: place + 1] if place is not None else [*after, *eos]


@lru_cache(maxsize=4)
def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Tokens that are no text: those with a role, and those that the tokenizer never splits (marks of turns)."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def leading_special_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the special tokens (a BOS, or none) that the tokenizer puts before a text."""
    return list(_leading(tokenizer))


@lru_cache(maxsize=4)  # asked for with every row, which would double the time that rows take
def _leading(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    plain = _plain_ids(tokenizer, "a")
    full: list[int] = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids


def _common_prefix(first: Collection[object], second: Collection[object]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
