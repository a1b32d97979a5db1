"""Typed settings: the same fields in YAML, on the command line and in Python.

Each command has one frozen model, made of parts (parts.py). A value comes from, in rising order: the field's default,
the method's published defaults, a recipe, a --config file, a flag. Unknown keys and values out of range are errors that
name the setting. What else the code has to know of a setting stands beside its type (facts.py).
"""

from letheon.settings.base import Settings
from letheon.settings.beyond import DialSettings
from letheon.settings.commands import (
    AuditSettings,
    DemoSettings,
    EvaluateSettings,
    MemorizeSettings,
    RedialSettings,
    RescoreSettings,
    UnlearnSettings,
)
from letheon.settings.config import read_config
from letheon.settings.parts import (
    COEFFICIENT_FLAGS,
    OF_SCORING,
    AdapterSettings,
    CourseSettings,
    FormedRowSettings,
    FormSettings,
    MethodSettings,
    OptimiserSettings,
    OutputSettings,
    RowSettings,
    ScoringSettings,
    StepSettings,
    VerdictSettings,
)
from letheon.settings.types import DEFAULT_DATE, DEFAULT_SUITE, LARGEST_SEED, Names, Parity

__all__ = [
    "COEFFICIENT_FLAGS",
    "DEFAULT_DATE",
    "DEFAULT_SUITE",
    "LARGEST_SEED",
    "OF_SCORING",
    "AdapterSettings",
    "AuditSettings",
    "CourseSettings",
    "DemoSettings",
    "DialSettings",
    "EvaluateSettings",
    "FormSettings",
    "FormedRowSettings",
    "MemorizeSettings",
    "MethodSettings",
    "Names",
    "OptimiserSettings",
    "OutputSettings",
    "Parity",
    "RedialSettings",
    "RescoreSettings",
    "RowSettings",
    "ScoringSettings",
    "Settings",
    "StepSettings",
    "UnlearnSettings",
    "VerdictSettings",
    "read_config",
]
