"""Sequences back to back in one row of tokens, without padding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from letheon.data.sequences import TokenSequence
from letheon.devices import bring

PASS_TOKENS = 4096
"""Most tokens at once in a forward without gradients: the reference pass, scoring, choosing."""
NUM_PROBE_ROWS = 4
Role = Literal["forget", "retain", "alternative", "general"]
ROLES: tuple[Role, ...] = get_args(Role)
_BROUGHT = (
    "input_ids",
    "position_ids",
    "answer_positions",
    "labels",
    "owner",
    "row_index",
    "answers_by_role",
    "sequences_by_role",
)
"""The tensors that lie on the model's device."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """S sequences of N tokens in all, of which A are scored.

    Attention never crosses a boundary. Integer tensors are int64. What a step chooses by is known on the host, so that
    it never waits for the device to say how many tokens have a role.
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
    row_index: Tensor
    """(S,), which row of the run's data each sequence is."""
    roles: tuple[Role, ...]
    """(S,) on the host. An alternative is a forget row's prompt with another answer, in the order of the batch's forget
    rows where both are there; general text or chat is no row of the run's."""
    answers_by_role: Tensor
    """(A,), the answer tokens 0 to A - 1 by their roles, as ROLES lists these, in order within each."""
    sequences_by_role: Tensor
    """(S,), the sequences 0 to S - 1 likewise."""
    answer_counts: tuple[int, ...]
    """Answer tokens of each role, on the host."""
    sequence_counts: tuple[int, ...]
    """Sequences of each role, on the host."""
    padding: tuple[int, ...]
    """(S,) on the host: how many tokens at the end of each sequence are padding, which no token sees."""
    source: "PackedBatch | None" = None
    """The batch on the host of which this is a copy; None for that one itself."""

    @property
    def on_host(self) -> "PackedBatch":
        """The same with all tensors on the host."""
        return self.source or self

    def answers_of(self, role: Role) -> Tensor:
        """Return where the answer tokens (A_role,) of a role stand among all A."""
        return self.answers_by_role[_part(self.answer_counts, role)]

    def sequences_of(self, role: Role) -> Tensor:
        """Return which sequences (S_role,) have a role."""
        return self.sequences_by_role[_part(self.sequence_counts, role)]

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.boundaries) - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.boundaries[-1]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch with its tensors on `device`, where they come in one copy."""
        device = torch.device(device)
        if device == self.input_ids.device:
            return self
        tensors = [getattr(self, name) for name in _BROUGHT]
        brought = bring(torch.cat(tensors), device).split([len(tensor) for tensor in tensors])
        return replace(self, source=self.on_host, **dict(zip(_BROUGHT, brought, strict=True)))


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
    none = [False] * len(sequences)
    starts = list(accumulate((len(sequence.input_ids) for sequence in sequences), initial=0))
    firsts = list(accumulate((sequence.num_answer_tokens for sequence in sequences), initial=0))
    roles = tuple(map(_role, is_forget, is_alternative or none, is_general or none))
    by_role = sorted(range(len(roles)), key=lambda s: ROLES.index(roles[s]))
    positions = [start + t for start, s in zip(starts, sequences, strict=False) for t in _predicting(s)]
    return PackedBatch(
        input_ids=_int64([token for s in sequences for token in s.input_ids]),
        position_ids=_int64([t for s in sequences for t in range(len(s.input_ids))]),
        boundaries=tuple(starts),
        answer_positions=_int64(positions),
        labels=_int64([token for s in sequences for token in s.labels]),
        owner=_int64([i for i, s in enumerate(sequences) for _ in range(s.num_answer_tokens)]),
        row_index=_int64(list(row_index)),
        roles=roles,
        answers_by_role=_int64([token for s in by_role for token in range(firsts[s], firsts[s + 1])]),
        sequences_by_role=_int64(by_role),
        answer_counts=tuple(
            sum(s.num_answer_tokens for s, of_s in zip(sequences, roles, strict=True) if of_s == role) for role in ROLES
        ),
        sequence_counts=tuple(roles.count(role) for role in ROLES),
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
    answers = list(accumulate((len(batch.labels) for batch in batches), initial=0))
    sources = [batch.source for batch in batches if batch.source is not None]

    def by_role(of: Callable[[PackedBatch, Role], Tensor], offsets: Sequence[int]) -> Tensor:
        parts = [(batch, offset) for batch, offset in zip(batches, offsets, strict=False)]
        return torch.cat([of(batch, role) + offset for role in ROLES for batch, offset in parts])

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
        row_index=joined("row_index", none),
        roles=tuple(role for batch in batches for role in batch.roles),
        answers_by_role=by_role(PackedBatch.answers_of, answers),
        sequences_by_role=by_role(PackedBatch.sequences_of, counts),
        answer_counts=tuple(map(sum, zip(*(batch.answer_counts for batch in batches), strict=True))),
        sequence_counts=tuple(map(sum, zip(*(batch.sequence_counts for batch in batches), strict=True))),
        padding=tuple(count for batch in batches for count in batch.padding),
        source=join(sources) if len(sources) == len(batches) else None,
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


def _role(is_forget: bool, is_alternative: bool, is_general: bool) -> Role:
    return "forget" if is_forget else "alternative" if is_alternative else "general" if is_general else "retain"


def _part(counts: Sequence[int], role: Role) -> slice:
    number = ROLES.index(role)
    first = sum(counts[:number])
    return slice(first, first + counts[number])


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
