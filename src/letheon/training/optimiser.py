"""The optimiser of the trained parameters and its learning rate."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

LearningRateSchedule = Literal["constant", "linear"]


def build_optimiser(
    parameters: Iterable[nn.Parameter],
    *,
    name: Literal["adamw", "adam"],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return AdamW (decoupled weight decay) or Adam, both with PyTorch's other defaults, in one fused kernel."""
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def learning_rate_at(
    step: int, *, total_steps: int, peak: float, schedule: LearningRateSchedule, warm_up_steps: int = 0
) -> float:
    """Return the learning rate of `step`, counted from 0.

    It rises from 0, at step 0, to `peak` in `warm_up_steps` and is constant from there, or linear to 0 after the last
    step, as transformers' schedules of these names are.
    """
    if step < warm_up_steps:
        return peak * step / warm_up_steps
    if schedule == "constant":
        return peak
    return peak * max(0.0, (total_steps - step) / max(total_steps - warm_up_steps, 1))


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
