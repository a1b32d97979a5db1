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
    """The rows to forget and to keep of each split; the first split is the default. Empty where there is nothing to
    train on: the suite asks questions alone."""
    whole: str = ""
    """All rows, which a target is made to know; empty where there are none."""

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
        },
        whole="full",
    ),
    "wmdp": SuiteFiles({}),
    "muse": SuiteFiles({}),
}
"""The suites with rows of their own."""
SUITE_FORMS = ("chat", "question-answer")
"""The forms in which these suites ask: that of a tokenizer with a chat template, and that of others."""
SUITE_DATE = "2025-04-10"
"""The date that these suites give chat templates that write one."""
_SUFFIXES = (".jsonl", ".json", ".parquet")


def data_folder(suite: str, data: Path | None) -> Path:
    """Return the folder of a suite's data: the one given, else the suite's in $LETHEON_DATA, else data/SUITE."""
    if data is not None:
        return Path(data)
    return Path(os.environ.get(DATA_VARIABLE) or "data") / suite


def rows_of_suite(suite: str, split: str | None, data: Path | None) -> dict[str, str]:
    """Return the paths of a suite's rows to forget and to keep; its folder where it has none.

    Raises:
        ValueError: the suite has no such split; says what was expected.
    """
    files = OWN_ROWS[suite]
    if not files.splits:
        return dict.fromkeys(("forget", "retain"), str(data_folder(suite, data)))
    split = split or files.default
    if split not in files.splits:
        raise ValueError(f"one of {', '.join(files.splits)} as split{nearest(split, files.splits)}")
    return {
        side: str(suite_file(data_folder(suite, data), name))
        for side, name in zip(("forget", "retain"), files.splits[split], strict=True)
    }


def with_learnt_rows(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of `memorize` with the rows of the suite that they name, unless they name rows themselves.

    `split` is a split of the suite, whose rows to keep are meant (a model that never knew the others), or a file of it;
    without one all rows are meant.

    Raises:
        ValueError: there is no such suite.
    """
    suite = values.get("suite")
    if suite is None:
        return dict(values)
    known = [name for name, files in OWN_ROWS.items() if files.whole]
    if suite not in known:
        raise ValueError(f"a suite with rows to learn ({', '.join(known)}){nearest(str(suite), known)}")
    files, given = OWN_ROWS[suite], values.get("data")
    split = values.get("split") or files.whole
    name = files.splits[split][1] if split in files.splits else str(split)
    path = suite_file(data_folder(suite, None if given is None else Path(given)), name)
    own = {"rows": (str(path),), "date": SUITE_DATE}
    return {**values, **{name: value for name, value in own.items() if values.get(name) is None}}


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
    own = {**rows, "date": SUITE_DATE}
    return {**values, **{name: value for name, value in own.items() if values.get(name) is None}}
