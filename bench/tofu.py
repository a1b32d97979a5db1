"""TOFU from start to end on models made here: target, model that never knew, methods, scores; docs/results.md.

    python -m bench.tofu --data DIR --out DIR [--forget 100] [--retain 100] [--facts 40]

The whole data set takes hours on two cores, so this is a part of it in its own format: the last of the rows to forget,
as many of `retain_perturbed`, whose rows are then also trained on, and of the holdout. Both models are made from
nothing, so they learn the answers about real authors and the world too, which a pretrained model knows. Their tokenizer
has a chat template, so that the suite asks in the very tokens that were learnt: after "Answer: ", its prompt for other
models, a tokenizer whose words begin with the space cannot go on as it was trained. Then it is the benchmark's own way:
a study of methods scored by the suite, forget quality against the model that never knew the rows. Published methods
train for ten epochs at each of three learning rates, and keep what they end with. The default method is given nothing:
the run finds its rate, end and scale; it is there with the other dial, too. What is done is not done again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import prepare_process
from letheon import EvaluateSettings, MemorizeSettings, StudySettings, evaluate, memorize, study
from letheon.evaluation.registry import read_results
from letheon.model.architectures import train_tokenizer
from letheon.report.tables import to_markdown
from letheon.scores.results import Results
from letheon.studies.tables import scores_table, trade_off_table

_COLUMNS = ("question", "answer")
PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "ga": (1e-5, 3e-5, 1e-4),
    "gd": (2e-5, 6e-5, 2e-4),
    "npo": (1e-5, 3e-5, 1e-4),
    "simnpo": (6e-4, 2e-3, 6e-3),
}
"""Published methods, each with learning rates from too low to too high for these models."""
EPOCHS = 10
OURS: tuple[dict[str, Any], ...] = (
    {"name": "low-rank-npo", "method": "low-rank-npo"},
    {"name": "low-rank-npo, dial forgotten", "method": "low-rank-npo", "dial": "forgotten"},
)
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
TURNS: dict[str, Any] = {"additional_special_tokens": ["<|user|>", "<|assistant|>"]}
CHAT_TEMPLATE = (
    "{% for turn in messages if turn.role != 'system' %}<|{{ turn.role }}|>{{ turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Turns after one another. No system message, and no token in a question that also ends an answer."""


def main() -> None:
    """Make the models, run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with tofu/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--forget", type=int, default=100, help="rows to forget, and as many held out")
    parser.add_argument("--retain", type=int, default=100, help="rows to keep")
    parser.add_argument("--facts", type=int, default=40, help="questions on real authors, and on the world")
    parser.add_argument("--max-steps", type=int, default=1500, help="steps in which to memorise the rows")
    given = parser.parse_args()
    prepare_process(threads=1)
    data = cut_tofu(
        given.data / "tofu", given.out / "data", forget=given.forget, retain=given.retain, facts=given.facts
    )
    tokenizer = make_tokenizer(data, given.out / "tokenizer")
    target = learn(given.out / "target", data, "full", tokenizer=tokenizer, max_steps=given.max_steps)
    never = learn(given.out / "never", data, "never", tokenizer=tokenizer, max_steps=given.max_steps)
    known = score(never, data, given.out / "never-scores")
    settings = study_of(target, data, given.out / "never-scores", known)
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
    return [json.dumps({name: row[name] for name in _COLUMNS}) for row in rows]


def make_tokenizer(data: Path, out: Path) -> Path:
    """Write a tokenizer for all rows, with a chat template."""
    if not (out / "tokenizer.json").is_file():
        rows = [json.loads(line) for line in _lines(data, "full")]
        # An answer follows a special token without a space.
        tokenizer = train_tokenizer((row[name] for row in rows for name in _COLUMNS), vocab_size=VOCAB_SIZE)
        tokenizer.add_special_tokens(TURNS)
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(out)
    return out


def learn(out: Path, data: Path, rows: str, *, tokenizer: Path, max_steps: int) -> Path:
    """Make a model that knows a file of rows, in the form in which the suite asks."""
    if not (out / "config.json").is_file():
        own: dict[str, Any] = {"tokenizer": str(tokenizer), "suite": "tofu", "split": rows, "data": data, "out": out}
        memorize(MemorizeSettings.of({**NEW_MODEL, **own, "max_steps": max_steps}), note=print)
    return out


def score(model: Path, data: Path, out: Path) -> Results:
    """Score a model by the suite."""
    if not (out / "results.json").is_file():
        evaluate(EvaluateSettings.of({"suite": "tofu", "model": str(model), "data": data, "out": out}))
    return read_results(out / "results.json")


def study_of(target: Path, data: Path, never: Path, known: Results) -> StudySettings:
    """Return a study of published methods at several rates and of the default one, beside the model that never knew."""
    fixed = {"epochs": EPOCHS, "keep": "last", "dial": "none"}
    published = [
        {"name": f"{method}, rate {rate:.0e}", "method": method, "learning_rate": rate, **fixed}
        for method, rates in PUBLISHED.items()
        for rate in rates
    ]
    shown = {name: value for name in ("model_utility",) if (value := known.scores.value(name)) is not None}
    return StudySettings.of(
        {
            "name": "TOFU forget10, a part",
            "base": {"suite": "tofu", "data": str(data), "model": str(target), "trackers": ""},
            "list": [*published, *OURS],
            "evaluate": {"suite": "tofu", "data": str(data), "never_results": str(never / "results.json")},
            # A model's truth ratios and its AUC are its own: the p-value is 1, and nothing leaks.
            "published": {NEVER: {**shown, "forget_quality": 1.0, "privacy_leak": 0.0}},
        }
    )


if __name__ == "__main__":
    main()
