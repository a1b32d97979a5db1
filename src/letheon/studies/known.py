"""The scores that a study may have: those of its suite, and those that runs take of themselves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from letheon.evaluation.registry import suite_of
from letheon.evaluation.suite import Plot, Suite
from letheon.scores.score import UNICODE, Score
from letheon.settings import DEFAULT_SUITE

if TYPE_CHECKING:
    from letheon.studies.spec import StudySettings

INTERIM_FORGOTTEN, INTERIM_RETAINED = "interim.forgotten", "interim.retained"

INTERIM = (
    Score("interim.score", "Interim score", "higher", "summary"),
    Score(INTERIM_FORGOTTEN, "Interim forgotten", "higher", "summary"),
    Score(INTERIM_RETAINED, "Interim retained", "higher", "summary"),
)
"""What a run finds of its own states."""


def known_scores(study: "StudySettings") -> Mapping[str, Score]:
    """Return the scores of a study without values, by name: what tables show, and what goes into it, first.

    Raises:
        SettingsError: the study names a suite that there is not.
    """
    suite = _suite(study)
    shown = [score for score in suite.scores if score.is_headline or score.role == "summary"]
    return {score.name: score for score in (*shown, *INTERIM)}


def telling_scores(study: "StudySettings", *, by_unicode: bool) -> tuple[str, ...]:
    """Name the scores that sum a run up, the most telling first; `by_unicode` puts those over any script first.

    Raises:
        SettingsError: the study names a suite that there is not.
    """
    known = known_scores(study).values()
    plain = [score for role in ("final", "aggregate") for score in known if score.role == role and not score.variant]
    variants = [score for one in plain for score in known if score.base == one.name and score.variant == (UNICODE,)]
    return tuple(score.name for score in (*(variants if by_unicode else ()), *plain, INTERIM[0]))


def aims_of(study: "StudySettings") -> tuple[str, ...]:
    """Name the scores that a search makes as good as it can: those that the study names, else its suite's own.

    Raises:
        SettingsError: the study names a suite that there is not.
    """
    return study.objectives or (_suite(study).objective,)


def plot_of(study: "StudySettings") -> Plot | None:
    """Return which two scores are drawn against each other in what is published on the study's suite; None if none are.

    Raises:
        SettingsError: the study names a suite that there is not.
    """
    return _suite(study).plot


def _suite(study: "StudySettings") -> Suite:
    return suite_of(str((study.evaluate or {}).get("suite", DEFAULT_SUITE)))
