"""The scores that a study may have: those of its suite, and those that runs take of themselves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from letheon.evaluation.registry import DEFAULT, suite_of
from letheon.scores.score import Score

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
    suite = suite_of(str((study.evaluate or {}).get("suite", DEFAULT)))
    shown = [score for score in suite.scores if score.is_headline or score.role == "summary"]
    return {score.name: score for score in (*shown, *INTERIM)}


def aims_of(study: "StudySettings") -> tuple[str, ...]:
    """Name the scores that a search makes as good as it can: those that the study names, else its suite's own.

    Raises:
        SettingsError: the study names a suite that there is not.
    """
    return study.objectives or (suite_of(str((study.evaluate or {}).get("suite", DEFAULT))).objective,)
