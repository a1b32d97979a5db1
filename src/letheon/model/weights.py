"""Training weights themselves, all of them or those of chosen modules and layers, in place of an adapter.

What is trained is kept in float32 whatever the model's dtype: a step of 1e-5 is less than half the spacing of bfloat16
at a weight of 0.01 and would be rounded away, step after step.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.devices import widest
from letheon.errors import ModelError, nearest
from letheon.model.layers import names_in_layers
from letheon.model.widening import widening_of


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """A model some of whose own weights are trained. Its reference is itself before the first step, and no longer."""

    model: PreTrainedModel
    targets: tuple[str, ...]
    exact: Mapping[str, nn.Parameter]
    """The trained parameters by name, in order, float32: the model's own where they are float32, else copies."""
    first_sums: Mapping[str, float]
    """A sum over each trained parameter as it was at first."""
    is_switchable: bool = False
    notes: tuple[str, ...] = ()

    def off(self) -> AbstractContextManager[None]:
        """Return a context that changes nothing: before the first step the model is the reference."""
        return nullcontext()

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""
        return list(self.exact.values())

    @torch.no_grad()
    def update_model(self) -> None:
        """Round the trained parameters to the model's own, after a step of the optimiser."""
        named = dict(self.model.named_parameters())
        for name, parameter in self.exact.items():
            if named[name] is not parameter:
                named[name].copy_(parameter)

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""
        return {name: p.detach() for name, p in self.exact.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the values that `trained` returned, or a copy of them."""
        for name, parameter in self.exact.items():
            parameter.copy_(state[name])
        self.update_model()

    def merged_state(self) -> dict[str, Tensor]:
        """Return all weights of the model."""
        return dict(self.model.state_dict())

    def is_lost_in(self, merged: Mapping[str, Tensor]) -> bool:
        """Return whether a trained parameter has moved but none of the model's own, to which they are rounded, has."""
        moved = any(_sum(value) != self.first_sums[name] for name, value in self.exact.items())
        return moved and all(_sum(merged[name]) == first for name, first in self.first_sums.items())

    def save(self, folder: Path) -> None:
        """Write nothing: the checkpoint itself is the result."""


def train_weights(model: PreTrainedModel, *, modules: Collection[str], layers: str | None) -> TrainedWeights:
    """Make the weights of `modules` trainable, all if it is empty, and freeze the rest.

    A module's name is any part of its path ("mlp", "q_proj", "lm_head"); `layers` ("-8:", "0:6") keeps to those inside
    some decoder layers.

    Raises:
        ModelError: a name is no part of the model.
        SettingsError: `layers` names no layer.
    """
    # A tied weight has several names, of which any may be meant.
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    parts = {
        part for known in aliases.values() for name in known for part in name.split(".")[:-1] if not part.isdigit()
    }
    for wanted in modules:
        if wanted not in parts:
            raise ModelError(
                f"target_modules: {type(model).__name__} has no module '{wanted}'{nearest(wanted, parts)}; "
                f"it has {', '.join(sorted(parts))}"
            )
    inside = names_in_layers(model, layers) if layers else ("",)
    exact: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        is_wanted = not modules or any(part in modules for alias in aliases[id(parameter)] for part in alias.split("."))
        parameter.requires_grad_(is_wanted and name.startswith(inside))
        if parameter.requires_grad:
            if widening_of(model) is not None:
                parameter.data = parameter.data.float()
            exact[name] = _exact(parameter)
    if not exact:
        raise ModelError(
            f"target_modules: none of {', '.join(modules)} is inside the layers '{layers}' of {type(model).__name__}"
        )
    first_sums = {} if model.device.type == "meta" else {name: _sum(value) for name, value in exact.items()}
    return TrainedWeights(model=model, targets=tuple(modules) or ("all",), exact=exact, first_sums=first_sums)


@torch.no_grad()
def _sum(values: Tensor) -> float:
    """In float64, so that it shows a change of any one value."""
    return float(widest(values).sum(dtype=torch.float64))


def _exact(parameter: nn.Parameter) -> nn.Parameter:
    """Return `parameter` if it is float32, else a float32 copy of it that receives its gradients."""
    if parameter.dtype == torch.float32:
        return parameter
    copy = nn.Parameter(parameter.detach().float())

    def hand_on(rounded: Tensor) -> None:
        assert rounded.grad is not None
        gradient = rounded.grad.float()
        copy.grad = gradient if copy.grad is None else copy.grad + gradient
        rounded.grad = None

    parameter.register_post_accumulate_grad_hook(hand_on)
    return copy
