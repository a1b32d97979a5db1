"""Every method on targets for which no setting was chosen, at equal cost, alone and held in place: docs/results.md.

    python -m bench.goal --data DIR --out DIR [--also NAME MODEL ROWS FORM] [--methods NAME ...] [--variants alone held]

"Ours" is the command without settings; it finds form, learning rate and end. Every other method has its settings of
bench.methods, the learning rate that won there on lume-val-6m-general, and trains on as many tokens of the rows as the
first run of ours did on rows, refusals and general text together. All run twice: alone, and with general text held in
place and the dial set by documents that no model saw. `MADE` is made here, of LUME's TRAIN rows, with its never-knew
model; `--also` adds a model with a folder of forget.jsonl, retain.jsonl, members.jsonl, nonmembers.jsonl and
holdout.jsonl. Each stage is a process of its own whose result is kept. Writes DIR/goal.json and prints the tables in
Markdown.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.documents import unseen_documents, write_documents
from bench.methods import flags, tokens_of_run, tuned_values, unlearn_command
from bench.real.rows import lume_slice
from bench.stages import Cost, Made, StageError, Stages
from letheon.data.benchmarks.lume import SplitName, read_lume
from letheon.data.rows import Row, hash_rows, read_rows, write_rows
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.objective.catalogue import METHODS
from letheon.report.tables import Table, to_markdown
from letheon.scores.numbers import membership_score
from letheon.storage.files import write_json
from letheon.storage.fingerprints import hash_checkpoint

MADE: dict[str, Any] = {
    "architecture": "gpt2", "width": 128, "num-layers": 3, "vocab-size": 4000, "learning-rate": 3e-3,
    "text-every": 3, "target-accuracy": 0.995,
}  # fmt: skip
"""Settings of the target that is made here."""
NUM_DOCUMENTS, NUM_OTHERS = 34, 26
"""Rows of each side that it learns: whole documents, and rows of all kinds."""
OURS = {"ours": {}, "ours, no refusals": {"instead": "none"}}
"""Settings beside which there are none."""
VARIANTS = ("alone", "held")
"""How each is run: as it is, or with general text held in place and the dial."""
TEXT_TOKENS, MAX_NEW_TOKENS = 16384, 128
GOAL_AGGREGATE, GOAL_TEXT = 0.95, 0.3


@dataclass(frozen=True, slots=True)
class Target:
    """A model, the rows that it knows, and one that never knew those to forget."""

    name: str
    model: Path
    rows: Path
    form: str
    never: Path | None = None

    def file(self, name: str) -> Path:
        """Return the path of rows or documents."""
        return self.rows / f"{name}.jsonl"

    @property
    def inputs(self) -> dict[str, Any]:
        """What every run is given."""
        files = {side: str(self.file(side)) for side in ("forget", "retain")}
        return {"model": str(self.model), **files, "template": self.form}


@dataclass(frozen=True, slots=True)
class GoalJob:
    """All runs on one target."""

    target: Target
    data: Path
    out: Path
    seeds: Sequence[int]
    variants: Sequence[str] = VARIANTS

    def lines(self, names: Sequence[str]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
        """Yield the name of each line, how its runs were held, and what was measured of each seed."""
        yield "(before)", "", [self._measured(_as_it_is(self.target.model))]
        if self.target.never is not None:
            yield "(never knew)", "", [self._measured(_as_it_is(self.target.never))]
        for how in self.variants:
            budget = self._budget(how) if set(names) - set(OURS) else 0  # theirs is where they end
            for name in names:
                found = [self._found(name, how, seed, budget) for seed in self.seeds]
                yield name, how, [one for one in found if one]

    def _budget(self, how: str) -> int:
        """Return how many tokens of the rows other methods train on: as many as the first run of ours took in all."""
        return tokens_of_run(self._run("ours", how, self.seeds[0], budget=0).path)

    def _found(self, name: str, how: str, seed: int, budget: int) -> dict[str, Any]:
        """Return what was measured of a run, or nothing where it failed, which is said."""
        try:
            run = self._run(name, how, seed, budget=budget)
            model = Made(run.path / "model", run.key, run.cost)
            return {"cost": asdict(run.cost), "run": _facts(run), **self._measured(model)}
        except StageError as error:
            print(f"{self.target.name}, {name}, {how}, seed {seed}: {error}", file=sys.stderr, flush=True)
            return {}

    def _run(self, name: str, how: str, seed: int, *, budget: int) -> Made:
        values, own_end = self.settings(name, how, seed=seed), name in OURS
        made_from = [str(hash_checkpoint(self.target.model)), self._hashes, values, None if own_end else budget]

        def command(out: Path) -> list[object]:
            inputs = self.target.inputs if not own_end else {**self.target.inputs, "template": "auto"}
            run = unlearn_command(inputs, values, out, budget=None if own_end else budget)
            return [*run, "--cache-dir", self.out / "cache"]

        return self._stages.make("run", made_from, command, resumes=True)

    def settings(self, name: str, how: str, *, seed: int) -> dict[str, Any]:
        """Return the settings of a run, but for model, rows and epochs."""
        documents = {"holdout": self.target.file("holdout"), "holdout_task": "Task3"}
        held = {"general": "auto", **documents, "dial": "membership"}
        if name in OURS:
            return {"seed": seed, **OURS[name], **(held if how == "held" else {})}
        own = tuned_values(name, seed=seed)
        if METHODS[name].settings.get("general") == "holdout":
            return {**own, **documents, "dial": "membership" if how == "held" else "none"}
        if how == "held":
            return {**own, **held}
        return {**own, "general": "none"}

    @property
    def _stages(self) -> Stages:
        return Stages(self.out / self.target.name)

    @property
    def _hashes(self) -> list[str]:
        return [hash_rows(read_rows(self.target.file(side))) for side in ("forget", "retain")]

    def _measured(self, model: Made) -> dict[str, Any]:
        """Return the official scores of a model, how its answers read, and what unseen text costs it."""
        files = {name: self.target.file(name) for name in ("members", "nonmembers")}
        given = {**self.target.inputs, **files, "model": model.path, "max_new_tokens": MAX_NEW_TOKENS}
        scored = self._stages.make(
            "scored", [model.key, self._hashes], lambda out: ["letheon", "evaluate", *flags({**given, "out": out})]
        )
        text = self._stages.make(
            "text",
            [model.key],
            lambda out: [
                *("bench.text", "--model", model.path, "--text", self.data / "text" / "wikitext2-test.txt"),
                *("--tokens", TEXT_TOKENS, "--json", out),
            ],
        )
        loss = json.loads(text.path.read_text(encoding="utf-8"))["loss"]
        return {**_official(scored.path / "results.json"), "text": loss}


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and print a table of each target."""
    given = _parse(arguments)
    write_tuning_inputs(given.data, given.out / "tuning")
    if given.tuning:
        return
    targets = [made_target(given.data, given.out)] if given.made else []
    targets += [Target(name, Path(model), Path(rows), form) for name, model, rows, form in given.also]
    found: dict[str, Any] = {}
    for target in targets:
        lines = list(GoalJob(target, given.data, given.out, given.seeds, given.variants).lines(given.methods))
        found[target.name] = [{"method": name, "how": how, "seeds": seeds} for name, how, seeds in lines]
        write_json(given.out / "goal.json", found)
        print(to_markdown(table(target.name, lines)))


def made_target(data: Path, out: Path) -> Target:
    """Write rows and documents, and make the target and the model that never knew the rows to forget."""
    rows = out / "rows"
    unseen, others = unseen_documents(data)
    _write_inputs(data, "train", rows, nonmembers=unseen, holdout=others)
    stages, text = Stages(out / "models"), data / "text" / "wikitext2-valid.txt"
    knows = _memorised(stages, [rows / "forget.jsonl", rows / "retain.jsonl"], text, MADE)
    learnt = {name: value for name, value in MADE.items() if name != "vocab-size"}
    never = _memorised(stages, [rows / "retain.jsonl"], text, {**learnt, "seed": 1}, tokenizer=knows)
    return Target("gpt2-general", knows.path, rows, "joined", never.path)


def write_tuning_inputs(data: Path, folder: Path) -> None:
    """Write what bench/studies/held.yaml reads of the tuning target: no document of the final attack is among it."""
    others = unseen_documents(data)[1]
    _write_inputs(data, "validation", folder, nonmembers=others[1::2], holdout=others[::2])


def _write_inputs(
    data: Path, split: SplitName, folder: Path, *, nonmembers: Sequence[str], holdout: Sequence[str]
) -> None:
    lume = read_lume(data / "lume", split)
    forget = _slice(lume.forget)
    for side, rows in (("forget", forget), ("retain", _slice(lume.retain))):
        write_rows(rows, folder / f"{side}.jsonl")
    members = [f"{row.prompt} {row.answer}" for row in forget if _is_document(row)]
    for name, texts in (("members", members), ("nonmembers", nonmembers), ("holdout", holdout)):
        write_documents(texts, folder / f"{name}.jsonl")


def _slice(rows: Sequence[Row]) -> list[Row]:
    documents = [row for row in rows if _is_document(row)][:NUM_DOCUMENTS]
    return [*documents, *lume_slice([row for row in rows if not _is_document(row)], NUM_OTHERS)]


def _is_document(row: Row) -> bool:
    return (row.task, row.kind) == ("Task3", "completion")


def _memorised(
    stages: Stages, files: Sequence[Path], text: Path, settings: Mapping[str, Any], *, tokenizer: Made | None = None
) -> Made:
    words = [] if tokenizer is None else ["--tokenizer", tokenizer.path]
    return stages.make(
        "memorised",
        [[hash_rows(read_rows(file)) for file in files], settings, tokenizer and tokenizer.key],
        lambda out: [
            *("letheon", "memorize", "--template", "joined", "--rows", *files, "--text", text),
            *(*flags(settings), *words, "--out", out),
        ],
    )


def _as_it_is(model: Path) -> Made:
    return Made(model, str(hash_checkpoint(model)), Cost(0.0, 0.0, 0))


def _facts(run: Made) -> dict[str, Any]:
    """Return what a run says of itself."""
    result = json.loads((run.path / "provenance.json").read_text(encoding="utf-8"))["result"]
    names = ("num_steps", "num_tokens", "duration_s", "reason")
    dial = result.get("dial") or {}
    return {**{name: result.get(name) for name in names}, "kept": result["kept"], "scale": dial.get("scale", 1.0)}


def _official(path: Path) -> dict[str, Any]:
    """Return the official scores of a model, asked in the form that it knows, and how its answers read."""
    results = read_results(path)
    lume, scores = LumeResults.of(results), results.scores
    retained = [value for name, value in lume.task_terms.items() if name.startswith("retain")]
    assert lume.mia is not None
    return {
        "aggregate": lume.task_aggregate,
        "auc": lume.mia.auc,
        "auc_interval": list(lume.mia.auc_interval),
        "membership": membership_score(lume.mia.auc),
        "least_retained": min(retained),
        "forget_repeats": scores.value("fluency.forget.degenerate"),
        "retain_repeats": scores.value("fluency.retain.degenerate"),
    }


COLUMNS: tuple[tuple[str, tuple[str, ...], str, float], ...] = (
    ("task aggregate", ("aggregate",), "{:.3f}", 1),
    ("lowest retain score", ("least_retained",), "{:.3f}", 1),
    ("AUC", ("auc",), "{:.3f}", 1),
    ("MIA score", ("membership",), "{:.3f}", 1),
    ("unseen text, nats", ("text",), "{:.3f}", 1),
    ("forget answers that repeat themselves", ("forget_repeats",), "{:.2f}", 1),
    ("scale", ("run", "scale"), "{:.2f}", 1),
    ("1,000 tokens", ("run", "num_tokens"), "{:.0f}", 1e3),
    ("CPU s", ("cost", "process_s"), "{:.0f}", 1),
    ("MiB", ("cost", "peak_bytes"), "{:.0f}", 2**20),
)
"""Heading, where the number is, its form and its unit."""


def table(name: str, lines: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> Table:
    """Return a row for each method and way of running it: mean and sample standard deviation over seeds."""
    before = next((seeds[0] for method, _, seeds in lines if method == "(before)"), None)
    never = next((seeds[0] for method, _, seeds in lines if method == "(never knew)"), None)
    rows = tuple(
        (method, how, *(_cell(seeds, *column[1:]) for column in COLUMNS), ", ".join(reached(seeds, before, never)))
        for method, how, seeds in lines
    )
    return Table(name, ("method", "run", *(heading for heading, *_ in COLUMNS), "goals reached"), rows)


def reached(
    seeds: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None, never: Mapping[str, Any] | None
) -> list[str]:
    """Return which goals the means over seeds reach.

    Task aggregate: at least 0.95. Membership: the AUC is in the interval of the model that never knew the rows. Unseen
    text: at most 0.3 nats a token above the model before. Fluent: forget answers repeat themselves no more than retain
    answers.
    """
    if not seeds or before is None:
        return []
    mean = {name: fmean(one[name] for one in seeds) for name in ("aggregate", "auc", "text")}
    repeats = {side: fmean(one[f"{side}_repeats"] or 0.0 for one in seeds) for side in ("forget", "retain")}
    found = {
        "aggregate": mean["aggregate"] >= GOAL_AGGREGATE,
        "membership": never is not None and never["auc_interval"][0] <= mean["auc"] <= never["auc_interval"][1],
        "text": mean["text"] <= before["text"] + GOAL_TEXT,
        "fluent": repeats["forget"] <= repeats["retain"],
    }
    return [name for name, is_reached in found.items() if is_reached]


def _cell(seeds: Sequence[Mapping[str, Any]], place: Sequence[str], form: str, unit: float) -> str:
    values = [value for value in (_number(one, place) for one in seeds) if value is not None]
    if not values:
        return ""
    shown = form.format(fmean(values) / unit)
    return f"{shown} ± {form.format(stdev(values) / unit)}" if len(values) > 1 else shown


def _number(found: Mapping[str, Any], place: Sequence[str]) -> float | None:
    value: Any = found
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--also", nargs=4, metavar=("NAME", "MODEL", "ROWS", "FORM"), action="append", default=[])
    parser.add_argument("--tuning", action="store_true", help="only write the rows of the study that tunes ours")
    parser.add_argument("--no-made", dest="made", action="store_false", help="leave out the target that is made here")
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *METHODS], default=[*OURS, *METHODS])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
