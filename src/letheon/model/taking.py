"""What was trained, merged into the model in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from torch.nn.functional import linear

from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter, plain_name
from letheon.model.codes import dequantised, is_quantised
from letheon.model.experts import merged_experts
from letheon.model.forwards import replaced_forwards
from letheon.model.merging import adapted_weights, merged_matrix
from letheon.model.quantised_layers import QuantisedLinear
from letheon.model.sharding import is_sharded, put
from letheon.model.widening import as_stored, saved_dtype


@torch.no_grad()
def take_saved_weights(adapted: Adapted) -> None:
    """Give the model in memory the weights that it is saved with: what was trained merged, and rounded as on disk.

    With the adapter off the model then computes what the saved checkpoint computes. The original weights are gone.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    if is_sharded(adapted.model):
        for layer, weight in {id(weight): (layer, weight) for layer, weight in adapted_weights(adapted.model)}.values():
            put(weight, merged_matrix(layer, weight.dtype))
        return
    own = {plain_name(name): value for name, value in adapted.model.state_dict(keep_vars=True).items()}
    for name, value in as_stored(adapted.model, adapted.merged_state()).items():
        if value.data_ptr() != own[name].data_ptr():
            own[name].copy_(value)


@torch.no_grad()
def fold_in(adapted: LoraAdapter) -> None:
    """Merge the adapter into the weights and take its layers out of the model, which is an ordinary one again.

    All weights can then be trained. `adapted` must not be used any more.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    take_saved_weights(adapted)
    base: Any = adapted.peft.base_model
    base.unload()
    adapted.model.requires_grad_(True)


@contextmanager
def computing_as_saved(adapted: LoraAdapter) -> Iterator[None]:
    """Let a quantised model compute, without gradients, what its saved checkpoint computes while the block lasts.

    Each quantised matrix is dequantised, merged and rounded as on disk for its product alone, since the ordinary
    model may not fit into memory. Adapted weights that are not quantised are merged and put back after.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    adapted_layers = list(adapted_weights(adapted.model))
    codes = {id(weight): layer for layer, weight in adapted_layers if is_quantised(weight)}
    bare = [m for m in adapted.model.modules() if isinstance(m, QuantisedLinear) and id(m.weight) not in codes]
    make = partial(_saved_product, dtype=saved_dtype(adapted.model))
    ordinary = [(layer, weight) for layer, weight in adapted_layers if id(weight) not in codes]
    products = replaced_forwards([*codes.values(), *bare], make)
    with torch.no_grad(), adapted.off(), products, _merged_data(ordinary):
        yield


def _saved_product(layer: Any, *, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    base: Any = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer

    def product(states: Tensor) -> Tensor:
        """Return W x + b (.., O) of states (.., D)."""
        matrix = dequantised(base.weight, dtype) if layer is base else merged_matrix(layer, dtype)
        return linear(states, matrix.to(states.dtype), base.bias)

    return product


@contextmanager
def _merged_data(adapted: Sequence[tuple[Any, Tensor]]) -> Iterator[None]:
    """Give each weight its values with the layer's adapter folded in while the block lasts."""
    own = [(weight, weight.data) for _, weight in adapted]
    try:
        for layer, weight in adapted:
            is_stack = isinstance(layer, ParamWrapper)
            weight.data = merged_experts(layer) if is_stack else merged_matrix(layer, weight.dtype)
        yield
    finally:
        for weight, data in own:
            weight.data = data
