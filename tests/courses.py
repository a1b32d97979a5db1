"""What runs of many methods did, compared step by step: for tests that do the same run in several ways.

Tolerance. Two orders of a float32 sum differ by about 1e-7 of it, which Adam passes on in units of the learning rate,
most where a gradient is near zero. A denominator that is wrong by one token of a step changes the terms by 1e-2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from letheon.data.rows import Row, write_rows
from letheon.model.loading import save_model
from running import events
from small import tiny_model

RATE = 3e-3
VALUES = 1e-2 * RATE
"""Largest difference of a trained value: of the way that one step can take it, one percent. On a
processor without AVX512 one value of UNDIAL's is off by 0.6 percent when padded, all others by less than 0.1."""
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


def rows_of(split: str) -> list[Row]:
    """Eight rows with answers of 1 to 8 words, so that pieces differ in their number of answer tokens."""
    words = TEXT.split()
    prompts = [f"{split} {' '.join(words[n : n + 3])}?" for n in range(8)]
    answers = [" ".join(words[n : 2 * n + 1]) for n in range(8)]
    pairs = enumerate(zip(prompts, answers, strict=True))
    return [Row(f"{split}{n}", prompt, answer, "Task1", "question") for n, (prompt, answer) in pairs]


def make_inputs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Make a model and rows in `folder`, and return it."""
    save_model(tiny_model("olmo", tokenizer), tokenizer, folder / "target")
    for split in ("forget", "retain"):
        write_rows(rows_of(split), folder / f"{split}.jsonl")
    return folder


def flags_of(given: dict[str, Any]) -> list[str]:
    """Return settings as the command line takes them."""
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def arguments_of(inputs: Path, out: Path, **changed: Any) -> list[str]:
    """Return the command line of a run of three epochs with steps of eight rows."""
    given = {
        **{name: inputs / f"{name}.jsonl" for name in ("forget", "retain")},
        **{"model": inputs / "target", "template": "joined", "trackers": "", "out": out},
        **{"epochs": 3, "batch_size": 8, "learning_rate": RATE, "keep": "last", "checkpoint_epochs": 3},
        **changed,
    }
    return ["unlearn", *flags_of(given)]


@dataclass(frozen=True)
class Course:
    """What a run did: its steps as logged, and what it trained."""

    steps: list[dict[str, Any]]
    trained: dict[str, Tensor]


def course_of(out: Path) -> Course:
    """Return what the run in a folder did."""
    adapter = out / "adapter" / "adapter_model.safetensors"
    trained = load_file(adapter if adapter.exists() else out / "model" / "model.safetensors")
    return Course(events(out, "step"), trained)


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
