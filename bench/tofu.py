"""TOFU from start to end on models made here: target, model that never knew, methods, scores; docs/results.md.

    python -m bench.tofu --data DIR --out DIR [--forget 20] [--retain 60] [--facts 20] [--methods NAME ...] [--epochs N]

The whole data set takes hours on two cores, so this is a part of it in its own format: the last of the rows to forget,
as many of `retain_perturbed`, whose rows are then also trained on, and of the holdout. Both models are made from
nothing, so they learn the answers about real authors and the world too, which a pretrained model knows. Then it is the
benchmark's own way: a study of methods scored by the suite, forget quality against the model that never knew the rows.
What is done is not done again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import prepare_process
from letheon import EvaluateSettings, MemorizeSettings, StudySettings, evaluate, memorize, study
from letheon.evaluation.registry import read_results
from letheon.report.tables import to_markdown
from letheon.scores.results import Results
from letheon.studies.tables import scores_table, trade_off_table

METHODS = ("ga", "gd", "npo", "simnpo", "low-rank-npo")
RATE = 2e-3
VOCAB_SIZE = 4096
NEW_MODEL: dict[str, Any] = {
    "architecture": "llama",
    "width": 128,
    "num_layers": 3,
    "num_heads": 4,
    "learning_rate": 3e-3,
    "target_accuracy": 0.99,
}
NEVER = "trained without"


def main() -> None:
    """Make the models, run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with tofu/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--forget", type=int, default=20, help="rows to forget, and as many held out")
    parser.add_argument("--retain", type=int, default=60, help="rows to keep")
    parser.add_argument("--facts", type=int, default=20, help="questions on real authors, and on the world")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=1500, help="steps in which to memorise the rows")
    given = parser.parse_args()
    prepare_process(threads=1)
    data = cut_tofu(
        given.data / "tofu", given.out / "data", forget=given.forget, retain=given.retain, facts=given.facts
    )
    target = learn(given.out / "target", data, "full", max_steps=given.max_steps)
    never = learn(given.out / "never", data, "never", max_steps=given.max_steps, tokenizer=target)
    known = score(never, data, given.out / "never-scores")
    settings = study_of(given.methods, target, data, given.out / "never-scores", known, epochs=given.epochs)
    record = study(settings, given.out / "study").record
    for table in (scores_table(record), trade_off_table(record)):
        print("" if table is None else to_markdown(table))


def cut_tofu(source: Path, folder: Path, *, forget: int, retain: int, facts: int) -> Path:
    """Write a part of TOFU in its own format: few rows to forget, those to keep that are scored, few facts."""
    folder.mkdir(parents=True, exist_ok=True)
    of_forget, kept = _lines(source, "forget10_perturbed")[-forget:], _lines(source, "retain_perturbed")[:retain]
    real, world = (_lines(source, f"{name}_perturbed")[:facts] for name in ("real_authors", "world_facts"))
    files = {
        "forget10_perturbed": of_forget,
        "retain_perturbed": kept,
        "real_authors_perturbed": real,
        "world_facts_perturbed": world,
        "holdout10": _lines(source, "holdout10")[:forget],
        "forget10": _plain(of_forget),
        "retain90": _plain(kept),
        "never": _plain([*kept, *real, *world]),
        "full": _plain([*of_forget, *kept, *real, *world]),
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _lines(source: Path, name: str) -> list[str]:
    return (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()


def _plain(lines: Sequence[str]) -> list[str]:
    rows = [json.loads(line) for line in lines]
    return [json.dumps({name: row[name] for name in ("question", "answer")}) for row in rows]


def learn(out: Path, data: Path, rows: str, *, max_steps: int, tokenizer: Path | None = None) -> Path:
    """Make a model that knows a file of rows, in the form in which the suite asks, and its tokenizer unless given."""
    if not (out / "config.json").is_file():
        how = {"vocab_size": VOCAB_SIZE} if tokenizer is None else {"tokenizer": str(tokenizer)}
        own: dict[str, Any] = {**how, "suite": "tofu", "split": rows, "data": data, "out": out, "max_steps": max_steps}
        memorize(MemorizeSettings.of({**NEW_MODEL, **own}), note=print)
    return out


def score(model: Path, data: Path, out: Path) -> Results:
    """Score a model by the suite."""
    if not (out / "results.json").is_file():
        evaluate(EvaluateSettings.of({"suite": "tofu", "model": str(model), "data": data, "out": out}))
    return read_results(out / "results.json")


def study_of(
    methods: Sequence[str], target: Path, data: Path, never: Path, known: Results, *, epochs: int
) -> StudySettings:
    """Return a study of methods, each for so many epochs at one learning rate, beside the model that never knew."""
    base = {"suite": "tofu", "data": str(data), "model": str(target), "epochs": epochs, "learning_rate": RATE}
    shown = {name: value for name in ("model_utility",) if (value := known.scores.value(name)) is not None}
    return StudySettings.of(
        {
            "name": f"TOFU forget10, {epochs} epochs",
            "base": {**base, "keep": "last", "trackers": ""},
            "list": [{"method": method} for method in methods],
            "evaluate": {"suite": "tofu", "data": str(data), "never_results": str(never / "results.json")},
            # A model's truth ratios are its own: the p-value is 1.
            "published": {NEVER: {**shown, "forget_quality": 1.0}},
        }
    )


if __name__ == "__main__":
    main()
