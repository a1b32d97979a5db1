"""The reference store: what the losses need of the model as it was, computed once.

The reference never moves while unlearning, so one gradient-free pass over the rows, adapter off, replaces a second
model and a second forward in every step (design: "The reference"). Rows are numbered forget rows first.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence as Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from letheon.data.packing import PASS_TOKENS, PackedBatch, pack, token_groups
from letheon.data.sequences import Sequence
from letheon.files import replace_file
from letheon.model.engine import Engine
from letheon.model.head import (
    Head,
    divergence_by_logits,
    expected_embedding,
    kl_from_expectation,
    label_terms,
    logit_terms,
    project,
)
from letheon.model.trunk import padded_logits
from letheon.objective.methods import Needs
from letheon.objective.retain import forward_kl, reverse_kl
from letheon.objective.terms import TokenTerms

FORMAT = "letheon.reference/2"
STORED = ("log_probs", "embedding", "offset", "retain_states", "forget_states", "activations", "forget_norm")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReferenceStore:
    """The reference's values at all answer tokens of a run's rows, forget rows first.

    A counts all answer tokens, A_f those of forget rows, A_r those of retain rows, D is the width of the states. What
    the method does not need is None.
    """

    starts: tuple[int, ...]
    """(R + 1,) row r owns answer tokens starts[r] to starts[r + 1]."""
    num_forget_rows: int
    log_probs: Tensor
    """(A,) float32, nats."""
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
    head: Head | None = None
    """The reference's head, where the head itself is trained; held in memory, never stored."""

    @property
    def num_bytes(self) -> int:
        """How much the stored values take."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept on disk, by name."""
        return {name: value for name in STORED if (value := getattr(self, name)) is not None}

    def tokens_of(self, row_index: Tensor) -> Tensor:
        """Return the answer tokens (A_batch,) of the given rows, in order."""
        spans = [torch.arange(self.starts[r], self.starts[r + 1]) for r in row_index.tolist()]
        return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def token_terms(engine: Engine, store: ReferenceStore, batch: PackedBatch, *, needs: Needs) -> TokenTerms:
    """Return the policy's and the reference's values at the answer tokens of `batch`, differentiable in the policy."""
    tokens = store.tokens_of(batch.row_index)
    reference_log_probs = store.log_probs[tokens].to(batch.labels.device)
    if engine.path == "logits":
        return _terms_by_logits(engine, batch, reference_log_probs, needs)
    activations = None
    if needs.activations is None:
        states = engine.states(batch)
    else:
        states, activations = engine.states_and_activations(batch, layer=needs.activations)
    head = engine.head
    terms = label_terms(states, batch.labels, head)
    is_forget, is_retain = batch.is_forget[batch.owner], batch.is_retain[batch.owner]
    retained = tokens[is_retain.cpu()] - store.starts[store.num_forget_rows]
    kl = None
    if needs.kl is not None:
        kl = _stored_kl(
            engine,
            store,
            rows=retained,
            states=states[is_retain],
            log_normalisers=terms.log_normalisers[is_retain],
            needs=needs,
        )
    return TokenTerms(
        log_probs=terms.log_probs,
        reference_log_probs=reference_log_probs,
        labels=batch.labels,
        kl=kl,
        logits=project(states[is_forget], head) if needs.forget_logits else None,
        reference_logits=_reference_logits(store, tokens[is_forget.cpu()], head) if needs.reference_logits else None,
        activations=activations,
        reference_activations=None if store.activations is None else store.activations[retained].to(states.device),
        reference_norm=None if store.forget_norm is None else float(store.forget_norm),
    )


@torch.no_grad()
def _reference_logits(store: ReferenceStore, tokens: Tensor, head: Head) -> Tensor:
    assert store.forget_states is not None
    return project(store.forget_states[tokens].to(head.weight.device), store.head or head)


def _stored_kl(
    engine: Engine, store: ReferenceStore, *, rows: Tensor, states: Tensor, log_normalisers: Tensor, needs: Needs
) -> Tensor:
    if store.embedding is not None and store.offset is not None:
        return kl_from_expectation(
            log_normalisers,
            states,
            embedding=store.embedding[rows].to(states.device),
            offset=store.offset[rows].to(states.device),
            head=engine.head,
        )
    assert store.retain_states is not None
    head = engine.head
    return divergence_by_logits(
        states,
        store.retain_states[rows].to(states.device),
        head=head,
        reference_head=store.head or head,
        divergence=forward_kl if needs.kl == "forward" else reverse_kl,
    )


def _terms_by_logits(engine: Engine, batch: PackedBatch, reference_log_probs: Tensor, needs: Needs) -> TokenTerms:
    logits = padded_logits(engine.model, batch)
    is_forget, is_retain = batch.is_forget[batch.owner], batch.is_retain[batch.owner]
    reference_logits = None
    if needs.kl is not None or needs.reference_logits:
        with torch.no_grad(), engine.adapter_off():
            reference_logits = padded_logits(engine.model, batch)
    kl = None
    if needs.kl is not None and reference_logits is not None:
        divergence = forward_kl if needs.kl == "forward" else reverse_kl
        kl = divergence(logits[is_retain], reference_logits[is_retain])
    return TokenTerms(
        log_probs=logit_terms(logits, batch.labels).log_probs,
        reference_log_probs=reference_log_probs,
        labels=batch.labels,
        kl=kl,
        logits=logits[is_forget] if needs.forget_logits else None,
        reference_logits=None
        if reference_logits is None or not needs.reference_logits
        else reference_logits[is_forget],
    )


@torch.no_grad()
def build_reference(
    engine: Engine,
    sequences: Collection[Sequence],
    *,
    num_forget_rows: int,
    num_retain_rows: int | None = None,
    needs: Needs,
    max_tokens: int = PASS_TOKENS,
) -> ReferenceStore:
    """Run the reference (adapter off) over all rows, at most `max_tokens` tokens a forward.

    Forget rows come first, then `num_retain_rows` retain rows (all the rest by default), then alternatives.
    """
    first_alternative = len(sequences) if num_retain_rows is None else num_forget_rows + num_retain_rows
    pieces: list[dict[str, Tensor]] = []
    with engine.adapter_off(), engine.running():
        for group in token_groups([len(s.input_ids) for s in sequences], max_tokens):
            batch = pack(
                [sequences[i] for i in group],
                is_forget=[index < num_forget_rows for index in group],
                is_alternative=[index >= first_alternative for index in group],
                row_index=group,
            )
            pieces.append(reference_values(engine, batch.to(engine.model.device), needs))
    values = {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else {})}
    norms = values.pop("forget_norms", None)
    store = ReferenceStore(
        starts=_starts(sequences),
        num_forget_rows=num_forget_rows,
        forget_norm=None if norms is None else norms.mean(),
        **values,  # type: ignore[arg-type]  # tensors by the names of the fields that hold them
    )
    return _with_head(store, engine)


def _with_head(store: ReferenceStore, engine: Engine) -> ReferenceStore:
    needed = store.retain_states is not None or store.forget_states is not None
    return replace(store, head=engine.head.copy()) if engine.trains_head and needed else store


def _starts(sequences: Collection[Sequence]) -> tuple[int, ...]:
    return tuple(accumulate((s.num_answer_tokens for s in sequences), initial=0))


def reference_values(engine: Engine, batch: PackedBatch, needs: Needs) -> dict[str, Tensor]:
    """Return what the store keeps of a batch, by name; the first dimension counts answer tokens of the store's role."""
    if engine.path == "logits":
        return {"log_probs": engine.label_terms(batch).log_probs.cpu()}
    is_forget, is_retain = batch.is_forget[batch.owner], batch.is_retain[batch.owner]
    values: dict[str, Tensor] = {}
    if needs.activations is None:
        states = engine.states(batch)
    else:
        states, activations = engine.states_and_activations(batch, layer=needs.activations)
        values["activations"], values["forget_norms"] = activations[is_retain], activations[is_forget].norm(dim=-1)
    head = engine.head
    terms = label_terms(states, batch.labels, head)
    values["log_probs"] = terms.log_probs
    if needs.reference_logits:
        values["forget_states"] = states[is_forget]
    if needs.kl is not None and _stores_expectation(engine, needs):
        retained = states[is_retain]
        embedding = expected_embedding(retained, head)
        aligned = (embedding.double() * (retained.double() * head.scale)).sum(-1)
        values["embedding"] = embedding
        values["offset"] = aligned - terms.log_normalisers[is_retain].double()
    elif needs.kl is not None:
        values["retain_states"] = states[is_retain]
    return {name: value.cpu() for name, value in values.items()}


def _stores_expectation(engine: Engine, needs: Needs) -> bool:
    return needs.kl == "forward" and not engine.trains_head and engine.head.is_linear


def load_or_build_reference(
    engine: Engine,
    sequences: Collection[Sequence],
    *,
    num_forget_rows: int,
    num_retain_rows: int | None = None,
    needs: Needs,
    model_fingerprint: str,
    cache_dir: Path | None,
    max_tokens: int = PASS_TOKENS,
) -> ReferenceStore:
    """Return the store from `cache_dir` where one of the same model, rows and needs lies there, else build and keep it.

    The key covers weights, token ids, answer spans, needs, path, dtype, device kind and torch version: if anything
    differs the store is built anew. None for `cache_dir` keeps it in memory only.
    """
    build = partial(
        build_reference,
        engine,
        sequences,
        num_forget_rows=num_forget_rows,
        num_retain_rows=num_retain_rows,
        needs=needs,
        max_tokens=max_tokens,
    )
    if cache_dir is None:
        return build()
    rows = (num_forget_rows, num_retain_rows)
    path = cache_dir / "reference" / f"{_key(engine, sequences, rows, needs, model_fingerprint)}.safetensors"
    found = _load(path, sequences, num_forget_rows)
    if found is not None:
        return _with_head(found, engine)
    store = build()
    _save(store, path)
    return store


def _key(
    engine: Engine,
    sequences: Collection[Sequence],
    num_rows: tuple[int, int | None],
    needs: Needs,
    model_fingerprint: str,
) -> str:
    digest = hashlib.sha256()
    described: list[object] = [FORMAT, model_fingerprint, num_rows, asdict(needs), engine.path, engine.trains_head]
    described += [str(engine.model.dtype), engine.model.device.type, torch.__version__]
    digest.update(json.dumps(described).encode())
    for sequence in sequences:
        digest.update(repr((sequence.answer_start, sequence.input_ids)).encode())
    return digest.hexdigest()[:32]


def _save(store: ReferenceStore, path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in store.tensors().items()}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
        os.chmod(temporary, 0o600)  # derived from the rows to forget


def _load(path: Path, sequences: Collection[Sequence], num_forget_rows: int) -> ReferenceStore | None:
    if not path.exists():
        return None
    starts = _starts(sequences)
    try:
        with safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        store = ReferenceStore(starts=starts, num_forget_rows=num_forget_rows, **values)
    except (SafetensorError, TypeError, OSError) as error:
        _logger.warning("%s: the stored reference cannot be read (%s); it is built anew", path, error)
        return None
    return store if store.log_probs.shape[0] == starts[-1] else None
