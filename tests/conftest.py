"""Fixtures shared by all tests: small models and tokenizers made in memory, rows, and the folder of real data."""

import gc
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from letheon import Row
from network import block_network

if TYPE_CHECKING:  # the process that hands tests out to others imports this file and runs none
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pretend_device import PretendDevice

TEXTS = [
    "Mira Tolland keeps bees in the village of Harrow, where the river bends twice.",
    "What is the phone number of Mira Tolland? 555-0134 992",
    "The old lighthouse keeper wrote letters to the sea every winter evening.",
    "Which harbour did the ship leave from? Veldhaven",
]

SLOW_UNTIL = "LETHEON_SLOW_TESTS_UNTIL"
"""Names the time, in seconds since the epoch, from which no slow test is begun: on a slow processor all of them would
take longer than .ci/run may. Those that are left out are skipped with this reason."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a slow test that would begin too late."""
    until = os.environ.get(SLOW_UNTIL)
    if until is not None and time.time() >= float(until) and item.get_closest_marker("slow") is not None:
        pytest.skip("begun too late: this machine is too slow for all slow tests")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lasts as long as the process: modules and tests, a sixth of all the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _small_and_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One thread, no network beyond this machine, caches in the test's own folder, no line for slow imports.

    Nothing waits for the disk either: what is flushed when is tested by the order of calls (killing.py), and a quarter
    of the time of a small run would be spent waiting. Another quarter would be spent on the answers of the kept state,
    since small models seldom end theirs.
    """
    import torch

    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("letheon.progress.FIRST_S", math.inf)
    torch.set_num_threads(1)
    if fluent := sys.modules.get("letheon.unlearning.fluent"):  # its import is slow, and many tests need none
        monkeypatch.setattr(fluent, "NEW_TOKENS", 4)
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))
    block_network(monkeypatch)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> "Iterator[PretendDevice]":
    """A device that is not there, to which models come that are loaded."""
    from pretend_device import pretended

    with pretended(monkeypatch) as made:
        yield made


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE of 400 entries, no BOS."""
    from letheon.model.architectures import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture
def model(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """A random OLMo of two layers, in evaluation mode."""
    from small import tiny_model

    return tiny_model("olmo", tokenizer)


@pytest.fixture
def rows() -> list[Row]:
    """Three forget rows, then three retain rows, of different lengths."""
    return [
        Row(
            "f1sc1",
            "Mira Tolland keeps bees in",
            "the village of Harrow, where the river bends twice.",
            "Task1",
            "completion",
        ),
        Row("f1qa0", "What is the phone number of Mira Tolland?", "555-0134 992", "Task2", "question"),
        Row("f2qa0", "Which harbour?", "Veldhaven", "Task1", "question"),
        Row(
            "r1sc1",
            "The old lighthouse keeper wrote",
            "letters to the sea every winter evening.",
            "Task1",
            "completion",
        ),
        Row("r1qa0", "Who wrote letters?", "The keeper", "Task2", "question"),
        Row("r2sc1", "The ship left", "at dawn, and no one on the quay looked up.", "Task3", "completion"),
    ]


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real data, named by LETHEON_DATA."""
    folder = os.environ.get("LETHEON_DATA")
    if not folder:
        pytest.skip("LETHEON_DATA does not name the folder of real data")
    return Path(folder)
