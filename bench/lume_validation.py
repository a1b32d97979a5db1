"""Unlearn a small model that knows LUME's validation rows by heart, and score it officially: docs/results.md.

    python -m bench.lume_validation --data DIR --target lume-val-6m --configuration qv --seeds 0 1 2 --out DIR

Each run is a process of its own, through the command line, so that time and peak memory are a user's. What is done is
not done again; the tables are printed in Markdown at the end.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import read_documents, write_rows
from letheon.evaluation.predicting import score_again
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.report.tables import before_after, pick_samples, side_by_side, to_markdown
from letheon.storage.files import write_text

STEADY = ["--delta", "1", "--learning-rate-schedule", "linear", "--max-gradient-norm", "1"]
ALL_LINEAR = [*STEADY, "--learning-rate", "2e-3", "--target-modules", "all-linear", "--beta", "1"]
CONFIGURATIONS: dict[str, list[str]] = {
    # The recipe's adapter and loss (rank and alpha 5 on q_proj and v_proj, gamma 1) with larger steps.
    "qv": [
        *STEADY,
        "--target-modules",
        "q_proj,v_proj",
        "--learning-rate",
        "5e-3",
        "--beta",
        "1",
        "--checkpoint-epochs",
        "2",
    ],
    # Every linear layer. A larger beta lets go of a token sooner: its loss settles nearer to that of unseen text.
    "all-linear": [*ALL_LINEAR, "--checkpoint-epochs", "2"],
    # The state whose forget documents cost most like documents that the attack does not hold either.
    "all-linear-holdout": [*ALL_LINEAR, "--checkpoint-epochs", "1", "--holdout-task", "Task3", "--dial", "none"],
}
COMMON = ["--epochs", "20"]


@dataclass(frozen=True, slots=True)
class Files:
    """The inputs of every run."""

    forget: Path
    retain: Path
    members: Path
    nonmembers: Path
    mmlu: Path
    target: Path
    holdout: Path
    """Documents that neither the target nor the membership score's non-members hold."""


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="lume-val-6m-general")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, default="all-linear")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mmlu-limit", type=int, help="questions of each MMLU subject; all by default")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    files = prepare(given.data, given.target, given.out)
    before = evaluate(files, files.target, given.out / given.target / "before", mmlu_limit=given.mmlu_limit)
    runs = []
    for seed in given.seeds:
        run = given.out / given.target / given.configuration / f"seed-{seed}"
        unlearn(files, run, configuration=given.configuration, seed=seed)
        evaluate(files, run / "model", run / "evaluation" / "after", mmlu_limit=given.mmlu_limit)
        runs.append(run)
    show(runs, before)


def prepare(data: Path, target: str, out: Path) -> Files:
    """Write the validation rows as files of their own."""
    lume = read_lume(data / "lume", "validation")
    write_rows(lume.forget, out / "forget.jsonl")
    write_rows(lume.retain, out / "retain.jsonl")
    documents = data / "semeval" / "mia" / "validation"
    holdout = _documents(data / "semeval" / "mia" / "nonmember.jsonl", but=documents / "nonmember.jsonl")
    write_text(out / "holdout.jsonl", "".join(json.dumps({"document": text}) + "\n" for text in holdout))
    return Files(
        forget=out / "forget.jsonl",
        retain=out / "retain.jsonl",
        members=documents / "member.jsonl",
        nonmembers=documents / "nonmember.jsonl",
        mmlu=data / "mmlu",
        target=data / "targets" / target,
        holdout=out / "holdout.jsonl",
    )


def _documents(path: Path, *, but: Path) -> list[str]:
    excluded = set(read_documents(but))
    return [document for document in read_documents(path) if document not in excluded]


def unlearn(files: Files, run: Path, *, configuration: str, seed: int) -> None:
    """Unlearn with one seed, unless that was done."""
    if (run / "model").exists():
        return
    rows = ["--forget", files.forget, "--retain", files.retain]
    if configuration.endswith("holdout"):
        rows += ["--holdout", files.holdout]
    settings = [*COMMON, *CONFIGURATIONS[configuration], "--seed", seed]
    _letheon("unlearn", "--no-evaluate", "--model", files.target, *rows, *settings, "--out", run)


def evaluate(files: Files, model: Path, out: Path, *, mmlu_limit: int | None) -> Path:
    """Score a model officially, unless that was done."""
    if not (out / "results.json").exists():
        rows = ["--forget", files.forget, "--retain", files.retain]
        documents = ["--members", files.members, "--nonmembers", files.nonmembers]
        mmlu = ["--mmlu", files.mmlu, *(["--mmlu-limit", mmlu_limit] if mmlu_limit else [])]
        _letheon("evaluate", "--model", model, *rows, *documents, *mmlu, "--out", out)
    return out


def show(runs: list[Path], before: Path) -> None:
    """Print the table over seeds, the scores before and after of the first seed, and sample rows."""
    after = [read_results(run / "evaluation" / "after" / "results.json") for run in runs]
    print(
        "| seed | task aggregate | MIA AUC | MIA score | lowest retain score | unlearning s | peak MiB | kept epoch |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for run, results in zip(runs, after, strict=True):
        facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["result"]
        cells = (
            run.name.removeprefix("seed-"), *_numbers(LumeResults.of(results)), f"{facts['duration_s']:.0f}",
            f"{facts['peak_memory_bytes'] / 2**20:.0f}", f"{facts['kept']['epoch']:g}",
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    spread = [
        _mean_and_deviation(values)
        for values in zip(*(_values(LumeResults.of(results)) for results in after), strict=True)
    ]
    print("| mean ± sample std | " + " | ".join(spread) + " | | | |")
    print()
    print(to_markdown(before_after(read_results(before / "results.json"), after[0])))
    predictions = [score_again(folder / "predictions.jsonl") for folder in (before, runs[0] / "evaluation" / "after")]
    ids = pick_samples(*predictions, num_per_split=5)
    print(to_markdown(side_by_side(*predictions, ids=ids, max_characters=200)))


def _values(results: LumeResults) -> tuple[float, ...]:
    retained = [value for name, value in results.task_terms.items() if name.startswith("retain")]
    assert results.task_aggregate is not None
    assert results.mia is not None
    return results.task_aggregate, results.mia.auc, results.mia.score, min(retained)


def _numbers(results: LumeResults) -> list[str]:
    return [f"{value:.3f}" for value in _values(results)]


def _mean_and_deviation(values: Iterable[float]) -> str:
    found = list(values)
    return f"{fmean(found):.3f} ± {stdev(found):.3f}" if len(found) > 1 else f"{found[0]:.3f}"


def _letheon(*arguments: object) -> None:
    command = [sys.executable, "-m", "letheon", *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
