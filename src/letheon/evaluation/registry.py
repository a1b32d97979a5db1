"""The suites that there are, and result files read as the suite that wrote them has them."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from letheon.errors import SettingsError, nearest
from letheon.evaluation import suites as package
from letheon.evaluation.suite import Suite
from letheon.scores.results import Results, read_fields, read_plain
from letheon.settings import DEFAULT_SUITE


@cache
def suites() -> Mapping[str, Suite]:
    """Return the suites by name: `SUITE` of each module and package in suites/."""
    modules = (import_module(f"{package.__name__}.{found.name}") for found in iter_modules(package.__path__))
    return {suite.name: suite for suite in (module.SUITE for module in modules)}


def suite_of(name: str) -> Suite:
    """Return the suite of that name.

    Raises:
        SettingsError: there is none.
    """
    known = suites()
    if name not in known:
        raise SettingsError(f"suite: expected one of {', '.join(known)}, got '{name}'{nearest(name, known)}")
    return known[name]


def read_results(path: Path) -> Results:
    """Read a results.json of any suite and version.

    Of a suite that is not known here there are the scores and what every suite's results have.

    Raises:
        EvaluationError: the file is missing, is not JSON, or has another schema.
    """
    data, version = read_fields(path)
    # Files of version 1 hold no list of scores; there was one suite then.
    name = DEFAULT_SUITE if version == 1 else str(data.get("suite"))
    suite = suites().get(name)
    return read_plain(data, path) if suite is None else suite.read(data, path)
