"""What docs/reliability.md states, measured: kills survived, and what large inputs and shared stores cost.

    python -m bench.reliability [--kills N] [--rows N] [--json FILE]

Short runs of a tiny random model are killed by SIGKILL at places spread evenly over every call that changes the disk
and over every piece of every step, resumed, and compared with the run that was not. Rows are made up and read in a
process of its own, so that its peak memory is that of reading. Two minutes or so; works where processes can be forked.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe_machine, peak_bytes_of, run_module
from letheon.data.rows import Row, read_rows, write_rows
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.loading import save_model
from letheon.report.tables import Table, to_markdown
from letheon.settings import UnlearnSettings
from letheon.storage.files import write_json
from letheon.unlearning.reading import plan
from letheon.unlearning.run import unlearn

NUM_RUNS = 4
LONG_ROW = 100_000
CONTEXT = 2**15
NUM_PLANNED = 10_000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="kills of each kind and schedule")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large file")
    parser.add_argument("--json", type=Path, help="where to write the values")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.read is not None:
        print(json.dumps(_read(given.read)))
        return
    if given.plan is not None:
        print(json.dumps(_plan(given.plan)))
        return
    with tempfile.TemporaryDirectory(prefix="letheon-") as scratch:
        folder = Path(scratch)
        values = {**_kills(folder, given.kills), **_store(folder), **_large(folder, given.rows)}
    table = Table("Reliability", ("what", "found"), tuple((name, str(value)) for name, value in values.items()))
    print(to_markdown(table))
    if given.json is not None:
        write_json(given.json, {**describe_machine(torch.device("cpu")), "values": values})


def short_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run of nine steps of a tiny model, its files made in `folder`."""
    rows = made_up_rows(6)
    tokenizer = train_tokenizer([f"{row.prompt} {row.answer}" for row in rows], vocab_size=400)
    model = new_model("olmo", tokenizer=tokenizer, width=32, num_layers=2, num_heads=4, context=CONTEXT, seed=0)
    save_model(model, tokenizer, folder / "target")
    write_rows(rows[:3], folder / "forget.jsonl")
    write_rows(rows[3:], folder / "retain.jsonl")
    return {
        "model": str(folder / "target"),
        "forget": str(folder / "forget.jsonl"),
        "retain": str(folder / "retain.jsonl"),
        "out": folder / "run",
        "cache_dir": folder / "cache",
        **{"epochs": 3, "batch_size": 2, "checkpoint_epochs": 1, "learning_rate": 1e-2},
        **{"template": "joined", "trackers": "", "lora_dropout": 0.2},
    }


def made_up_rows(number: int, *, name: str = "row") -> list[Row]:
    """Return rows of about 25 words."""
    return [
        Row(
            f"{name}{index}",
            f"What is the name of person number {index} of the {name} list?",
            f"It is Mira Tolland, the {index}th of Harrow, where the river bends twice.",
            "Task1",
            "question",
        )
        for index in range(number)
    ]


def _kills(folder: Path, wanted: int) -> dict[str, str]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from killing import PIECES, WRITES, count_calls, outcome_of_kill

    schedules = ("mixed", "paired", "alternating", "chunked", "annealed")
    tried, different = 0, list[str]()
    for schedule in schedules:
        given = {**short_run(folder), "schedule": schedule}
        given |= {"chunk_size": 2} if schedule in ("chunked", "annealed") else {}
        for places in (PIECES, WRITES):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            number = count_calls(given, places)
            whole = Path(shutil.move(given["out"], folder / "whole"))
            for at in sorted({1 + round(i * (number - 1) / max(1, wanted - 1)) for i in range(wanted)}):
                found = outcome_of_kill(given, whole, places, at=at, power_cut=True)
                tried += 1
                different += [f"{schedule}, {places[0]} {at}: {found}"] if found else []
            shutil.rmtree(whole)
            shutil.rmtree(given["out"])
    return {
        f"kills and power cuts, {', '.join(schedules)}, dropout on": str(tried),
        "of these, resumed runs that differ from the whole one": "; ".join(different) or "0",
    }


def _store(folder: Path) -> dict[str, str]:
    from letheon.engine.reference import build_reference

    given = {**short_run(folder), "cache_dir": folder / "shared"}
    built, build = folder / "built", build_reference

    def marked(*args: Any, **kwargs: Any) -> Any:
        built.mkdir(exist_ok=True)
        (built / str(os.getpid())).touch()
        return build(*args, **kwargs)

    runs = [{**given, "out": folder / f"run-{number}"} for number in range(NUM_RUNS)]
    children = [_forked(partial(_run_with, marked, run)) for run in runs]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    finished = sum((run["out"] / "model" / "model.safetensors").is_file() for run in runs)
    assert codes == [0] * NUM_RUNS, f"a run failed: {codes}"
    return {
        f"of {NUM_RUNS} runs at once on one store, finished": str(finished),
        "how often the store was built": str(len(list(built.iterdir()))),
    }


def _forked(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def _run_with(build: Callable[..., Any], given: dict[str, Any]) -> None:
    from letheon.engine import reference_cache

    setattr(reference_cache, "build_reference", build)  # noqa: B010 - it is no public name there
    unlearn(UnlearnSettings.of(given))


def _large(folder: Path, num_rows: int) -> dict[str, str]:
    path = folder / "large.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in made_up_rows(num_rows):
            file.write(json.dumps({"id": row.id, "input": row.prompt, "output": row.answer, "task": row.task}) + "\n")
    read = json.loads(run_module("bench.reliability", "--read", str(path)))
    size = path.stat().st_size
    planned = json.loads(run_module("bench.reliability", "--plan", str(folder)))
    return {
        f"reading {num_rows:,} rows ({size / 2**20:.0f} MiB)": f"{read['seconds']:.1f} s",
        "memory that takes": "unknown" if read["bytes"] is None else f"{read['bytes'] / 2**20:.0f} MiB",
        f"--plan of {NUM_PLANNED:,} forget and as many retain rows": f"{planned['seconds']:.1f} s",
        f"--plan with a row of {LONG_ROW:,} characters": f"{planned['long_seconds']:.1f} s",
    }


def _read(path: Path) -> dict[str, float | None]:
    seconds = 0.0

    def read() -> None:
        nonlocal seconds
        seconds = _timed(lambda: read_rows(path, note=lambda message: print(message, file=sys.stderr)))

    taken = peak_bytes_of(read, torch.device("cpu"))
    return {"bytes": taken, "seconds": seconds}


def _plan(folder: Path) -> dict[str, float]:
    given = short_run(folder)
    write_rows(made_up_rows(NUM_PLANNED, name="forget"), folder / "forget.jsonl")
    write_rows(made_up_rows(NUM_PLANNED, name="retain"), folder / "retain.jsonl")
    seconds = _timed(lambda: plan(UnlearnSettings.of(given)))
    long = [Row("long", "What does it say?", "river " * (LONG_ROW // 6), "Task1", "completion")]
    write_rows([*long, *made_up_rows(2, name="forget")], folder / "forget.jsonl")
    write_rows(made_up_rows(3, name="retain"), folder / "retain.jsonl")
    whole = {**given, "max_length": CONTEXT}
    return {"seconds": seconds, "long_seconds": _timed(lambda: plan(UnlearnSettings.of(whole)))}


def _timed(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


if __name__ == "__main__":
    main()
