"""The low-rank product as two fused steps in place of PEFT's eight.

PEFT computes y = W x + s B (A x) as separate modules (casts, dropout, two small products, a scaling, an addition) that
each cost a pass over the activations. Here one autograd function does it with the products in the order and layout
that skinny matrices run fastest in, forms no gradient for the frozen W, and keeps only x and A x for the backward.
The values are PEFT's; layers that do more than this (DoRA, dropout, merged or several adapters) keep PEFT's forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from letheon.model.codes import is_quantised
from letheon.model.forwards import is_replaced
from letheon.model.quantised_layers import QuantisedLinear
from letheon.model.widening import (
    WidenedConv1D,
    WidenedLinear,
    in_dtype_of,
    keep_for_backward,
    kept_for_backward,
    widened_linear,
)

ADAPTER = "default"
LINEAR_FORWARDS = (
    nn.Linear.forward,
    Conv1D.forward,
    WidenedLinear.forward,
    WidenedConv1D.forward,
    QuantisedLinear.forward,
)
"""Of layers that give W x + b and nothing else."""


@contextmanager
def fused_adapters(model: nn.Module) -> Iterator[None]:
    """Let the plain LoRA layers in `model` run fused while the block lasts (forward and backward)."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and is_plain(module)]
    for layer in layers:
        layer.__class__ = _Fused
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = LoraLinear


class _Fused(LoraLinear):
    """A plain layer of PEFT's with the fused product."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the layer's output for states (.., D)."""
        weight, bias = frozen_part(self)
        if self.disable_adapters:
            return widened_linear(states, weight, bias)
        down: Any = self.lora_A[ADAPTER]
        up: Any = self.lora_B[ADAPTER]
        return low_rank_linear(
            states, weight, bias, down=down.weight, up=up.weight, scaling=float(self.scaling[ADAPTER])
        )


def frozen_part(layer: LoraLinear) -> tuple[Tensor, Tensor | None]:
    """Return W (O, D) and b (O,) or None of the layer that an adapter is in."""
    base: Any = layer.get_base_layer()
    return base.weight.T if isinstance(base, Conv1D) else base.weight, base.bias


def low_rank_linear(
    states: Tensor, weight: Tensor, bias: Tensor | None, *, down: Tensor, up: Tensor, scaling: float
) -> Tensor:
    """Return W x + b + s B A x (.., O) of states (.., D), with A (r, D) and B (O, r) in float32.

    W (O, D) and b (O,) are frozen; W is of any dtype or quantised.
    """
    product = _LowRankLinear.apply(states, weight, bias, down, up, scaling)  # type: ignore[no-untyped-call]
    return cast("Tensor", product)


def is_plain(layer: LoraLinear) -> bool:
    """Return whether a layer does no more than W x + b + s B A x, and does so by PEFT's forward."""
    base: Any = layer.get_base_layer()
    return (
        type(base).forward in LINEAR_FORWARDS
        and (base.weight.is_floating_point() or is_quantised(base.weight))
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and type(layer) is LoraLinear  # not fused already, by a block around this one
        and not is_replaced(layer)
        and layer.active_adapters == [ADAPTER]
        and not layer.merged
        and ADAPTER not in layer.lora_variant  # DoRA and its kin
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_A[ADAPTER].bias is None
        and layer.lora_B[ADAPTER].bias is None
    )


class _LowRankLinear(torch.autograd.Function):
    """y = W x + b + s B A x, with A (r, D) and B (O, r) in float32 whatever the dtype of W (O, D) and x (N, D)."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        """Return y (.., O) of states (.., D)."""
        rows = states.reshape(-1, states.shape[-1])
        inner = rows.to(down.dtype) @ down.T
        # (r, O), contiguous: in this layout both products with it run several times faster than with B itself.
        up_rows = (up.T * scaling).contiguous()
        output = linear(rows, in_dtype_of(rows, weight), bias)
        _add_product(output, inner, up_rows)
        keep_for_backward(ctx, weight, rows, inner, down, up_rows)
        ctx.scaling = scaling
        # Not a view in autograd's eyes: OLMo clamps its queries, keys and values in place.
        return cast("Tensor", torch.ops.aten._unsafe_view(output, (*states.shape[:-1], output.shape[-1])))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Return the gradients of states, A and B; the frozen matrix has none."""
        weight, rows, inner, down, up_rows = kept_for_backward(ctx)
        (of_output,) = gradients
        shape = of_output.shape
        of_rows_out = of_output.reshape(-1, shape[-1])
        exact = of_rows_out.to(down.dtype)
        of_inner = exact @ up_rows.T
        of_up = (inner.T @ exact).T * ctx.scaling
        of_down = of_inner.T @ rows.to(down.dtype)
        of_states = None
        if ctx.needs_input_grad[0]:
            of_states = of_rows_out @ in_dtype_of(of_rows_out, weight)
            _add_product(of_states, of_inner, down)
            of_states = of_states.view(*shape[:-1], rows.shape[-1])
        return of_states, None, None, of_down, of_up, None


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a float32 product in place, rounded once where `target` is not float32, as PEFT does.

    Of few inner dimensions, as here, a product in bfloat16 costs next to nothing, while one in float32 that is added to
    bfloat16 goes through memory three times. So each factor is the sum of two numbers in bfloat16, of which all but
    the product of the two small ones are multiplied: 16 bits of each factor in place of float32's 24 or bfloat16's 8.
    """
    if target.dtype == torch.bfloat16:
        high, low = _split(left)
        right_high, right_low = _split(right)
        left, right = torch.cat([high, low, high], dim=1), torch.cat([right_high, right_high, right_low])
    if target.dtype == left.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 tensors whose sum is `values` to 16 bits."""
    high = values.bfloat16()
    return high, (values - high).bfloat16()
