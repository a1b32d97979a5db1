"""Unlearn targets with no setting but model and rows, and say what was reached: docs/results.md.

    python -m bench.defaults --data DIR --seeds 0 1 2 --out DIR [--targets NAME ...] [--also NAME MODEL FORGET RETAIN]

Two targets come with the data, and two are made on the spot: one of another architecture and with a tokenizer of its
own, which memorises rows of LUME's TRAIN split, and one that learns all questions about persons in it beside what it
knows. `--also` adds one of your own. Each run is a process of its own, through the command line. What is done is not
done again; the table is printed in Markdown at the end.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import Row, Rows, write_rows
from letheon.evaluation.registry import read_results

NUM_ROWS = 60
"""Rows of each side that `gpt2-train` memorises."""
GPT2 = ("--architecture", "gpt2", "--width", "128", "--vocab-size", "3000", "--template", "question-answer")
PERSONS = ("--learning-rate", "1e-3", "--target-accuracy", "0.995")
"""They ask for numbers, of which the last few take as long to learn as all others."""
SHIPPED = ("lume-val-6m", "lume-val-6m-general")
MADE = ("gpt2-train", "persons-train")
COLUMNS = (
    "target", "seed", "forget recall", "retain recall", "refused", "official forgotten", "official retained", "epochs",
    "highest learning rate", "s", "end",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A model and the rows that it knows."""

    name: str
    model: Path
    forget: Path
    retain: Path


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--also", nargs=4, metavar=("NAME", "MODEL", "FORGET", "RETAIN"), action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="*", choices=(*SHIPPED, *MADE), default=(*SHIPPED, *MADE))
    given = parser.parse_args()
    targets = [prepare(name, given.data, given.out) for name in given.targets]
    targets += [Target(name, *map(Path, files)) for name, *files in given.also]
    lines = [[*line_of(target, given.out, seed)] for target in targets for seed in given.seeds]
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *lines):
        print("| " + " | ".join(cells) + " |")


def prepare(name: str, data: Path, out: Path) -> Target:
    """Write the rows of a target as files of their own, and make the model where it is made here."""
    rows = read_lume(data / "lume", "validation" if name in SHIPPED else "train")
    folder = out / "rows" / name
    for side in ("forget", "retain"):
        write_rows(_chosen(name, getattr(rows, side)), folder / f"{side}.jsonl")
    target = Target(name, data / "targets" / name, folder / "forget.jsonl", folder / "retain.jsonl")
    if name in SHIPPED:
        return target
    target = replace(target, model=out / name)
    if not (target.model / "config.json").exists():
        general = data / "targets" / "lume-val-6m-general"
        text = data / "text" / "wikitext2-valid.txt"
        how = GPT2 if name == "gpt2-train" else ("--model", general, "--text", text, *PERSONS)
        _letheon("memorize", "--rows", target.forget, target.retain, *how, "--out", target.model)
    return target


def _chosen(name: str, rows: Rows) -> list[Row]:
    """Return the rows that a target knows."""
    if name == "persons-train":
        return [row for row in rows if row.task == "Task2" and row.kind == "question"]
    return list(rows)[: NUM_ROWS if name == "gpt2-train" else None]


def line_of(target: Target, out: Path, seed: int) -> list[str]:
    """Return the cells of a run's line, which is made unless that was done."""
    run = out / "runs" / target.name / f"seed-{seed}"
    if not (run / "report.html").exists():
        rows = ["--forget", target.forget, "--retain", target.retain]
        goes_on = ["--resume"] if run.exists() else []
        _letheon("unlearn", "--model", target.model, *rows, "--seed", seed, "--out", run, *goes_on)
    facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["result"]
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept: dict[str, Any] = facts["kept"]
    scores = read_results(run / "evaluation" / "after" / "results.json").scores
    return [
        target.name, str(seed), f"{kept['forget_recall']:.3f}", f"{kept['retain_recall']:.3f}",
        "" if kept["instead_recall"] is None else f"{kept['instead_recall']:.3f}",
        f"{scores.value('forgotten_in_form'):.3f}", f"{scores.value('retained_in_form'):.3f}",
        f"{kept['epoch']:g}", f"{max(one['learning_rate'] for one in events if one['event'] == 'step'):.1e}",
        f"{facts['duration_s']:.0f}", str(facts["reason"]).split(":")[0],
    ]  # fmt: skip


def _letheon(*arguments: object) -> None:
    command = [sys.executable, "-m", "letheon", *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
