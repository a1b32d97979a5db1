"""From a packed batch to final states and what the head says of them, by one of three paths.

    packed   packed trunk, head at answer positions, stored reference
    padded   the same with a padded trunk (attention that cannot be packed)
    logits   the model's own forward; a divergence costs a second forward with the adapter off (unknown heads)

The trunk is everything below the head. paths.py chooses the path before the first step.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.engine.attention import NAMES, Kernel, bounds_of
from letheon.engine.head import Head, LabelValues, head_of, label_values, likeliest, logit_values
from letheon.engine.patches.gated import lean_blocks
from letheon.engine.patches.lower import begun_at
from letheon.engine.patches.recomputing import recomputed_layers
from letheon.engine.patches.rotation import lengths_of, rotated_alone
from letheon.engine.patches.trimming import Selection, trimmed
from letheon.engine.sizes import (
    NOTHING,
    Filling,
    filled,
    filled_answers,
    filled_states,
    filling_of,
    is_compiled_by_size,
)
from letheon.model.experts import fused_experts
from letheon.model.layers import decoder_layers, trunk_of
from letheon.model.lowrank import fused_adapters
from letheon.model.sharding import gather

Path = Literal["packed", "padded", "logits"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A causal language model, how its values are computed, and how its adapter is switched off."""

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
        filling = self.filling(batch.num_tokens, len(batch.labels))
        with ExitStack() as stack:
            if self.selection is not None:
                stack.enter_context(self.selection.at(filled_answers(batch, filling)))
            if lower is not None:
                stack.enter_context(begun_at(self.model, self.begins_at, filled_states(lower, filling)))
            states = packed_states(self.model, *filled(batch, filling))
        return states[batch.answer_positions]

    def filling(self, num_tokens: int, num_answers: int) -> Filling:
        """Return what a pack is filled up with on path "packed", nothing where its size costs nothing."""
        if not (num_tokens and is_compiled_by_size(self.model)):
            return NOTHING
        return filling_of(num_tokens, num_answers)

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

    def label_values(self, batch: PackedBatch) -> LabelValues:
        """Return the model's values at the answer tokens."""
        if self.path == "logits":
            return logit_values(padded_logits(self.model, batch), batch.labels)
        return label_values(self.states(batch), batch.labels, self.head)

    def likeliest(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return (A,) int64, the token that greedy decoding would choose where each answer token stands, and (A,)
        float32, the log-probability of the answer token there."""
        if self.path == "logits":
            logits = padded_logits(self.model, batch)
            return logits.argmax(-1), logit_values(logits, batch.labels).log_probs
        return likeliest(self.states(batch), batch.labels, self.head)


@contextmanager
def packed_attention(model: PreTrainedModel, kernel: Kernel = "sequences") -> Iterator[None]:
    """Let `model` attend within the sequences of a pack while the block runs; its own attention is put back after.

    Raises:
        ValueError: the model computes its attention itself, so that no other can be put in its place.
    """
    trunk = trunk_of(model)
    # Transformers would only warn and leave the attention as it is.
    if not trunk._can_set_attn_implementation():
        raise ValueError(f"the attention of {type(model).__name__} cannot be replaced")
    original = trunk.config._attn_implementation
    trunk.set_attn_implementation(NAMES[kernel])
    try:
        yield
    finally:
        trunk.set_attn_implementation(original)


def packed_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    boundaries: tuple[int, ...],
    padding: tuple[int, ...] = (),
) -> Tensor:
    """Return the final hidden states (N, D) of sequences laid back to back, in the trunk's dtype.

    `input_ids` and `position_ids` are (N,) int64, `boundaries` the S + 1 offsets of the sequences, `padding` how many
    tokens at the end of each are padding, () for none. The caller holds `packed_attention(model)` open (for backward
    too, where activations are recomputed).

    Raises:
        ModelError: the model's rotation of positions depends on the longest sequence beside (rotation.py).
        ValueError: its attention does what packed attention cannot.
    """
    trunk = trunk_of(model)
    with rotated_alone(trunk, lengths_of(boundaries), is_packed=True):
        # use_cache=False and no mask: transformers' defaults would let packed sequences see each other.
        output = trunk(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            attention_mask=None,
            use_cache=False,
            **bounds_of(trunk, boundaries, padding, input_ids.device),
        )
    states: Tensor = output.last_hidden_state[0]
    return states


def padded_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the states (N, D) that `packed_states` gives, from a right-padded batch and the model's own attention."""
    input_ids, mask = _right_padded(batch)
    trunk = trunk_of(model)
    with rotated_alone(trunk, lengths_of(batch.boundaries), is_packed=False):
        output = trunk(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return without_padding(output.last_hidden_state, batch)


def padded_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the model's own logits (A, V), float32, at the positions that predict the answer tokens."""
    input_ids, mask = _right_padded(batch)
    with rotated_alone(trunk_of(model), lengths_of(batch.boundaries), is_packed=False):
        logits: Tensor = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    return without_padding(logits, batch)[batch.answer_positions].float()


def without_padding(values: Tensor, batch: PackedBatch) -> Tensor:
    """Return the values (N, ..) at the tokens of `batch`, of those at all places (S, T, ..) of the padded rows."""
    rows = zip(values.unbind(), pairwise(batch.boundaries), strict=True)
    return torch.cat([row[: end - start] for row, (start, end) in rows])


def _right_padded(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return input_ids and the attention mask, both (S, T)."""
    rows = [batch.input_ids[start:end] for start, end in pairwise(batch.boundaries)]
    input_ids = pad_sequence(rows, batch_first=True)
    mask = torch.ones_like(input_ids)
    for row, tokens, num_padding in zip(mask, rows, batch.padding, strict=True):
        row[len(tokens) - num_padding :] = 0
    return input_ids, mask
