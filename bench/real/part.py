"""One part of `bench.real`: a target, the models that are made of it, and their scores, each by a stage of its own."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.audits import COLUMNS, audited_cells
from bench.methods import tokens_of_run, tuned_values, unlearn_command
from bench.real.inputs import PartFiles, World
from bench.real.plan import Plan, Settings
from bench.real.table import AUDITED, OTHER_SEED
from bench.stages import Cost, Made, StageError, Stages, fingerprint_of
from letheon.data.rows import hash_rows, read_rows
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.scores.audits import read_audit
from letheon.scores.numbers import membership_score
from letheon.storage.fingerprints import hash_checkpoint


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
        for name, settings in self._variants().items():
            ours = self._ours(target, settings)
            model = replace(ours, path=ours.path / "model")
            yield name, {**_how(settings, ours), **self._measured(model, target), **self._attacked(model, target)}
        if "plain" not in self.skipped:
            plain = self._plain(target)
            yield (
                "the authors' step",
                {**_how(self.plan.plain, plain), **self._measured(plain, target), **self._attacked(plain, target)},
            )
        budget = self._budget(target) if self.plan.methods else 0
        for name in self.plan.methods:
            settings = {**tuned_values(name, seed=self.plan.seeds[0]), "general": "none"}
            try:
                made = self._method(target, settings, budget=budget)
            except StageError as error:  # a diverged run is no reason to leave out the others
                print(f"{self.part}, {name}: {error}", file=sys.stderr, flush=True)
                continue
            yield name, {**_how(settings, made), **self._measured(replace(made, path=made.path / "model"), target)}

    def _variants(self) -> dict[str, Settings]:
        """Return the name and the settings of each run of ours."""
        first, *others = self.plan.seeds
        found = {"ours": _seeded(self.plan.ours, first)}
        found |= {f"{OTHER_SEED}{seed}": _seeded(self.plan.ours, seed) for seed in others}
        no_refusals = {**_seeded(self.plan.ours, first), "instead": "none"}
        return found if "no-refusals" in self.skipped else {**found, "ours, no refusals": no_refusals}

    def _budget(self, target: Made) -> int:
        """Return how many tokens of the rows other methods train on."""
        return self.plan.tokens or tokens_of_run(self._ours(target, _seeded(self.plan.ours, self.plan.seeds[0])).path)

    def _inputs(self, target: Made) -> dict[str, Any]:
        files = {side: str(getattr(self.files, side)) for side in ("forget", "retain")}
        return {"model": str(target.path), **files, "template": self.files.template}

    def _method(self, target: Made, settings: Settings, *, budget: int) -> Made:
        return self._stages.make(
            "method",
            [target.key, self._rows, settings, budget],
            lambda out: unlearn_command(self._inputs(target), settings, out, budget=budget),
            resumes=True,
        )

    @property
    def _stages(self) -> Stages:
        return Stages(self.out / self.part)

    @property
    def _rows(self) -> list[str]:
        return [hash_rows(read_rows(path)) for path in (self.files.forget, self.files.retain)]

    @property
    def _sides(self) -> list[object]:
        return ["--forget", self.files.forget, "--retain", self.files.retain]

    @property
    def _row_flags(self) -> list[object]:
        return [*self._sides, "--template", self.files.template]

    def _memorised(self, checkpoint: Made) -> Made:
        """Return the checkpoint after it has learnt the rows, rounded to the dtype that it had on disk."""
        settings = self.plan.memorize
        learnt = self._stages.make(
            "target",
            [checkpoint.key, self._rows, settings],
            lambda out: [
                *("letheon", "memorize", "--model", checkpoint.path, "--template", self.files.template),
                *("--rows", self.files.forget, self.files.retain, "--text", self.world.text),
                *_flags(settings), "--out", out,
            ],
        )  # fmt: skip
        stored = self._stages.make(
            "stored",
            [learnt.key],
            lambda out: ["bench.real.stored", "--model", learnt.path, "--like", checkpoint.path, "--out", out],
        )
        return replace(stored, cost=learnt.cost)

    def _ours(self, target: Made, settings: Settings) -> Made:
        files = self.files
        holdout = ["--holdout", files.holdout, "--holdout-task", files.holdout_task] if files.holdout else []
        return self._stages.make(
            "ours",
            [target.key, self._rows, settings, bool(holdout)],
            lambda out: [
                *("letheon", "unlearn", "--no-evaluate", "--model", target.path, *self._sides, *holdout),
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
                *("bench.real.plain", "--model", target.path, *self._row_flags, *_flags(settings), "--out", out)
            ],
        )

    def _measured(self, model: Made, before: Made) -> dict[str, Any]:
        """Return the scores of a model; `before` says how fluent its answers are."""
        asked = self._asked(model, before)
        found = {**json.loads(asked.path.read_text(encoding="utf-8")), "asking_cost": asdict(asked.cost)}
        found["chat"] = self._chatted(model, before)
        if "mmlu" not in self.skipped:
            mmlu = self._mmlu(model)
            found |= {"mmlu": json.loads(mmlu.path.read_text(encoding="utf-8")), "mmlu_cost": asdict(mmlu.cost)}
        if self.files.members is not None and "official" not in self.skipped:
            official = self._official(model)
            found["official"] = _official_numbers(official.path / "results.json", found.get("mmlu"))
            found["official_cost"] = asdict(official.cost)
        return found

    def _chatted(self, model: Made, before: Made) -> dict[str, Any]:
        """Return the answers to everyday questions, and how many that were right `before` are wrong, or the reverse."""
        now, then = (json.loads(self._chat(one, before).path.read_text(encoding="utf-8")) for one in (model, before))
        pairs = zip(*([answer["is_right"] for answer in asked["answers"]] for asked in (now, then)), strict=True)
        changes = Counter(pairs)
        return {**now, "num_lost": changes[False, True], "num_won": changes[True, False]}

    def _attacked(self, model: Made, before: Made) -> dict[str, Any]:
        """Return what an audit of an unlearned model found, where there are placebo rows for it."""
        if self.files.placebos is None or "audit" in self.skipped:
            return {}
        audit = self._audit(model, before, self.files.placebos)
        found = read_audit(audit.path / "audit" / "results.json")
        cells = dict(zip(AUDITED, audited_cells(found, COLUMNS), strict=True))
        return {"audit": {**cells, "reason": found.reason}, "audit_cost": asdict(audit.cost)}

    def _audit(self, model: Made, before: Made, placebos: Path) -> Made:
        settings = self.plan.audit
        made_from = [before.key, self._rows, hash_rows(read_rows(placebos)), settings]
        shared = self.out / self.part / f"outcomes-{fingerprint_of(made_from)}.json"

        def command(out: Path) -> list[object]:
            # What attacks found on the model before and on the one that hides holds for all audits.
            if shared.exists() and not (out / "audit").exists():
                (out / "audit").mkdir(parents=True)
                shutil.copy(shared, out / "audit")
            return [
                *("letheon", "audit", "--model", model.path, "--before", before.path, *self._row_flags),
                *("--holdout", placebos, *_flags(settings), "--out", out),
            ]

        audit = self._stages.make("audit", [model.key, *made_from], command, resumes=True)
        if not shared.exists():
            shutil.copy(audit.path / "audit" / "outcomes.json", shared)
        return audit

    def _asked(self, model: Made, before: Made) -> Made:
        settings = self.plan.ask
        return self._stages.make(
            "asked",
            [model.key, before.key, self._rows, settings],
            lambda out: [
                *("bench.real.ask", "--model", model.path, "--before", before.path, *self._row_flags),
                *("--text", self.world.unseen_text, *_flags(settings), "--json", out),
            ],
        )

    def _chat(self, model: Made, before: Made) -> Made:
        settings = self.plan.chat
        return self._stages.make(
            "chat",
            [model.key, before.key, settings],
            lambda out: [
                *("bench.real.chat", "--model", model.path, "--before", before.path, *_flags(settings), "--json", out),
            ],
        )

    def _mmlu(self, model: Made) -> Made:
        settings = self.plan.mmlu
        return Stages(self.out / "mmlu").make(
            "mmlu",
            [model.key, settings],
            lambda out: [
                *("bench.real.mmlu", "--model", model.path, "--mmlu", self.world.mmlu),
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


def _seeded(settings: Settings, seed: int) -> Settings:
    """Return settings with a seed, which is left out where it is that of the command without one."""
    return {**settings, "seed": seed} if seed else settings


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


def _flags(settings: Settings) -> list[object]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
