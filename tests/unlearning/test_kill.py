"""A run that is killed at any moment and resumed equals the run that never was, bit for bit."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from killing import PIECES, WRITES, count_calls, difference, outcome_of_kill, run_and_kill, set_aside
from letheon import Row
from letheon.training import checkpoint
from running import run, short_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

IN_PIECES = {"batch_size": 6, "max_batch_tokens": 40}
CASES: dict[str, dict[str, Any]] = {
    "mixed": {"learning_rate_schedule": "linear", "max_gradient_norm": 1.0, "keep": "best", "template": "auto"},
    "forget": {"method": "ga", "schedule": "forget"},
    "paired": {"schedule": "paired", "retain_batch_size": 1},
    "alternating": {"schedule": "alternating"},
    "chunked": {"schedule": "chunked", "chunk_size": 2, "retain_ratio": 2, "learning_rate_schedule": "linear"},
    "annealed": {"schedule": "annealed", "chunk_size": 2, "retain_share": 0.6, "learning_rate_schedule": "linear"},
    "pieces": IN_PIECES,
    "dropout": {**IN_PIECES, "lora_dropout": 0.3},
    "weights": {"adapt": "weights", "learning_rate": 1e-3},
    "members": {"method": "npo-ties", "epochs": 2},
    "control": {"method": "pdu", "coefficients": {"warm_up_epochs": 1}},
    "other answers": {"method": "idk-dpo", "optimiser": "adam"},
    "saved by the clock": {"checkpoint_epochs": 3, "checkpoint_minutes": 1e-9, "keep_checkpoints": 1},
}
FAST = ("mixed", "members")


@pytest.fixture
def made(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., dict[str, Any]]:
    """Settings of a short run that score and save after each of three epochs."""
    given = {**short_run(tmp_path, rows, model, tokenizer), "keep": "last"}
    return lambda **changed: {**given, **changed}


@pytest.fixture(autouse=True)
def _always_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves by the clock come after every step, however long a save takes."""
    monkeypatch.setattr(checkpoint, "LARGEST_SHARE", 1e9)


def kill_points(number: int, wanted: int) -> list[int]:
    """Some of the calls 1 to `number`, spread evenly, the first and the last among them."""
    return sorted({1 + round(i * (number - 1) / max(1, wanted - 1)) for i in range(wanted)})


@pytest.mark.parametrize("case", FAST)
def test_killed_in_the_middle(case: str, made: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = made(**CASES[case])
    number = count_calls(given, PIECES)
    whole = set_aside(given)
    # Past the first checkpoint, in a step that is half done: an odd call is before a piece, an even one after it.
    assert outcome_of_kill(given, whole, PIECES, at=2 * number // 3, power_cut=True) is None


def test_killed_before_anything_was_saved(made: Callable[..., dict[str, Any]]) -> None:
    given = made(**CASES["mixed"])
    count_calls(given, PIECES)
    whole = set_aside(given)
    # The form has been written down by then: it is taken from there, and the log still says how it was found.
    assert outcome_of_kill(given, whole, PIECES, at=1) is None


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_in_every_piece_of_every_step(case: str, made: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = made(**CASES[case])
    number = count_calls(given, PIECES)
    whole = set_aside(given)
    found = {at: outcome_of_kill(given, whole, PIECES, at=at) for at in range(1, number + 1, 2)}
    assert {at: difference for at, difference in found.items() if difference} == {}
    assert len(found) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("case", ["mixed", "members"])
def test_killed_between_any_two_writes(
    case: str, power_cut: bool, made: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = made(**CASES[case], cache_dir=tmp_path / "cache")
    number = count_calls(given, WRITES)
    whole = set_aside(given)
    points = kill_points(number, 40)
    found = {at: outcome_of_kill(given, whole, WRITES, at=at, power_cut=power_cut) for at in points}
    assert {at: difference for at, difference in found.items() if difference} == {}
    assert len(found) == 40


@pytest.mark.slow
def test_killed_twice_and_again_while_resuming(made: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = made(**CASES["mixed"])
    number = count_calls(given, PIECES)
    whole = set_aside(given)
    resumed = {**given, "resume": True}
    assert run_and_kill(given, PIECES, at=number // 2)
    assert run_and_kill(resumed, WRITES, at=5)
    assert run_and_kill(resumed, PIECES, at=3)
    run(resumed)
    assert difference(whole, given["out"]) is None
