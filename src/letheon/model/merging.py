"""An adapter folded into the weights, W + s B A: summed in float32, rounded once to the dtype that is saved.

Quantised matrices are dequantised for it. What comes of them is never quantised again.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.errors import ModelError
from letheon.model.codes import dequantised, exact_matrix, is_quantised
from letheon.model.experts import merged_experts
from letheon.model.lowrank import ADAPTER
from letheon.model.quantised_layers import own_tensors, quantised_layers
from letheon.model.sharding import whole
from letheon.model.widening import saved_dtype


def adapted_weights(model: nn.Module) -> Iterator[tuple[Any, nn.Parameter]]:
    """Yield each adapted layer with the weight that its adapter adds to.

    Raises:
        ModelError: a layer is of a kind whose weight is not known.
    """
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            yield module, module.get_param()
        elif isinstance(module, LoraLinear):
            yield module, cast("nn.Parameter", module.get_base_layer().weight)
        elif isinstance(module, LoraLayer):
            raise ModelError(f"{name}: the adapter of a {type(module).__name__} cannot be merged")


def merged_matrix(layer: LoraLinear, dtype: torch.dtype) -> Tensor:
    """Return W + s B A of a layer, W dequantised, in `dtype`."""
    weight = whole(cast("Tensor", layer.get_base_layer().weight))
    exact = exact_matrix(weight)
    if ADAPTER not in layer.lora_variant:
        merged = exact + layer.get_delta_weight(ADAPTER).float()
    elif is_quantised(weight):
        merged = _decomposed(layer, exact)
    else:
        merged = layer.lora_variant[ADAPTER].merge_safe(layer, ADAPTER, exact)
    return merged.to(dtype)


def _decomposed(layer: LoraLinear, weight: Tensor) -> Tensor:
    """DoRA's m (W + s B A) / |W + s B A|, row by row; PEFT would put another parameter in place of the codes."""
    changed = weight + layer.get_delta_weight(ADAPTER).float()
    magnitude: Any = layer.lora_magnitude_vector[ADAPTER]
    scaled: Tensor = magnitude.weight.float()[:, None] * changed / torch.linalg.norm(changed, dim=1, keepdim=True)
    return scaled


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter of which the saved model has another value, with that: merged, dequantised, or both.

    Rounded one by one: held in float32, all of them would take twice the model.
    """
    layers, adapted = quantised_layers(model), set[int]()
    for layer, weight in adapted_weights(model):
        adapted.add(id(weight))
        if isinstance(layer, ParamWrapper):
            yield weight, merged_experts(layer)
        elif (quantised := layers.get(id(weight))) is not None:
            yield weight, quantised.ordinary(merged_matrix(layer, saved_dtype(model)))
        else:
            yield weight, merged_matrix(layer, weight.dtype)
    for key, quantised in layers.items():
        if key not in adapted:
            yield quantised.weight, quantised.ordinary(dequantised(quantised.weight, saved_dtype(model)))


def merging(model: PreTrainedModel) -> dict[int, Callable[[], Tensor]]:
    """Return what makes the merged value of each adapted weight, which is in memory then, by the weight's identity."""
    return {
        id(weight): partial(merged_experts, layer)
        if isinstance(layer, ParamWrapper)
        else partial(merged_matrix, layer, weight.dtype)
        for layer, weight in adapted_weights(model)
    }


def ordinary_weight(model: PreTrainedModel, weight: nn.Parameter) -> Tensor:
    """Return a parameter of a model as the ordinary model that it stands for has it, no adapter folded in."""
    layer = quantised_layers(model).get(id(weight))
    return whole(weight).detach() if layer is None else layer.ordinary(dequantised(weight, saved_dtype(model)))


def plain_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield names, as in the adapted model, and tensors of the state of the ordinary model, adapters left out."""
    is_ordinary = not quantised_layers(model)
    found = model.state_dict(keep_vars=True).items() if is_ordinary else own_tensors(model)
    return ((name, value) for name, value in found if ".lora_" not in name)
