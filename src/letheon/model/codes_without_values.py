"""Models without values whose layers are quantised, as they would be loaded: for estimates of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from letheon.model.quantised_layers import dequantise_in_products

_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""Numbers that share a scale; scales that share one, where these are quantised too."""


def quantise_without_values(model: PreTrainedModel, how: BitsAndBytesConfig) -> None:
    """Give a model on the "meta" device the layers that it has when it is loaded and quantised."""
    quantizer: Any = AutoHfQuantizer.from_config(how)
    dtype = model.dtype
    with _untied(model):
        quantizer.preprocess_model(model=model, device_map={"": "meta"})
    with torch.device("meta"):
        for module in model.modules():
            if isinstance(getattr(module, "source_cls", None), type):
                _store_codes(module, how, dtype)
    dequantise_in_products(model)


@contextmanager
def _untied(model: PreTrainedModel) -> Iterator[None]:
    """Give the head a weight of its own, as it has while transformers loads: the last one by name is not quantised."""
    head: Any = model.get_output_embeddings()
    if head is None:
        yield
        return
    own = head.weight
    head.weight = nn.Parameter(torch.empty_like(own), requires_grad=False)
    try:
        yield
    finally:
        head.weight = own


def _store_codes(layer: nn.Module, how: BitsAndBytesConfig, dtype: torch.dtype) -> None:
    import bitsandbytes as bnb

    linear: Any = layer
    if linear.bias is not None:
        linear.bias.data = linear.bias.data.to(dtype)
    rows, columns = linear.out_features, linear.in_features
    if how.load_in_8bit:
        codes, scales = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows)
        linear.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
        return
    linear.weight = bnb.nn.Params4bit(
        torch.empty(-(-rows * columns // 2), 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=_state(torch.Size((rows, columns)), how, dtype),
        bnb_quantized=True,
    )


def _state(shape: torch.Size, how: BitsAndBytesConfig, dtype: torch.dtype) -> Any:
    from bitsandbytes.functional import QuantState

    num_scales = -(-shape.numel() // _BLOCK)
    kind, code = how.bnb_4bit_quant_type, torch.empty(16)
    if not how.bnb_4bit_use_double_quant:
        return QuantState(torch.empty(num_scales), shape, code, _BLOCK, kind, dtype)
    of_scales = QuantState(
        torch.empty(-(-num_scales // _BLOCK_OF_SCALES)),
        code=torch.empty(256),
        blocksize=_BLOCK_OF_SCALES,
        dtype=torch.float32,
    )
    scales = torch.empty(num_scales, dtype=torch.uint8)
    return QuantState(scales, shape, code, _BLOCK, kind, dtype, offset=torch.empty(()), state2=of_scales)
