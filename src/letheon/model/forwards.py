"""Modules that compute otherwise for a while: the one way in which fast paths step in for a model's own code."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Give each module the forward that `make` returns for it while the block runs, then restore its own.

    What a module has may itself have been put there by a block around this one; `make` finds it as `module.forward`.
    """
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.__dict__["forward"] = make(module)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def is_replaced(module: nn.Module) -> bool:
    """Return whether a block has given the module another forward than its class's."""
    return "forward" in module.__dict__
