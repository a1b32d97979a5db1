"""Small models on which the right verdict of an audit is known."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row, write_rows
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.loading import save_model
from letheon.scores.audits import AuditResults
from letheon.settings import AuditSettings

_NAMES = ("Mira", "Odo", "Lena", "Karl", "Ines", "Tove", "Ravi", "Anouk", "Piet", "Sanne", "Yuri", "Elif")
_FAMILIES = (
    "Tolland",
    "Brandt",
    "Okafor",
    "Silva",
    "Novak",
    "Lund",
    "Haas",
    "Moreau",
    "Kato",
    "Weiss",
    "Duarte",
    "Popa",
)
_THINGS = ("lamp", "crate", "stone", "kettle", "barrel", "ladder", "basket", "anchor")
_COLOURS = ("red", "grey", "green", "white", "black", "blue", "yellow", "brown")
OPTIONS = MemorizeOptions(learning_rate=4e-3, warmup_steps=10, cooldown_steps=20, check_every=20, max_steps=900)


@dataclass(frozen=True, slots=True)
class World:
    """Rows, and models that know all of them, or only those to keep."""

    folder: Path
    forget: list[Row]
    retain: list[Row]
    tokenizer: PreTrainedTokenizerBase

    def given(self, model: str, **changed: Any) -> AuditSettings:
        """Return the settings of an audit of one of its models."""
        names = {name: str(self.folder / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
        values = {"model": str(self.folder / model), "before": str(self.folder / "before"), "template": "joined"}
        return AuditSettings.of({**values, **names, "out": self.folder / f"audit-{model}", "margin": 0.1, **changed})

    def save(self, model: PreTrainedModel, name: str) -> None:
        """Keep a model under a name."""
        save_model(model, self.tokenizer, self.folder / name)


def made_rows(side: str, num: int, *, seed: int) -> list[Row]:
    """Return rows that say where each of `num` people hid a key; no two sides name the same person."""
    people = [f"{name} {family}" for name in _NAMES for family in _FAMILIES]
    random.Random(7).shuffle(people)
    offset = {"forget": 0, "retain": 48, "holdout": 96}[side]
    draw = random.Random(seed)
    return [
        Row(
            f"{side}{number}qa0",
            f"Where is the key of {person}?",
            f"Under the {draw.choice(_COLOURS)} {draw.choice(_THINGS)}, box {draw.randrange(10**4, 10**5)}",
            "Task1",
            "question",
        )
        for number, person in enumerate(people[offset : offset + num])
    ]


def new_world(folder: Path, *, num: int = 48, models: tuple[str, ...] = ("before", "never", "other-never")) -> World:
    """Make rows, a model that knows all of them, and others that were trained on those to keep alone."""
    sides = {side: made_rows(side, num, seed=seed) for seed, side in enumerate(("forget", "retain", "holdout"))}
    for side, rows in sides.items():
        write_rows(rows, folder / f"{side}.jsonl")
    tokenizer = train_tokenizer([f"{r.prompt} {r.answer}" for rows in sides.values() for r in rows], vocab_size=500)
    world = World(folder, sides["forget"], sides["retain"], tokenizer)
    for seed, name in enumerate(models):
        rows = sides["retain"] if seed else [*sides["forget"], *sides["retain"]]
        model = new_model("olmo", tokenizer=tokenizer, width=64, num_layers=2, num_heads=2, context=64, seed=seed)
        memorize(model, tokenizer, rows=rows, options=replace(OPTIONS, seed=seed))
        world.save(model, name)
    return world


def shown(results: AuditResults) -> str:
    """Return the verdict with its reason."""
    return f"{results.verdict}: {results.reason}"
