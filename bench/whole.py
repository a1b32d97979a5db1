"""Time whole runs: the command `letheon unlearn` against the authors' step for as many epochs, on the same rows.

    python -m bench.whole --model DIR --forget FILE --retain FILE --template chat --epochs 4 --pairs 3 --threads 1 2

Each run is a process of its own; the two alternate, each first in half of the pairs. Both load the model, train
low-rank NPO in float32 with the same adapter, batches and learning rate, and save. Ours does more beside its steps,
however few these are: it fills the reference store, scores the model before and after, and asks for all answers once to
see which repeat themselves. No time is printed unless the losses of their steps agree.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.machine import default_device, describe_machine, spread
from bench.stages import Cost, StageError, run_process
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json

LARGEST_DIFFERENCE = 0.005
"""Of the losses of a step, as a share of the plain one. Sums in another order drift apart over steps."""
SHARED = ("--template", "{template}", "--target-modules", "all-linear", "--rank", "16", "--learning-rate", "1e-4")
OURS = ("--method", "low-rank-npo", "--alpha", "16", "--dtype", "float32", "--keep", "last", "--general", "none",
        "--instead", "none", "--end-of-sequence", "none", "--no-evaluate")  # fmt: skip
COLUMNS = ("threads", "pairs", "epochs", "plain, wall s", "ours, wall s", "its steps, s", "speed-up",
           "ratio of CPU time", "plain, MiB", "ours, MiB", "largest difference of a loss")  # fmt: skip


class DifferentRunsError(RuntimeError):
    """The two commands did not train the same, so their times say nothing."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same training by both commands."""

    plain: Cost
    ours: Cost
    steps_s: float
    """What the steps of ours took of its wall time."""
    difference: float
    """Largest relative difference of the losses of a step."""


def main(arguments: list[str] | None = None) -> None:
    """Run the pairs and print a line for each number of threads."""
    given = _parse(arguments)
    found: dict[int, list[Pair]] = {}
    try:
        for threads in given.threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            found[threads] = [pair(given, ours_first=number % 2 == 1) for number in range(given.pairs)]
    except (DifferentRunsError, StageError) as error:
        sys.exit(f"bench.whole: {error}")
    lines = tuple(line_of(threads, given.epochs, pairs) for threads, pairs in found.items())
    print(to_markdown(Table("Whole runs", COLUMNS, lines)))
    if given.json is not None:
        runs = {str(threads): [asdict(one) for one in pairs] for threads, pairs in found.items()}
        write_json(given.json, {"machine": describe_machine(default_device()), "epochs": given.epochs, "runs": runs})


def pair(given: argparse.Namespace, *, ours_first: bool) -> Pair:
    """Train twice, once by each command.

    Raises:
        DifferentRunsError: the losses of their steps differ.
        StageError: one of the commands failed.
    """
    files = ("--model", given.model, "--forget", given.forget, "--retain", given.retain)
    shared = (*files, *(part.format(template=given.template) for part in SHARED), "--epochs", given.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = ("bench.real.plain", *shared, "--out", folder / "plain")
        ours = ("letheon", "unlearn", *shared, *OURS, "--checkpoint-epochs", given.epochs,
                "--cache-dir", folder / "cache", "--out", folder / "ours")  # fmt: skip
        commands = {"plain": plain, "ours": ours}
        costs = {}
        for which in ("ours", "plain") if ours_first else ("plain", "ours"):
            costs[which] = _cost(commands[which], folder / f"{which}.log")
        printed = re.findall(r"^step \d+: loss (\S+)$", (folder / "plain.log").read_text(encoding="utf-8"), re.M)
        events = [json.loads(line) for line in (folder / "ours" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [event for event in events if event["event"] == "step"]
    difference = largest_difference([*map(float, printed)], [step["loss"] for step in steps])
    return Pair(costs["plain"], costs["ours"], sum(step["duration_s"] for step in steps), difference)


def largest_difference(plain: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest relative difference of the losses of a step.

    Raises:
        DifferentRunsError: it is above LARGEST_DIFFERENCE, or one run has more steps than the other.
    """
    if len(plain) != len(ours) or not plain:
        raise DifferentRunsError(
            f"expected as many steps of both runs, got {len(plain)} plain ones and {len(ours)} of ours"
        )
    differences = [abs(one - other) / abs(one) for one, other in zip(plain, ours, strict=True)]
    worst = max(range(len(plain)), key=differences.__getitem__)
    if not differences[worst] <= LARGEST_DIFFERENCE:
        losses = f"{plain[worst]:.4g} plainly, {ours[worst]:.4g} by ours"
        raise DifferentRunsError(f"expected the same losses, got at step {worst + 1} {losses}")
    return differences[worst]


def line_of(threads: int, epochs: int, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the line of a number of threads: medians, and of the speed-up also lowest and highest."""
    plain, ours = ([getattr(one, name) for one in pairs] for name in ("plain", "ours"))
    ratios = [one.plain.wall_s / one.ours.wall_s for one in pairs]
    cpu = [one.plain.process_s / one.ours.process_s for one in pairs]
    walls = (f"{spread([cost.wall_s for cost in costs]).median:.1f}" for costs in (plain, ours))
    steps = spread([one.steps_s for one in pairs]).median
    peaks = (f"{spread([cost.peak_bytes for cost in costs]).median / 2**20:,.0f}" for costs in (plain, ours))
    return (
        *(str(threads), str(len(pairs)), str(epochs), *walls, f"{steps:.1f}"),
        f"{spread(ratios).median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{spread(cpu).median:.2f}",
        *peaks, f"{max(one.difference for one in pairs):.1e}",
    )  # fmt: skip


def _cost(command: Sequence[object], log: Path) -> Cost:
    try:
        return run_process(command, log=log)
    except StageError:
        sys.stderr.write(log.read_text(encoding="utf-8"))  # the folder goes
        raise


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.whole", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--forget", type=Path, required=True)
    parser.add_argument("--retain", type=Path, required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
