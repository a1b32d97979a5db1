"""Short runs on a small model, for the tests of whole runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row, write_rows
from letheon.data.sequences import tokenise_all
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.objective.catalogue import METHODS
from letheon.settings import UnlearnSettings
from letheon.training.judge import StateScore
from letheon.training.tracking import Silent
from letheon.unlearning.record import RunReport
from letheon.unlearning.run import unlearn
from small import tiny_model


def short_run(
    folder: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Settings of a run of a few steps over files made in `folder`; the first three rows are to forget.

    It is not scored before and after.
    """
    save_model(model, tokenizer, folder / "target")
    write_rows(rows[:3], folder / "forget.jsonl")
    write_rows(rows[3:], folder / "retain.jsonl")
    return {
        "model": str(folder / "target"),
        "forget": str(folder / "forget.jsonl"),
        "retain": str(folder / "retain.jsonl"),
        "out": folder / "run",
        "epochs": 3,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "checkpoint_epochs": 1,
        "template": "joined",
        "trackers": "",
        "evaluate": False,
    }


def state_score(step: int, **values: float | None) -> StateScore:
    """How a state does, middling but for the values given."""
    middling = {
        "forget_recall": 0.5, "retain_recall": 0.5, "score": 0.5, "retain_loss": 1.0, "membership": 0.5,
        "text_loss": 3.0, "retain_kl": 0.2,
    }  # fmt: skip
    return StateScore(step, float(step), {**middling, **values})


_KNOWN: dict[str, dict[str, Tensor]] = {}
"""Weights that know the rows, by architecture."""


def knowing_model(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], *, architecture: str = "olmo"
) -> PreTrainedModel:
    """A small model that knows the answers of `rows`, the same ones in all calls, trained by the first."""
    model = tiny_model(architecture, tokenizer)
    if architecture not in _KNOWN:
        options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=10, max_steps=400)
        memorize(model, tokenizer, rows=rows, options=options)
        _KNOWN[architecture] = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(_KNOWN[architecture])
    model.eval()
    return model


def run(given: Mapping[str, Any], **changed: Any) -> RunReport:
    """Run with these settings."""
    return unlearn(UnlearnSettings.of({**given, **changed}))


def unseen_for(method: str, folder: Path) -> dict[str, Any]:
    """The documents, written to `folder`, that a method needs which compares with text the model never saw."""
    if METHODS[method].settings.get("general") != "holdout":
        return {}
    texts = [
        f"Nobody in Harrow has heard of the {word} ferry." for word in ("red", "old", "new", "last", "grey", "slow")
    ]
    write_text = "".join(json.dumps({"document": text}) + "\n" for text in texts)
    (folder / "unseen.jsonl").write_text(write_text, encoding="utf-8")
    return {"holdout": folder / "unseen.jsonl", "dial": "none"}


def model_of(report: RunReport) -> dict[str, Tensor]:
    """The weights of the checkpoint that a run leaves."""
    return load_file(report.model / "model.safetensors")


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    """The events of one name in a run's log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def answer_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> float:
    """Mean cross-entropy of an answer token of `rows`, nats, from the model's own logits one row at a time."""
    found: list[Tensor] = []
    for sequence in tokenise_all(rows, tokenizer, template="joined", max_length=256):
        ids = torch.tensor(sequence.input_ids)
        with torch.no_grad():
            logits = model(ids[None]).logits[0].float()
        start = sequence.answer_start
        found.append(torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="none"))
    return float(torch.cat(found).mean())


class After(Silent):
    """Does something after a number of steps, counted over the whole run."""

    def __init__(self, num_steps: int, action: Any) -> None:
        self.num_steps, self.action, self.num_seen = num_steps, action, 0

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        self.num_seen += 1
        if self.num_seen == self.num_steps:
            self.action()


def as_flags(given: dict[str, Any], *names: str, **more: object) -> list[str]:
    """Return those settings, or all of them, as flags of a command."""
    values = {name: given[name] for name in names or given} | more
    idle = ["--no-evaluate"] if values.pop("evaluate", True) is False else []
    return idle + [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
