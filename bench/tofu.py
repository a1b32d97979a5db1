"""TOFU from start to end on models made here: target, model that never knew, methods, scores; docs/results.md.

    python -m bench.tofu --data DIR --out DIR [--split forget10] [--forget 100] [--retain 100] [--facts 40]
    python -m bench.tofu --data DIR --out DIR --checkpoint MODEL --split forget01

The whole data set takes hours on two cores, so this is a part of it in its own format: the last of the rows to forget,
as many of `retain_perturbed`, whose rows are then also trained on, and of the holdout. Then it is the benchmark's own
way: a study of methods scored by the suite, forget quality against the model that never knew the rows. Published
methods train for a fixed number of epochs at fixed learning rates, and keep what they end with. The default method is
given nothing: the run finds its rate, end and scale. What is done is not done again.

Without --checkpoint both models are made from nothing, so they learn the answers about real authors and the world too,
which a pretrained model knows. Their tokenizer has a chat template, so that the suite asks in the very tokens that were
learnt: after "Answer: ", its prompt for other models, a tokenizer whose words begin with the space cannot go on as it
was trained. The default method is there with the other dial, too.

With --checkpoint, a chat model, target and never-knew model are that model with a merged adapter that learnt the rows
in its own chat form. Real authors and the world are asked, not learnt.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import prepare_process
from letheon import EvaluateSettings, MemorizeSettings, StudySettings, evaluate, memorize, study
from letheon.data.benchmarks.tofu import HOLDOUT_OF, RETAIN_OF
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.tofu.listing import score_name
from letheon.model.architectures import train_tokenizer
from letheon.report.tables import Table, to_markdown
from letheon.scores.results import Results
from letheon.scores.score import FORGOTTEN, RETAINED
from letheon.studies.records import StudyRecord
from letheon.studies.shown_scores import ORIGINAL_LABEL
from letheon.studies.tables import scores_table, trade_off_table

_COLUMNS = ("question", "answer")
NEVER = "trained without"
OF_NEVER: Mapping[str, float] = {"forget_quality": 1.0, "privacy_leak": 0.0}
"""A model's truth ratios and its AUC are its own: the p-value is 1, and nothing leaks."""
DETAILS = (
    *("forget.probability", "forget.rouge_l", "forget.truth_ratio", "mia.min_k", "privacy_leak", "forget_quality"),
    *("retain.rouge_l", "model_utility"),
)
"""Scores of the table of all models."""
VOCAB_SIZE = 4096
TURNS: dict[str, Any] = {"additional_special_tokens": ["<|user|>", "<|assistant|>"]}
CHAT_TEMPLATE = (
    "{% for turn in messages if turn.role != 'system' %}<|{{ turn.role }}|>{{ turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Turns after one another. No system message, and no token in a question that also ends an answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with a kind of model, and how large it is by default."""

    num_forget: int
    num_retain: int
    num_facts: int
    learn: Mapping[str, Any]
    """Settings of `memorize`, but for rows and folders."""
    learns_facts: bool
    ours: Sequence[Mapping[str, Any]]
    """Configurations of the default method."""
    published: Mapping[str, Sequence[float]]
    """Published methods with their learning rates."""
    epochs: int
    """Of the published methods."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Settings that unlearning and scoring share."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of scoring."""


_OURS: Mapping[str, Any] = {"name": "low-rank-npo", "method": "low-rank-npo"}

SMALL = Plan(
    num_forget=100,
    num_retain=100,
    num_facts=40,
    learn={
        "architecture": "llama",
        "width": 128,
        "num_layers": 3,
        "num_heads": 4,
        "learning_rate": 3e-3,
        "target_accuracy": 0.99,
        "max_steps": 1500,
    },
    learns_facts=True,
    ours=(_OURS, {"name": "low-rank-npo, dial forgotten", "method": "low-rank-npo", "dial": "forgotten"}),
    # From too low to too high for these models.
    published={
        "ga": (1e-5, 3e-5, 1e-4),
        "gd": (2e-5, 6e-5, 2e-4),
        "npo": (1e-5, 3e-5, 1e-4),
        "simnpo": (6e-4, 2e-3, 6e-3),
    },
    epochs=10,
)
"""Of models that are made from nothing."""

REAL = Plan(
    num_forget=40,
    num_retain=40,
    num_facts=10,
    learn={
        "adapt": "lora",
        "rank": 16,
        "alpha": 16,
        "learning_rate": 1.5e-3,
        "batch_tokens": 256,
        "target_accuracy": 0.97,
        "max_steps": 400,
    },
    learns_facts=False,
    ours=(_OURS,),
    published={"ga": (1e-4,), "gd": (3e-4,), "npo": (3e-4,), "simnpo": (1e-3,)},
    epochs=5,
    shared={"dtype": "bfloat16"},
    asked={"max_new_tokens": 80, "sound": False},
)
"""Of a chat model of about a hundred million parameters."""


def main() -> None:
    """Make the models, run the study and print its tables."""
    given = _parse()
    plan = SMALL if given.checkpoint is None else REAL
    prepare_process(threads=1)
    sizes = {
        "forget": given.forget or plan.num_forget,
        "retain": given.retain or plan.num_retain,
        "facts": given.facts or plan.num_facts,
    }
    data = cut_tofu(given.data / "tofu", given.out / "data", split=given.split, learns_facts=plan.learns_facts, **sizes)
    base = (
        {"tokenizer": str(make_tokenizer(data, given.out / "tokenizer"))}
        if given.checkpoint is None
        else {"model": str(given.checkpoint)}
    )
    job = Job(plan, given.split, data, given.out)
    target, never = (job.learn(rows, base) for rows in ("full", "never"))
    known = job.score(never)
    record = study(job.study(target, known), given.out / "study").record
    tables = scores_table(record), trade_off_table(record), details_table(job.measured(record, known))
    for table in tables:
        print("" if table is None else to_markdown(table))


@dataclass(frozen=True, slots=True)
class Job:
    """One part of the data, from its models to a study."""

    plan: Plan
    split: str
    data: Path
    out: Path

    def learn(self, rows: str, base: Mapping[str, str]) -> Path:
        """Make a model that knows a file of rows as the suite asks them; `base` says what it begins from."""
        out = self.out / ("target" if rows == "full" else rows)
        if not (out / "config.json").is_file():
            own: dict[str, Any] = {"suite": "tofu", "split": rows, "data": self.data, "out": out}
            memorize(MemorizeSettings.of({**self.plan.learn, **base, **own}), note=print)
        return out

    def score(self, never: Path) -> Results:
        """Score the model that never knew the rows."""
        out = self.out / "never-scores"
        if not (out / "results.json").is_file():
            own: dict[str, Any] = {"suite": "tofu", "split": self.split, "data": self.data, "out": out}
            evaluate(EvaluateSettings.of({**self.plan.shared, **self.plan.asked, **own, "model": str(never)}))
        return read_results(out / "results.json")

    def measured(self, record: StudyRecord, known: Results) -> dict[str, Results]:
        """Return the results of the target, of each configuration that was scored, and of the model that never knew."""
        folder = self.out / "study"
        paths = dict.fromkeys([ORIGINAL_LABEL], next((folder / "original").glob("*/results.json"), folder))
        paths |= {
            run.configuration: folder / run.folder / "evaluation" / "after" / "results.json" for run in record.runs
        }
        return {**{name: read_results(path) for name, path in paths.items() if path.is_file()}, NEVER: known}

    def study(self, target: Path, known: Results) -> StudySettings:
        """Return a study of published methods and of the default one, beside the model that never knew."""
        fixed = {"epochs": self.plan.epochs, "keep": "last", "dial": "none"}
        published = [
            {"name": f"{method}, rate {rate:.0e}", "method": method, "learning_rate": rate, **fixed}
            for method, rates in self.plan.published.items()
            for rate in rates
        ]
        names = ("model_utility", FORGOTTEN, RETAINED)
        shown = {name: value for name in names if (value := known.scores.value(name)) is not None}
        suite = {"suite": "tofu", "split": self.split, "data": str(self.data)}
        never = str(self.out / "never-scores" / "results.json")
        return StudySettings.of(
            {
                "name": f"TOFU {self.split}, a part",
                "base": {**suite, **self.plan.shared, "model": str(target), "trackers": ""},
                "list": [*map(dict, self.plan.ours), *published],
                "evaluate": {**suite, **self.plan.asked, "never_results": never},
                "references": {NEVER: {**shown, **OF_NEVER}},
            }
        )


def details_table(found: Mapping[str, Results]) -> Table:
    """Return the scores of each model by its name."""
    rows = []
    for name, results in found.items():
        own = OF_NEVER if name == NEVER else {}
        rows.append((name, *(own.get(score, results.scores.value(score)) for score in DETAILS)))
    return Table("Scores", ("Model", *map(score_name, DETAILS)), tuple(rows))


def cut_tofu(
    source: Path, folder: Path, *, split: str, forget: int, retain: int, facts: int, learns_facts: bool
) -> Path:
    """Write a part of TOFU in its own format: few rows to forget, those to keep that are scored, few facts."""
    folder.mkdir(parents=True, exist_ok=True)
    of_forget = _lines(source, "forget10_perturbed")[-forget:]
    kept = _lines(source, "retain_perturbed")[:retain]
    real, world = (_lines(source, f"{name}_perturbed")[:facts] for name in ("real_authors", "world_facts"))
    learnt = [*kept, *real, *world] if learns_facts else kept
    files = {
        f"{split}_perturbed": of_forget,
        "retain_perturbed": kept,
        "real_authors_perturbed": real,
        "world_facts_perturbed": world,
        HOLDOUT_OF[split]: _lines(source, HOLDOUT_OF[split])[:forget],
        split: _plain(of_forget),
        RETAIN_OF[split]: _plain(kept),
        "never": _plain(learnt),
        "full": _plain([*of_forget, *learnt]),
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with tofu/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="chat model to begin from; default: new small models")
    parser.add_argument("--split", default="forget10", choices=list(HOLDOUT_OF))
    parser.add_argument("--forget", type=int, help="rows to forget, and as many held out [100; of a checkpoint 40]")
    parser.add_argument("--retain", type=int, help="rows to keep [100; of a checkpoint 40]")
    parser.add_argument(
        "--facts", type=int, help="questions on real authors, and on the world [40; of a checkpoint 10]"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
