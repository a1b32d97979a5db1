"""Weights that lie in memory in 16 bits and are multiplied in float32, for machines that multiply 16 bits slowly.

Matrices stay as the checkpoint stores them; each is widened to float32 for its product, in the forward pass and again
in the backward pass, and the copy is let go. All else (norms, biases, what embeddings give) is float32. Widening is
exact, so the model computes what the same checkpoint loaded in float32 computes, bit for bit, in half of its memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.model.codes import dequantised, is_quantised

NARROW = (torch.bfloat16, torch.float16)
"""The dtypes that are widened."""
_MARK = "_letheon_widened"
_NUM_PROBED = 3


@dataclass(frozen=True, slots=True)
class Widened:
    """What was done to a model."""

    stored: torch.dtype
    """In which dtype the checkpoint has its weights."""
    exact: frozenset[str]
    """Names in the state of the model that the checkpoint has in float32."""


def widening_of(model: nn.Module) -> Widened | None:
    """Return what `widen` did to a model, None if it computes with its weights as they are."""
    return cast("Widened | None", getattr(model, _MARK, None))


def product_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype in which the trunk of a model multiplies, and of its states."""
    return model.dtype if widening_of(model) is None else torch.float32


def saved_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype that the weights of a model are written in, merged ones rounded to it."""
    widened = widening_of(model)
    return model.dtype if widened is None else widened.stored


def widen(model: PreTrainedModel, stored: torch.dtype, *, exact: Iterable[tuple[str, Tensor]] = ()) -> None:
    """Let a model that was loaded in 16 bits compute in float32.

    Linear layers, embeddings and stacks of experts keep their matrices narrow, everything else becomes float32. `exact`
    are the weights that the checkpoint has in float32, by their names there.
    """
    kept = _keep_exact(model, exact)
    keeps_narrow: set[int] = set()
    lookup = model.get_input_embeddings()
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            module.__class__ = kind
        elif module is lookup and isinstance(module, nn.Embedding):
            module.__class__ = type(type(module).__name__, (_FewRows, type(module)), {})
        elif _is_stack(module):
            module.__class__ = type(type(module).__name__, (WideForward, type(module)), {})
        else:
            continue
        keeps_narrow.update(id(p) for p in module.parameters(recurse=False) if p.ndim > 1)
    for module in model.modules():
        for _, parameter in module.named_parameters(recurse=False):
            if parameter.dtype in NARROW and id(parameter) not in keeps_narrow:
                parameter.data = parameter.data.float()
    _widen_buffers(model)
    setattr(model, _MARK, Widened(stored, kept))


@torch.no_grad()
def computes_wide(model: PreTrainedModel) -> bool:
    """Return whether a widened model runs and rounds nothing to 16 bits, as code that reads a layer's matrix may.

    Found by one forward over a few tokens.
    """
    ids = torch.arange(_NUM_PROBED, device=model.device)[None]
    try:
        with _Rounding() as rounding:
            model(input_ids=ids, use_cache=False)
    except Exception:  # whatever an architecture trips over; without narrow matrices it may not
        return False
    return not rounding.is_found


def widen_wholly(model: PreTrainedModel) -> None:
    """Make all weights of a widened model float32; it is still written as its checkpoint is."""
    for parameter in model.parameters():
        if parameter.dtype in NARROW:
            parameter.data = parameter.data.float()


class _Rounding(TorchDispatchMode):
    """Sees whether an operation makes 16 bits of float32 values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if torch.float32 in _dtypes((args, kwargs)) and _dtypes(output) & set(NARROW):
            self.is_found = True
        return output


def _dtypes(tree: Any) -> set[torch.dtype]:
    return {leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


def as_stored(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a model by their plain names, in the dtypes of the checkpoint that it came from."""
    widened = widening_of(model)
    if widened is None:
        return state
    narrowed: dict[tuple[int, torch.Size], Tensor] = {}  # a tied weight stays one tensor
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point() or name in widened.exact:
            found[name] = value
        else:
            found[name] = narrowed.setdefault((value.data_ptr(), value.shape), value.to(widened.stored))
    return found


def widened_linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return W x + b (.., O) of states (.., D), W (O, D) widened for the product where it is narrower than they are.

    A narrow or quantised W is frozen; the gradient is that of the states and of b.
    """
    if weight.dtype == states.dtype:
        return linear(states, weight, bias)
    if weight.requires_grad:
        return linear(states, weight.to(states.dtype), bias)
    product: Tensor = _WidenedLinear.apply(states, weight, bias)  # type: ignore[no-untyped-call]
    return product


def in_dtype_of(states: Tensor, weight: Tensor) -> Tensor:
    """Return a frozen matrix as it is multiplied with `states`: itself, or a copy in their dtype for this product."""
    if is_quantised(weight):
        return dequantised(weight, states.dtype)
    return weight.to(states.dtype) if weight.dtype in NARROW and states.dtype == torch.float32 else weight


def keep_for_backward(ctx: Any, weight: Tensor, *others: Tensor) -> None:
    """Keep a frozen matrix and other tensors; a quantised one past the hooks that would strip it of its scales."""
    ctx.quantised = weight if is_quantised(weight) else None
    ctx.save_for_backward(*(others if ctx.quantised is not None else (weight, *others)))


def kept_for_backward(ctx: Any) -> tuple[Tensor, ...]:
    """Return what `keep_for_backward` was given."""
    saved: tuple[Tensor, ...] = ctx.saved_tensors
    return saved if ctx.quantised is None else (ctx.quantised, *saved)


class _WidenedLinear(torch.autograd.Function):
    """y = W x + b that keeps the narrow or quantised W alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y (.., O) of states (.., D)."""
        keep_for_backward(ctx, weight)
        return linear(states, in_dtype_of(states, weight), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of states and b."""
        (of_output,) = gradients
        (weight,) = kept_for_backward(ctx)
        of_states = of_output @ in_dtype_of(of_output, weight) if ctx.needs_input_grad[0] else None
        of_bias = of_output.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return of_states, None, of_bias


class WidenedLinear(nn.Linear):
    """A linear layer with a narrow matrix."""

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b (.., O), float32."""
        return widened_linear(input.float(), self.weight, self.bias)


class WidenedConv1D(Conv1D):
    """GPT-2's linear layer, whose matrix lies (in, out), with a narrow one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b (.., O), float32."""
        return widened_linear(x.float(), self.weight.T, self.bias)


class WidenedEmbedding(nn.Embedding):
    """An embedding with a narrow matrix."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows (.., D) of ids (..), float32."""
        return embedding(input, self.weight).float()


class _FewRows(nn.Embedding):
    """An embedding that does more than look up (Gemma's are scaled), given the rows it looks up alone, in float32."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the result of the class's own forward for ids (..)."""
        weight = self.weight
        if weight.dtype not in NARROW:
            return super().forward(input, *args, **kwargs)
        if input.is_meta:
            ids, places = input.flatten()[: len(weight)], torch.zeros_like(input)
        else:
            ids, places = input.unique(return_inverse=True)
        padding, self.padding_idx = self.padding_idx, None
        own: Any = self._parameters
        own["weight"] = cast("Any", weight[ids].float())
        try:
            return super().forward(places, *args, **kwargs)
        finally:
            own["weight"], self.padding_idx = weight, padding


class WideForward(nn.Module):
    """A module that multiplies its weights in its own way (experts), given float32 copies while it runs.

    It runs again in the backward pass, so that no copy lives between.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the class's own forward."""
        own: dict[str, Any] = dict(self._parameters)
        narrow = {name: p for name, p in own.items() if p is not None and p.dtype in NARROW}
        if not narrow:  # trained, or adapted by PEFT, which puts in sums of its own
            return super().forward(*args, **kwargs)

        def widened(*args: Any, **kwargs: Any) -> Any:
            parameters: dict[str, Any] = self._parameters
            parameters.update({name: p.float() for name, p in narrow.items()})
            try:
                return super(WideForward, self).forward(*args, **kwargs)
            finally:
                parameters.update(narrow)

        if not torch.is_grad_enabled():
            return widened(*args, **kwargs)
        return checkpoint(widened, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _is_stack(module: nn.Module) -> bool:
    """Whether a module holds matrices of several experts in one tensor."""
    is_plain = not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding))
    return is_plain and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


_KINDS: dict[type, type] = {nn.Linear: WidenedLinear, Conv1D: WidenedConv1D, nn.Embedding: WidenedEmbedding}


def _keep_exact(model: PreTrainedModel, exact: Iterable[tuple[str, Tensor]]) -> frozenset[str]:
    """Put in the weights that the checkpoint has in float32, and return their names in the model."""
    state, named = model.state_dict(), dict(model.named_parameters())
    found, is_renamed = set(), False
    for name, value in exact:
        if name in state:
            found.add(name)
        else:
            is_renamed = True
        if name in named and named[name].dtype in NARROW:
            named[name].data = value.to(named[name].device)
    if is_renamed:  # then transformers alone knows which they are
        found |= {name for name, tensor in state.items() if tensor.dtype not in NARROW}
    return frozenset(found)


def _widen_buffers(model: PreTrainedModel) -> None:
    """Make buffers as they are in a model that was loaded in float32.

    What is stored is widened; what follows from the configuration is computed again.
    """
    narrow = {name for name, buffer in model.named_buffers() if buffer.dtype in NARROW}
    if not narrow:
        return
    narrow &= _wide_buffers(model)
    for path, module, owner in _with_owners(model):
        own = [name for name, _ in module.named_buffers(recurse=False) if f"{path}.{name}".lstrip(".") in narrow]
        for name in own:
            module._buffers[name] = getattr(module, name).float()
        computed = {name for name in own if name in module._non_persistent_buffers_set}
        # Code that comes with a checkpoint may begin weights anew as well.
        if computed and type(model).__module__.startswith("transformers.models.") and model.device.type != "meta":
            for tensor in _others(module, computed):
                tensor._is_hf_initialized = True
            owner._init_weights(module)


def _with_owners(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """All modules with their paths and the innermost models around them, which know how they begin."""
    owners: dict[str, PreTrainedModel] = {}
    for path, module in model.named_modules():
        around = owners[path.rpartition(".")[0]] if path else model
        owners[path] = module if isinstance(module, PreTrainedModel) else around
        yield path, module, owners[path]


def _wide_buffers(model: PreTrainedModel) -> set[str]:
    """The buffers that are float32 in a float32 model; some are narrow in all."""
    with torch.device("meta"):
        wide = type(model)._from_config(deepcopy(model.config), dtype=torch.float32)
    return {name for name, buffer in wide.named_buffers() if buffer.dtype not in NARROW}


def _others(module: nn.Module, computed: set[str]) -> Iterator[Any]:
    """The tensors of a module that transformers must not begin anew."""
    yield from module.parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in computed:
            yield buffer
