"""Linear layers whose matrix lies in memory in 8 or 4 bits and is dequantised for each product.

The matrix is turned into numbers of the states' dtype in the forward pass and again in the backward pass, and the copy
is let go. The states are not rounded, in departure from LLM.int8(), which rounds them by what else is in the batch:
here a row's values do not depend on the others, and the model computes what its dequantised checkpoint computes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.model.codes import dequantised, is_quantised, matrix_shape
from letheon.model.widening import saved_dtype, widened_linear

_FLAGS = ("is_loaded_in_4bit", "is_loaded_in_8bit")
_OF_QUANTISED = ("hf_quantizer", "is_quantized", "quantization_method")


class QuantisedLinear(nn.Linear):
    """A linear layer of bitsandbytes with the product of this module in place of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b (.., O) of states (.., D), in their dtype."""
        return widened_linear(input, self.weight, self.bias)

    @property
    def is_transposed(self) -> bool:
        """Whether the ordinary model has GPT-2's Conv1D in its place, whose matrix lies (D, O)."""
        return issubclass(getattr(self, "source_cls", nn.Linear), Conv1D)

    def ordinary(self, matrix: Tensor) -> Tensor:
        """Return a matrix (O, D) as the ordinary model's layer has it, in main memory: a GPU may lack the room."""
        return (matrix.T.contiguous() if self.is_transposed else matrix).cpu()


def dequantise_in_products(model: PreTrainedModel) -> None:
    """Let the quantised layers of a loaded model compute as this module says.

    PEFT then takes them for linear layers like any other. A quantised head becomes an ordinary one, since the head is
    read block by block.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and is_quantised(module.weight):
            module.__class__ = type(QuantisedLinear.__name__, (QuantisedLinear, type(module)), {})
    for flag in _FLAGS:
        model.__dict__.pop(flag, None)
    head = model.get_output_embeddings()
    if isinstance(head, QuantisedLinear):
        model.set_output_embeddings(_ordinary_layer(head, model.dtype))


def quantised_layers(model: nn.Module) -> dict[int, QuantisedLinear]:
    """Return the quantised layers of a model by the id of their matrix; empty for an ordinary model."""
    return {id(module.weight): module for module in model.modules() if isinstance(module, QuantisedLinear)}


def kind_of(model: nn.Module) -> str | None:
    """Return how the layers of a model are quantised, "nf4", "fp4" or "int8"; None for an ordinary model."""
    layer = next(iter(quantised_layers(model).values()), None)
    if layer is None:
        return None
    state = getattr(layer.weight, "quant_state", None)
    return "int8" if state is None else str(state.quant_type)


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of a model's state, without the scales that bitsandbytes has there beside its codes."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            yield prefix + name, parameter
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield prefix + name, buffer


def saved_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's parameters on disk, where quantised matrices are ordinary ones again."""
    parameters = list(model.parameters())
    quantised = sum(matrix_shape(p).numel() for p in parameters if is_quantised(p))
    return quantised * saved_dtype(model).itemsize + sum(p.nbytes for p in parameters if not is_quantised(p))


def plain_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return names and shapes of the state of the ordinary model that `model` is, quantised or not."""
    layers = quantised_layers(model)
    if not layers:
        return {name: value.shape for name, value in model.state_dict().items()}
    shapes = {name: (matrix_shape(value), layers.get(id(value))) for name, value in own_tensors(model)}
    return {
        name: shape if layer is None or not layer.is_transposed else torch.Size(reversed(shape))
        for name, (shape, layer) in shapes.items()
    }


def make_ordinary(model: PreTrainedModel) -> None:
    """Put ordinary layers in place of all quantised ones; transformers then takes the model for one like any other."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantisedLinear):
            model.set_submodule(path, _ordinary_layer(module, model.dtype))
    vars(model.config).pop("quantization_config", None)
    for name in _OF_QUANTISED:
        model.__dict__.pop(name, None)


def _ordinary_layer(layer: QuantisedLinear, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        made = (
            Conv1D(layer.out_features, layer.in_features)
            if layer.is_transposed
            else nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        )
    matrix = dequantised(layer.weight, dtype)
    made.weight = nn.Parameter(matrix.T.contiguous() if layer.is_transposed else matrix, requires_grad=False)
    made.bias = layer.bias
    return made
