"""Unlearn targets with no setting but model and rows, and say what was reached: docs/results.md.

    python -m bench.defaults --data DIR --seeds 0 1 2 --out DIR [--also NAME MODEL FORGET RETAIN]

Two targets come with the data; a third, of another architecture and with a tokenizer of its own, memorises rows of
LUME's TRAIN split on the spot. `--also` adds one of your own. Each run is a process of its own, through the command
line. What is done is not done again; the table is printed in Markdown at the end.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import write_rows
from letheon.evaluation.registry import read_results

NUM_ROWS = 60
"""Rows of each side that the made target memorises."""
MADE = ("--architecture", "gpt2", "--width", "128", "--vocab-size", "3000", "--template", "question-answer")
COLUMNS = ("target", "seed", "forget recall", "retain recall", "official forgotten", "official retained", "epochs",
           "highest learning rate", "s", "end")  # fmt: skip


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
    given = parser.parse_args()
    targets = [*prepare(given.data, given.out), *(Target(name, *map(Path, files)) for name, *files in given.also)]
    lines = [[*line_of(target, given.out, seed)] for target in targets for seed in given.seeds]
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *lines):
        print("| " + " | ".join(cells) + " |")


def prepare(data: Path, out: Path) -> list[Target]:
    """Write the rows as files of their own, and make the target that is made here."""
    for split in ("validation", "train"):
        rows = read_lume(data / "lume", split)
        last = None if split == "validation" else NUM_ROWS
        write_rows(rows.forget[:last], out / split / "forget.jsonl")
        write_rows(rows.retain[:last], out / split / "retain.jsonl")
    made = out / "gpt2-train"
    if not (made / "config.json").exists():
        files = [out / "train" / f"{side}.jsonl" for side in ("forget", "retain")]
        _letheon("memorize", *(part for file in files for part in ("--rows", file)), *MADE, "--out", made)
    shipped = [data / "targets" / name for name in ("lume-val-6m", "lume-val-6m-general")]
    return [
        *(_target(model, out / "validation") for model in shipped),
        _target(made, out / "train"),
    ]


def _target(model: Path, rows: Path) -> Target:
    return Target(model.name, model, rows / "forget.jsonl", rows / "retain.jsonl")


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
        f"{scores.value('forgotten_in_form'):.3f}", f"{scores.value('retained_in_form'):.3f}",
        f"{kept['epoch']:g}", f"{max(one['learning_rate'] for one in events if one['event'] == 'step'):.1e}",
        f"{facts['duration_s']:.0f}", str(facts["reason"]).split(":")[0],
    ]  # fmt: skip


def _letheon(*arguments: object) -> None:
    command = [sys.executable, "-m", "letheon", *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
