"""What a causal language model consists of: the module below its head, and its decoder layers."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from letheon.errors import ModelError, SettingsError


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module below the head, e.g. OlmoModel inside OlmoForCausalLM; of one that sees, the part for text."""
    # BERT's kin call the last matrix of their head a decoder; Llama 4 finds itself.
    candidates: tuple[object, ...] = (model.get_decoder(), model.base_model, getattr(model, "model", None))
    inner = (found for found in candidates if isinstance(found, PreTrainedModel) and found is not model)
    return next(inner, cast("PreTrainedModel", model.base_model))


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
    """Say which layers of a span the model does not have, and which ones are trained; None if it has all of them.

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
