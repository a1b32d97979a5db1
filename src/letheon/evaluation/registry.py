"""The suites that there are, and result files read as the suite that wrote them has them."""

from pathlib import Path

from letheon.errors import SettingsError, nearest
from letheon.evaluation.suite import Suite
from letheon.evaluation.suites.lume.suite import LUME
from letheon.scores.results import Results, read_fields, read_plain

DEFAULT = LUME.name

SUITES: dict[str, Suite] = {LUME.name: LUME}


def suite_of(name: str) -> Suite:
    """Return the suite of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in SUITES:
        raise SettingsError(f"suite: expected one of {', '.join(SUITES)}, got '{name}'{nearest(name, SUITES)}")
    return SUITES[name]


def read_results(path: Path) -> Results:
    """Read a results.json of any suite and version.

    Of a suite that is not known here there are the scores and what every suite's results have.

    Raises:
        EvaluationError: the file is missing, is not JSON, or has another schema.
    """
    data, version = read_fields(path)
    # Files of version 1 hold no list of scores; there was one suite then.
    suite = SUITES.get(str(data.get("suite")), SUITES[DEFAULT] if version == 1 else None)
    return read_plain(data, path) if suite is None else suite.read(data, path)
