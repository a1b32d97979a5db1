"""The choice of an engine's path: the fastest one that agrees with the model's own logits on a probe batch.

Paths (engine.py) are tried in the order packed, padded, logits. The packed one must keep sequences apart besides:
attention does (attention.py), but layers that mix tokens by other means (recurrent ones, convolutions) know nothing of
boundaries, which `leak_between_sequences` finds.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.engine.attention import Kernel, kernels_for
from letheon.engine.engine import Engine, Path, packed_states
from letheon.engine.head import head_of, logit_values
from letheon.engine.patches.gated import gated_blocks
from letheon.engine.patches.lower import first_layer_run
from letheon.engine.patches.trimming import Selection
from letheon.errors import ModelError
from letheon.model.widening import product_dtype

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a label's log-probability, nats, between a path and the model's own logits. In bfloat16 the
model rounds its logits (spacing 0.125 between 16 and 32), which ours do not."""
_MOST_PROBED = 16


def build_engine(
    model: PreTrainedModel,
    probe: PackedBatch,
    *,
    adapter_off: Callable[[], AbstractContextManager[None]],
    recomputes: bool = False,
    stores_lower: bool = False,
) -> Engine:
    """Return an engine on the fastest path whose label log-probabilities on `probe` equal the model's own.

    The packed path must keep sequences apart besides, which shows in gradients, not in values alone.

    Raises:
        ModelError: the model's own forward fails on the probe, its logits there are not finite (broken weights), a
            later token changes those before it, or the model is in training mode.
    """
    if model.training:
        raise ModelError(
            f"{type(model).__name__}: the model is in training mode, where dropout makes its losses random; call eval()"
        )
    expected = _checked_log_probs(model, probe)
    if not torch.isfinite(expected).all():
        raise ModelError(
            f"{model.name_or_path or type(model).__name__}: the model's logits are not finite on a probe of the rows; "
            "its weights hold NaN or infinity, or overflow in this dtype (try --dtype float32)"
        )
    _check_causal(model, probe)
    notes: list[str] = []
    head = head_of(model)
    frozen_head = None if head.weight.requires_grad else head
    made = partial(
        Engine,
        model=model,
        adapter_off=adapter_off,
        frozen_head=frozen_head,
        recomputes=recomputes,
        gated=gated_blocks(model),
    )
    begins_at = first_layer_run(model) if stores_lower else 0
    candidates: tuple[tuple[Path, Selection | None, Kernel], ...] = (
        *(("packed", Selection(), kernel) for kernel in kernels_for(model)),
        ("packed", None, "sequences"),
        ("padded", None, "sequences"),
    )
    for path, selection, kernel in candidates:
        engine = made(path=path, selection=selection, attention=kernel, notes=tuple(notes))
        objection = _objection(engine, probe, expected)
        if objection is None:
            return replace(engine, begins_at=begins_at) if path == "packed" else _without_lower(engine, stores_lower)
        if kernel == "varlen":
            notes.append(f"attention over variable lengths {objection}; each sequence is attended separately")
        if selection is None:
            notes.append(f"the {path} forward {objection}; falling back to a slower path")
    return _without_lower(made(path="logits", notes=tuple(notes)), stores_lower)


def _check_causal(model: PreTrainedModel, probe: PackedBatch) -> None:
    """Refuse a model that sees the tokens that it is to predict.

    Raises:
        ModelError: it does.
    """
    try:
        is_ahead = reads_ahead(model, probe)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        return  # an architecture that takes its input otherwise is judged by its log-probabilities alone
    if is_ahead:
        raise ModelError(
            f"{model.name_or_path or type(model).__name__}: expected a causal language model, but in this "
            f"{type(model).__name__} a later token changes the predictions at earlier positions, as in a masked "
            f"language model; give a checkpoint that was trained to continue text (if this one was, set is_decoder to "
            f"true in its config.json)"
        )


def _without_lower(engine: Engine, is_wanted: bool) -> Engine:
    note = f"the states of lower layers cannot be stored on path '{engine.path}'; every step runs all layers"
    return replace(engine, notes=(*engine.notes, note)) if is_wanted else engine


def _checked_log_probs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """`_own_log_probs`, of a model that can be called with token ids and nothing else.

    Raises:
        ModelError: it cannot.
    """
    try:
        return _own_log_probs(model, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an architecture trips over, of which only its own code knows
        reason, _, _ = str(error).partition("\n")
        raise ModelError(
            f"{model.name_or_path or type(model).__name__}: expected a causal language model that needs only token "
            f"ids, but the forward of this {type(model).__name__} fails ({type(error).__name__}: {reason}); if "
            "it runs without an adapter, name the layers to adapt by --target-modules"
        ) from error


@torch.no_grad()
def _own_log_probs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Log-probabilities (A,) of the answers from the model's own logits, one sequence at a time."""
    found = []
    for start, end in zip(batch.boundaries, batch.boundaries[1:], strict=False):
        logits = model(input_ids=batch.input_ids[None, start:end], use_cache=False).logits[0].float()
        inside = (batch.answer_positions >= start) & (batch.answer_positions < end)
        found.append(logit_values(logits[batch.answer_positions[inside] - start], batch.labels[inside]).log_probs)
    return torch.cat(found)


def _objection(engine: Engine, probe: PackedBatch, expected: Tensor) -> str | None:
    """Why the engine's path cannot be used; None if on `probe` it isolates sequences and agrees with `expected`."""
    try:
        with engine.running():
            # In bfloat16 a small leak hides within the tolerance of the values.
            if engine.path == "packed" and leak_between_sequences(engine.model, probe) > 0:
                return "carries state over from one sequence to the next (a recurrent layer, a convolution)"
            with torch.no_grad():
                found = engine.label_values(probe).log_probs
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError) as error:
        # Whatever an unknown architecture trips over, the plain path still serves it.
        reason, _, _ = str(error).partition("\n")
        return f"fails ({type(error).__name__}: {reason})"
    difference = float((found - expected).abs().max().nan_to_num(nan=float("inf")))
    tolerance = TOLERANCE.get(product_dtype(engine.model), TOLERANCE[torch.bfloat16])
    if difference <= tolerance:
        return None
    return f"differs from the model's own logits by {difference:.3g} nats (at most {tolerance:g} expected)"


def leak_between_sequences(model: PreTrainedModel, batch: PackedBatch) -> float:
    """Return how far the packed states of the later sequences of `batch` depend on the tokens of the earlier ones.

    The largest gradient of the later half's states in the earlier half's embeddings: exactly 0 in every dtype where
    attention alone mixes tokens, and above 0 where anything carries over a boundary, however little the values show
    it. 0 for fewer than two sequences. Of each sequence the first few tokens tell, so that this takes little memory
    beside a step. The caller holds `packed_attention(model)` open.
    """
    if batch.num_sequences < 2:
        return 0.0
    spans = [slice(start, min(end, start + _MOST_PROBED)) for start, end in pairwise(batch.boundaries)]
    input_ids, position_ids = (torch.cat([ids[s] for s in spans]) for ids in (batch.input_ids, batch.position_ids))
    boundaries = (0, *itertools.accumulate(span.stop - span.start for span in spans))
    cut = boundaries[batch.num_sequences // 2]
    with torch.enable_grad(), _embedded(model) as embedded:
        states = packed_states(model, input_ids, position_ids, boundaries)[cut:]
        # Unequal weights: the norm above a trunk makes plain sums and squares nearly constant.
        weights = torch.linspace(-1, 2, states.shape[-1], device=states.device)
        (gradient,) = torch.autograd.grad((states.float() @ weights).sum(), embedded[:1])
    return float(gradient[0, :cut].abs().max().nan_to_num(nan=float("inf")))


def reads_ahead(model: PreTrainedModel, batch: PackedBatch) -> bool:
    """Return whether a later token changes the model's own logits at an earlier position, as in a masked one (BERT).

    Judged by the gradient of the earlier logits in the last token's embedding, over the first tokens of the longest
    sequence: exactly 0 in every dtype where the model is causal. False for a single token, which has nothing before it.
    """
    start, end = max(pairwise(batch.boundaries), key=lambda ends: ends[1] - ends[0])
    input_ids = batch.input_ids[None, start : min(end, start + _MOST_PROBED)]
    if input_ids.shape[1] < 2:
        return False
    with torch.enable_grad(), _embedded(model) as embedded:
        logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float()
        weights = torch.linspace(-1, 2, logits.shape[-1], device=logits.device)
        (gradient,) = torch.autograd.grad((logits @ weights).sum(), embedded[:1])
    return bool(gradient[0, -1].nan_to_num(nan=0.0).any())


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the embeddings of the input ids while the block runs, detached so that gradients end there."""
    found: list[Tensor] = []

    def start_here(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    hook = model.get_input_embeddings().register_forward_hook(start_here)
    try:
        yield found
    finally:
        hook.remove()
