"""A folder of files to spoil, and what a mistake in it is: a command line and the error that it must end in."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from small import tiny_bert


@dataclass(frozen=True)
class Bad:
    """One mistake: files and a command line made by `make` in a folder, and what it ends in.

    `{at}` in the message stands for the folder.
    """

    name: str
    make: Callable[["Place"], list[object]]
    message: str
    loads_weights: bool = False


class Place:
    """A folder with target/, forget.jsonl and retain.jsonl, and how to spoil what lies in it."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def link(self, name: str, target: str) -> Path:
        (self.at / name).symlink_to(target)
        return self.at / name

    def unlearn(self, *more: object, **changed: object) -> list[object]:
        given = {"model": "target", "forget": "forget.jsonl", "retain": "retain.jsonl", "out": "run"}
        places = {name: self.at / str(value) for name, value in given.items()}
        return ["unlearn", *_flags({**places, **changed}), "--trackers", "", "--template", "joined", *more]

    def evaluate(self, *more: object) -> list[object]:
        places = {"model": "target", "forget": "forget.jsonl", "retain": "retain.jsonl", "out": "run"}
        return ["evaluate", *_flags({name: self.at / value for name, value in places.items()}), *more]

    def memorize(self, *more: object) -> list[object]:
        small = () if {"--model", "--tokenizer"} & set(more) else ("--vocab-size", 300)
        return ["memorize", "--rows", self.at / "forget.jsonl", "--out", self.at / "run", *small, *more]

    def rescore(self, content: str | bytes) -> list[object]:
        return ["evaluate", "--predictions", self.file("p/predictions.jsonl", content), "--out", self.at / "run"]

    def report(self, name: str, content: str) -> list[object]:
        return ["report", self.file(f"old/{name}", content).parent]

    def scored(self, *, model: object, forget: object) -> Path:
        """Return a folder with scores of a model on these forget rows and the retain rows."""
        rows = {"forget": forget, "retain": self.at / "retain.jsonl"}
        provenance = {side: {"source": str(source)} for side, source in rows.items()}
        results = {"schema": "letheon.results/1", "suite": "lume", "model": str(model), "provenance": provenance}
        return self.file("old/results.json", json.dumps(results)).parent

    def study(self) -> Path:
        base = {"model": "target", "forget": "forget.jsonl", "retain": "retain.jsonl"}
        return self.file("s.yaml", json.dumps({"base": {name: str(self.at / at) for name, at in base.items()}}))

    def config(self, **changed: Any) -> "Place":
        path = self.at / "target" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        return self

    def weights(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> "Place":
        path = self.at / "target" / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        return self

    def masked(self) -> "Place":
        """Put a BERT that fills in words in the place of the model."""
        target = self.at / "target"
        vocab_size = json.loads((target / "config.json").read_text())["vocab_size"]
        tiny_bert(vocab_size).save_pretrained(target)
        return self

    def cut(self, num_bytes: int) -> "Place":
        os.truncate(self.at / "target" / "model.safetensors", num_bytes)
        return self

    def rename(self, old: str, new: str | None) -> "Place":
        path = self.at / "target" / old
        path.rename(path.with_name(new)) if new else path.unlink()
        return self

    def index(self, content: str) -> "Place":
        self.rename("model.safetensors", "model-00001-of-00001.safetensors")
        self.file("target/model.safetensors.index.json", content)
        return self

    def token_settings(self, **changed: Any) -> "Place":
        path = self.at / "target" / "tokenizer_config.json"
        kept = {**json.loads(path.read_text()), **changed}
        path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))
        return self


def _flags(given: dict[str, object]) -> list[object]:
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]


def row_line(**record: Any) -> str:
    return json.dumps(record) + "\n"
