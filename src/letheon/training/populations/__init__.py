"""Many runs over one frozen model: which can go together, and training them at once."""

from letheon.training.populations.groups import groups_of, why_alone
from letheon.training.populations.run import DivergedRun, run_population

__all__ = ["DivergedRun", "groups_of", "run_population", "why_alone"]
