"""Packs of few different sizes, where every new size of a product costs a kernel.

On a CPU oneDNN compiles a kernel for each shape of a product in bfloat16. In a small model that takes longer than the
product itself, and the last thousand kernels are kept in memory. Packs hardly ever have the same number of tokens, so
they are filled up here to one of sixteen sizes an octave, by sequences that no one reads and that leave no gradient.
Neighbouring sizes are 32 tokens or at most a sixteenth apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.devices import is_cpu
from letheon.model.widening import product_dtype

_LEAST = 32
"""Sizes are multiples of this, at least."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What is added at the end of a pack."""

    tokens: int = 0
    answers: int = 0
    """How many of these tokens count as answers in layers that work at answer positions only."""


NOTHING = Filling()


def is_compiled_by_size(model: PreTrainedModel) -> bool:
    """Return whether each new number of rows costs this model's products a kernel."""
    return is_cpu(model.device) and product_dtype(model) == torch.bfloat16


def filling_of(num_tokens: int, num_answers: int) -> Filling:
    """Return what fills a pack up, so that both its tokens and its answer tokens are of a round number."""
    answers = _rounded(num_answers) - num_answers
    return Filling(_rounded(num_tokens + answers) - num_tokens, answers)


def filled(batch: PackedBatch, filling: Filling) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]]:
    """Return input_ids and position_ids (N + tokens,), boundaries and padding of a pack with its filling.

    No sequence of the filling is longer than the longest of the pack, so that positions are rotated as before.
    """
    if not filling.tokens:
        return batch.input_ids, batch.position_ids, batch.boundaries, batch.padding
    ends = tuple(_ends(batch, filling.tokens))
    added = [batch.position_ids.new_tensor(range(end - start)) for start, end in pairwise((batch.num_tokens, *ends))]
    positions = torch.cat([batch.position_ids, *added])
    ids = torch.cat([batch.input_ids, batch.input_ids.new_zeros(filling.tokens)])
    return ids, positions, (*batch.boundaries, *ends), (*batch.padding, *(0,) * len(ends))


def filled_answers(batch: PackedBatch, filling: Filling) -> Tensor:
    """Return the answer positions (A + answers,) of a pack with its filling."""
    if not filling.answers:
        return batch.answer_positions
    first = batch.num_tokens
    added = batch.answer_positions.new_tensor(range(first, first + filling.answers))
    return torch.cat([batch.answer_positions, added])


def filled_states(states: Tensor, filling: Filling) -> Tensor:
    """Return the states (N + tokens, D) that a layer is given of a pack with its filling, of which those are zeros."""
    if not filling.tokens:
        return states
    return torch.cat([states, states.new_zeros(filling.tokens, states.shape[-1])])


def _rounded(number: int) -> int:
    """Return the next of the round numbers: multiples of 32, of 64 from 1024 on, of 128 from 2048 on, and so on."""
    step = max(_LEAST, 1 << max(number.bit_length() - 5, 0))
    return -(-number // step) * step


def _ends(batch: PackedBatch, num_tokens: int) -> Iterator[int]:
    """Yield where each sequence of the filling ends."""
    longest = max(end - start for start, end in pairwise(batch.boundaries))
    last = batch.num_tokens + num_tokens
    for start in range(batch.num_tokens, last, longest):
        yield min(start + longest, last)
