"""Every method under attack: official scores beside what an audit brings back (docs/audits.md).

    python -m bench.audits --data DIR --out DIR [--methods NAME ... | --variants] [--targets NAME ...] [--attacks ...]

Each method forgets a sample of LUME's rows that the target knows, is scored officially and audited. Settings are those
of the command, but for at most `EPOCHS` epochs; `OWN` has those of methods that do not find a good learning rate,
`VARIANTS` what else is tried by name, `STEPS` which of that takes other training steps. Placebo rows are LUME's own
that are in no public split and that no target saw. The targets of `MADE` are made here: a small model that learns the
rows, and another that learns those to keep alone and is the never-knew control. Each run is a process of its own on one
thread; what is done is not done again. The tables are printed in Markdown at the end, of all runs that are there.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.documents import write_documents
from bench.methods import OWN as PUBLISHED
from bench.methods import flags, letheon
from letheon.auditing.rows import document_of, sample
from letheon.data.benchmarks.lume import SplitName, read_lume
from letheon.data.rows import Row, write_rows
from letheon.evaluation.registry import read_results
from letheon.objective.catalogue import METHODS
from letheon.report.tables import Table, to_markdown
from letheon.scores.audits import AuditResults, read_audit
from letheon.storage.files import write_json


@dataclass(frozen=True, slots=True)
class Made:
    """A small target that is made here, with its never-knew control."""

    split: SplitName
    """Where the rows are from that it learns a sample of."""
    seed: int
    """Draws the rows that no model saw."""
    template: str
    vocab_size: int
    model: tuple[str, ...]
    """Further settings of `letheon memorize`."""


MADE = {
    "made-2-layers": Made("validation", 0, "joined", 2000, ("--width=128", "--num-layers=2", "--lr=3e-3")),
    "gpt2-train": Made("train", 1, "question-answer", 3000, ("--width=128", "--num-layers=2", "--architecture=gpt2")),
}
"""They differ in architecture, tokenizer, rows and the form of the rows."""
TARGETS = (*MADE, "lume-val-6m-general")
ATTACKS = (
    "membership",
    "recognisability",
    "extraction-strength",
    "quantisation",
    "sampling",
    "prompts",
    "relearning-part-lora",
)
"""One of each kind; --attacks takes others."""
EPOCHS = 12
OWN: dict[str, dict[str, Any]] = {
    "sugd": {"learning_rate": 2.5e-3, "layers": "-2:", "batch_size": 8, "gamma": 3.5},
    "agad": {"learning_rate": 1e-2, "batch_size": 16},
    "npo-ties": {"learning_rate": 1e-2},
    "task-vector": {"learning_rate": 1e-2},
    "idk-dpo": {"learning_rate": 1e-2, "learning_rate_schedule": "linear"},
    "rmu": {**PUBLISHED["rmu"], "learning_rate": 2.5e-3, "epochs": 2 * EPOCHS},
    "adaptive-rmu": {**PUBLISHED["adaptive-rmu"], "learning_rate": 2.5e-3, "epochs": 2 * EPOCHS},
}
"""Methods that take a fixed learning rate, or to which the automatic one leaves most of the rows: the rate that won in
bench.methods. At that rate RMU is still forgetting after `EPOCHS` epochs."""
VARIANTS: dict[str, dict[str, Any]] = {
    "24 epochs": {"epochs": 24},
    "rank 64": {"rank": 64, "alpha": 64},
    "all weights": {"adapt": "weights"},
    "first layer": {"layers": "0:1"},
    "last layer": {"layers": "-1:"},
    "sharpness-aware": {},
    "noisy gradients": {},
    "noisy states": {},
    "less noisy states, 24 epochs": {"epochs": 24},
    "adversarial states": {},
    "adversarial states, 24 epochs": {"epochs": 24},
    "more adversarial states": {},
}
"""What may help against relearning and rounding, beside the settings of low-rank NPO."""
STEPS = {
    "sharpness-aware": "sharpness=0.1",
    "noisy gradients": "noisy-gradients=1",
    "noisy states": "noisy-states=0.5",
    "less noisy states, 24 epochs": "noisy-states=0.2",
    "adversarial states": "adversarial-states=0.1",
    "adversarial states, 24 epochs": "adversarial-states=0.1",
    "more adversarial states": "adversarial-states=0.3",
}
"""The training step of some variants, as bench.changed_steps has it."""
COLUMNS = {
    "audit.extraction-strength": "extraction",
    "audit.quantisation": "rounding",
    "audit.sampling": "sampling",
    "audit.prompts": "prompts",
    "audit.relearning-part-lora": "relearning, part",
    "audit.membership.loss": "AUC, loss",
}
"""Scores of an audit that are columns."""
FOR_VARIANTS = {
    name: COLUMNS[name] for name in ("audit.quantisation", "audit.relearning-part-lora", "audit.membership.loss")
}
"""Those of them that are columns of variants."""
RETAINED = tuple(f"retain.Task{number}.{kind}" for number in (1, 2, 3) for kind in ("regurgitation", "knowledge"))
"""Official scores of the rows to keep."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all runs on one target share."""

    target: Path
    rows: Path
    """Folder with forget.jsonl, retain.jsonl, holdout.jsonl for audits and unseen.jsonl for methods."""
    out: Path
    attacks: tuple[str, ...]
    num_rows: int
    template: str = "joined"
    never: Path | None = None

    @property
    def shared(self) -> Path:
        """Outcomes of attacks on the models that all audits of a target share."""
        return self.out / "outcomes.json"


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(MADE))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *VARIANTS], default=list(METHODS))
    parser.add_argument("--variants", action="store_true", help="low-rank NPO and its variants, in place of --methods")
    parser.add_argument("--rows", type=int, default=60, help="rows to forget, as many to keep")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for target in given.targets:
        inputs = prepare(given.data, target, given.out, num_rows=given.rows, attacks=given.attacks)
        for name in ("low-rank-npo", *VARIANTS) if given.variants else given.methods:
            one_method(inputs, name)
            print(f"{target}, {name}: {verdict_of(inputs.out / name)}", file=sys.stderr, flush=True)
        for table in (methods_table(inputs), variants_table(inputs)):
            if table.rows:
                print(f"{to_markdown(table)}\n")


def prepare(data: Path, target: str, out: Path, *, num_rows: int, attacks: Sequence[str]) -> Inputs:
    """Write the rows of all runs: a sample of those that the target knows, and others that it never saw."""
    own = MADE.get(target)
    split, seed = (own.split, own.seed) if own else ("validation", 0)
    folder = out / f"rows-{split}-{num_rows}"
    known = read_lume(data / "lume", split)
    write_rows(sample(list(known.forget), num_rows, seed=0), folder / "forget.jsonl")
    write_rows(sample(list(known.retain), num_rows, seed=0), folder / "retain.jsonl")
    unseen = sample(unseen_rows(data), 5 * num_rows, seed=seed)
    write_rows(unseen[: 4 * num_rows], folder / "holdout.jsonl")
    write_documents((f"{row.prompt} {row.answer}" for row in unseen[4 * num_rows :]), folder / "unseen.jsonl")
    if own is None:
        return Inputs(data / "targets" / target, folder, out / target, tuple(attacks), num_rows)
    knows = memorized(own, [folder / "forget.jsonl", folder / "retain.jsonl"], out / f"{target}-knows")
    never = memorized(own, [folder / "retain.jsonl"], out / f"{target}-never", tokenizer=knows)
    return Inputs(knows, folder, out / target, tuple(attacks), num_rows, own.template, never)


def memorized(made: Made, files: Sequence[Path], folder: Path, *, tokenizer: Path | None = None) -> Path:
    """Make a small model that learns all rows of the files, unless that was done.

    One that takes the tokenizer of another begins with other weights.
    """
    if not (folder / "config.json").exists():
        rows = [part for file in files for part in ("--rows", file)]
        words = ["--vocab-size", made.vocab_size] if tokenizer is None else ["--tokenizer", tokenizer]
        seed = 0 if tokenizer is None else 1
        model = [*made.model, *words, "--template", made.template, "--seed", seed]
        done = letheon("memorize", *rows, *model, "--out", folder)
        if done.returncode:
            raise RuntimeError(done.stderr)
    return folder


def unseen_rows(data: Path) -> list[Row]:
    """Return the rows of LUME whose documents are in none of the public splits."""
    splits = {name: read_lume(data / "lume", name) for name in ("train", "validation", "all")}
    public = {document_of(row) for name in ("train", "validation") for row in _both(splits[name])}
    return [row for row in _both(splits["all"]) if document_of(row) not in public]


def _both(splits: Any) -> Iterator[Row]:
    yield from splits.forget
    yield from splits.retain


def one_method(inputs: Inputs, name: str) -> None:
    """Unlearn, score and audit with one method, unless that was done; a run that fails leaves failed.json."""
    run = inputs.out / name
    if (run / "failed.json").exists() or (run / "audit" / "results.json").exists():
        return
    if not (run / "evaluation" / "after" / "results.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        rows = ["--forget", inputs.rows / "forget.jsonl", "--retain", inputs.rows / "retain.jsonl"]
        settings = settings_of(name, template=inputs.template, unseen=inputs.rows / "unseen.jsonl")
        program = ("bench.changed_steps", STEPS[name]) if name in STEPS else ("letheon",)
        done = letheon("unlearn", "--model", inputs.target, *rows, *flags(settings), "--out", run, program=program)
        if done.returncode:
            write_json(run / "failed.json", {"error": done.stderr[-2000:]})
            return
    if inputs.shared.exists() and not (run / "audit").exists():
        (run / "audit").mkdir()
        shutil.copy(inputs.shared, run / "audit" / "outcomes.json")
    controls = ["--holdout", inputs.rows / "holdout.jsonl", "--rows", inputs.num_rows]
    controls += [] if inputs.never is None else ["--never", inputs.never]
    done = letheon("audit", run, *controls, "--attacks", ",".join(inputs.attacks))
    if done.returncode:
        write_json(run / "failed.json", {"error": done.stderr[-2000:]})
    elif not inputs.shared.exists():
        shutil.copy(run / "audit" / "outcomes.json", inputs.shared)


def settings_of(name: str, *, template: str, unseen: Path) -> dict[str, Any]:
    """Return the settings of a run, but for model and rows; `unseen` are documents that no target saw."""
    own = VARIANTS[name] if name in VARIANTS else OWN.get(name) or PUBLISHED.get(name, {})
    method = "low-rank-npo" if name in VARIANTS else name
    needs_unseen = name in METHODS and METHODS[name].settings.get("general") == "holdout"
    documents = {"holdout": unseen, "dial": "none"} if needs_unseen else {"general": "none"}
    return {"method": method, "template": template, "epochs": EPOCHS, **documents, **own}


def verdict_of(run: Path) -> str:
    """Return what the audit of a run came to."""
    if (run / "failed.json").exists():
        failure: dict[str, str] = json.loads((run / "failed.json").read_text(encoding="utf-8"))
        return f"failed: {failure['error'].strip()[-300:]}"
    found = _audit(run)
    return f"{found.verdict}: {found.reason}"


def methods_table(inputs: Inputs) -> Table:
    """Return a line for each method that was audited on a target."""
    runs = {name: inputs.out / name for name in METHODS if _is_audited(inputs.out / name)}
    rows = [(name, *_official(run), *audited_cells(_audit(run), COLUMNS)) for name, run in runs.items()]
    columns = ("method", "task aggregate", "lowest retain score", *_headings(runs.values(), COLUMNS))
    return Table(inputs.target.name, columns, tuple(rows))


def variants_table(inputs: Inputs) -> Table:
    """Return a line for low-rank NPO and each of its variants that was audited on a target."""
    runs = {name: inputs.out / name for name in ("low-rank-npo", *VARIANTS) if _is_audited(inputs.out / name)}
    rows = [(name, *_kept(run), *audited_cells(_audit(run), FOR_VARIANTS)) for name, run in runs.items()]
    columns = ("variant", "forget match", "retain recall", *_headings(runs.values(), FOR_VARIANTS))
    return Table(inputs.target.name, columns, tuple(rows) if len(rows) > 1 else ())


def _headings(runs: Iterable[Path], columns: Mapping[str, str]) -> tuple[str, ...]:
    """The headings of `audited_cells`; that of the AUC tells the never-knew model's."""
    aucs = [
        one.auc["never"]
        for run in runs
        for attack in _audit(run).attacks
        for one in attack.separations
        if one.score == "loss" and "never" in one.auc
    ]
    never = f" (never knew: {aucs[0]:.2f})" if aucs else ""
    shown = (f"{label}{never}" if label.startswith("AUC") else label for label in columns.values())
    return ("given without an attack", *shown, "verdict")


def _is_audited(run: Path) -> bool:
    return (run / "audit" / "results.json").exists()


def _kept(run: Path) -> tuple[str, str]:
    """What the kept state scored during the run: forget answers' tokens that match, recall of the rows to keep."""
    kept = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["result"]["kept"]
    return f"{kept['forget_match']:.2f}", f"{kept['retain_recall']:.2f}"


def _official(run: Path) -> tuple[str, str]:
    """The official task aggregate and the lowest retain score, asked in the form in which the target knows the rows."""
    scores = read_results(run / "evaluation" / "after" / "results.json").scores
    aggregate = scores.value("task_aggregate_in_form")
    retained = [value for name in RETAINED if (value := scores.value(f"{name}_in_form")) is not None]
    return "" if aggregate is None else f"{aggregate:.2f}", f"{min(retained):.2f}" if retained else ""


def audited_cells(found: AuditResults, columns: Iterable[str]) -> tuple[str, ...]:
    """Return what an audit found: what is given without an attack, some scores, the verdict with its attack."""
    given = _cell(found, "audit.remaining")
    word = found.verdict if found.attack is None else f"{found.verdict}, {found.attack}"
    return (given, *(_cell(found, name) for name in columns), word)


def _audit(run: Path) -> AuditResults:
    return read_audit(run / "audit" / "results.json")


def _cell(found: AuditResults, name: str) -> str:
    """A value with its interval; a recovery that could not be told is empty."""
    if name == "audit.remaining":
        return f"{found.remaining.value:.2f} ({found.remaining.low:.2f} to {found.remaining.high:.2f})"
    score = found.scores.get(name)
    if score is None or score.value is None or score.interval is None:
        return ""
    return f"{score.value:.2f} ({score.interval[0]:.2f} to {score.interval[1]:.2f})"


if __name__ == "__main__":
    main()
