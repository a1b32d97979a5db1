"""Adapters on the matrices of routed experts, which transformers keeps as one parameter (experts, rows, columns).

PEFT adapts such a parameter by adding the product of two factors to the whole of it in every forward, so that a step
holds every expert's matrix twice and forms a gradient of that size. Here the matrices stay as they are: while a block
lasts the module sees, in place of the parameter, a stack of matrices in two parts, W_e + s L_e R_e, which multiplies by
each part. The values are PEFT's to rounding; in bfloat16 they are nearer to the exact ones, since the sum of the
matrices is never rounded. An operation that is not known is given the sum itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, linear, pad

from letheon.model.forwards import is_replaced, replaced_forwards
from letheon.model.lowrank import ADAPTER
from letheon.model.widening import WideForward

_ALIGNED = 8
"""Ranks are filled up with zeros to a multiple of this, since grouped products want rows of whole 16 bytes."""


_Product = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def fused_experts(model: nn.Module) -> Iterator[None]:
    """Let the adapted experts in `model` multiply by both parts of their matrices while the block lasts."""
    with replaced_forwards([m for m in _outermost(model) if not is_replaced(m) and _is_plain(m)], _Experts):
        yield


def keep_fused(model: nn.Module) -> None:
    """Let the adapted experts in `model` do so for good.

    Where matrices are stored in 16 bits and multiplied in float32, PEFT would round their sum, and the states, to 16.
    """
    for module in _outermost(model):
        module.__dict__["forward"] = _Experts(module)


def _outermost(model: nn.Module) -> list[ParamWrapper]:
    inner = {id(module.base_layer) for module in model.modules() if isinstance(module, ParamWrapper)}
    return [m for m in model.modules() if isinstance(m, ParamWrapper) and id(m) not in inner]


def wrappers_of(module: ParamWrapper) -> list[ParamWrapper]:
    """Return the wrappers, one a parameter, that lie around one module, outermost first."""
    found = [module]
    while isinstance(found[-1].base_layer, ParamWrapper):
        found.append(found[-1].base_layer)
    return found


def merged_experts(wrapper: ParamWrapper) -> Tensor:
    """Return W_e + s L_e R_e, summed in float32 an expert at a time and rounded to the dtype of W."""
    weight: Tensor = wrapper.get_param()
    left, right, scaling = factors(wrapper)
    merged = weight.detach().clone()
    for expert in range(len(merged)):
        merged[expert] = (weight[expert].float() + scaling * left[expert] @ right[expert]).to(weight.dtype)
    return merged


def factors(wrapper: ParamWrapper) -> tuple[Tensor, Tensor, float]:
    """Return L (E, P, r), R (E, r, Q) and s of a parameter (E, P, Q), float32.

    PEFT lays A out as (E r, in) and B as (out, r E); which of rows and columns are "in" depends on the module.
    """
    layer: Any = wrapper
    down, up, num = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.num_experts
    down = down.reshape(num, -1, down.shape[-1])
    up = up.reshape(up.shape[0], -1, num).permute(2, 0, 1)
    left, right = (up, down) if layer._did_swap_in_out_features else (down.mT, up.mT)
    return left, right, float(layer.scaling[ADAPTER])


def _is_plain(module: ParamWrapper) -> bool:
    return all(
        wrapper.active_adapters == [ADAPTER] and not wrapper.merged and wrapper.get_param().ndim == 3
        for wrapper in wrappers_of(module)
    )


class _Experts:
    """The forward of one module with adapted parameters."""

    def __init__(self, module: ParamWrapper) -> None:
        self._wrappers = wrappers_of(module)
        self._base: nn.Module = module.get_base_layer()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output."""
        base: Any = self._base
        if self._wrappers[0].disable_adapters:
            return base(*args, **kwargs)
        operands: dict[str, Any] = {
            w.parameter_name: _Stack(w.get_param(), *factors(w), dtype=_product_dtype(base, w.get_param()))
            for w in self._wrappers
        }
        forward = base.forward
        if isinstance(base, WideForward):
            # It would widen all at once and run again in the backward pass; here each product widens for itself.
            forward = super(WideForward, base).forward
            others = {name: p for name, p in base.named_parameters(recurse=False) if name not in operands}
            operands |= {name: p.float() for name, p in others.items()}
        # An entry of the instance comes before a parameter of the same name.
        base.__dict__.update(operands)
        try:
            return forward(*args, **kwargs)
        finally:
            for name in operands:
                del base.__dict__[name]


def _product_dtype(module: nn.Module, weight: Tensor) -> torch.dtype:
    return torch.float32 if isinstance(module, WideForward) else weight.dtype


@dataclass(frozen=True, slots=True)
class _Stack:
    """W (.., P, Q), frozen and of any dtype, plus s L (.., P, r) R (.., r, Q), float32, as one operand."""

    weight: Tensor
    left: Tensor
    right: Tensor
    scaling: float
    dtype: torch.dtype
    """In which it multiplies: that of W, or float32 where W is widened for each product."""

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the weight: shape, device."""
        return getattr(self.weight, name)

    def __getitem__(self, index: Any) -> "_Stack":
        """Return the matrices of some experts."""
        return _Stack(self.weight[index], self.left[index], self.right[index], self.scaling, self.dtype)

    def transpose(self, first: int, second: int) -> "_Stack":
        """Return the matrices transposed; other dimensions are not swapped."""
        assert {first % self.weight.ndim, second % self.weight.ndim} == {self.weight.ndim - 2, self.weight.ndim - 1}
        return _Stack(self.weight.mT, self.right.mT, self.left.mT, self.scaling, self.dtype)

    @property
    def mT(self) -> "_Stack":
        """The matrices transposed."""
        return self.transpose(-2, -1)

    T = mT

    def aligned(self) -> "_Stack":
        """Return the same with factors as grouped products want them."""
        missing = -self.left.shape[-1] % _ALIGNED
        left, right = pad(self.left, (0, missing)), pad(self.right, (0, 0, 0, missing))
        return _Stack(self.weight, left.contiguous(), right.contiguous(), self.scaling, self.dtype)

    def whole(self) -> Tensor:
        """Return the sum."""
        return (self.weight.float() + self.scaling * self.left @ self.right).to(self.dtype)

    def __rmatmul__(self, states: Tensor) -> Tensor:
        """Return states times the matrices."""
        return self.times(states, torch.matmul)

    def times(self, states: Tensor, product: _Product) -> Tensor:
        """Return the product of states (.., P) with the matrices, by a product that takes states and matrices."""
        exact = states.to(self.left.dtype)
        low_rank = self.scaling * product(product(exact, self.left), self.right)
        if self.weight.dtype == states.dtype:
            return product(states, self.weight) + low_rank.to(states.dtype)
        frozen: Tensor = _Widened.apply(states, self.weight, product)  # type: ignore[no-untyped-call]
        return frozen + low_rank.to(states.dtype)

    @classmethod
    def __torch_function__(
        cls, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Multiply by both parts where that is known how, and by their sum where not."""
        known = _PRODUCTS.get(func)
        if known is not None and not isinstance(args[0], _Stack) and isinstance(args[1], _Stack):
            return known(*args, **(kwargs or {}))
        plain = [arg.whole() if isinstance(arg, _Stack) else arg for arg in args]
        named = {name: arg.whole() if isinstance(arg, _Stack) else arg for name, arg in (kwargs or {}).items()}
        return func(*plain, **named)


class _Widened(torch.autograd.Function):
    """The product of states with frozen matrices that are widened for it, here and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, product: _Product) -> Tensor:
        """Return states times W."""
        ctx.save_for_backward(weight)
        ctx.product = product
        return product(states, weight.to(states.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of states."""
        (of_output,) = gradients
        (weight,) = ctx.saved_tensors
        return ctx.product(of_output.contiguous(), weight.to(of_output.dtype).mT), None, None


def _linear(states: Tensor, stack: _Stack, bias: Tensor | None = None) -> Tensor:
    product = stack.mT.times(states, torch.matmul)
    return product if bias is None else product + bias


def _grouped(
    states: Tensor, stack: _Stack, *, offs: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    product = stack.aligned().times(states, lambda rows, matrices: grouped_mm(rows, matrices, offs=offs))
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)


_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    linear: _linear,
    grouped_mm: _grouped,
    torch._grouped_mm: _grouped,
    torch.bmm: lambda states, stack: stack.times(states, torch.bmm),
    torch.matmul: lambda states, stack: stack.times(states, torch.matmul),
    Tensor.matmul: lambda states, stack: stack.times(states, torch.matmul),
    Tensor.__matmul__: lambda states, stack: stack.times(states, torch.matmul),
}
