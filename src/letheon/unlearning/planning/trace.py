"""How many bytes a step takes, found by running it on tensors without values.

On PyTorch's "meta" device a tensor has a shape and a dtype but no numbers, so a 70B model takes no memory there and a
step no time. The very code that a run executes is executed here (trunk, head, objective, backward), and every storage
is counted from its birth to its end. What is found is therefore what the run's own tensors take, for any architecture,
method and dtype; what it leaves out is what kernels and allocators take beside them.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.functional import grouped_mm, pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from letheon.data.packing import PackedBatch, pack
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine, Path
from letheon.engine.head import head_of, logit_values
from letheon.engine.patches.gated import gated_blocks
from letheon.engine.patches.lower import first_layer_run
from letheon.engine.patches.trimming import Selection
from letheon.engine.reference import answer_starts, reference_values, token_starts
from letheon.engine.values import STATES, ReferenceStore, token_values
from letheon.errors import ModelError
from letheon.model.adapted import Adapted
from letheon.model.codes_without_values import quantise_without_values
from letheon.model.experts import fused_experts
from letheon.model.layers import trunk_of
from letheon.model.precision import Precision
from letheon.model.quantised import Quantise, quantisation_of
from letheon.model.widening import widen
from letheon.objective.parts import Term, compose, needs_of
from letheon.objective.values import Needs, roles_of
from letheon.settings import StepSettings
from letheon.training.randomness import dropout_of_step, dropouts_of
from letheon.unlearning.planning.demand import Piece


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What one forward and backward takes beyond what lay there before it; the three parts add up to its peak."""

    activations: int
    """Alive when the trunk is done: what autograd keeps of it, and its states."""
    terms: int
    """The most that head and objective add to these: chunks of logits, gradients of states, the method's own."""
    backward: int
    """The most that the backward pass adds to both: gradients of trained parameters, less what it has let go."""

    @property
    def peak(self) -> int:
        """The most that is alive at once."""
        return self.activations + self.terms + self.backward


@dataclass(frozen=True, slots=True)
class PassBytes:
    """What a forward without gradients takes."""

    peak: int
    stored: dict[str, Tensor]
    """What it gives to keep, without values: by name, the first dimension counts answer tokens."""


def empty_model(
    config: PreTrainedConfig,
    precision: Precision,
    *,
    trust_remote_code: bool = False,
    quantise: Quantise | None = None,
) -> PreTrainedModel:
    """Return the model of a configuration in a precision, its weights without values, on the "meta" device.

    Its layers are quantised where the configuration or `quantise` says so.

    Raises:
        ModelError: transformers knows no causal language model of this configuration.
    """
    how, config = quantisation_of(config, quantise), deepcopy(config)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32 if precision == "float32" else torch.bfloat16,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:
        raise ModelError(
            f"{type(config).__name__}: transformers makes no causal language model of this configuration "
            f"({type(error).__name__}: {error})"
        ) from error
    # Some models look for it among the values of the ids. Past the configuration's own checks, since some refuse None.
    vars(model.config)["pad_token_id"] = None
    model.eval()
    if how is not None:
        quantise_without_values(model, how)
    if precision == "widened":
        widen(model, torch.bfloat16)  # float16 takes as much
    return model


def empty_engine(model: PreTrainedModel, adapted: Adapted, settings: StepSettings, *, is_packed: bool = True) -> Engine:
    """Return the engine of a model without values; nearly all models take path "packed"."""
    head = head_of(model)
    frozen = None if head.weight.requires_grad else head
    path: Path = "packed" if is_packed else "padded"
    return Engine(
        model,
        path,
        adapter_off=adapted.off,
        frozen_head=frozen,
        selection=Selection(),
        recomputes=settings.gradient_checkpointing,
        gated=gated_blocks(model),
        begins_at=first_layer_run(model) if settings.store_lower and is_packed else 0,
    )


def trace_step(engine: Engine, terms: tuple[Term, ...], piece: Piece) -> StepBytes:
    """Return the bytes of one forward and backward over a piece."""
    batch, needs = valueless_batch(piece), needs_of(terms)
    store = valueless_store(engine, piece, trace_reference(engine, needs, piece).stored)
    after_trunk = list[int]()
    with dropout_of_step(dropouts_of(engine.model), seed=0, step=0), _counted(engine) as live:
        hook = trunk_of(engine.model).register_forward_hook(lambda *_: after_trunk.append(live.now))
        try:
            values = token_values(engine, store, batch, needs=needs)
            loss = compose(terms, values, roles_of(batch))
        finally:
            hook.remove()
        forward = live.peak
        run_backward(loss.total)
    activations = after_trunk[0]
    return StepBytes(activations, terms=forward - activations, backward=live.peak - forward)


@torch.no_grad()
def trace_reference(engine: Engine, needs: Needs, piece: Piece) -> PassBytes:
    """Return the bytes of the reference's forward over a piece."""
    with _counted(engine) as live, engine.adapter_off():
        stored = reference_values(engine, valueless_batch(piece), needs)
    return PassBytes(live.peak, stored)


@torch.no_grad()
def trace_scoring(engine: Engine, piece: Piece) -> int:
    """Return the bytes of a scoring's forward over a piece."""
    with _counted(engine) as live:
        engine.likeliest(valueless_batch(piece))
    return int(live.peak)


@torch.no_grad()
def trace_check(engine: Engine, sequence: TokenSequence) -> int:
    """Return the bytes of the model's own logits of a row, which the engine is checked against."""
    batch = valueless_batch(Piece((sequence,), num_forget=1))
    # PEFT's forward of experts asks what "meta" multiplies in. It holds one layer's matrices twice, a step far more.
    with Valueless(), fused_experts(engine.model), _Live() as live:
        logits = engine.model(input_ids=batch.input_ids[None], use_cache=False).logits[0].float()
        logit_values(logits[batch.answer_positions], batch.labels)
    return int(live.peak)


@torch.no_grad()
def trace_merging(adapted: Adapted) -> int:
    """Return what the merged weights take beside the model."""
    with Valueless(), _Live() as live:
        adapted.merged_state()
    return int(live.peak)


def run_backward(loss: Tensor) -> None:
    """Run the backward pass of a loss without values."""
    # By the edge: handed a tensor, backward is itself a call that the mode stands in for, and the mode is off within
    # it, where layers may be computed again.
    torch.autograd.backward(get_gradient_edge(loss))


@contextmanager
def _counted(engine: Engine) -> Iterator["_Live"]:
    with Valueless(), engine.running(), _Live() as live:
        yield live


def valueless_batch(piece: Piece) -> PackedBatch:
    """Return a batch whose tokens have no values; whose they are is known, since losses and stores choose by it."""
    rows = range(len(piece.sequences))
    num_rows, first_general = piece.num_forget + piece.num_retain, len(piece.sequences) - piece.num_general
    batch = pack(
        piece.sequences,
        is_forget=[row < piece.num_forget for row in rows],
        is_alternative=[num_rows <= row < first_general for row in rows],
        is_general=[row >= first_general for row in rows],
        row_index=rows,
    )
    names = ("input_ids", "position_ids", "answer_positions", "labels")
    return replace(batch, **{name: getattr(batch, name).to("meta") for name in names})


def valueless_store(engine: Engine, piece: Piece, values: dict[str, Tensor]) -> ReferenceStore:
    """Return the store that holds what the reference says of a piece."""
    held = {name: value for name, value in values.items() if name != "forget_norms"}
    whole_head = engine.trains_head and any(name in held for name in STATES)
    return ReferenceStore(
        starts=answer_starts(piece.sequences),
        num_forget_rows=piece.num_forget,
        first_general_row=len(piece.sequences) - piece.num_general if piece.num_general else None,
        token_starts=token_starts(piece.sequences),
        forget_norm=torch.ones(()) if "forget_norms" in values else None,
        head=engine.head.copy() if whole_head else None,
        **held,  # type: ignore[arg-type]  # tensors by the names of the fields that hold them
    )


_GROUPED = (torch._grouped_mm, grouped_mm)


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are born while it is on, and their ends."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.logsumexp.default:
            # The kernel forms all differences from the maximum, which no one outside it sees.
            self.peak = max(self.peak, self.now + args[0].nbytes)
        output = func(*args, **(kwargs or {}))
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._known:
                self._begin(storage)
        return output

    def _begin(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._end, storage.nbytes())

    def _end(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Valueless(TorchFunctionMode):
    """Stands in for the few operations that a tensor without values cannot do, with the same shapes."""

    def __torch_function__(  # noqa: PLR0911 - one for each operation
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is Tensor.cpu:
            return args[0]
        if func is scaled_dot_product_attention:
            return _fused_attention(*args, **named)
        if func is Tensor.__bool__ and args[0].is_meta:
            return False  # what is asked is whether a mask lets everything through
        if func is Tensor.__getitem__ and _is_valueless_mask(args[1]):
            return args[0].flatten(0, args[1].ndim - 1)  # all of a padded batch, since which places count is unknown
        if func in _GROUPED and args[0].is_meta:
            return _by_one_expert(*args, **named)  # each token meets one; the kernel's own rules are for values
        if func is Tensor.index_add and args[0].is_meta:
            tensor, dim, index, source = args
            return func(tensor, dim, index.to("meta"), source, **named)
        return func(*args, **named)


def _by_one_expert(states: Tensor, matrices: Any, **_: Any) -> Tensor:
    """The product of rows (S, P) with matrices (E, P, Q), or with those of adapted experts, as if one served all."""

    def product(rows: Tensor, stack: Tensor) -> Tensor:
        return rows @ stack[0]

    if isinstance(matrices, Tensor):
        return product(states, matrices)
    found: Tensor = matrices.aligned().times(states, product)
    return found


def _is_valueless_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype == torch.bool


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001 - the kernel takes shared keys and values as they are
) -> Tensor:
    """The kernel that a run gets; left to itself, the meta device takes the one that keeps all scores."""
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=query.dtype)
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    width, narrow = query.shape[-1], value.shape[-1]
    if narrow < width:  # latent attention (DeepSeek)
        value = pad(value, (0, width - narrow))
    output: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]
    return output[..., :narrow] if narrow < width else output
