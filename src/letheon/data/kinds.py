"""The kind of a row, which decides how it is scored: a completion by ROUGE-L recall, a question by exact match."""

from typing import Literal, get_args

from letheon.errors import DataError, nearest

Kind = Literal["completion", "question"]


def check_kind(value: object, where: str) -> Kind:
    """Return `value` if it is a kind.

    Raises:
        DataError: it is none.
    """
    for kind in get_args(Kind):
        if value == kind:
            return kind  # type: ignore[no-any-return]
    kinds = get_args(Kind)
    raise DataError(
        f"{where}: expected {' or '.join(kinds)} in column 'kind', got '{value}'{nearest(str(value), kinds)}"
    )


def kind_of(row_id: str, prompt: str, prompt_column: str) -> Kind:
    """Return the kind of a row that names none: by the official rule, its column, or the end of its prompt."""
    stem = row_id[:-1]
    if stem.endswith("sc"):
        return "completion"
    if stem.endswith("qa") or prompt_column == "question" or prompt.rstrip().endswith("?"):
        return "question"
    return "completion"
