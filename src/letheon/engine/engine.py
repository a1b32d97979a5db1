"""From a packed batch to its token terms, by the fastest path that agrees with the model's own logits.

Three paths, tried in this order on a probe batch:

    packed   packed trunk, head at answer positions, stored reference
    padded   the same with a padded trunk (attention that cannot be packed)
    logits   the model's own forward; a divergence costs a second forward with the adapter off (unknown heads)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.engine.attention import Kernel, kernels_for
from letheon.engine.head import Head, LabelTerms, head_of, label_terms, likeliest, logit_terms
from letheon.engine.patches.gated import gated_blocks, lean_blocks
from letheon.engine.patches.lower import begun_at, first_layer_run
from letheon.engine.patches.recomputing import recomputed_layers
from letheon.engine.patches.trimming import Selection, trimmed
from letheon.engine.trunk import (
    leak_between_sequences,
    packed_attention,
    packed_states,
    padded_logits,
    padded_states,
    reads_ahead,
    without_padding,
)
from letheon.errors import ModelError
from letheon.model.experts import fused_experts
from letheon.model.layers import decoder_layers
from letheon.model.lowrank import fused_adapters
from letheon.model.sharding import gather
from letheon.model.widening import product_dtype

Path = Literal["packed", "padded", "logits"]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a label's log-probability, nats, between a path and the model's own logits. In bfloat16 the
model rounds its logits (spacing 0.125 between 16 and 32), which ours do not."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A causal language model, how its terms are computed, and how its adapter is switched off."""

    model: PreTrainedModel
    path: Path
    adapter_off: Callable[[], AbstractContextManager[None]]
    frozen_head: Head | None
    """None where the head is trained."""
    notes: tuple[str, ...] = ()
    """What the self-check found worth saying."""
    selection: Selection | None = None
    """What the last layer computes on path "packed"; None for all positions."""
    attention: Kernel = "sequences"
    """How a pack's sequences attend on path "packed"."""
    recomputes: bool = False
    """Whether the layers' insides are computed again in the backward pass."""
    gated: tuple[nn.Module, ...] = ()
    """Feed-forward blocks that may keep less for the backward pass."""
    begins_at: int = 0
    """The decoder layer whose inputs the reference store keeps, so that a step may begin there; 0 for none."""

    @property
    def head(self) -> Head:
        """The head as it is now."""
        gather(self.model.get_output_embeddings())
        return self.frozen_head or head_of(self.model)

    @property
    def trains_head(self) -> bool:
        """Whether the head itself is trained, so that its reference differs from it."""
        return self.frozen_head is None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold open, for forward and backward passes, what this path replaces in the model: attention, adapters."""
        with ExitStack() as stack:
            if self.path == "packed":
                stack.enter_context(packed_attention(self.model, self.attention))
            if self.path != "logits":
                stack.enter_context(fused_adapters(self.model))
                stack.enter_context(fused_experts(self.model))
                stack.enter_context(lean_blocks(self.gated))
            if self.path == "packed" and self.selection is not None:
                stack.enter_context(trimmed(self.model, self.selection))
            if self.recomputes:
                stack.enter_context(recomputed_layers(self.model))
            yield

    def states(self, batch: PackedBatch, *, lower: Tensor | None = None) -> Tensor:
        """Return the final states (A, D) at the positions that predict the answer tokens; not on path "logits".

        `lower` (N, D) is what layer `begins_at` is given; None computes it.
        """
        if self.path == "padded":
            return padded_states(self.model, batch)[batch.answer_positions]
        with ExitStack() as stack:
            if self.selection is not None:
                stack.enter_context(self.selection.at(batch.answer_positions))
            if lower is not None:
                stack.enter_context(begun_at(self.model, self.begins_at, lower))
            states = packed_states(self.model, batch.input_ids, batch.position_ids, batch.boundaries, batch.padding)
        return states[batch.answer_positions]

    def states_and_activations(
        self, batch: PackedBatch, *, layer: int, lower: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `states` and, at the same positions, the hidden states (A, D) after a decoder layer, from 0.

        Raises:
            ModelError: on path "logits", or the model's layers cannot be told.
        """
        found: list[Tensor] = []

        def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found.append(output if isinstance(output, Tensor) else output[0])

        with decoder_layers(self.model)[layer].register_forward_hook(keep):
            states = self.states(batch, lower=lower)
        hidden = found[0][0] if self.path == "packed" else without_padding(found[0], batch)
        return states, hidden[batch.answer_positions].float()

    def label_terms(self, batch: PackedBatch) -> LabelTerms:
        """Return the model's values at the answer tokens."""
        if self.path == "logits":
            return logit_terms(padded_logits(self.model, batch), batch.labels)
        return label_terms(self.states(batch), batch.labels, self.head)

    def likeliest(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return (A,) int64, the token that greedy decoding would choose where each answer token stands, and (A,)
        float32, the log-probability of the answer token there."""
        if self.path == "logits":
            logits = padded_logits(self.model, batch)
            return logits.argmax(-1), logit_terms(logits, batch.labels).log_probs
        return likeliest(self.states(batch), batch.labels, self.head)


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
        found.append(logit_terms(logits[batch.answer_positions[inside] - start], batch.labels[inside]).log_probs)
    return torch.cat(found)


def _objection(engine: Engine, probe: PackedBatch, expected: Tensor) -> str | None:
    """Why the engine's path cannot be used; None if on `probe` it isolates sequences and agrees with `expected`."""
    try:
        with engine.running():
            # In bfloat16 a small leak hides within the tolerance of the values.
            if engine.path == "packed" and leak_between_sequences(engine.model, probe) > 0:
                return "carries state over from one sequence to the next (a recurrent layer, a convolution)"
            with torch.no_grad():
                found = engine.label_terms(probe).log_probs
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError) as error:
        # Whatever an unknown architecture trips over, the plain path still serves it.
        reason, _, _ = str(error).partition("\n")
        return f"fails ({type(error).__name__}: {reason})"
    difference = float((found - expected).abs().max().nan_to_num(nan=float("inf")))
    tolerance = TOLERANCE.get(product_dtype(engine.model), TOLERANCE[torch.bfloat16])
    if difference <= tolerance:
        return None
    return f"differs from the model's own logits by {difference:.3g} nats (at most {tolerance:g} expected)"
