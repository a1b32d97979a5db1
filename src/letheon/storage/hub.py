"""Which names are repositories on the Hugging Face hub and which are folders here."""

import re
from pathlib import Path

_PART = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{_PART}/)?{_PART}", re.ASCII)
"""What the hub allows: owner/name or name, of letters, digits and single "-", "_" and "."."""


def is_hub_id(name: str) -> bool:
    """Whether `name` can only mean a repository on the hub: it has the form of one, and nothing here is called so."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()
