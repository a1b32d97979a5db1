"""What a run needs of memory and time, found out before any weight is loaded."""

from letheon.training.plan.check import Planned, check_fit, check_targets, is_small, plan_run, plan_with_rates, refusal
from letheon.training.plan.estimate import Part, Plan
from letheon.training.plan.machine import Machine
from letheon.training.plan.operations import Work
from letheon.training.plan.table import render

__all__ = [
    "Machine",
    "Part",
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
