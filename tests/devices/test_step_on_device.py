"""Runs on a device that is not there: no tensor is forgotten on the host, and little crosses in a step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.engine import engine, paths
from letheon.objective.catalogue import METHODS
from letheon.training import loop, step
from letheon.training.state import Run
from pretend_device import OnDevice, PretendDevice, Traffic
from running import run, short_run, unseen_for
from small import tiny_model

STORED = {
    "low-rank-npo": 3,
    "npo-ties": 3,
    "kl-min": 3,
    "llmu": 3,
    "neko": 2,
    "adaptive-rmu": 2,
    "undial": 2,
    "rmu": 2,
    "quantile": 7,
}
"""What the reference says of a step's rows, in how many copies: 1 for others, the log-probabilities."""


@pytest.fixture
def steps(device: PretendDevice, monkeypatch: pytest.MonkeyPatch) -> list[Traffic]:
    """What crosses in each step that is taken."""
    taken: list[Traffic] = []
    take_step = step.take_step

    def watch(running: Run[Any]) -> None:
        with device.watched() as traffic:
            take_step(running)
        taken.append(traffic)
        assert all(isinstance(one, OnDevice) for one in running.job.adapted.parameters())

    monkeypatch.setattr(loop, "take_step", watch)
    return taken


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return short_run(tmp_path, rows, model, tokenizer) | {"epochs": 2, "batch_size": 6}


def check(steps: list[Traffic], *, stored: int, num_pieces: int = 1) -> None:
    """Each piece brings its batch in one copy and what is stored of its rows, and a step is read in one copy."""
    assert len(steps) > 1
    for traffic in steps[1:]:  # what is brought once comes with the first
        assert len(traffic.to_host) == 1, "\n".join(map(str, traffic.to_host))
        assert len(traffic.to_device) == num_pieces * (1 + stored), "\n".join(map(str, traffic.to_device))


def test_a_run_crosses_once_for_its_batch_and_once_for_its_log(given: dict[str, Any], steps: list[Traffic]) -> None:
    # Stored are the log-probabilities, and at rows to keep the expectations and offsets of the KL.
    report = run(given, method="low-rank-npo")
    check(steps, stored=3)
    assert report.provenance["engine"]["path"] == "packed"


@pytest.mark.slow
def test_so_does_one_in_pieces_that_begin_at_an_upper_layer(given: dict[str, Any], steps: list[Traffic]) -> None:
    run(given, method="gd", max_batch_tokens=40, layers="-1:", store_lower=True, gradient_checkpointing=True)
    check(steps, stored=2, num_pieces=4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, given: dict[str, Any], steps: list[Traffic], tmp_path: Path) -> None:
    run(given, method=method, **(unseen_for(method, tmp_path) or {"general": "none"}))
    check(steps, stored=STORED.get(method, 1))


def drawn_on_host(length: int, width: int, *, seed: int, device: torch.device) -> torch.Tensor:
    """What `uniform` draws, for a device that has no random numbers of its own."""
    return torch.rand(length, width, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "bfloat16"},
        {"lora_dropout": 0.1},
        {"method": "kl-min", "coefficients": {"kl": "reverse"}},
        {"adapt": "weights", "method": "neko", "target_modules": "lm_head"},
        {"general": "auto", "dial": "forgotten"},
        {"learning_rate": "auto"},
    ],
)
def test_every_kind_of_run(
    changed: dict[str, Any], given: dict[str, Any], steps: list[Traffic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.training.randomness.uniform", drawn_on_host)
    run(given, **changed)
    assert [len(traffic.to_host) for traffic in steps[1:]] == [1] * len(steps[1:]), [*map(str, steps[1].to_host)]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["padded", "logits"])
@pytest.mark.parametrize("architecture", ["gemma", "qwen"])
def test_every_path(
    path: str,
    architecture: str,
    tmp_path: Path,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    steps: list[Traffic],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept = paths._objection

    def objection(candidate: engine.Engine, *given: Any) -> str | None:
        return accept(candidate, *given) if candidate.path == path else "is not asked for here"

    monkeypatch.setattr(paths, "_objection", objection)
    given = short_run(tmp_path, rows, tiny_model(architecture, tokenizer), tokenizer)
    report = run({**given, "epochs": 2, "batch_size": 6}, method="kl-min")
    assert report.provenance["engine"]["path"] == path
    for traffic in steps[1:]:  # transformers looks into the mask of padded rows, within the call of the model
        assert len([one for one in traffic.to_host if not one.where.startswith("engine.py")]) == 1


@pytest.mark.slow
def test_weights_that_are_widened(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: list[Traffic]
) -> None:
    given = short_run(tmp_path, rows, model.half(), tokenizer)
    run({**given, "epochs": 2, "batch_size": 6}, dtype="widened")
    check(steps, stored=3)
