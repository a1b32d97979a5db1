"""What a run needs of memory and time, found out before any weight is loaded."""

from letheon.unlearning.planning.check import (
    Planned,
    check_fit,
    check_targets,
    is_small,
    plan_run,
    plan_with_rates,
    refusal,
)
from letheon.unlearning.planning.estimate import Allocation, Plan
from letheon.unlearning.planning.machine import Machine
from letheon.unlearning.planning.operations import Work
from letheon.unlearning.planning.table import render

__all__ = [
    "Allocation",
    "Machine",
    "Plan",
    "Planned",
    "Work",
    "check_fit",
    "check_targets",
    "is_small",
    "plan_run",
    "plan_with_rates",
    "refusal",
    "render",
]
