"""Where a result comes from: versions, machine, hashes, seed and command."""

import hashlib
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from letheon.errors import without_secrets

PACKAGES = (
    "letheon",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "rouge-score",
)


def describe_environment() -> dict[str, Any]:
    """Return versions, machine, time and command line of this process; no token or password is in it."""
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *(without_secrets(argument) for argument in sys.argv[1:])],
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "num_cpus": os.cpu_count(),
        },
    }


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far, or of the GPU where one is used."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
