"""Suites that bring rows of their own: which of their files a command reads where no rows are given.

Such a suite has a reader of the same name in data/benchmarks/, which says so by its `OWN_ROWS`. Settings are made
before rows are read, so they look for that module by its name.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from letheon.errors import SettingsError, nearest, shown

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
    holdout: Mapping[str, str] = field(default_factory=dict)
    """Rows like those to forget that no model was trained on, by split."""
    are_questions: bool = True
    """Whether its rows are questions, which a model is trained on as the suite asks them; else they are texts."""

    @property
    def default(self) -> str:
        """The split that is meant where none is named."""
        return next(iter(self.splits))


SUITE_FORMS = ("chat", "question-answer")
"""The forms in which these suites ask: that of a tokenizer with a chat template, and that of others."""
ASKED_FORMS = (*SUITE_FORMS, "inst")
"""The forms in which suites can ask: these, and that of Llama 2's chat models without a system message."""
SUITE_DATE = "2025-04-10"
"""The date that these suites give chat templates that write one."""
_SUFFIXES = (".jsonl", ".json", ".parquet")
_ON_HUB = "-00000-of-00001"


_READERS = "letheon.data.benchmarks"


def files_of(suite: object) -> SuiteFiles | None:
    """Return the files of a suite that brings rows of its own; None for one that is given rows, and for no suite."""
    if not isinstance(suite, str) or suite not in reader_names():
        return None
    found: SuiteFiles | None = getattr(import_module(f"{_READERS}.{suite}"), "OWN_ROWS", None)
    return found


def brings_rows(suite: str) -> bool:
    """Return whether a suite brings rows of its own."""
    return files_of(suite) is not None


def reader_names() -> Iterator[str]:
    """Yield the names of the modules that read benchmarks."""
    return (found.name for found in iter_modules(import_module(_READERS).__path__))


def data_folder(suite: str, data: Path | None) -> Path:
    """Return the folder of a suite's data: the one given, else the suite's in $LETHEON_DATA, else data/SUITE."""
    if data is not None:
        return Path(data)
    return Path(os.environ.get(DATA_VARIABLE) or "data") / suite


def rows_of_suite(suite: str, split: str | None, data: Path | None) -> dict[str, str]:
    """Return the paths of a suite's rows to forget and to keep; its folder where it has none.

    Raises:
        SettingsError: the suite has no such split.
    """
    files = files_of(suite)
    if files is None or not files.splits:
        return dict.fromkeys(("forget", "retain"), str(data_folder(suite, data)))
    split = split or files.default
    if split not in files.splits:
        known = files.splits
        raise SettingsError(f"split: expected one of {', '.join(known)}, got {shown(split)}{nearest(split, known)}")
    return {
        side: str(suite_file(data_folder(suite, data), name))
        for side, name in zip(("forget", "retain"), files.splits[split], strict=True)
    }


def _check_spelling(suite: str) -> None:
    """Refuse a name that is nearly that of a suite with rows of its own."""
    known = [name for name in reader_names() if brings_rows(name)]
    hint = nearest(suite, known)
    if hint and suite not in reader_names():
        raise SettingsError(f"suite: expected one of {', '.join(known)} where no rows are given, got '{suite}'{hint}")


def with_learnt_rows(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of `memorize` with the rows of the suite that they name, unless they name rows themselves.

    `split` is a split of the suite, whose rows to keep are meant (a model that never knew the others), or a file of it;
    without one all rows are meant.

    Raises:
        SettingsError: there is no such suite.
    """
    suite = values.get("suite")
    if suite is None:
        return dict(values)
    files, given = files_of(suite), values.get("data")
    if files is None or not files.whole:
        known = [name for name in reader_names() if (one := files_of(name)) is not None and one.whole]
        hint = nearest(str(suite), known)
        raise SettingsError(f"suite: expected one with rows to learn ({', '.join(known)}), got {shown(suite)}{hint}")
    split = values.get("split") or files.whole
    name = files.splits[split][1] if split in files.splits else str(split)
    path = suite_file(data_folder(suite, None if given is None else Path(given)), name)
    own = {"rows": (str(path),), "date": SUITE_DATE}
    return {**values, **{name: value for name, value in own.items() if values.get(name) is None}}


def is_holdout_of_suite(suite: str, path: Path) -> bool:
    """Return whether a file holds rows of the suite that no model was trained on, and no documents."""
    files = files_of(suite)
    return files is not None and path.name.split(".")[0] in files.holdout.values()


def with_holdout_of_suite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of `unlearn` with the suite's rows that no model was trained on, if it has them as a file.

    A holdout that is given stays, and so does one that is given as null.
    """
    files, given = files_of(values.get("suite")), values.get("data")
    if files is None or not files.splits or "holdout" in values:
        return dict(values)
    name = files.holdout.get(values.get("split") or files.default)
    if name is None:
        return dict(values)
    path = suite_file(data_folder(str(values["suite"]), None if given is None else Path(given)), name)
    return {**values, "holdout": path} if path.is_file() else dict(values)


def suite_file(folder: Path, name: str) -> Path:
    """Return the file of a data set with this name, alone or as the hub names it: the one there, else its .jsonl."""
    endings = (*_SUFFIXES, *(f"{_ON_HUB}{suffix}" for suffix in _SUFFIXES))
    found = (path for ending in endings if (path := folder / f"{name}{ending}").is_file())
    return next(found, folder / f"{name}{_SUFFIXES[0]}")


def with_rows_of_suite(values: Mapping[str, Any], *, are_trained: bool) -> dict[str, Any]:
    """Return settings with the rows of the suite that they name, unless they name rows themselves.

    Of a suite without rows to train on, settings of a command for which rows `are_trained` stay without them.

    Raises:
        SettingsError: the suite has no such split, or is one of these misspelt.
    """
    suite = values.get("suite")
    files = files_of(suite)
    if isinstance(suite, str) and files is None and not {"forget", "retain"} & set(values):
        _check_spelling(suite)
    if files is None or (are_trained and not files.splits):
        return dict(values)
    given = values.get("data")
    rows = rows_of_suite(str(suite), values.get("split"), None if given is None else Path(given))
    own = {**rows, "date": SUITE_DATE}
    return {**values, **{name: value for name, value in own.items() if values.get(name) is None}}
