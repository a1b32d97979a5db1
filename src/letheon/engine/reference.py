"""The reference pass: the values of the original model that the losses need, computed once, before the first step.

The reference never moves while unlearning, so one gradient-free pass over the rows, adapter off, replaces a second
model and a second forward in every step (design: "The reference"). Rows are numbered forget rows first.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from letheon.data.packing import PASS_TOKENS, PackedBatch, pack, token_groups
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.head import (
    Head,
    expected_embedding,
    label_values,
    likeliest,
)
from letheon.engine.patches.lower import states_given_to
from letheon.engine.values import STATES, ReferenceStore
from letheon.errors import ModelError
from letheon.model.memory import unless_out_of_memory
from letheon.objective.values import Needs
from letheon.processes import shared
from letheon.progress import Progressed

_logger = logging.getLogger(__name__)


@torch.no_grad()
def build_reference(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    *,
    num_forget_rows: int,
    num_retain_rows: int | None = None,
    num_general_rows: int = 0,
    needs: Needs,
    max_tokens: int = PASS_TOKENS,
    progress: Progressed | None = None,
    note: Callable[[str], None] = _logger.warning,
) -> ReferenceStore:
    """Run the reference (adapter off) over all rows, at most `max_tokens` tokens a forward.

    Forget rows come first, then `num_retain_rows` retain rows (all the rest by default), then alternatives, and
    `num_general_rows` general rows last. `progress` hears of the rows that are done. Where a GPU's memory runs out, the
    rows in question are run again in halves, and the following ones too, which `note` hears.
    """
    first_general = len(sequences) - num_general_rows
    first_alternative = first_general if num_retain_rows is None else num_forget_rows + num_retain_rows
    lengths = [len(s.input_ids) for s in sequences]

    def values_of(group: Sequence[int]) -> dict[str, Tensor]:
        """Return the reference's values of the rows of these numbers."""
        batch = pack(
            [sequences[i] for i in group],
            is_forget=[index < num_forget_rows for index in group],
            is_alternative=[first_alternative <= index < first_general for index in group],
            is_general=[index >= first_general for index in group],
            row_index=group,
        )
        return reference_values(engine, batch.to(engine.model.device), needs)

    within_memory = _WithinMemory(values_of, lengths, max_tokens, note)
    with engine.adapter_off(), engine.running():
        groups = list(token_groups(lengths, max_tokens))
        shown = None if progress is None else partial(progress, "reference pass")
        pieces = shared(groups, within_memory, counts=list(map(len, groups)), progress=shown)
    values = _joined(pieces)
    norms = values.pop("forget_norms", None)
    store = ReferenceStore(
        starts=answer_starts(sequences),
        num_forget_rows=num_forget_rows,
        forget_norm=None if norms is None else norms.mean(),
        token_starts=token_starts(sequences),
        first_general_row=first_general if num_general_rows else None,
        **values,  # type: ignore[arg-type]  # tensors by the names of the fields that hold them
    )
    return with_head(store, engine)


@dataclass(slots=True)
class _WithinMemory:
    """Runs rows through the reference, in smaller pieces from where a GPU's memory runs out."""

    values_of: Callable[[Sequence[int]], dict[str, Tensor]]
    lengths: Sequence[int]
    """Tokens of each row."""
    most: int
    """Tokens at once."""
    note: Callable[[str], None]

    def __call__(self, group: Sequence[int]) -> dict[str, Tensor]:
        """Return the values of the rows in `group`."""
        found, rest = list[dict[str, Tensor]](), list(group)
        while rest:
            part = [rest[place] for place in next(token_groups([self.lengths[row] for row in rest], self.most))]
            values = unless_out_of_memory(partial(self.values_of, part))
            if values is None:
                self.most = _fewer_tokens([self.lengths[row] for row in part])
                self.note(
                    f"the GPU's memory ran out in the reference pass, which goes on with at most {self.most} tokens at "
                    f"once and gives the same values"
                )
                continue
            found.append(values)
            rest = rest[len(part) :]
        return _joined(found)


def _joined(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else {})}


def _fewer_tokens(lengths: Sequence[int]) -> int:
    """Half of the tokens of rows that did not fit, but no fewer than the longest has."""
    if len(lengths) == 1:
        raise ModelError(
            f"reference pass: the GPU's memory is not enough for a row of {lengths[0]} tokens; use --quantise nf4 or a "
            f"shorter --max-length (--plan shows what takes the memory)"
        )
    return max(sum(lengths) // 2, *lengths)


def with_head(store: ReferenceStore, engine: Engine) -> ReferenceStore:
    """Return the store with the engine's head as it is now, where that is trained and the store's states need it."""
    needed = any(getattr(store, name) is not None for name in STATES)
    return replace(store, head=engine.head.copy()) if engine.trains_head and needed else store


def answer_starts(sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """Return the `starts` of a store of these sequences."""
    return tuple(accumulate((s.num_answer_tokens for s in sequences), initial=0))


def token_starts(sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """Return the `token_starts` of a store of these sequences."""
    return tuple(accumulate((len(s.input_ids) for s in sequences), initial=0))


def reference_values(engine: Engine, batch: PackedBatch, needs: Needs) -> dict[str, Tensor]:
    """Return the stored values of a batch, by name; the first dimension counts answer tokens of the store's role.

    But for "lower", whose first dimension counts all tokens.
    """
    if engine.path == "logits":
        chosen, log_probs = engine.likeliest(batch)
        return {"log_probs": log_probs.cpu(), "is_likeliest": (chosen == batch.labels).cpu()}
    forget, retain, general = (batch.answers_of(role) for role in ("forget", "retain", "general"))
    values: dict[str, Tensor] = {}
    with ExitStack() as stack:
        given = stack.enter_context(states_given_to(engine.model, engine.begins_at)) if engine.begins_at else None
        if needs.activations is None:
            states = engine.states(batch)
        else:
            states, activations = engine.states_and_activations(batch, layer=needs.activations)
            values["activations"], values["forget_norms"] = activations[retain], activations[forget].norm(dim=-1)
    if given is not None:
        values["lower"] = given[0][0]
    head = engine.head
    of_labels = label_values(states, batch.labels, head)
    values["log_probs"] = of_labels.log_probs
    values["is_likeliest"] = likeliest(states, batch.labels, head)[0] == batch.labels
    if needs.reference_logits:
        values["forget_states"] = states[forget]
    if needs.kl is not None and _stores_expectation(engine, needs.kl):
        values["embedding"], values["offset"] = _expectation(states[retain], of_labels.log_normalisers[retain], head)
    elif needs.kl is not None:
        values["retain_states"] = states[retain]
    if needs.general_kl:
        values |= _general_values(engine, states[general], of_labels.log_normalisers[general])
    return {name: value.cpu() for name, value in values.items()}


def _general_values(engine: Engine, states: Tensor, log_normalisers: Tensor) -> dict[str, Tensor]:
    if not _stores_expectation(engine, "forward"):
        return {"general_states": states}
    embedding, offset = _expectation(states, log_normalisers, engine.head)
    return {"general_embedding": embedding, "general_offset": offset}


def _expectation(states: Tensor, log_normalisers: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return E (A, D) and E . h_ref - lse_ref (A,) of the reference's states (A, D)."""
    embedding = expected_embedding(states, head)
    aligned = (embedding.double() * (states.double() * head.scale)).sum(-1)
    return embedding, aligned - log_normalisers.double()


def _stores_expectation(engine: Engine, direction: str) -> bool:
    # The expectation is exact only with sums in float64, which Apple's GPUs do not have.
    has_float64 = engine.model.device.type != "mps"
    return direction == "forward" and not engine.trains_head and engine.head.is_linear and has_float64
