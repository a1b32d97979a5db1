"""What to do where a GPU's memory runs out: let go of what was computed, and compute less at once."""

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


def unless_out_of_memory(compute: Callable[[], _T]) -> _T | None:
    """Return what `compute` returns; None where memory runs out, and all that it had made is let go."""
    try:
        return compute()
    except torch.OutOfMemoryError:
        pass  # the error's traceback holds tensors until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
