"""The published layout of RWKU, small enough for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_rwku(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write files of the data set by their names, and return the folder."""
    root = folder / "All"
    root.mkdir(parents=True)
    for name, records in files.items():
        (root / f"{name}.json").write_text(json.dumps(list(records)), encoding="utf-8")
    return folder
