"""The frozen layers below the lowest trained one: their output for a token never changes, so it is stored.

Where the adapter sits in the upper layers only, a step then begins at the lowest of these, from stored states, and the
layers below are never run again. The price is one vector of the model's width for each token of the rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.errors import ModelError, SettingsError
from letheon.model.forwards import replaced_forwards
from letheon.model.layers import decoder_layers, trunk_of


def lowest_trained_layer(model: PreTrainedModel) -> int:
    """Return the lowest decoder layer with something trained in it; 0 if something below the layers is trained.

    Raises:
        ModelError: the model's layers cannot be told.
    """
    layers = list(decoder_layers(model))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if any(parameter.requires_grad and id(parameter) not in inside for parameter in trunk_of(model).parameters()):
        return 0
    trained = [index for index, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
    return min(trained, default=len(layers))


def first_layer_run(model: PreTrainedModel) -> int:
    """Return the layer that a step from stored states begins at.

    Raises:
        SettingsError: no layer is frozen below those that are trained.
        ModelError: the model's layers cannot be told.
    """
    first = lowest_trained_layer(model)
    if first == 0:
        raise SettingsError(
            "store_lower: expected frozen layers below those that are trained, but the lowest layer is trained; "
            "give --layers a range such as -4: (the last four), or leave it out"
        )
    return min(first, len(decoder_layers(model)) - 1)


@contextmanager
def states_given_to(model: PreTrainedModel, layer: int) -> Iterator[list[Tensor]]:
    """Gather what decoder layer `layer` is given, (1, N, D) for each forward in the block."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(given[0] if given else named["hidden_states"])

    with decoder_layers(model)[layer].register_forward_pre_hook(keep, with_kwargs=True):
        yield found


@contextmanager
def begun_at(model: PreTrainedModel, layer: int, states: Tensor) -> Iterator[None]:
    """Let forwards in the block begin at decoder layer `layer`, which is given `states` (N, D).

    Raises:
        ModelError: a layer is called in a way that is not known.
    """
    layers = list(decoder_layers(model))

    def give(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if given:
            return (states[None], *given[1:]), named
        if "hidden_states" not in named:
            raise ModelError(f"{type(model).__name__}: its layers take no hidden_states; leave out --store-lower")
        return given, {**named, "hidden_states": states[None]}

    with (
        replaced_forwards(layers[:layer], lambda _: _passed_on),
        layers[layer].register_forward_pre_hook(give, with_kwargs=True),
    ):
        yield


def _passed_on(hidden_states: Tensor, *_given: Any, **_named: Any) -> Tensor:
    return hidden_states
