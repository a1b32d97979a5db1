"""What an objective gets from a batch, per-token values with the role and row of each token, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from letheon.data.packing import PackedBatch, Role


@dataclass(frozen=True, slots=True)
class Needs:
    """What terms ask of the model and the reference beyond label log-probabilities."""

    kl: Literal["forward", "reverse"] | None = None
    """A full-vocabulary divergence at the retain tokens."""
    forget_logits: bool = False
    """The policy's logits at the forget tokens."""
    reference_logits: bool = False
    """The reference's logits at the forget tokens."""
    activations: int | None = None
    """Hidden states after this decoder layer, counted from 0, at all answer tokens."""
    general_kl: bool = False
    """The forward full-vocabulary divergence at the general tokens."""
    run_losses: bool = False
    """The reference's losses of all forget and all general rows of the run."""


@dataclass(frozen=True, slots=True)
class RunLosses:
    """What all rows of a run cost the reference, nats a token (mean over a row's answer tokens), constant."""

    forget: Tensor
    """(R_forget,)"""
    general: Tensor
    """(R_general,)"""
    row_index: Tensor
    """(S,) int64, which row of the run each sequence of the batch is; forget rows come first."""


@dataclass(frozen=True, slots=True)
class TokenValues:
    """Values at the A answer tokens of a batch, all float32 and in nats."""

    log_probs: Tensor
    """(A,) log-probability of the answer token under the policy."""
    reference_log_probs: Tensor
    """(A,) the same under the reference, constant."""
    labels: Tensor
    """(A,) int64, the answer tokens."""
    kl: Tensor | None = None
    """(A_retain,) divergence over the full vocabulary at the retain tokens; None if the method needs none."""
    logits: Tensor | None = None
    """(A_forget, V) the policy's logits at the forget tokens; None if the method needs none."""
    reference_logits: Tensor | None = None
    """(A_forget, V) the same under the reference, constant."""
    activations: Tensor | None = None
    """(A, D) hidden states of one layer at the positions that predict the answer tokens; None if none are needed."""
    reference_activations: Tensor | None = None
    """(A_retain, D) the same under the reference at the retain tokens, constant."""
    reference_norm: float | None = None
    """Mean norm of the reference's hidden states of that layer over all forget tokens of the run."""
    general_kl: Tensor | None = None
    """(A_general,) KL(reference || policy) over the full vocabulary at the general tokens; None if it is not asked."""
    run_losses: RunLosses | None = None
    """None if the method needs none."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to minimise and its unweighted parts by name; a part is None if the step has no token of its role."""

    total: Tensor
    parts: dict[str, Tensor | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of the means: how many tokens and sequences of one role a whole step has.

    A step may be computed in pieces (micro-batches, processes); each piece divides by the counts of the whole, so that
    the pieces' losses and gradients add up to those of the step.
    """

    tokens: int
    sequences: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.sequences + other.sequences)


@dataclass(frozen=True, slots=True)
class RoleCounts:
    """The counts of a step by role."""

    forget: Counts
    retain: Counts
    alternative: Counts
    general: Counts

    def __add__(self, other: RoleCounts) -> RoleCounts:
        return RoleCounts(
            self.forget + other.forget,
            self.retain + other.retain,
            self.alternative + other.alternative,
            self.general + other.general,
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """The answer tokens of one role within a batch of S sequences."""

    index: Tensor
    """(A_role,) int64, where they stand among the batch's A answer tokens."""
    owner: Tensor
    """(A_role,) int64, the sequence, 0 to S - 1, of each."""
    sequences: Tensor
    """(S_role,) int64, which sequences of the batch have this role."""
    num_sequences: int
    """S, those of all roles."""
    counts: Counts
    """Denominators, of the whole step."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean (scalar) of per-token `values` (A_role,); 0 where the step has no such token."""
        return values.sum() / max(self.counts.tokens, 1)

    def per_sequence(self, values: Tensor) -> Tensor:
        """Return the sums (S,) of per-token `values` (A_role,) over each sequence; 0 at sequences of another role."""
        return values.new_zeros(self.num_sequences).index_add(0, self.owner, values)

    def sequence_means(self, values: Tensor) -> Tensor:
        """Return the means (S,) of per-token `values` (A_role,) over each sequence; 0 at sequences of another role.

        A sequence lies whole in one piece of a step, so its own length is the denominator and no count of the step is.
        """
        return self.per_sequence(values) / self.per_sequence(values.new_ones(values.shape)).clamp_min(1)

    def mean_over_sequences(self, values: Tensor) -> Tensor:
        """Return the mean (scalar) of per-sequence `values` (S,) over the sequences of this role."""
        return values[self.sequences].sum() / max(self.counts.sequences, 1)


@dataclass(frozen=True, slots=True)
class Roles:
    """The tokens of a batch by role."""

    forget: Tokens
    retain: Tokens
    alternative: Tokens
    """Other answers to the prompts of forget rows: the k-th is that of the k-th forget row of the batch, if it has
    forget rows at all."""
    general: Tokens


def roles_of(batch: PackedBatch, *, whole: RoleCounts | None = None) -> Roles:
    """Split the answer tokens of `batch` by role.

    `whole` gives the counts of the step that the batch is a piece of; None if it is all of it.
    """
    counts = whole or count_roles(batch)
    return Roles(
        forget=_tokens(batch, "forget", counts.forget),
        retain=_tokens(batch, "retain", counts.retain),
        alternative=_tokens(batch, "alternative", counts.alternative),
        general=_tokens(batch, "general", counts.general),
    )


def count_roles(batch: PackedBatch) -> RoleCounts:
    """Return the counts of `batch`."""
    return RoleCounts(*map(Counts, batch.answer_counts, batch.sequence_counts))


def _tokens(batch: PackedBatch, role: Role, counts: Counts) -> Tokens:
    index = batch.answers_of(role)
    return Tokens(
        index=index,
        owner=batch.owner[index],
        sequences=batch.sequences_of(role),
        num_sequences=batch.num_sequences,
        counts=counts,
    )
