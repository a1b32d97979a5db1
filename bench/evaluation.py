"""Official scoring: one row at a time as the official script does it, against batches, early ends and guesses.

    python -m bench.evaluation --data DIR [--target NAME] [--rows N] [--json FILE]

Rows are LUME's validation rows, spread evenly over forget and retain. `--target` is a folder of DIR/targets, whose
model knows the rows, or 50m: random weights, which know nothing and hardly ever end an answer. Each way is timed in
turn, ours before and after the official one, in this one process on one thread, by process time; that all scores are
equal is checked. MMLU is asked one whole prompt at a time, and in batches on top of each subject's shared part.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bench.machine import describe_machine, prepare_process, timed
from bench.shapes import SHAPES, make_model
from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import Row
from letheon.evaluation.generation import Generation, generate
from letheon.evaluation.metrics.mmlu import Subject, read_mmlu, score_mmlu
from letheon.evaluation.predicting import predict
from letheon.evaluation.suites.lume.official import TaskAggregate, score_predictions
from letheon.evaluation.suites.lume.results import SplitName
from letheon.model.loading import load_model
from letheon.report.tables import Table, to_markdown
from letheon.scores.predictions import Prediction
from letheon.storage.files import write_json

RANDOM = "50m"
SUBJECTS = ("astronomy", "high_school_us_history", "moral_disputes")
OFFICIAL = "one row at a time"
CPU = torch.device("cpu")

Labelled = Sequence[tuple[SplitName, Row]]


@dataclass(frozen=True, slots=True)
class Way:
    """How rows are generated; what is off is as in the official script."""

    is_exact: bool = False
    ends_early: bool = False
    guesses: bool = False


WAYS = {
    OFFICIAL: Way(is_exact=True),
    "batches": Way(),
    "batches, early ends": Way(ends_early=True),
    "batches, early ends, guesses (evaluate)": Way(ends_early=True, guesses=True),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One way's time and what it differs in."""

    way: str
    num_runs: int
    process_s: float
    """Mean over the runs."""
    ratio: float
    """How many times faster than the official way."""
    num_cut: int | None = None
    """Generations that ended early; None for MMLU, which generates nothing."""
    num_other_texts: int | None = None
    """Whole generations whose text is not the official one: two tokens were equally likely to rounding."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model to score."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with lume/, mmlu/, targets/ and tokenizers/")
    parser.add_argument("--target", default="lume-val-6m", help=f"a folder of targets/, or {RANDOM}")
    parser.add_argument("--rows", type=int, help="how many of the 532 validation rows; all by default")
    parser.add_argument("--mmlu-limit", type=int, default=20, help="questions of each subject")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prepare_process(threads=1)
    target = load(given.data, given.target)
    rows = pick(given.data, given.rows)
    generations = measure_generation(target, rows, batch_size=given.batch_size)
    subjects = [s for s in read_mmlu(given.data / "mmlu", limit_per_subject=given.mmlu_limit) if s.name in SUBJECTS]
    mmlu = measure_mmlu(target, subjects, batch_size=given.batch_size)
    num_questions = sum(row.kind == "question" for _, row in rows)
    print(f"{target.name}: {len(rows)} rows, {num_questions} of them questions; all scores are equal\n")
    print(to_markdown(as_table("Generation", generations)))
    print(to_markdown(as_table("MMLU", mmlu)))
    if given.json is not None:
        found = {
            "target": target.name, "num_rows": len(rows), "num_questions": num_questions,
            "batch_size": given.batch_size, "generation": [asdict(m) for m in generations],
            "mmlu": [asdict(m) for m in mmlu],
        }  # fmt: skip
        write_json(given.json, {"machine": describe_machine(CPU), "evaluation": found})


def load(data: Path, name: str) -> Target:
    """Return a target by name."""
    if name != RANDOM:
        loaded = load_model(str(data / "targets" / name), device="cpu")
        return Target(name, loaded.model, loaded.tokenizer)
    model = make_model(SHAPES[RANDOM], dtype=torch.float32, device=CPU)
    file = data / "tokenizers" / "olmo-0724.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")
    return Target(f"{name}, random weights", model, tokenizer)


def pick(data: Path, num_rows: int | None) -> Labelled:
    """Return `num_rows` validation rows, evenly spread over those of each kind and split."""
    lume = read_lume(data / "lume", "validation")
    labelled: list[tuple[SplitName, Row]] = [
        *(("forget", row) for row in lume.forget), *(("retain", row) for row in lume.retain),
    ]  # fmt: skip
    ordered = sorted(labelled, key=lambda item: (item[0], item[1].kind))
    count = min(num_rows or len(ordered), len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def measure_generation(target: Target, rows: Labelled, *, batch_size: int) -> list[Measured]:
    """Time every way, ours before and after the official one; check that no score differs."""
    ours = [name for name in WAYS if name != OFFICIAL]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, list[Generation]] = {}
    run(target, rows[:2], WAYS[OFFICIAL], batch_size=batch_size)  # whatever happens only the first time
    for name in (*ours, OFFICIAL, *ours):
        timing, found[name] = timed(partial(run, target, rows, WAYS[name], batch_size=batch_size), CPU)
        seconds[name].append(timing.process_s)
    expected = official_scores(rows, found[OFFICIAL])
    for name in ours:
        scores = official_scores(rows, found[name])
        assert scores == expected, f"{name}: {scores} is not {expected}"
    return [measured(name, seconds, found) for name in WAYS]


def run(target: Target, rows: Labelled, way: Way, *, batch_size: int) -> list[Generation]:
    """Generate for `rows`."""
    return generate(
        target.model,
        target.tokenizer,
        [row.prompt for _, row in rows],
        to_match=[row.answer if row.kind == "question" and way.ends_early else None for _, row in rows],
        guesses=[row.answer for _, row in rows] if way.guesses else None,
        exact=way.is_exact,
        batch_size=batch_size,
    )


def official_scores(rows: Labelled, generations: Sequence[Generation]) -> tuple[TaskAggregate, list[float]]:
    """Return all means, and the score that counts of each row."""
    predictions = [
        predict(row, split, found.text, is_cut=found.is_cut)
        for (split, row), found in zip(rows, generations, strict=True)
    ]
    return score_predictions(predictions), [counting_score(prediction) for prediction in predictions]


def counting_score(prediction: Prediction) -> float:
    """Return a question's exact match, a completion's ROUGE-L recall."""
    return prediction.exact_match if prediction.kind == "question" else prediction.rouge_l_recall


def measured(name: str, seconds: Mapping[str, list[float]], found: Mapping[str, list[Generation]]) -> Measured:
    """Return one way's line."""
    pairs = list(zip(found[name], found[OFFICIAL], strict=True))
    return replace(
        compared(name, seconds),
        num_cut=sum(ours.is_cut for ours, _ in pairs),
        num_other_texts=sum(not ours.is_cut and ours.text != official.text for ours, official in pairs),
    )


def compared(name: str, seconds: Mapping[str, list[float]]) -> Measured:
    """Return one way's time beside the official one's."""
    mean = fmean(seconds[name])
    return Measured(name, num_runs=len(seconds[name]), process_s=mean, ratio=fmean(seconds[OFFICIAL]) / mean)


def measure_mmlu(target: Target, subjects: Sequence[Subject], *, batch_size: int) -> list[Measured]:
    """Time one whole prompt at a time, and batches after each subject's shared part; check the accuracies."""
    ours = "batches, shared part once (evaluate)"
    seconds: dict[str, list[float]] = {OFFICIAL: [], ours: []}
    found = {}
    for name in (ours, OFFICIAL, ours):
        ask = partial(
            score_mmlu, target.model, target.tokenizer, subjects, batch_size=batch_size, exact=name == OFFICIAL
        )
        timing, found[name] = timed(ask, CPU)
        seconds[name].append(timing.process_s)
    assert found[ours] == found[OFFICIAL], f"{found[ours]} is not {found[OFFICIAL]}"
    return [compared(name, seconds) for name in seconds]


def as_table(title: str, lines: Sequence[Measured]) -> Table:
    """Return the table that is printed."""
    columns = ("way", "runs", "process s", "times faster", "cut", "other texts")
    cells = tuple(
        (line.way, line.num_runs, f"{line.process_s:.2f}", f"{line.ratio:.2f}", line.num_cut, line.num_other_texts)
        for line in lines
    )
    return Table(title, columns, cells)


if __name__ == "__main__":
    main()
