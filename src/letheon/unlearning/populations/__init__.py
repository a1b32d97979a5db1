"""Many runs over one frozen model: which can go together, and training them at once."""

from letheon.unlearning.populations.groups import groups_of, why_alone
from letheon.unlearning.populations.loop import GivesUp
from letheon.unlearning.populations.reports import DivergedRun, GivenUpRun, Report
from letheon.unlearning.populations.run import run_population
from letheon.unlearning.populations.together import forget_parts, was_member

__all__ = [
    "DivergedRun",
    "GivenUpRun",
    "GivesUp",
    "Report",
    "forget_parts",
    "groups_of",
    "run_population",
    "was_member",
    "why_alone",
]
