"""Many runs over one frozen model: which can go together, and training them at once."""

from letheon.unlearning.populations.groups import groups_of, why_alone
from letheon.unlearning.populations.loop import GivesUp
from letheon.unlearning.populations.reports import DivergedRun, GivenUpRun, Report
from letheon.unlearning.populations.run import run_population
from letheon.unlearning.populations.together import is_in_population, leave_population

__all__ = [
    "DivergedRun",
    "GivenUpRun",
    "GivesUp",
    "Report",
    "groups_of",
    "is_in_population",
    "leave_population",
    "run_population",
    "why_alone",
]
