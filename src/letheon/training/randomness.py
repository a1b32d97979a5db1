"""Random numbers of a step: they follow from the run's seed and the step's number, so no state of them is kept."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from letheon.devices import kept_random_state
from letheon.model.lowrank import ADAPTER


def dropouts_of(model: nn.Module) -> tuple[nn.Dropout, ...]:
    """Return the dropout modules in front of the model's adapters, none where nothing is dropped."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    found = [layer.lora_dropout[ADAPTER] for layer in layers]
    return tuple(module for module in found if isinstance(module, nn.Dropout))


@contextmanager
def dropout_of_step(dropouts: Collection[nn.Dropout], *, seed: int, step: int) -> Iterator[None]:
    """Let `dropouts` drop what belongs to this step while the block lasts; the process's own random state stays.

    A run that enters at any step draws what the whole run would have drawn there.
    """
    if not dropouts:
        yield
        return
    with kept_random_state():
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:8]) >> 1)
        try:
            for module in dropouts:
                module.train()
            yield
        finally:
            for module in dropouts:
                module.eval()
