"""Gated feed-forward blocks that keep two wide vectors a token for the backward pass in place of three.

    y = W_down (f(W_gate x) * W_up x)

Autograd keeps W_gate x for f, and f(W_gate x) and W_up x for the product. The second follows from the first at the cost
of one elementwise pass, so it is computed again: in a model whose blocks are four times as wide as its states, a fifth
of all that a step under an adapter holds. The operations are the block's own in their order, and so are the bits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from letheon.model.codes import is_quantised
from letheon.model.forwards import is_replaced, replaced_forwards

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_NUM_PROBED = 3


@contextmanager
def lean_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let these blocks, as `gated_blocks` returned them, keep less while the block lasts (forward and backward)."""
    with replaced_forwards([block for block in blocks if not is_replaced(block)], _Lean):
        yield


def gated_blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of `model` that compute the formula above and nothing else.

    They are known by the names of their parts and by giving the very same output on a probe; without values, on the
    meta device, by the names alone.
    """
    named = [module for module in model.modules() if all(hasattr(module, name) for name in _PARTS)]
    return tuple(block for block in named if _is_gated(block))


@torch.no_grad()
def _is_gated(block: Any) -> bool:
    try:
        weight = next(block.gate_proj.parameters())
        dtype = torch.float32 if is_quantised(weight) else weight.dtype
        width = block.down_proj.out_features
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, _NUM_PROBED, width, generator=generator).to(weight.device, dtype)
        own, ours = block(states), _Lean(block)(states)
    except (RuntimeError, TypeError, AttributeError, ValueError, StopIteration):
        return False
    if not isinstance(own, Tensor):
        return False
    return own.shape == ours.shape if own.is_meta else torch.equal(own, ours)


class _Lean:
    """The forward of one block."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, states: Tensor) -> Tensor:
        """Return y (.., D) of states (.., D)."""
        block = self._block
        gated = _Gated.apply(block.gate_proj(states), block.up_proj(states), block.act_fn)  # type: ignore[no-untyped-call]
        return cast("Tensor", block.down_proj(gated))


class _Gated(torch.autograd.Function):
    """f(gate) * up, elementwise, of tensors (.., I)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Return f(gate) * up."""
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of gate and up."""
        (of_output,) = gradients
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            # Hooks of modules are not for a second call, within the backward pass.
            activated = getattr(ctx.activation, "forward", ctx.activation)(again)
        of_up = of_output * activated.detach() if ctx.needs_input_grad[1] else None
        of_gate = torch.autograd.grad(activated, again, of_output * up)[0] if ctx.needs_input_grad[0] else None
        return of_gate, of_up, None
