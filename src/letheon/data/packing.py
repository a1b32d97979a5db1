"""Sequences back to back in one row of tokens, without padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from torch import Tensor

from letheon.data.sequences import TokenSequence

PASS_TOKENS = 4096
"""Most tokens at once in a forward without gradients: the reference pass, scoring, choosing."""
NUM_PROBE_ROWS = 4
_ON_HOST = ("boundaries", "padding")


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """S sequences of N tokens in all, of which A are scored.

    Attention never crosses a boundary. Integer tensors are int64.
    """

    input_ids: Tensor
    """(N,)"""
    position_ids: Tensor
    """(N,), 0 at the start of each sequence."""
    boundaries: tuple[int, ...]
    """(S + 1,) offsets on the host: sequence s is input_ids[boundaries[s]:boundaries[s + 1]]."""
    answer_positions: Tensor
    """(A,), index into N of the position that predicts each answer token."""
    labels: Tensor
    """(A,), the answer tokens."""
    owner: Tensor
    """(A,), the sequence, 0 to S - 1, of each answer token; non-decreasing."""
    is_forget: Tensor
    """(S,), bool."""
    is_alternative: Tensor
    """(S,), bool: a forget row's prompt with another answer, in the order of the batch's forget rows where both are
    there."""
    is_general: Tensor
    """(S,), bool: general text or chat, no row of the run's. What is none of these three is to keep."""
    row_index: Tensor
    """(S,), which row of the run's data each sequence is."""
    padding: tuple[int, ...]
    """(S,) on the host: how many tokens at the end of each sequence are padding, which no token sees."""

    @property
    def is_retain(self) -> Tensor:
        """(S,), bool."""
        return ~(self.is_forget | self.is_alternative | self.is_general)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.boundaries) - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.boundaries[-1]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ON_HOST}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def pack(
    sequences: Sequence[TokenSequence],
    *,
    is_forget: Sequence[bool],
    row_index: Sequence[int],
    is_alternative: Sequence[bool] | None = None,
    is_general: Sequence[bool] | None = None,
) -> PackedBatch:
    """Lay `sequences` back to back in the given order; an empty collection gives an empty batch.

    `is_alternative` and `is_general` are all False by default.
    """
    starts, none = [0], [False] * len(sequences)
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence.input_ids))
    positions = [start + t for start, s in zip(starts, sequences, strict=False) for t in _predicting(s)]
    return PackedBatch(
        input_ids=_int64([token for s in sequences for token in s.input_ids]),
        position_ids=_int64([t for s in sequences for t in range(len(s.input_ids))]),
        boundaries=tuple(starts),
        answer_positions=_int64(positions),
        labels=_int64([token for s in sequences for token in s.labels]),
        owner=_int64([i for i, s in enumerate(sequences) for _ in range(s.num_answer_tokens)]),
        is_forget=torch.tensor(list(is_forget), dtype=torch.bool),
        is_alternative=torch.tensor(list(is_alternative or none), dtype=torch.bool),
        is_general=torch.tensor(list(is_general or none), dtype=torch.bool),
        row_index=_int64(list(row_index)),
        padding=tuple(s.padding or 0 for s in sequences),
    )


def probe_of(sequences: Sequence[TokenSequence]) -> PackedBatch:
    """Return a few sequences on which a model is looked at first.

    They are of different lengths, the longest among them: a window that is missed shows only beyond it.
    """
    by_length = sorted(sequences, key=lambda sequence: len(sequence.input_ids))
    stride = max(1, len(by_length) // NUM_PROBE_ROWS)
    chosen = [*by_length[:-1:stride][: NUM_PROBE_ROWS - 1], by_length[-1]]
    return pack(chosen, is_forget=[True] * len(chosen), row_index=range(len(chosen)))


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Return the sequences of all `batches`, at least one, in one batch."""
    if len(batches) == 1:
        return batches[0]
    starts = list(accumulate((batch.num_tokens for batch in batches), initial=0))
    counts = list(accumulate((batch.num_sequences for batch in batches), initial=0))

    def joined(name: str, offsets: Sequence[int]) -> Tensor:
        parts = zip(batches, offsets, strict=False)
        return torch.cat([getattr(batch, name) + offset if offset else getattr(batch, name) for batch, offset in parts])

    none = [0] * len(batches)
    return PackedBatch(
        input_ids=joined("input_ids", none),
        position_ids=joined("position_ids", none),
        boundaries=(
            0,
            *(start + end for start, batch in zip(starts, batches, strict=False) for end in batch.boundaries[1:]),
        ),
        answer_positions=joined("answer_positions", starts),
        labels=joined("labels", none),
        owner=joined("owner", counts),
        is_forget=joined("is_forget", none),
        is_alternative=joined("is_alternative", none),
        is_general=joined("is_general", none),
        row_index=joined("row_index", none),
        padding=tuple(count for batch in batches for count in batch.padding),
    )


def token_groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Cut 0..len(lengths)-1, in order, into groups of at most `max_tokens` tokens; a longer one stands alone."""
    group: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if group and total + length > max_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += length
    if group:
        yield group


def _predicting(sequence: TokenSequence) -> range:
    first = sequence.answer_start - 1
    return range(first, first + sequence.num_answer_tokens)


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
