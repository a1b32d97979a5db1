"""The step's forward pass: the policy's and the reference's values at a batch's answer tokens, from one pass.

Trunk, states at answer positions, head; the reference's values come from a store that reference.py fills before the
first step.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from letheon.data.packing import PackedBatch
from letheon.devices import bring
from letheon.engine.engine import Engine, padded_logits
from letheon.engine.head import (
    Head,
    LabelValues,
    divergence_by_logits,
    forward_kl,
    kl_from_expectation,
    label_values,
    logit_values,
    project,
    reverse_kl,
)
from letheon.objective.values import Needs, RunLosses, TokenValues

STORED = (
    "log_probs",
    "is_likeliest",
    "embedding",
    "offset",
    "retain_states",
    "forget_states",
    "activations",
    "forget_norm",
    "lower",
    "general_embedding",
    "general_offset",
    "general_states",
)
STATES = ("retain_states", "forget_states", "general_states")
"""Those that a trained head's reference is needed for."""


@dataclass(frozen=True, slots=True)
class ReferenceStore:
    """The reference's values at all answer tokens of a run's rows: to forget, to keep, other answers, general text.

    A counts all answer tokens, A_f those of forget rows, A_r those of retain rows, A_g those of general ones, T all
    tokens, D is the width of the states. What the method does not need is None.
    """

    starts: tuple[int, ...]
    """(R + 1,) row r owns answer tokens starts[r] to starts[r + 1]."""
    num_forget_rows: int
    log_probs: Tensor
    """(A,) float32, nats."""
    is_likeliest: Tensor | None = None
    """(A,) bool, whether greedy decoding would choose the token, given the true ones before it."""
    embedding: Tensor | None = None
    """(A_r, D) float32, the expected output embedding E = W^T p_ref, for the forward KL of a linear head."""
    offset: Tensor | None = None
    """(A_r,) float64, E . h_ref - lse_ref."""
    retain_states: Tensor | None = None
    """(A_r, D) final states, where the forward KL's identity does not hold."""
    forget_states: Tensor | None = None
    """(A_f, D) final states, for losses on the reference's forget logits."""
    activations: Tensor | None = None
    """(A_r, D) float32, hidden states of one layer."""
    forget_norm: Tensor | None = None
    """Scalar, mean norm of that layer's hidden states over the forget tokens."""
    lower: Tensor | None = None
    """(T, D) what the lowest layer that a step runs is given, in the trunk's dtype."""
    token_starts: tuple[int, ...] = ()
    """(R + 1,) row r owns tokens token_starts[r] to token_starts[r + 1] of these."""
    general_embedding: Tensor | None = None
    """(A_g, D) and"""
    general_offset: Tensor | None = None
    """(A_g,), as `embedding` and `offset`, or"""
    general_states: Tensor | None = None
    """(A_g, D), as `retain_states`: for the KL on the general rows."""
    first_general_row: int | None = None
    """The number of the first general row; None if there is none."""
    head: Head | None = None
    """The reference's head, where the head itself is trained; held in memory, never stored."""
    path: Path | None = None
    """The file that holds it; None where it is in memory only."""

    @property
    def num_bytes(self) -> int:
        """How much the stored values take."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to keep on disk, by name."""
        return {name: value for name in STORED if (value := getattr(self, name)) is not None}

    def tokens_of(self, row_index: Tensor) -> Tensor:
        """Return the answer tokens (A_batch,) of the given rows, in order."""
        return _spans(self.starts, row_index)

    def run_losses(self, row_index: Tensor) -> RunLosses:
        """Return what all forget and all general rows cost the reference, for a batch of the rows `row_index` (S,)."""
        first = len(self.starts) - 1 if self.first_general_row is None else self.first_general_row
        device = row_index.device
        return RunLosses(
            forget=bring(self._losses(0, self.num_forget_rows), device),
            general=bring(self._losses(first, len(self.starts) - 1), device),
            row_index=row_index,
        )

    def _losses(self, first: int, last: int) -> Tensor:
        """The mean losses (last - first,) of rows, nats a token; 0 for a row without an answer token."""
        lengths = torch.tensor(self.starts[first : last + 1], dtype=torch.int64).diff()
        values = self.log_probs[self.starts[first] : self.starts[last]].float()
        owner = torch.repeat_interleave(torch.arange(last - first), lengths)
        return -values.new_zeros(last - first).index_add(0, owner, values) / lengths.clamp_min(1)

    def lower_of(self, row_index: Tensor) -> Tensor | None:
        """Return the states (N, D) that a step over the given rows begins at; None if none are kept."""
        return None if self.lower is None else self.lower[_spans(self.token_starts, row_index)]


def _spans(starts: tuple[int, ...], row_index: Tensor) -> Tensor:
    spans = [torch.arange(starts[r], starts[r + 1]) for r in row_index.tolist()]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def token_values(engine: Engine, store: ReferenceStore, batch: PackedBatch, *, needs: Needs) -> TokenValues:
    """Return the policy's and the reference's values at the answer tokens of `batch`, differentiable in the policy.

    A batch without answer tokens is not run through the model: its values are empty and depend on nothing.
    """
    if not len(batch.labels):
        return _no_values(engine, store, batch, needs)
    if engine.path == "logits":
        reference_log_probs = bring(store.log_probs[store.tokens_of(batch.on_host.row_index)], batch.labels.device)
        return _values_by_logits(engine, store, batch, reference_log_probs, needs)
    activations, lower = None, store.lower_of(batch.on_host.row_index)
    lower = None if lower is None else bring(lower, batch.labels.device)
    if needs.activations is None:
        states = engine.states(batch, lower=lower)
    else:
        states, activations = engine.states_and_activations(batch, layer=needs.activations, lower=lower)
    of_labels = label_values(states, batch.labels, engine.head)
    return values_of_states(engine, store, batch, states, of_labels, needs=needs, activations=activations)


def _no_values(engine: Engine, store: ReferenceStore, batch: PackedBatch, needs: Needs) -> TokenValues:
    """The values of no answer token, on the batch's device, of the shapes that losses expect."""
    head = engine.model.get_output_embeddings()
    vocabulary, width = head.weight.shape if isinstance(head, torch.nn.Linear) else (1, 1)

    def empty(*shape: int) -> Tensor:
        return torch.zeros(0, *shape, device=batch.labels.device)

    return TokenValues(
        log_probs=empty(),
        reference_log_probs=empty(),
        labels=batch.labels,
        kl=None if needs.kl is None else empty(),
        logits=empty(vocabulary) if needs.forget_logits else None,
        reference_logits=empty(vocabulary) if needs.reference_logits else None,
        activations=None if needs.activations is None else empty(width),
        reference_activations=None if needs.activations is None else empty(width),
        reference_norm=None if needs.activations is None else 0.0,
        general_kl=empty() if needs.general_kl else None,
        run_losses=store.run_losses(batch.row_index) if needs.run_losses else None,
    )


def values_of_states(
    engine: Engine,
    store: ReferenceStore,
    batch: PackedBatch,
    states: Tensor,
    of_labels: LabelValues,
    *,
    needs: Needs,
    activations: Tensor | None = None,
) -> TokenValues:
    """Return `token_values` of a batch from its final states (A, D), what the head says of its labels, and, where they
    are needed, the hidden states (A, D) of a layer."""
    tokens = store.tokens_of(batch.on_host.row_index)
    head = engine.head
    forget, retain = batch.answers_of("forget"), batch.answers_of("retain")
    retained = tokens[batch.on_host.answers_of("retain")] - store.starts[store.num_forget_rows]
    kl = None
    if needs.kl is not None:
        kl = _stored_kl(
            engine,
            _Stored.of_retain(store, retained),
            states=states[retain],
            log_normalisers=of_labels.log_normalisers[retain],
            direction=needs.kl,
        )
    general_kl = None
    if needs.general_kl:
        general = batch.answers_of("general")
        general_kl = _stored_kl(
            engine,
            _Stored.of_general(store, tokens[batch.on_host.answers_of("general")]),
            states=states[general],
            log_normalisers=of_labels.log_normalisers[general],
            direction="forward",
        )
    return TokenValues(
        log_probs=of_labels.log_probs,
        reference_log_probs=bring(store.log_probs[tokens], states.device),
        labels=batch.labels,
        kl=kl,
        logits=project(states[forget], head) if needs.forget_logits else None,
        reference_logits=_reference_logits(store, tokens[batch.on_host.answers_of("forget")], head)
        if needs.reference_logits
        else None,
        activations=activations,
        reference_activations=None if store.activations is None else bring(store.activations[retained], states.device),
        reference_norm=None if store.forget_norm is None else float(store.forget_norm),
        general_kl=general_kl,
        run_losses=store.run_losses(batch.row_index) if needs.run_losses else None,
    )


@torch.no_grad()
def _reference_logits(store: ReferenceStore, tokens: Tensor, head: Head) -> Tensor:
    assert store.forget_states is not None
    return project(bring(store.forget_states[tokens], head.weight.device), store.head or head)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The reference's distributions at A tokens: expected embedding (A, D) and offset (A,), or final states (A, D)."""

    embedding: Tensor | None
    offset: Tensor | None
    states: Tensor | None
    head: Head | None
    """The reference's, where the head is trained."""

    @classmethod
    def of_retain(cls, store: ReferenceStore, rows: Tensor) -> "_Stored":
        """Return those at retain tokens, counted from the first of these."""
        return cls(*_at(rows, store.embedding, store.offset, store.retain_states), store.head)

    @classmethod
    def of_general(cls, store: ReferenceStore, tokens: Tensor) -> "_Stored":
        """Return those at general tokens, counted from the first of all."""
        rows = tokens if store.first_general_row is None else tokens - store.starts[store.first_general_row]
        return cls(*_at(rows, store.general_embedding, store.general_offset, store.general_states), store.head)


def _at(
    rows: Tensor, embedding: Tensor | None, offset: Tensor | None, states: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if embedding is not None and offset is not None:
        return embedding[rows], offset[rows], None
    return None, None, None if states is None else states[rows]


def _stored_kl(
    engine: Engine,
    reference: _Stored,
    *,
    states: Tensor,
    log_normalisers: Tensor,
    direction: Literal["forward", "reverse"],
) -> Tensor:
    if reference.embedding is not None and reference.offset is not None:
        return kl_from_expectation(
            log_normalisers,
            states,
            embedding=bring(reference.embedding, states.device),
            offset=bring(reference.offset, states.device),
            head=engine.head,
        )
    assert reference.states is not None
    head = engine.head
    return divergence_by_logits(
        states,
        bring(reference.states, states.device),
        head=head,
        reference_head=reference.head or head,
        divergence=forward_kl if direction == "forward" else reverse_kl,
    )


def _values_by_logits(
    engine: Engine, store: ReferenceStore, batch: PackedBatch, reference_log_probs: Tensor, needs: Needs
) -> TokenValues:
    logits = padded_logits(engine.model, batch)
    forget, retain = batch.answers_of("forget"), batch.answers_of("retain")
    reference_logits = None
    if needs.kl is not None or needs.reference_logits or needs.general_kl:
        with torch.no_grad(), engine.adapter_off():
            reference_logits = padded_logits(engine.model, batch)
    kl = None
    if needs.kl is not None and reference_logits is not None:
        divergence = forward_kl if needs.kl == "forward" else reverse_kl
        kl = divergence(logits[retain], reference_logits[retain])
    general_kl = None
    if needs.general_kl and reference_logits is not None:
        general = batch.answers_of("general")
        general_kl = forward_kl(logits[general], reference_logits[general])
    return TokenValues(
        log_probs=logit_values(logits, batch.labels).log_probs,
        reference_log_probs=reference_log_probs,
        labels=batch.labels,
        kl=kl,
        logits=logits[forget] if needs.forget_logits else None,
        reference_logits=None if reference_logits is None or not needs.reference_logits else reference_logits[forget],
        general_kl=general_kl,
        run_losses=store.run_losses(batch.row_index) if needs.run_losses else None,
    )
