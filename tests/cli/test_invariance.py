"""A run is the same however its steps are computed: whole, in pieces, in any order and layout, by the real command.

Tolerance. Two orders of a float32 sum differ by about 1e-7 of it, which Adam passes on in units of the learning rate,
most where a gradient is near zero. A denominator that is wrong by one token of a step changes the terms by 1e-2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.packing import PackedBatch
from letheon.data.rows import Row, write_rows
from letheon.model.loading import save_model
from letheon.unlearning.problem import Problem
from running import events
from small import tiny_model

RATE = 3e-3
VALUES = 5e-3 * RATE
"""Largest difference of a trained value: of the way that one step can take it, half a percent."""
TERM = 1e-4
"""Largest relative difference of a logged term, which small KLs need: they are differences of values of a few nats."""

TEXT = "the old keeper of Vell wrote nine letters to the harbour every winter and kept no copy of them"

CASES: dict[str, dict[str, Any]] = {
    "low-rank-npo": {"target_modules": "q_proj,v_proj"},
    "low-rank-npo, dropout": {"lora_dropout": 0.3},
    "low-rank-npo, all linear layers": {"target_modules": "all-linear", "max_gradient_norm": 0.1},
    "npo by sequence": {"method": "npo"},
    "npo of logits, reverse KL": {"npo": "logits", "kl": "reverse"},
    "simnpo, chunked": {"method": "simnpo", "schedule": "chunked", "chunk_size": 4, "retain_ratio": 2},
    "neko, paired": {"method": "neko"},
    "undial": {"method": "undial"},
    "pdu, alternating": {"method": "pdu", "schedule": "alternating"},
    "rmu, annealed": {"method": "rmu", "coefficients": "layer=1", "schedule": "annealed", "chunk_size": 8},
    "idk-dpo": {"method": "idk-dpo"},
}
FAST = ("low-rank-npo", "idk-dpo")
"""The others run with the slow tests."""
UNSPLIT = {"idk-dpo"}
"""Pairs of answers, which are compared within a batch."""


def rows_of(split: str) -> list[Row]:
    """Eight rows with answers of 1 to 8 words, so that pieces differ in their number of answer tokens."""
    words = TEXT.split()
    prompts = [f"{split} {' '.join(words[n : n + 3])}?" for n in range(8)]
    answers = [" ".join(words[n : 2 * n + 1]) for n in range(8)]
    pairs = enumerate(zip(prompts, answers, strict=True))
    return [Row(f"{split}{n}", prompt, answer, "Task1", "question") for n, (prompt, answer) in pairs]


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(tiny_model("olmo", tokenizer), tokenizer, folder / "target")
    for split in ("forget", "retain"):
        write_rows(rows_of(split), folder / f"{split}.jsonl")
    return folder


@dataclass(frozen=True)
class Course:
    """What a run did: its steps as logged, what it trained, and in how many pieces each step was computed."""

    steps: list[dict[str, Any]]
    trained: dict[str, Tensor]
    num_pieces: list[int]
    path: str


def unlearn(inputs: Path, out: Path, **changed: Any) -> Course:
    """Run `letheon unlearn` for three epochs with steps of eight rows."""
    settings = {
        **{name: inputs / f"{name}.jsonl" for name in ("forget", "retain")},
        **{"model": inputs / "target", "template": "joined", "trackers": "", "out": out},
        **{"epochs": 3, "batch_size": 8, "learning_rate": RATE, "keep": "last", "checkpoint_epochs": 3},
        **changed,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    num_pieces, paths = [], set()
    batches_of = Problem.batches

    def counted(problem: Problem, rows: Sequence[int], *, max_tokens: int) -> list[PackedBatch]:
        found = batches_of(problem, rows, max_tokens=max_tokens)
        num_pieces.append(len(found))
        paths.add(problem.engine.path)
        return found

    with patch.object(Problem, "batches", counted):
        done = CliRunner().invoke(cli, ["unlearn", *flags])
    assert done.exit_code == 0, done.output
    adapter = out / "adapter" / "adapter_model.safetensors"
    trained = load_file(adapter if adapter.exists() else out / "model" / "model.safetensors")
    (path,) = paths
    return Course(events(out, "step"), trained, num_pieces, path)


def check_same(course: Course, whole: Course) -> None:
    """Check that two runs took the same steps to the same values, to rounding."""
    assert len(course.steps) == len(whole.steps) >= 3
    for step, expected in zip(course.steps, whole.steps, strict=True):
        assert step["num_tokens"] == expected["num_tokens"]
        assert step["terms"].keys() == expected["terms"].keys()
        for name, value in expected["terms"].items():
            assert step["terms"][name] == (None if value is None else pytest.approx(value, rel=TERM, abs=1e-6)), name
        assert step["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=TERM)
    assert course.trained.keys() == whole.trained.keys()
    moved = {name: float((course.trained[name] - value).abs().max()) for name, value in whole.trained.items()}
    assert {name: distance for name, distance in moved.items() if distance > VALUES} == {}


def drop_features(given: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
    """Drop the same features of every token, where dropout would draw others for each order of the tokens."""
    if not training:
        return given
    generator = torch.Generator().manual_seed(given.shape[-1])
    kept = torch.rand(given.shape[-1], generator=generator) >= p
    return given * kept / (1 - p)


def dealt(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Deal a step's rows to three pieces in turn, where they are cut in order otherwise."""
    yield from (found for start in range(3) if (found := list(range(start, len(lengths), 3))))


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES])
def test_the_way_a_step_is_computed_changes_nothing(
    case: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.functional.dropout", drop_features)
    settings = CASES[case]
    whole = unlearn(inputs, tmp_path / "whole", **settings)
    assert set(whole.num_pieces) == {1}
    assert whole.path == "packed"

    pieces = unlearn(inputs, tmp_path / "pieces", max_batch_tokens=60, **settings)
    assert max(pieces.num_pieces) >= 3 or case in UNSPLIT
    check_same(pieces, whole)

    with patch("letheon.unlearning.problem.token_groups", dealt):
        other_pieces = unlearn(inputs, tmp_path / "dealt", **settings)
    assert max(other_pieces.num_pieces) == 3 or case in UNSPLIT
    check_same(other_pieces, whole)

    rows_of_step = Problem.rows_of_step
    monkeypatch.setattr(Problem, "rows_of_step", lambda problem, step: rows_of_step(problem, step)[::-1])
    check_same(unlearn(inputs, tmp_path / "order", **settings), whole)

    # As if the model carried something from one sequence of a pack to the next.
    monkeypatch.setattr("letheon.engine.engine.leak_between_sequences", lambda *_: 1.0)
    padded = unlearn(inputs, tmp_path / "padded", **settings)
    assert padded.path == "padded"
    check_same(padded, whole)
