"""Rows that are cut off before their answers begin: nothing trains on them, so each is named."""

from collections.abc import Sequence
from dataclasses import dataclass

from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence
from letheon.errors import DataError
from letheon.settings import FormedRowSettings

_MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Answerless:
    """The rows without an answer token among the first `num_tokens`, by side."""

    forget: tuple[str, ...]
    """Ids."""
    retain: tuple[str, ...]
    num_tokens: int

    def __bool__(self) -> bool:
        return bool(self.forget or self.retain)

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The ids by the name of the side."""
        return {"forget": self.forget, "retain": self.retain}

    @property
    def note(self) -> str:
        """What the run says of them."""
        return self.describe(so="not trained on")

    def describe(self, *, so: str) -> str:
        """Name the rows of each side; `so` says what follows for them."""
        named = "; ".join(f"{side} {_named(ids)}" for side, ids in self.sides.items() if ids)
        num = len(self.forget) + len(self.retain)
        return f"{num} rows have no answer token in their first {self.num_tokens} tokens and are {so}: {named}"


def find_answerless(
    sequences: Sequence[TokenSequence], forget: Sequence[Row], retain: Sequence[Row], *, num_tokens: int
) -> Answerless:
    """Return which rows have no answer token in `sequences`, which begin with those of the forget and retain rows."""
    missing = [sequence.num_answer_tokens == 0 for sequence in sequences]
    of_forget, of_retain = missing[: len(forget)], missing[len(forget) : len(forget) + len(retain)]
    return Answerless(
        forget=tuple(row.id for row, is_missing in zip(forget, of_forget, strict=True) if is_missing),
        retain=tuple(row.id for row, is_missing in zip(retain, of_retain, strict=True) if is_missing),
        num_tokens=num_tokens,
    )


def check_answerless(found: Answerless, settings: FormedRowSettings) -> None:
    """Refuse forget rows without an answer token, unless they may be skipped: a run would not unlearn them.

    Raises:
        DataError: there are some; names them.
    """
    if found.forget and settings.answerless == "refuse":
        num = len(found.forget)
        raise DataError(
            f"{settings.forget}: {num} forget row{'s have' if num > 1 else ' has'} no answer token among the first "
            f"{found.num_tokens}, so nothing of {'them' if num > 1 else 'it'} would be unlearned: "
            f"{_named(found.forget)}; raise --max-length, use --overlong truncate-prompt, which keeps answers, or go "
            "on without these rows by --answerless skip"
        )


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_NAMED} more" if len(ids) > _MOST_NAMED else ""
    return ", ".join(ids[:_MOST_NAMED]) + more
