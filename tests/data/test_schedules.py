"""Which rows make a step: orders by hand, counts, and a step's number as the whole state."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from letheon.data import schedules
from letheon.data.schedules import (
    BlockSchedule,
    MixedSchedule,
    PairedSchedule,
    Schedule,
    annealed,
    batches,
    chunked,
    shuffled,
    steps_from,
)
from letheon.training.optimiser import LearningRateSchedule, learning_rate_at


@pytest.fixture
def unshuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders that can be worked by hand: epoch n begins at row n and goes round."""
    monkeypatch.setattr(
        schedules, "shuffled", lambda num_rows, _seed, number: tuple((i + number) % num_rows for i in range(num_rows))
    )


def all_rows(schedule: Schedule) -> list[list[int]]:
    return [schedule.rows(step) for step in range(schedule.num_steps)]


def blocks_of(schedule: Schedule) -> list[tuple[int, int]]:
    return list(dict.fromkeys(schedule.block(step) for step in range(schedule.num_steps)))


@pytest.mark.usefixtures("unshuffled")
def test_mixed_by_hand() -> None:
    schedule = MixedSchedule(num_rows=5, batch_size=2, seed=0, epochs=2)
    assert all_rows(schedule) == [[0, 1], [2, 3], [4], [1, 2], [3, 4], [0]]
    assert (schedule.steps_per_epoch, schedule.num_steps) == (3, 6)
    assert blocks_of(schedule) == [(0, 6)]


def test_the_first_rows_come_more_often_where_they_are_few() -> None:
    schedule = MixedSchedule(num_rows=8, batch_size=4, seed=0, epochs=2, num_repeated=2, repeats=4)
    assert (schedule.steps_per_epoch, schedule.num_steps) == (4, 8)  # 2 * 4 + 6 rows an epoch
    for number in range(2):
        drawn = Counter(row for batch in schedule.epoch(number) for row in batch)
        assert drawn == {0: 4, 1: 4, **dict.fromkeys(range(2, 8), 1)}
    assert schedule.epoch(0) != schedule.epoch(1)
    assert schedule.epoch(1) == [schedule.rows(step) for step in range(4, 8)]


@pytest.mark.usefixtures("unshuffled")
def test_paired_by_hand() -> None:
    # 3 forget rows by 2; retain rows 3 to 7, of 3 a step, which go on over the ends of both kinds of epochs.
    schedule = PairedSchedule(num_forget=3, num_retain=5, batch_size=2, retain_batch_size=3, seed=0, epochs=2)
    assert all_rows(schedule) == [
        [0, 1, 3, 4, 5],
        [2, 6, 7, 4],  # the second pass over the retain rows begins at row 4
        [1, 2, 5, 6, 7],
        [0, 3, 5, 6],  # the third at row 5
    ]
    assert (schedule.steps_per_epoch, schedule.num_steps) == (2, 4)
    assert blocks_of(schedule) == [(0, 4)]


@pytest.mark.usefixtures("unshuffled")
def test_alternating_by_hand() -> None:
    schedule = PairedSchedule(3, 5, 2, 3, seed=0, epochs=1, alternate=True)
    assert all_rows(schedule) == [[0, 1], [3, 4, 5], [2], [6, 7, 4]]
    assert (schedule.steps_per_epoch, schedule.num_steps) == (4, 4)


def test_more_retain_rows_a_step_than_there_are_gives_each_once() -> None:
    schedule = PairedSchedule(4, 2, 1, 32, seed=3)
    assert [sorted(rows[1:]) for rows in all_rows(schedule)] == [[4, 5]] * 4


@pytest.mark.usefixtures("unshuffled")
def test_chunked_by_hand() -> None:
    # Chunks (0, 1) and (2); after each forget row two retain rows of 3, 4, 5, on from chunk to chunk; 2 epochs each.
    schedule = chunked(3, 3, chunk_size=2, retain_ratio=2, batch_size=4, epochs=2, seed=0)
    assert schedule.blocks == (
        ((0, 3, 4, 1), (5, 3), (0, 3, 4, 1), (5, 3)),
        ((2, 4, 5), (2, 4, 5)),
    )
    assert blocks_of(schedule) == [(0, 4), (4, 6)]
    assert all_rows(schedule)[3:5] == [[5, 3], [2, 4, 5]]
    assert schedule.steps_per_epoch == 3


@pytest.mark.usefixtures("unshuffled")
def test_sugds_published_numbers() -> None:
    # 70 forget rows in chunks of 32, 1 forget : 7 retain, 8 rows (one group) a step, 7 epochs a chunk.
    schedule = chunked(70, 100, chunk_size=32, retain_ratio=7, batch_size=8, epochs=7, seed=0)
    assert [len(block) for block in schedule.blocks] == [32 * 7, 32 * 7, 6 * 7]
    assert all_rows(schedule)[0] == [0, *range(70, 77)]
    # The second chunk goes on where the first one's 224 retain rows ended.
    assert schedule.blocks[1][0] == (32, *range(70 + 24, 70 + 31))
    assert blocks_of(schedule) == [(0, 224), (224, 448), (448, 490)]


@pytest.mark.usefixtures("unshuffled")
def test_annealed_by_hand() -> None:
    # Chunks (0, 1) and (2); after the full one half of the 4 retain rows 3 to 6; then all of them. Twice each.
    schedule = annealed(3, 4, chunk_size=2, retain_share=0.5, batch_size=2, epochs=2, seed=0)
    assert schedule.blocks == (
        ((0, 1), (1, 0)),
        ((3, 4), (4, 3)),
        ((2,), (2,)),
        ((5, 6), (3, 4), (6, 3), (4, 5)),
    )
    assert blocks_of(schedule) == [(0, 2), (2, 4), (4, 6), (6, 10)]


@pytest.mark.parametrize(("share", "kept"), [(0.25, 1), (0.5, 3), (0.99, 6), (1.0, 7), (0.01, 1)])
def test_a_share_of_the_retain_rows_is_cut_down_to_whole_rows(share: float, kept: int) -> None:
    schedule = annealed(2, 7, chunk_size=2, retain_share=share, batch_size=8, epochs=1, seed=0)
    assert [len(block[0]) for block in schedule.blocks] == [2, kept, 7]


def test_chunks_follow_the_rows_and_every_epoch_of_a_phase_has_its_order() -> None:
    schedule = annealed(40, 60, chunk_size=20, retain_share=0.5, batch_size=50, epochs=3, seed=0)
    first, part, second, other_part, everything = schedule.blocks
    assert [set(rows) for rows in (*first, *second)] == [set(range(20))] * 3 + [set(range(20, 40))] * 3
    assert set(part[0]) != set(other_part[0])
    for block in (first, part, second):
        assert len(set(block)) == 3
        assert len({frozenset(rows) for rows in block}) == 1
    assert len(everything) == 6


def test_batches_in_order() -> None:
    assert batches(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert batches([], 2) == []


def test_an_epoch_of_the_mixed_schedule_is_its_steps() -> None:
    schedule = MixedSchedule(7, 3, seed=5, epochs=2)
    assert [schedule.rows(step) for step in range(3, 6)] == schedule.epoch(1)


sizes = st.integers(1, 13)


@settings(max_examples=60, deadline=None)
@given(num_rows=sizes, batch_size=sizes, epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_mixed_takes_every_row_once_an_epoch(num_rows: int, batch_size: int, epochs: int, seed: int) -> None:
    schedule = MixedSchedule(num_rows, batch_size, seed, epochs)
    steps = all_rows(schedule)
    for number in range(epochs):
        epoch = steps[number * schedule.steps_per_epoch : (number + 1) * schedule.steps_per_epoch]
        assert sorted(row for rows in epoch for row in rows) == list(range(num_rows))
        assert all(len(rows) == batch_size for rows in epoch[:-1])
    check_blocks(schedule)


@settings(max_examples=60, deadline=None)
@given(
    num_forget=sizes,
    num_retain=sizes,
    batch_size=sizes,
    retain_batch_size=sizes,
    epochs=st.integers(1, 3),
    alternate=st.booleans(),
)
def test_paired_takes_forget_rows_once_an_epoch_and_retain_rows_evenly(
    num_forget: int, num_retain: int, batch_size: int, retain_batch_size: int, epochs: int, alternate: bool
) -> None:
    schedule = PairedSchedule(num_forget, num_retain, batch_size, retain_batch_size, 0, epochs, alternate)
    steps = all_rows(schedule)
    counts = Counter(row for rows in steps for row in rows)
    assert [counts[row] for row in range(num_forget)] == [epochs] * num_forget
    # Pass after pass: no retain row comes twice more often than another.
    retained = [counts[row] for row in range(num_forget, num_forget + num_retain)]
    assert max(retained) - min(retained) <= 1
    for rows in steps:
        is_retain = [row >= num_forget for row in rows]
        assert is_retain == sorted(is_retain)
        assert not (alternate and len(set(is_retain)) > 1)
        if any(is_retain):
            assert sum(is_retain) == min(retain_batch_size, num_retain)
    check_blocks(schedule)


@settings(max_examples=60, deadline=None)
@given(
    num_forget=sizes,
    num_retain=sizes,
    chunk_size=sizes,
    retain_ratio=st.integers(0, 8),
    batch_size=sizes,
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_chunked_takes_every_forget_row_epochs_times_in_one_block(
    num_forget: int, num_retain: int, chunk_size: int, retain_ratio: int, batch_size: int, epochs: int, seed: int
) -> None:
    schedule = chunked(
        num_forget,
        num_retain,
        chunk_size=chunk_size,
        retain_ratio=retain_ratio,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
    )
    homes: dict[int, set[int]] = {row: set() for row in range(num_forget)}
    counts = Counter(row for rows in all_rows(schedule) for row in rows)
    for number, block in enumerate(schedule.blocks):
        stream = [row for rows in block[: len(block) // epochs] for row in rows]
        assert [row < num_forget for row in stream] == (
            ([True] + [False] * retain_ratio) * (len(stream) // (retain_ratio + 1))
        )
        for row in stream:
            if row < num_forget:
                homes[row].add(number)
    assert [counts[row] for row in range(num_forget)] == [epochs] * num_forget
    assert all(len(home) == 1 for home in homes.values())
    retained = [counts[row] // epochs for row in range(num_forget, num_forget + num_retain)]
    assert sum(retained) == num_forget * retain_ratio
    assert max(retained) - min(retained) <= 1
    check_blocks(schedule)


@settings(max_examples=60, deadline=None)
@given(
    num_forget=sizes,
    num_retain=sizes,
    chunk_size=sizes,
    share=st.floats(0.01, 1.0),
    batch_size=sizes,
    epochs=st.integers(1, 3),
)
def test_annealed_ends_with_all_retain_rows(
    num_forget: int, num_retain: int, chunk_size: int, share: float, batch_size: int, epochs: int
) -> None:
    schedule = annealed(
        num_forget,
        num_retain,
        chunk_size=chunk_size,
        retain_share=share,
        batch_size=batch_size,
        epochs=epochs,
        seed=0,
    )
    counts = Counter(row for rows in all_rows(schedule) for row in rows if row < num_forget)
    assert [counts[row] for row in range(num_forget)] == [epochs] * num_forget
    last = Counter(row for rows in schedule.blocks[-1] for row in rows)
    assert last == Counter(list(range(num_forget, num_forget + num_retain)) * epochs)
    num_full, rest = divmod(num_forget, chunk_size)
    assert len(schedule.blocks) == 2 * num_full + bool(rest) + 1
    for block in schedule.blocks[1 : 2 * num_full : 2]:
        part = [row for rows in block for row in rows]
        assert min(part) >= num_forget
        assert set(Counter(part).values()) == {epochs}
    check_blocks(schedule)


def check_blocks(schedule: Schedule) -> None:
    """Blocks tile the run, and no step is empty; the share of an epoch covers the run."""
    found = blocks_of(schedule)
    assert found[0][0] == 0
    assert found[-1][1] == schedule.num_steps
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(schedule.rows(step) for step in range(schedule.num_steps))
    for first, end in found:
        assert all(schedule.block(step) == (first, end) for step in range(first, end))


# Each with what another seed makes of it.
MANY: list[tuple[Schedule, Schedule]] = [
    (MixedSchedule(11, 4, 0, 3), MixedSchedule(11, 4, 1, 3)),
    (PairedSchedule(7, 9, 3, 2, 0, 3), PairedSchedule(7, 9, 3, 2, 1, 3)),
    (PairedSchedule(7, 9, 3, 2, 0, 3, True), PairedSchedule(7, 9, 3, 2, 1, 3, True)),
    (
        chunked(7, 9, chunk_size=3, retain_ratio=2, batch_size=4, epochs=2, seed=0),
        chunked(7, 9, chunk_size=3, retain_ratio=2, batch_size=4, epochs=2, seed=1),
    ),
    (
        annealed(7, 9, chunk_size=3, retain_share=0.5, batch_size=4, epochs=2, seed=0),
        annealed(7, 9, chunk_size=3, retain_share=0.5, batch_size=4, epochs=2, seed=1),
    ),
]


@pytest.mark.parametrize(("schedule", "other"), MANY)
def test_any_step_can_be_entered_without_those_before_it(schedule: Schedule, other: Schedule) -> None:
    whole = all_rows(schedule)
    shuffled.cache_clear()
    for step in reversed(range(schedule.num_steps)):
        assert schedule.rows(step) == whole[step]
        rest = list(steps_from(schedule, step, end=schedule.num_steps))
        assert rest == list(enumerate(whole))[step:]
    assert all_rows(other) != whole


def test_the_same_seed_gives_the_same_order_whatever_was_drawn_before() -> None:
    import torch

    first = shuffled(20, 3, 1)
    shuffled.cache_clear()
    torch.manual_seed(99)
    assert shuffled(20, 3, 1) == first
    assert shuffled(20, 3, 2) != first
    assert shuffled(20, 4, 1) != first


def test_a_block_schedule_counts_an_epoch_as_its_share() -> None:
    schedule = BlockSchedule((((0,), (1,)), ((2,),)), epochs=2)
    assert schedule.num_steps == 3
    assert schedule.steps_per_epoch == 2
    assert schedule.rows(2) == [2]


# The learning rate


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("warm_up_steps", [0, 1, 3, 10, 12])
def test_the_learning_rate_is_that_of_transformers(schedule: LearningRateSchedule, warm_up_steps: int) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = (
        get_constant_schedule_with_warmup(optimiser, warm_up_steps)
        if schedule == "constant"
        else get_linear_schedule_with_warmup(optimiser, warm_up_steps, 10)
    )
    for step in range(10):
        ours = learning_rate_at(step, total_steps=10, peak=2.0, schedule=schedule, warm_up_steps=warm_up_steps)
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
        optimiser.step()
        theirs.step()


def test_warm_up_by_hand() -> None:
    rates = [learning_rate_at(n, total_steps=6, peak=4.0, schedule="linear", warm_up_steps=2) for n in range(6)]
    assert rates == [0, 2, 4, 3, 2, 1]
