"""Whole runs are compared only where both commands trained the same."""

import json
from pathlib import Path

import pytest
from bench.stages import Cost
from bench.whole import DifferentRunsError, Pair, largest_difference, line_of, main
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.rows import write_rows
from letheon.model.loading import save_model


def test_losses_are_compared_step_by_step() -> None:
    assert largest_difference([2.0, 4.0], [2.0, 4.004]) == pytest.approx(0.001)
    with pytest.raises(DifferentRunsError, match="got at step 2 4 plainly, 5 by ours"):
        largest_difference([2.0, 4.0], [2.01, 5.0])
    with pytest.raises(DifferentRunsError, match="got at step 1 2 plainly, nan by ours"):
        largest_difference([2.0], [float("nan")])
    with pytest.raises(DifferentRunsError, match="got 2 plain ones and 1 of ours"):
        largest_difference([2.0, 4.0], [2.0])


def test_a_line_by_hand() -> None:
    pairs = [
        Pair(Cost(12.0, 10.0, 3 * 2**30), Cost(4.0, 5.0, 2**30), 1.0, 1e-4),
        Pair(Cost(20.0, 12.0, 3 * 2**30), Cost(4.0, 4.0, 2**30), 3.0, 2e-4),
    ]
    assert line_of(2, 4, pairs) == (
        "2", "2", "4", "16.0", "4.0", "2.0", "4.00 (3.00 to 5.00)", "2.50", "3,072", "1,024", "2.0e-04",
    )  # fmt: skip


@pytest.mark.slow
def test_both_commands_train_the_same(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_model(model, tokenizer, tmp_path / "target")
    write_rows(rows[:3], tmp_path / "forget.jsonl")
    write_rows(rows[3:], tmp_path / "retain.jsonl")
    given = [f"--{name}={tmp_path / f'{name}.jsonl'}" for name in ("forget", "retain")]
    written = tmp_path / "whole.json"
    main(
        [f"--model={tmp_path / 'target'}", *given, "--template=joined", "--epochs=2", "--pairs=1", f"--json={written}"]
    )
    assert "| 1 | 1 | 2 |" in capsys.readouterr().out
    (found,) = json.loads(written.read_text(encoding="utf-8"))["runs"]["1"]
    assert 0 < found["difference"] < 1e-3
    assert 0 < found["steps_s"] < found["ours"]["wall_s"]
