"""What a population writes down to go on: its cohorts, where runs diverged, and the step that all share."""

from pathlib import Path

import pytest

from letheon.training.checkpoint import Checkpoint, Position
from letheon.unlearning.populations import is_in_population, leave_population
from letheon.unlearning.populations.together import (
    Cohort,
    Diverged,
    common_step,
    divergence_of,
    recorded_cohorts,
    write_cohorts,
    write_divergence,
)

SAVED_AND_LAST = list[tuple[set[int], int]]
"""Of each run: the steps that it was saved after, and the one that is its last."""


def saved_at(step: int) -> Checkpoint:
    return Checkpoint(Position(step, 0, 0, (), {}), {}, {})


def steps_of(runs: SAVED_AND_LAST, diverged: dict[int, int] | None = None) -> tuple[list[int], set[int]]:
    def find(m: int, upto: int | None) -> Checkpoint | None:
        step = max((step for step in runs[m][0] if upto is None or step <= upto), default=0)
        return saved_at(step) if step else None

    found, out = common_step(
        find,
        is_over=lambda m, checkpoint: checkpoint.position.step >= runs[m][1],
        diverged={m: Diverged(num_passes, 0, "not finite") for m, num_passes in (diverged or {}).items()},
        num_runs=len(runs),
    )
    return [one.position.step if one else 0 for one in found], set(out)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([({3, 6}, 9), ({3, 6}, 9)], [6, 6]),
        ([({3, 6}, 9), ({2, 3}, 9)], [3, 3]),
        ([({3, 6}, 9), ({2, 4}, 9)], [0, 0]),
        ([({3, 6}, 9), (set(), 9)], [0, 0]),
        ([({6, 8}, 9), ({2, 4}, 4)], [8, 4]),  # the second was over by then
        ([({2, 4, 6}, 6), ({4}, 9)], [4, 4]),  # the first was not
        ([({6}, 6), ({4}, 4)], [6, 4]),
        ([], []),
    ],
)
def test_runs_go_on_after_the_last_step_that_all_were_saved_at(runs: SAVED_AND_LAST, expected: list[int]) -> None:
    assert steps_of(runs) == (expected, set())


@pytest.mark.parametrize(
    ("num_passes", "expected"),
    [
        (5, ([6, 0, 6], {1})),  # it had left by step 6
        (6, ([6, 0, 6], {1})),  # its last pass is the one that leads there
        (7, ([2, 2, 2], set())),  # what comes after step 6 is computed with it
    ],
)
def test_one_that_diverged_later_is_there_again(num_passes: int, expected: tuple[list[int], set[int]]) -> None:
    assert steps_of([({2, 6}, 9), ({2, 4}, 9), ({2, 6}, 9)], {1: num_passes}) == expected


def test_one_that_diverged_stays_out_where_all_others_are_over() -> None:
    assert steps_of([({4}, 4), ({2}, 9)], {1: 3}) == ([4, 0], {1})


def folders_in(folder: Path, number: int) -> list[Path]:
    made = [folder / f"run{n}" for n in range(number)]
    for one in made:
        one.mkdir(parents=True)
    return made


def test_cohorts_are_known_from_any_run_wherever_the_folders_go(tmp_path: Path) -> None:
    folders = folders_in(tmp_path / "here", 5)
    cohorts = [Cohort((0, 3)), Cohort((1, 2, 4))]
    write_cohorts(folders, cohorts)
    known = [Cohort((0, 3), goes_on=True), Cohort((1, 2, 4), goes_on=True)]
    assert recorded_cohorts(folders) == known
    (tmp_path / "here").rename(tmp_path / "there")
    moved = [tmp_path / "there" / one.name for one in folders]
    assert recorded_cohorts(moved) == known
    for one in moved[1:]:
        leave_population(one)
    assert recorded_cohorts(moved) == known
    assert recorded_cohorts([moved[4], moved[3], moved[0]]) == [
        Cohort((0,), goes_on=True),
        Cohort((2, 1), goes_on=True),
    ]
    leave_population(moved[0])
    assert recorded_cohorts(moved) == []
    assert recorded_cohorts([]) == []


def test_a_runs_own_word_comes_first(tmp_path: Path) -> None:
    folders = folders_in(tmp_path, 3)
    write_cohorts(folders, [Cohort((0, 1, 2))])
    write_cohorts(folders[1:], [Cohort((0, 1))])
    assert recorded_cohorts(folders) == [Cohort((0,), goes_on=True), Cohort((1, 2), goes_on=True)]


def test_where_a_run_diverged_is_kept_until_it_goes_on(tmp_path: Path) -> None:
    (folder,) = folders_in(tmp_path, 1)
    assert divergence_of(folder) is None
    write_divergence(folder, None)
    assert not is_in_population(folder)
    end = Diverged(3, 100, "step 3: loss is not finite")
    write_cohorts([folder], [Cohort((0,))])
    write_divergence(folder, end)
    write_cohorts([folder], [Cohort((0,))])
    assert divergence_of(folder) == end
    assert is_in_population(folder)
    write_divergence(folder, None)
    assert divergence_of(folder) is None
    assert is_in_population(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"parts": 3}', '{"parts": [1], "diverged": {"a": 1}}', "\udcff"])
def test_a_broken_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "population.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert not is_in_population(tmp_path)
    assert divergence_of(tmp_path) is None
    assert recorded_cohorts([tmp_path]) == []
