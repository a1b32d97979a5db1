"""Suites that bring rows of their own: which of their files a command reads where no rows are given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.errors import nearest

DATA_VARIABLE = "LETHEON_DATA"
"""The environment variable that names the folder of all data sets."""


@dataclass(frozen=True, slots=True)
class SuiteFiles:
    """The files of a suite, by split, without ending."""

    splits: Mapping[str, tuple[str, str]]
    """The rows to forget and to keep of each split; the first split is the default."""

    @property
    def default(self) -> str:
        """The split that is meant where none is named."""
        return next(iter(self.splits))


OWN_ROWS: Mapping[str, SuiteFiles] = {
    "tofu": SuiteFiles(
        {
            "forget10": ("forget10", "retain90"),
            "forget05": ("forget05", "retain95"),
            "forget01": ("forget01", "retain99"),
        }
    ),
}
"""The suites with rows of their own."""
_SUFFIXES = (".jsonl", ".json", ".parquet")


def data_folder(suite: str, data: Path | None) -> Path:
    """Return the folder of a suite's data: the one given, else the suite's in $LETHEON_DATA, else data/SUITE."""
    if data is not None:
        return Path(data)
    return Path(os.environ.get(DATA_VARIABLE) or "data") / suite


def rows_of_suite(suite: str, split: str | None, data: Path | None) -> dict[str, str]:
    """Return the paths of a suite's rows to forget and to keep.

    Raises:
        ValueError: the suite has no such split; says what was expected.
    """
    files = OWN_ROWS[suite]
    split = split or files.default
    if split not in files.splits:
        raise ValueError(f"one of {', '.join(files.splits)} as split{nearest(split, files.splits)}")
    return {
        side: str(suite_file(data_folder(suite, data), name))
        for side, name in zip(("forget", "retain"), files.splits[split], strict=True)
    }


def suite_file(folder: Path, name: str) -> Path:
    """Return the file of a data set with this name: the one that is there, else its .jsonl."""
    found = (path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file())
    return next(found, folder / f"{name}{_SUFFIXES[0]}")


def with_rows_of_suite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the rows of the suite that they name, unless they name rows themselves.

    Raises:
        ValueError: the suite has no such split.
    """
    suite = values.get("suite")
    if suite not in OWN_ROWS:
        return dict(values)
    given = values.get("data")
    rows = rows_of_suite(str(suite), values.get("split"), None if given is None else Path(given))
    return {**values, **{side: path for side, path in rows.items() if values.get(side) is None}}
