"""Letheon: make a causal language model forget chosen rows, fast, and prove it.

The names below are the public interface; they are imported when first used, so that `import letheon` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letheon.api import audit, dial, evaluate, memorize, study, unlearn, unlearn_population, write_report
    from letheon.data.rows import Row, read_rows
    from letheon.errors import LetheonError
    from letheon.settings import AuditSettings, EvaluateSettings, MemorizeSettings, RedialSettings, UnlearnSettings
    from letheon.studies.spec import StudySettings

_HOMES = {
    "AuditSettings": "letheon.settings",
    "EvaluateSettings": "letheon.settings",
    "LetheonError": "letheon.errors",
    "MemorizeSettings": "letheon.settings",
    "RedialSettings": "letheon.settings",
    "Row": "letheon.data.rows",
    "StudySettings": "letheon.studies.spec",
    "UnlearnSettings": "letheon.settings",
    "audit": "letheon.api",
    "dial": "letheon.api",
    "evaluate": "letheon.api",
    "memorize": "letheon.api",
    "read_rows": "letheon.data.rows",
    "study": "letheon.api",
    "unlearn": "letheon.api",
    "unlearn_population": "letheon.api",
    "write_report": "letheon.api",
}

__all__ = [
    "AuditSettings",
    "EvaluateSettings",
    "LetheonError",
    "MemorizeSettings",
    "RedialSettings",
    "Row",
    "StudySettings",
    "UnlearnSettings",
    "audit",
    "dial",
    "evaluate",
    "memorize",
    "read_rows",
    "study",
    "unlearn",
    "unlearn_population",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'letheon' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
