"""Rows as token sequences with the place where the answer begins."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from letheon.data.templates import TEMPLATES, Rendered
from letheon.errors import DataError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from letheon.data.rows import Row

NOTED_ROWS = 100_000
"""After each so many rows it is said how far the tokenising is."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One row tokenised: `input_ids` (T,), of which `input_ids[answer_start:]` are the answer tokens.

    `answer_start` is at least 1, since the first token of a sequence has no position that predicts it.
    """

    input_ids: tuple[int, ...]
    answer_start: int
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


def tokenise(
    row: "Row", tokenizer: "PreTrainedTokenizerBase", *, template: str, max_length: int, where: str | None = None
) -> Sequence:
    """Return the token sequence of `row`, without an end-of-sequence token; a BOS token only if the tokenizer adds one.

    A token that holds the end of the prompt and the beginning of the answer counts as answer. So does, for a tokenizer
    without offsets (a slow one), what stands at the end of the prompt and is tokenised otherwise when nothing follows
    it, such as a space that the tokenizer strips. Under "pair" prompt and answer are texts of their own: a tokenizer
    that marks the beginning of a text marks that of the answer too. `where` names the row in errors; None: its id.

    Raises:
        DataError: the sequence is longer than `max_length` tokens, or the answer has no token of its own, or none that
            is more than "unknown" or a space (a tokenizer that does not know the answer's script).
        SettingsError: template "chat" with a tokenizer that has no chat template.
    """
    where = where or f"row '{row.id}'"
    if template == "chat":
        ids, start = _chat_ids(row, tokenizer)
    else:
        rendered = TEMPLATES[template](row.prompt, row.answer)
        ids, start = _ids_and_start(rendered, tokenizer)
    if len(ids) > max_length:
        raise DataError(
            f"{where}: prompt and answer take {len(ids)} tokens with template '{template}', at most {max_length} fit, "
            "so the answer would be cut off; shorten the row or raise --max-length (up to the model's context)"
        )
    if start >= len(ids):
        raise DataError(f"{where}: the answer {row.answer!r} gives no token of its own, so nothing of it can be scored")
    if not str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip():
        raise DataError(
            f"{where}: the tokenizer turns the answer {row.answer!r} into nothing but unknown tokens and spaces, so "
            "nothing of it can be unlearned; take the row out or use a model whose tokenizer knows its script"
        )
    return Sequence(input_ids=tuple(ids), answer_start=max(start, 1))


def tokenise_all(
    rows: Iterable["Row"],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str,
    max_length: int,
    places: Iterable[str] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Sequence]:
    """Return the sequences of `rows`, in order; `places` names each row in errors, `note` hears of every 100,000."""
    found: list[Sequence] = []
    rows = list(rows)
    named = places if places is not None else (f"row '{row.id}'" for row in rows)
    for row, where in zip(rows, named, strict=True):
        found.append(tokenise(row, tokenizer, template=template, max_length=max_length, where=where))
        if note is not None and len(found) % NOTED_ROWS == 0:
            note(f"{len(found):,} of {len(rows):,} rows tokenised")
    return found


def text_sequence(text: str, tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> Sequence:
    """Return a whole text as one answer, its first `max_length` tokens."""
    ids = [*leading_special_ids(tokenizer), *_plain_ids(tokenizer, text)]
    return Sequence(input_ids=tuple(ids[:max_length]), answer_start=1)


def _ids_and_start(rendered: Rendered, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    lead = leading_special_ids(tokenizer)
    if rendered.as_pair:
        before = _plain_ids(tokenizer, rendered.before)
        return [*lead, *before, *_plain_ids(tokenizer, rendered.answer)], len(lead) + len(before)
    text = rendered.before + rendered.answer
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])
        start = sum(1 for _ in takewhile(lambda span: span[1] <= len(rendered.before), encoded["offset_mapping"]))
    else:
        ids = _plain_ids(tokenizer, text)
        start = _common_prefix(ids, _plain_ids(tokenizer, rendered.before))
    return [*lead, *ids], len(lead) + start


def _chat_ids(row: "Row", tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError("template: 'chat' needs a tokenizer with a chat template, this one has none; try 'joined'")
    asked = [{"role": "user", "content": row.prompt}]
    try:
        before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template is a program that came with the checkpoint
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"template: the tokenizer's chat template cannot be filled in for row '{row.id}' ({reason}); use "
            "--template joined, or correct the template"
        ) from error
    ids, start = _ids_and_start(Rendered(before=str(before), answer=row.answer), tokenizer)
    # The chat template writes its own BOS.
    num_lead = len(leading_special_ids(tokenizer))
    return ids[num_lead:], start - num_lead


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


def _common_prefix(first: list[int], second: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
