"""Which rows make a step. Everything follows from the seed and the step's number, so a position is all the state.

Rows are numbered forget rows first, then retain rows. Steps are counted from 0 over the whole run; a block is a run of
steps with an optimiser of its own, over which the learning rate decays.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import torch


class Schedule(Protocol):
    """The steps of a run."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which an epoch counts as done."""

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""

    def block(self, step: int) -> tuple[int, int]:
        """Return the first step of the block that `step` lies in, and the step after its last."""


@dataclass(frozen=True, slots=True)
class MixedSchedule:
    """Batches from the shuffled union of forget and retain rows (seed system A), or from the forget rows alone.

    Every row comes once an epoch, the first `num_repeated` of them `repeats` times; the last batch of an epoch may be
    smaller.
    """

    num_rows: int
    batch_size: int
    seed: int
    epochs: int = 1
    num_repeated: int = 0
    repeats: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return -(-(self.num_rows + self._num_more) // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of epoch `number`, counted from 0."""
        first = number * self.steps_per_epoch
        return [self.rows(step) for step in range(first, first + self.steps_per_epoch)]

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""
        number, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        places = shuffled(self.num_rows + self._num_more, self.seed, number)[start : start + self.batch_size]
        beyond = self.num_repeated * self.repeats
        return [place % self.num_repeated if place < beyond else place - self._num_more for place in places]

    @property
    def _num_more(self) -> int:
        return self.num_repeated * (self.repeats - 1)

    def block(self, step: int) -> tuple[int, int]:  # noqa: ARG002 - one block for all
        """Return the whole run."""
        return 0, self.num_steps


@dataclass(frozen=True, slots=True)
class PairedSchedule:
    """Each step takes a batch of forget rows and one of retain rows, from two streams side by side (seed system B).

    An epoch is a pass over the forget rows; the retain rows are gone through in their own shuffled order, again and
    again. With `alternate` the two batches are steps of their own, forget rows first.
    """

    num_forget: int
    num_retain: int
    batch_size: int
    retain_batch_size: int
    seed: int
    epochs: int = 1
    alternate: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the forget rows."""
        return -(-self.num_forget // self.batch_size) * (2 if self.alternate else 1)

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step, forget rows first."""
        pair, is_second = divmod(step, 2) if self.alternate else (step, 0)
        forget, retain = self._forget(pair), self._retain(pair)
        if not self.alternate:
            return [*forget, *retain]
        return retain if is_second else forget

    def block(self, step: int) -> tuple[int, int]:  # noqa: ARG002 - one block for all
        """Return the whole run."""
        return 0, self.num_steps

    def _forget(self, pair: int) -> list[int]:
        number, position = divmod(pair, -(-self.num_forget // self.batch_size))
        start = position * self.batch_size
        return list(shuffled(self.num_forget, self.seed, number)[start : start + self.batch_size])

    def _retain(self, pair: int) -> list[int]:
        wanted = min(self.retain_batch_size, self.num_retain)
        places = (divmod(pair * wanted + i, self.num_retain) for i in range(wanted))
        return [self.num_forget + shuffled(self.num_retain, self.seed + 1, number)[at] for number, at in places]


@dataclass(frozen=True, slots=True)
class GeneralSchedule:
    """Which general rows each step has beside its own: as many in each, in shuffled order, again and again."""

    first: int
    """The number of the first general row; they come after all others."""
    num_rows: int
    per_step: int
    """At most `num_rows`."""
    seed: int

    def rows(self, step: int) -> list[int]:
        """Return the general rows of a step."""
        places = (divmod(step * self.per_step + i, self.num_rows) for i in range(self.per_step))
        return [self.first + shuffled(self.num_rows, self.seed + 3, number)[at] for number, at in places]


@dataclass(frozen=True, slots=True)
class BlockSchedule:
    """Blocks of steps written out, each with an optimiser and a decay of its own (AILS-NTUA's systems)."""

    blocks: tuple[tuple[tuple[int, ...], ...], ...]
    """Of each block the rows of each step."""
    epochs: int

    @property
    def num_steps(self) -> int:
        """Steps of all blocks."""
        return self._ends()[-1]

    @property
    def steps_per_epoch(self) -> int:
        """The run's share for one epoch: blocks repeat their rows, so no single pass over all rows exists."""
        return -(-self.num_steps // self.epochs)

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""
        start, _ = self.block(step)
        return list(self.blocks[bisect_right(self._ends(), step)][step - start])

    def block(self, step: int) -> tuple[int, int]:
        """Return the block that `step` lies in."""
        ends = self._ends()
        number = bisect_right(ends, step)
        return (ends[number - 1] if number else 0), ends[number]

    def _ends(self) -> list[int]:
        return _block_ends(tuple(len(block) for block in self.blocks))


def chunked(
    num_forget: int, num_retain: int, *, chunk_size: int, retain_ratio: int, batch_size: int, epochs: int, seed: int
) -> BlockSchedule:
    """Return SUGD's schedule: a block for each chunk of forget rows, each row followed by `retain_ratio` retain rows.

    The forget rows are shuffled once and cut into chunks of `chunk_size`; retain rows are taken in a shuffled order,
    cyclically and on from chunk to chunk. Steps of `batch_size` rows follow this stream in order, `epochs` times a
    chunk (AILS-NTUA at SemEval-2025 Task 4).
    """
    retain = shuffled(num_retain, seed + 1, 0)
    taken, blocks = 0, []
    for chunk in batches(shuffled(num_forget, seed, 0), chunk_size):
        stream: list[int] = []
        for row in chunk:
            stream += [row, *(num_forget + retain[(taken + i) % num_retain] for i in range(retain_ratio))]
            taken += retain_ratio
        blocks.append(tuple(tuple(step) for step in batches(stream, batch_size)) * epochs)
    return BlockSchedule(tuple(blocks), epochs)


def annealed(
    num_forget: int, num_retain: int, *, chunk_size: int, retain_share: float, batch_size: int, epochs: int, seed: int
) -> BlockSchedule:
    """Return AGAD's schedule: phases of `epochs` over a chunk of forget rows and over a random part of retain rows.

    Chunks are cut from the forget rows in their order. Each full one is followed by a part of the retain rows, the
    integer part of `retain_share` of their number and at least one, drawn anew; a last, smaller chunk is not. The last
    phase is over all retain rows. Each phase is a block and goes through its rows in another order each epoch
    (AILS-NTUA at SemEval-2025 Task 4; methods/alternating.py of the authors' code).
    """
    phases: list[list[int]] = []
    num_kept = max(1, int(retain_share * num_retain))
    for number, chunk in enumerate(batches(range(num_forget), chunk_size)):
        phases.append(chunk)
        if len(chunk) == chunk_size:
            phases.append([num_forget + row for row in shuffled(num_retain, seed + 1, number)[:num_kept]])
    phases.append([num_forget + row for row in range(num_retain)])
    blocks = [
        tuple(
            tuple(rows[at] for at in step)
            for epoch in range(epochs)
            for step in batches(shuffled(len(rows), seed + 2, number * epochs + epoch), batch_size)
        )
        for number, rows in enumerate(phases)
    ]
    return BlockSchedule(tuple(blocks), epochs)


@lru_cache(maxsize=8)
def shuffled(num_rows: int, seed: int, number: int) -> tuple[int, ...]:
    """Return 0 to num_rows - 1 in the random order of epoch `number`."""
    # One generator an epoch: any epoch can be entered without replaying those before it.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return tuple(torch.randperm(num_rows, generator=generator).tolist())


def batches(rows: Collection[int], batch_size: int) -> list[list[int]]:
    """Cut `rows` into batches in order; the last may be smaller."""
    items = list(rows)
    return [items[i : i + batch_size] for i in range(0, len(items), batch_size)]


def steps_from(schedule: Schedule, step: int, *, end: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (step, rows) from the given step to the one before `end`."""
    for number in range(step, end):
        yield number, schedule.rows(number)


@lru_cache(maxsize=8)
def _block_ends(lengths: tuple[int, ...]) -> list[int]:
    return list(accumulate(lengths))
