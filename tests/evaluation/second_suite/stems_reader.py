"""Reads the made-up suite's rows: a table of prompts and answers, by the names that `unlearn` gives to such rows."""

import csv
from pathlib import Path

from letheon.data.rows import Row, Rows


def read(path: str) -> Rows:
    """The rows of a table."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        pairs = [(line["prompt"], line["answer"]) for line in csv.DictReader(file)]
    rows = tuple(
        Row(f"row{n}", prompt, answer, "default", "question" if prompt.endswith("?") else "completion")
        for n, (prompt, answer) in enumerate(pairs, 1)
    )
    return Rows(path, rows, tuple(range(2, len(rows) + 2)), ids_given=False)
