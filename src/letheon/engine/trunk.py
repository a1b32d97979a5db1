"""The trunk of a causal language model over packed sequences: everything below the head.

Attention keeps the sequences of a pack apart (attention.py). Layers that mix tokens by other means (recurrent ones,
convolutions) know nothing of boundaries; `leak_between_sequences` finds them.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.engine.attention import NAMES, Kernel, bounds_of
from letheon.engine.patches.rotation import lengths_of, rotated_alone
from letheon.model.layers import trunk_of

_MOST_PROBED = 16


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


def _right_padded(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return input_ids and the attention mask, both (S, T)."""
    rows = [batch.input_ids[start:end] for start, end in pairwise(batch.boundaries)]
    input_ids = pad_sequence(rows, batch_first=True)
    mask = torch.ones_like(input_ids)
    for row, tokens, num_padding in zip(mask, rows, batch.padding, strict=True):
        row[len(tokens) - num_padding :] = 0
    return input_ids, mask
