"""Unlearning as a job of the loop: forget, retain, alternative and general rows, and the terms of a method on them."""

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from letheon.data.packing import PackedBatch, Role, pack, token_groups
from letheon.data.rows import Row
from letheon.data.schedules import GeneralSchedule, Schedule
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.values import ReferenceStore, token_values
from letheon.model.adapted import Adapted
from letheon.objective.control import Control
from letheon.objective.methods import Alternatives
from letheon.objective.parts import Term, compose, needs_of
from letheon.objective.values import Counts, Loss, RoleCounts, count_roles, roles_of
from letheon.processes import here, share_by_size
from letheon.training.job import Factors, Piece
from letheon.unlearning.dial.measure import Halves
from letheon.unlearning.interim import Probes
from letheon.unlearning.judging import Budgets, Start, UnlearningJudge

_MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """All that is fixed while a run trains: rows are numbered forget rows first, then retain rows."""

    engine: Engine
    adapted: Adapted
    rows: Sequence[Row]
    sequences: Sequence[TokenSequence]
    """What is trained on: of each row the answer (span="text": all of it), the alternatives of forget rows, then
    general text."""
    num_forget_rows: int
    reference: ReferenceStore
    terms: tuple[Term, ...]
    schedule: Schedule
    probes: Probes
    start: Start | None
    """What the reference scores; None in a problem that is made without it."""
    alternatives: Alternatives | None = None
    general: GeneralSchedule | None = None
    """Which general rows each step has; they come last of the sequences. None where there are none."""
    control: Control | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints of what the run read; empty in a problem that is made without a run."""
    forward_token_s: float = 0.0
    """How long a token takes in a forward without gradients, measured before the first step."""
    budgets: Budgets = field(default_factory=Budgets)
    halves: Halves = field(default_factory=Halves)
    """Documents that the model never saw, for the dial."""
    advice: str = "lower --learning-rate, or set --max-gradient-norm 1"
    """What to do about a loss that is not finite."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of its terms."""
        return tuple(term.name for term in self.terms)

    @property
    def judge(self) -> UnlearningJudge:
        """How its states are judged."""
        return UnlearningJudge(self.engine, self.probes, self.start, self.budgets)

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which the model can be run."""
        return self.engine.running()

    def rows_of_step(self, step: int, factors: Factors | None = None) -> list[int]:
        """Return the rows of a step, and the other answers and general rows whose terms count with these factors."""
        rows = self.with_others(self.schedule.rows(step), epoch=step // self.schedule.steps_per_epoch)
        rows = rows if self.general is None else [*rows, *self.general.rows(step)]
        idle = self._idle(factors or {})
        return [row for row in rows if self._role_beside(row) not in idle] if idle else rows

    def _idle(self, factors: Factors) -> Set[Role]:
        """Return the roles whose terms all have a weight of 0; one without terms is read by terms of others."""
        weighs = {True: set[Role](), False: set[Role]()}
        for term in self.terms:
            weighs[bool(term.weight * factors.get(term.name, 1.0))].add(term.role)
        return weighs[False] - weighs[True]

    def _role_beside(self, row: int) -> Role | None:
        """Return what a sequence is that stands beside the rows; None for a row."""
        if row < len(self.rows):
            return None
        return "general" if row >= self._first_general else "alternative"

    def with_others(self, rows: Sequence[int], *, epoch: int) -> list[int]:
        """Return the sequences of a step over `rows`: other answers come beside forget rows, or in their place."""
        chosen = self.alternatives
        if chosen is None:
            return list(rows)
        return chosen.beside(rows, num_forget=self.num_forget_rows, num_rows=len(self.rows), epoch=epoch)

    def pieces(self, rows: Sequence[int], *, max_tokens: int) -> list[Piece]:
        """Return the pieces that a step is computed in, each with its share of the loss."""
        batches = self.batches(self._own(rows), max_tokens=max_tokens)
        whole = whole_counts(batches if here().size == 1 else [self._packed(rows)])
        return [Piece(batch, partial(self.loss_of, batch, whole)) for batch in batches]

    def _own(self, rows: Sequence[int]) -> Sequence[int]:
        """Return this process's share of a step; all of it is the first one's where a term cannot be split."""
        if self._splits:
            return [rows[place] for place in share_by_size([len(self.sequences[row].input_ids) for row in rows])]
        return rows if here().is_first else ()

    def batches(self, rows: Sequence[int], *, max_tokens: int) -> list[PackedBatch]:
        """Return the rows in batches, of at most `max_tokens` tokens where all terms can be split."""
        lengths = [len(self.sequences[row].input_ids) for row in rows]
        groups = token_groups(lengths, max_tokens) if self._splits else [range(len(rows))] if rows else []
        return [self._packed([rows[i] for i in group]) for group in groups]

    @property
    def _splits(self) -> bool:
        return all(term.splits for term in self.terms)

    def loss_of(self, batch: PackedBatch, whole: RoleCounts, factors: Factors) -> Loss:
        """Return the loss of a piece of a step whose counts are `whole`."""
        values = token_values(self.engine, self.reference, batch, needs=needs_of(self.terms))
        return compose(self.terms, values, roles_of(batch, whole=whole), factors=factors)

    def num_tokens_of(self, rows: Sequence[int]) -> int:
        """Return how many tokens the rows have."""
        return sum(len(self.sequences[row].input_ids) for row in rows)

    def total(self, parts: Mapping[str, float | None], factors: Factors) -> float:
        """Return the weighted sum of the terms."""
        return sum(term.weight * factors.get(term.name, 1.0) * (parts[term.name] or 0.0) for term in self.terms)

    def ids_of(self, rows: Sequence[int]) -> str:
        """Name the rows, other answers included, the first few of many."""
        named = [self._id_of(row) for row in list(rows)[:_MOST_NAMED]]
        return ", ".join(named) + (f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else "")

    def _id_of(self, row: int) -> str:
        if row < len(self.rows):
            return self.rows[row].id
        if row >= self._first_general:
            return f"general text {row - self._first_general + 1}"
        per_row = self.alternatives.per_row if self.alternatives else 1
        return f"{self.rows[(row - len(self.rows)) // per_row].id} (with another answer)"

    @property
    def _first_general(self) -> int:
        return len(self.sequences) if self.general is None else self.general.first

    def _packed(self, rows: Sequence[int]) -> PackedBatch:
        batch = pack(
            [self.sequences[row] for row in rows],
            is_forget=[row < self.num_forget_rows for row in rows],
            is_alternative=[len(self.rows) <= row < self._first_general for row in rows],
            is_general=[row >= self._first_general for row in rows],
            row_index=rows,
        )
        return batch.to(self.engine.model.device)


def whole_counts(batches: Sequence[PackedBatch]) -> RoleCounts:
    """Return the counts of a step that is computed in these batches."""
    none = Counts(0, 0)
    return sum((count_roles(batch) for batch in batches), start=RoleCounts(none, none, none, none))
