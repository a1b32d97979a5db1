"""A run is the same however its steps are computed: whole, in pieces, in any order and layout, by the real command."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from courses import CASES, Course, arguments_of, check_same, course_of, make_inputs
from letheon.cli.main import cli
from letheon.data.packing import PackedBatch
from letheon.unlearning.problem import Problem

FAST = ("low-rank-npo",)
"""The others run with the slow tests."""
UNSPLIT = {"idk-dpo"}
"""Pairs of answers, which are compared within a batch."""


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), tokenizer)


def unlearn(inputs: Path, out: Path, *, path: str = "packed", **changed: Any) -> tuple[Course, list[int]]:
    """Run `letheon unlearn`, which takes `path`; returns what it did and in how many pieces each step was computed."""
    num_pieces, paths = [], set()
    batches_of = Problem.batches

    def counted(problem: Problem, rows: Sequence[int], *, max_tokens: int) -> list[PackedBatch]:
        found = batches_of(problem, rows, max_tokens=max_tokens)
        num_pieces.append(len(found))
        paths.add(problem.engine.path)
        return found

    with patch.object(Problem, "batches", counted):
        done = CliRunner().invoke(cli, arguments_of(inputs, out, **changed))
    assert done.exit_code == 0, done.output
    assert paths == {path}
    return course_of(out), num_pieces


def dealt(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Deal a step's rows to three pieces in turn, where they are cut in order otherwise."""
    yield from (found for start in range(3) if (found := list(range(start, len(lengths), 3))))


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES])
def test_the_way_a_step_is_computed_changes_nothing(
    case: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CASES[case]
    whole, num_pieces = unlearn(inputs, tmp_path / "whole", **settings)
    assert set(num_pieces) == {1}

    pieces, num_pieces = unlearn(inputs, tmp_path / "pieces", max_batch_tokens=60, **settings)
    assert max(num_pieces) >= 3 or case in UNSPLIT
    check_same(pieces, whole)

    with patch("letheon.unlearning.problem.token_groups", dealt):
        other_pieces, num_pieces = unlearn(inputs, tmp_path / "dealt", **settings)
    assert max(num_pieces) == 3 or case in UNSPLIT
    check_same(other_pieces, whole)

    rows_of_step = Problem.rows_of_step
    monkeypatch.setattr(Problem, "rows_of_step", lambda *given: rows_of_step(*given)[::-1])
    check_same(unlearn(inputs, tmp_path / "order", **settings)[0], whole)

    # As if the model carried something from one sequence of a pack to the next.
    monkeypatch.setattr("letheon.engine.paths.leak_between_sequences", lambda *_: 1.0)
    check_same(unlearn(inputs, tmp_path / "padded", path="padded", **settings)[0], whole)
