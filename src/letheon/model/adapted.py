"""What is trained: a low-rank adapter over frozen weights (adapters.py), or weights themselves (weights.py)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.errors import ModelError, SettingsError
from letheon.model.trunk import trunk_of


class Adapted(Protocol):
    """A model of which something is trained; everything else is frozen."""

    @property
    def model(self) -> PreTrainedModel:
        """The causal language model itself."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the trained or adapted modules."""

    @property
    def is_switchable(self) -> bool:
        """Whether `off` gives the reference at any time; else only before the first step."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of what is trained and what is not."""

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""

    def settle(self) -> None:
        """Bring the model up to date with the trained parameters, after a step of the optimiser."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trained` returned, or a copy of it."""

    def merged_state(self) -> dict[str, Tensor]:
        """Return the weights of the ordinary checkpoint that the trained model is."""

    def is_lost_in(self, merged: Mapping[str, Tensor]) -> bool:
        """Return whether something was trained of which `merged`, the weights to save, show nothing at all."""

    def save(self, folder: Path) -> None:
        """Write what was trained in a layout of its own, where there is one."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of `model`, lowest first.

    Raises:
        ModelError: they cannot be told.
    """
    for module in trunk_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.get_text_config().num_hidden_layers:
            return module
    raise ModelError(
        f"{type(model).__name__}: Letheon cannot find its decoder layers, so --layers cannot select any; leave it out"
    )


def layers_in(span: str, num_layers: int) -> range:
    """Return the layers that a span such as "0:6" or "-8:" names among `num_layers`, as a slice of a list would.

    Raises:
        SettingsError: it names none.
    """
    start, _, end = span.partition(":")
    chosen = range(num_layers)[int(start) if start else None : int(end) if end else None]
    if not chosen:
        raise SettingsError(f"layers: '{span}' selects none of the model's {num_layers} layers, 0 to {num_layers - 1}")
    return chosen


def beyond(span: str, num_layers: int) -> str | None:
    """Say that a span names layers which a model does not have, and what is left of it; None if it has them all.

    Raises:
        SettingsError: it has none of them.
    """
    chosen = layers_in(span, num_layers)
    if all(not bound or abs(int(bound)) <= num_layers for bound in span.split(":")):
        return None
    return (
        f"WARNING: layers: '{span}' goes beyond the model's {num_layers} layers; the layers that exist are trained, "
        f"'{chosen.start}:{chosen.stop}'"
    )


def names_in_layers(model: PreTrainedModel, span: str) -> tuple[str, ...]:
    """Return the prefixes, ending in a dot, of all module names inside the layers that `span` names."""
    layers = decoder_layers(model)
    chosen = {id(layers[index]) for index in layers_in(span, len(layers))}
    return tuple(f"{name}." for name, module in model.named_modules() if id(module) in chosen)
