"""Files with one JSON object a line, as logs and predictions are."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from letheon.errors import EvaluationError


class JsonLines(NamedTuple):
    """The records of such a file."""

    records: tuple[tuple[int, dict[str, Any]], ...]
    """The number of each line, from 1, and its object."""
    is_cut: bool
    """Whether the last line is half a record, as a killed process leaves it; it is not among the records."""


def read_json_lines(path: Path, *, expected: str, allow_cut: bool = False) -> JsonLines:
    """Read a file of JSON objects, one a line; empty lines are passed over.

    `expected` says what the file should be, for errors. `allow_cut` lets the last line be half a record.

    Raises:
        EvaluationError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EvaluationError(
            f"{path}: expected {expected}, but it cannot be read ({error.strerror}); check the path"
        ) from error
    records: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            # Only a last line without its newline can be what a killed process left.
            if allow_cut and number == len(lines):
                return JsonLines(tuple(records), is_cut=True)
            raise EvaluationError(
                f"{path}:{number}: expected a JSON object, cannot read it ({error}); restore the file, or remove that "
                "line"
            ) from error
        if not isinstance(record, dict):
            raise EvaluationError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
        records.append((number, record))
    return JsonLines(tuple(records), is_cut=False)
