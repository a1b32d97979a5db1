"""Columns that a published file of a benchmark has to have."""

from letheon.data.records import Record, check_text
from letheon.errors import DataError


def text_in(record: Record, column: str, where: str) -> str:
    """Return the text in a column of a record.

    Raises:
        DataError: the record has no such column, which says that the file is another one, or there is no text in it.
    """
    if column not in record:
        there = ", ".join(repr(name) for name in list(record)[:8]) or "none"
        raise DataError(
            f"{where}: expected a column '{column}' as in the published file, found {there}; give the published file, "
            "or name the columns as there"
        )
    return check_text(record[column], column, where)
