"""Where Letheon keeps what it computes once."""

import os
from pathlib import Path

from letheon.storage.run_folder import SCORES_FOLDER, STORES_FOLDER


def default_cache_dir() -> Path:
    """Return the folder for reference stores: $LETHEON_CACHE, or letheon under $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("LETHEON_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "letheon"


def store_path(cache_dir: Path, key: str) -> Path:
    """Return the file of the reference store `key`."""
    return cache_dir / STORES_FOLDER / f"{key}.safetensors"


def scores_path(cache_dir: Path, key: str) -> Path:
    """Return the folder of the scores before unlearning `key`."""
    return cache_dir / SCORES_FOLDER / key
