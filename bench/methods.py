"""Every method on LUME's validation rows, one budget of tokens, a learning rate chosen for each: docs/results.md.

    python -m bench.methods --data DIR --out DIR [--methods NAME ...] [--seeds 0 1 2] [--jobs 2]

Of each method a grid of learning rates is run with the first seed, and the rate kept whose state scores best by the
run's own interim score (recall of the rows, and membership against documents that the official attack does not hold).
Every seed is then scored officially at that rate. Time and memory come from a short run of each method afterwards, one
at a time, so that runs side by side do not slow them. Each run is a process of its own, through the command line; what
is done is not done again. The table is printed in Markdown at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch

from bench.documents import unseen_documents, write_documents
from letheon.data.benchmarks.lume import read_lume
from letheon.data.packing import NUM_PROBE_ROWS, pack
from letheon.data.rows import read_text, write_rows
from letheon.data.sequences import text_sequence
from letheon.engine.paths import build_engine
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.model.loading import load_model
from letheon.objective.catalogue import METHODS, get_method
from letheon.settings import UnlearnSettings
from letheon.storage.files import write_json
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.interim import text_losses
from letheon.unlearning.resolve import build_schedule, resolve_settings

COMMON: dict[str, Any] = {
    "template": "joined",
    "learning_rate_schedule": "linear",
    "max_gradient_norm": 1.0,
    "holdout_task": "Task3",
}
LORA: dict[str, Any] = {"target_modules": "all-linear", "rank": 5, "alpha": 5.0}
RATES = {"lora": (1.5e-3, 4e-3, 1e-2), "weights": (2e-4, 8e-4, 2.5e-3)}
OWN: dict[str, dict[str, Any]] = {
    # The states of this model are an order shorter than those of the 7B models that the published lengths are for.
    "rmu": {"coefficients": {"scale": 6.5, "retain_weight": 12.0}},
    "adaptive-rmu": {"coefficients": {"scale": 5.0, "retain_weight": 12.0}},
    # Four layers: the last two, and the MLPs of the first three.
    # A step of one forget row and its seven retain rows; over rows of both kinds the authors' 0.5 is this 3.5.
    "sugd": {"layers": "-2:", "batch_size": 8, "gamma": 3.5},
    "constrained": {"layers": "0:3"},
    "agad": {"batch_size": 16},
    "low-rank-npo": {"beta": 2.0, "delta": 1.0},
}
"""What of a method's published settings is for other models."""
BEST_RATES = {
    "low-rank-npo": 0.01, "neko": 0.0008, "ga": 0.01, "gd": 0.004, "kl-min": 0.004, "npo": 0.01, "simnpo": 0.01,
    "idk-dpo": 0.01, "alt-po": 0.0015, "rmu": 0.0025, "adaptive-rmu": 0.0025, "undial": 0.004, "wga": 0.01,
    "satimp": 0.0015, "ce-u": 0.004, "pdu": 0.01, "sugd": 0.0025, "agad": 0.01, "npo-ties": 0.01, "constrained": 0.0008,
    "stat": 0.01, "llmu": 0.01, "task-vector": 0.01, "quantile": 0.004,
}  # fmt: skip
"""Those that won on lume-val-6m-general (docs/results.md, "Learning rates of the other methods"); quantile has none."""
TEXT_PIECES, TEXT_TOKENS = 40, 256
TIMED_STEPS = 30


@dataclass(frozen=True, slots=True)
class Files:
    """The inputs of every run."""

    target: Path
    forget: Path
    retain: Path
    members: Path
    nonmembers: Path
    holdout: Path
    """Documents that neither the target nor the membership score's non-members hold."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share."""

    files: Files
    text: Path
    out: Path
    budget: int
    """Tokens that a run trains on."""
    scorings: int


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="lume-val-6m-general")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=float, default=6, help="budget, in passes over all rows")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    files = prepare(given.data, given.target, given.out)
    tokens = num_tokens({**_inputs(files), "method": "low-rank-npo", "template": "joined", "epochs": 1})
    text = given.data / "text" / "wikitext2-valid.txt"
    bench = Bench(files, text, given.out, budget=round(given.passes * tokens), scorings=3)
    with ThreadPoolExecutor(given.jobs) as pool:
        before = evaluate(bench, files.target, given.out / "before")
        list(pool.map(lambda name: one_method(bench, name, given.seeds), given.methods))
    for name in given.methods:
        unlearn_briefly(bench, name)
    print(table(bench, given.methods, given.seeds, before))


def prepare(data: Path, target: str, out: Path) -> Files:
    """Write the validation rows as files of their own, and the documents that no attack holds."""
    lume = read_lume(data / "lume", "validation")
    write_rows(lume.forget, out / "forget.jsonl")
    write_rows(lume.retain, out / "retain.jsonl")
    known = data / "semeval" / "mia" / "validation"
    write_documents(unseen_documents(data)[1], out / "holdout.jsonl")
    return Files(
        target=data / "targets" / target,
        forget=out / "forget.jsonl",
        retain=out / "retain.jsonl",
        members=known / "member.jsonl",
        nonmembers=known / "nonmember.jsonl",
        holdout=out / "holdout.jsonl",
    )


def values_of(name: str, *, seed: int, rate: float) -> dict[str, Any]:
    """Return the settings of a run, but for files and epochs."""
    method = get_method(name)
    own = OWN.get(name, {})
    adapt = str(own.get("adapt", method.settings.get("adapt", "lora")))
    structure = LORA if adapt == "lora" else {}
    return {"method": name, **COMMON, **structure, **own, "seed": seed, "learning_rate": rate}


def tuned_values(name: str, *, seed: int) -> dict[str, Any]:
    """Return the settings of a run on another target, at the rate that won, but for inputs, form and epochs."""
    own = values_of(name, seed=seed, rate=BEST_RATES[name])
    return {key: value for key, value in own.items() if key not in ("template", "holdout_task")}


def rates_of(name: str) -> tuple[float, ...]:
    """Return the learning rates that are tried."""
    return RATES[str(get_method(name).settings.get("adapt", "lora"))]


def num_tokens(values: Mapping[str, Any]) -> int:
    """Return how many tokens of the rows a run trains on, other answers left out."""
    settings = resolve_settings(UnlearnSettings.of({"out": Path("x"), **values}))
    inputs = read_inputs(settings)
    schedule = build_schedule(settings, inputs.forget, inputs.retain)
    lengths = [len(sequence.input_ids) for sequence in inputs.sequences]
    return sum(lengths[row] for step in range(schedule.num_steps) for row in schedule.rows(step))


def tokens_of_run(run: Path) -> int:
    """Return how many tokens a run trained on until it ended: rows, other answers and general text together."""
    found: int = _result(run)["num_tokens"]
    return found


def unlearn_command(
    inputs: Mapping[str, Any], values: Mapping[str, Any], out: Path, *, budget: int | None
) -> list[object]:
    """Return a module and its arguments: a run of as many epochs as train on `budget` tokens of the rows, or the rest.

    Without a budget it finds its own end.
    """
    given = {**inputs, **values, "out": out}
    if budget is not None:
        given["epochs"] = epochs_of(given, budget=budget)
    return ["letheon", "unlearn", "--no-evaluate", *flags(given), *(["--resume"] if out.exists() else [])]


def epochs_of(values: Mapping[str, Any], *, budget: int) -> int:
    """Return how many epochs of a method train on `budget` tokens of the rows, in all of its runs; at least one."""
    one = num_tokens({**values, "epochs": 1})
    return max(1, round(budget / one / len(get_method(values["method"]).runs)))


def _inputs(files: Files) -> dict[str, Any]:
    return {"model": str(files.target), "forget": str(files.forget), "retain": str(files.retain)}


def run_folder(bench: Bench, name: str, *, seed: int, rate: float) -> Path:
    """Return where a run lies."""
    return bench.out / "runs" / name / f"rate-{rate:g}-seed-{seed}"


def unlearn(bench: Bench, name: str, *, seed: int, rate: float) -> Path:
    """Unlearn with one method, seed and rate, unless that was done; a run that diverged leaves failed.json."""
    run = run_folder(bench, name, seed=seed, rate=rate)
    if (run / "provenance.json").exists() or (run / "failed.json").exists():
        return run
    values = {**_inputs(bench.files), **values_of(name, seed=seed, rate=rate)}
    values["holdout"], values["dial"] = bench.files.holdout, "none"
    epochs = epochs_of(values, budget=bench.budget)
    values |= {"epochs": epochs, "checkpoint_epochs": max(1, epochs // bench.scorings), "out": run}
    done = letheon("unlearn", "--no-evaluate", *flags(values))
    if done.returncode:
        write_json(run / "failed.json", {"returncode": done.returncode, "error": done.stderr[-2000:]})
    return run


def unlearn_briefly(bench: Bench, name: str) -> None:
    """Take a few steps with a method, unless that was done; they are what its time and memory are read from."""
    run = bench.out / "timed" / name
    if (run / "provenance.json").exists():
        return
    values = values_of(name, seed=0, rate=rates_of(name)[0])
    del values["holdout_task"]
    values |= {"max_steps": TIMED_STEPS, "checkpoint_epochs": 99, "keep": "last"}
    done = letheon("unlearn", "--no-evaluate", *flags({**_inputs(bench.files), **values, "out": run}))
    if done.returncode:
        raise RuntimeError(done.stderr)


def _cost(run: Path) -> tuple[float, float]:
    """Return the milliseconds a thousand tokens, median over steps, and the peak MiB of a run."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    per_token = median(event["duration_s"] / event["num_tokens"] for event in steps)
    return 1e6 * per_token, _result(run)["peak_memory_bytes"] / 2**20


def flags(values: Mapping[str, Any]) -> Iterator[object]:
    """Yield settings as flags of the command."""
    for name, value in values.items():
        shown = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        yield f"--{name.replace('_', '-')}={shown}"


def one_method(bench: Bench, name: str, seeds: list[int]) -> None:
    """Choose a learning rate with the first seed, and score every seed at it."""
    for rate in rates_of(name):
        unlearn(bench, name, seed=seeds[0], rate=rate)
    for seed in seeds:
        finish(bench, name, seed, first_seed=seeds[0])
    print(f"{name} is done", file=sys.stderr, flush=True)


def best_rate(bench: Bench, name: str, *, seed: int) -> float:
    """Return the learning rate whose kept state scored best by the run itself."""
    scores = {rate: _own_score(run_folder(bench, name, seed=seed, rate=rate)) for rate in rates_of(name)}
    return max(scores, key=lambda rate: scores[rate])


def _own_score(run: Path) -> float:
    if not (run / "provenance.json").exists():
        return float("-inf")
    return float(_result(run)["kept"]["score"])


def _result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["result"]
    return found


def finish(bench: Bench, name: str, seed: int, *, first_seed: int) -> None:
    """Run one seed at the chosen rate, score it officially, and drop its weights."""
    rate = best_rate(bench, name, seed=first_seed)
    run = unlearn(bench, name, seed=seed, rate=rate)
    if (run / "provenance.json").exists():
        evaluate(bench, run / "model", run / "official")


def evaluate(bench: Bench, model: Path, out: Path) -> Path:
    """Score a model officially and on general text, unless that was done."""
    if not (out / "results.json").exists():
        files = bench.files
        rows = ["--forget", files.forget, "--retain", files.retain]
        done = letheon(
            "evaluate", "--model", model, *rows, "--members", files.members, "--nonmembers", files.nonmembers,
            "--max-new-tokens", 128, "--out", out,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
    if not (out / "text.json").exists():
        write_json(out / "text.json", {"loss": text_loss(bench, model)})
    return out


def text_loss(bench: Bench, model: Path) -> float:
    """Return the mean cross-entropy of general text, nats a token."""
    loaded = load_model(str(model))
    pieces = [
        text_sequence(" ".join(document.split()[:TEXT_TOKENS]), loaded.tokenizer, max_length=1024)
        for document in read_text(bench.text)
        if len(document.split()) >= TEXT_TOKENS
    ][:TEXT_PIECES]
    probe = pack(pieces[:NUM_PROBE_ROWS], is_forget=[True] * NUM_PROBE_ROWS, row_index=range(NUM_PROBE_ROWS))
    engine = build_engine(loaded.model, probe, adapter_off=nullcontext)
    return fmean(text_losses(engine, pieces))


def table(bench: Bench, names: list[str], seeds: list[int], before: Path) -> str:
    """Return the table: mean and sample standard deviation over seeds."""
    names_of_columns = (
        "task aggregate | MIA score | mean of both | lowest retain score | general text, nats | "
        "ms per 1,000 tokens | MiB"
    )
    header = f"| method | rate | {names_of_columns} |"
    lines = [header, "|---|---|---|---|---|---|---|---|---|"]
    first = read_results(before / "results.json")
    text = json.loads((before / "text.json").read_text())["loss"]
    task, mia, both, retained = _official(LumeResults.of(first))
    lines.append(f"| (before) | | {task:.3f} | {mia:.3f} | {both:.3f} | {retained:.3f} | {text:.2f} | | |")
    for name in names:
        rate = best_rate(bench, name, seed=seeds[0])
        runs = [run_folder(bench, name, seed=seed, rate=rate) for seed in seeds]
        whole = [run for run in runs if (run / "official" / "text.json").exists()]
        if not whole:
            lines.append(f"| {name} | | diverged at every rate | | | | | | |")
            continue
        columns = zip(
            *(_official(LumeResults.of(read_results(run / "official" / "results.json"))) for run in whole), strict=True
        )
        texts = [json.loads((run / "official" / "text.json").read_text())["loss"] for run in whole]
        milliseconds, peak = _cost(bench.out / "timed" / name)
        cells = [_spread(column) for column in (*columns, texts)]
        missing = f" ({len(runs) - len(whole)} of {len(runs)} diverged)" if len(whole) < len(runs) else ""
        lines.append(f"| {name}{missing} | {rate:g} | {' | '.join(cells)} | {milliseconds:.0f} | {peak:.0f} |")
    return "\n".join(lines)


def _official(results: LumeResults) -> tuple[float, float, float, float]:
    assert results.task_aggregate is not None
    assert results.mia is not None
    retained = min(value for name, value in results.task_terms.items() if name.startswith("retain"))
    return results.task_aggregate, results.mia.score, (results.task_aggregate + results.mia.score) / 2, retained


def _spread(values: Iterable[float]) -> str:
    found = list(values)
    return f"{fmean(found):.3f} ± {stdev(found):.3f}" if len(found) > 1 else f"{found[0]:.3f}"


def letheon(*arguments: object, program: Sequence[str] = ("letheon",)) -> subprocess.CompletedProcess[str]:
    """Run the command line on one thread; `program` is a module, with arguments, that ends up in it."""
    command = [sys.executable, "-m", *program, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
