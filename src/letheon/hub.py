"""What is a name on the Hugging Face hub and what a folder."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Whether a checkpoint of this name is taken from the hub, so that others can find it there."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()
