"""A GPU's memory that runs out, made up on a CPU: steps and the reference pass go on in smaller pieces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.engine import reference, values
from letheon.errors import ModelError, SettingsError
from letheon.model.memory import unless_out_of_memory
from letheon.settings import UnlearnSettings
from letheon.training.tracking import Silent
from letheon.unlearning.run import unlearn
from running import events, model_of, run, same, short_run

TOKEN_VALUES = "letheon.unlearning.problem.token_values"


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Settings of a short run of a step an epoch, of all six rows."""
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last", "batch_size": 6, "learning_rate": 1e-3}


class Hearing(Silent):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def failing(original: Callable[..., Any], *, above: int, times: int, at: int) -> Callable[..., Any]:
    """`original`, out of memory the first `times` times that the batch among its arguments is larger than `above`."""
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        if arguments[at].num_tokens > above and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(*arguments, **named)

    return call


def test_only_memory_that_runs_out_is_forgiven() -> None:
    def short() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken() -> int:
        raise RuntimeError("no kernel image")

    assert unless_out_of_memory(short) is None
    assert unless_out_of_memory(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="no kernel image"):
        unless_out_of_memory(broken)


@pytest.mark.parametrize("adapt", ["lora", pytest.param("weights", marks=pytest.mark.slow)])
def test_steps_go_on_in_smaller_pieces_with_equal_results(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapt: str
) -> None:
    given = {**given, "adapt": adapt, "target_modules": "q_proj,v_proj"}
    whole = run({**given, "out": tmp_path / "whole"})
    lengths = [event["num_tokens"] for event in events(tmp_path / "whole", "step")]
    assert len(lengths) == 3

    monkeypatch.setattr(TOKEN_VALUES, failing(values.token_values, above=50, times=2, at=2))
    heard = Hearing()
    short = unlearn(UnlearnSettings.of(given), observer=heard)

    said = [event["message"] for event in events(given["out"], "note") if "memory ran out" in event["message"]]
    assert len(said) == 2
    assert [note for note in heard.notes if "memory ran out" in note] == said
    assert [event["num_tokens"] for event in events(given["out"], "step")] == lengths
    first, second = events(tmp_path / "whole", "step"), events(given["out"], "step")
    for one, other in zip(first, second, strict=True):
        # Sums of the same float32 numbers in another order.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    for name, value in model_of(short).items():
        assert torch.allclose(value, model_of(whole)[name], rtol=0, atol=1e-5), name


def test_a_step_is_done_again_from_its_beginning(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step has several pieces; memory runs out in the second one, when the first has left its gradients.
    given = {**given, "max_batch_tokens": 60}
    seen = list[int]()
    original = values.token_values

    def second_fails(*arguments: Any, **named: Any) -> Any:
        seen.append(arguments[2].num_tokens)
        if len(seen) == 2:
            raise torch.OutOfMemoryError
        return original(*arguments, **named)

    monkeypatch.setattr(TOKEN_VALUES, second_fails)
    short = run(given)
    said = [event["message"] for event in events(given["out"], "note") if "memory ran out" in event["message"]]
    (most,) = {int(message.rpartition("--max-batch-tokens ")[2].partition(")")[0]) for message in said}
    assert max(seen[2:]) <= most < max(seen[:2])
    monkeypatch.setattr(TOKEN_VALUES, original)
    # To the bit what comes of that number from the start: nothing of the failed attempt is left.
    assert same(model_of(short), model_of(run({**given, "max_batch_tokens": most, "out": tmp_path / "small"})))


def test_a_row_that_does_not_fit_alone_ends_the_run(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKEN_VALUES, failing(values.token_values, above=0, times=99, at=2))
    with pytest.raises(SettingsError, match=r"step 1: the GPU's memory is not enough for \d+ tokens at once"):
        run(given)


def test_a_step_that_cannot_be_split_ends_the_run_at_once(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TOKEN_VALUES, failing(values.token_values, above=0, times=99, at=2))
    with pytest.raises(SettingsError, match="cannot be computed in smaller pieces"):
        run({**given, "npo": "batch"})


def test_the_reference_pass_goes_on_with_fewer_rows_at_once(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run({**given, "cache_dir": tmp_path / "one"})
    given["out"] = tmp_path / "short"
    monkeypatch.setattr(reference, "reference_values", failing(reference.reference_values, above=60, times=2, at=1))
    heard = Hearing()
    short = unlearn(UnlearnSettings.of({**given, "cache_dir": tmp_path / "two"}), observer=heard)
    said = [note for note in heard.notes if "memory ran out in the reference pass" in note]
    assert said
    assert said == [e["message"] for e in events(given["out"], "note") if "memory ran out" in e["message"]]
    for name, value in model_of(short).items():
        assert torch.allclose(value, model_of(whole)[name], rtol=0, atol=1e-5), name


def test_a_row_that_does_not_fit_into_the_reference_pass_is_named(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "reference_values", failing(reference.reference_values, above=0, times=99, at=1))
    with pytest.raises(ModelError, match=r"reference pass: the GPU's memory is not enough for a row of \d+ tokens"):
        run(given)
