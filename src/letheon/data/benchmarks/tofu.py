"""TOFU (Maini et al., arXiv 2401.06121): its splits, with paraphrased and wrong answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from letheon.data.records import Record, check_text, open_records
from letheon.data.rows import Row, Rows
from letheon.errors import DataError, nearest

NAME = "tofu"
HUB_REPOSITORY = "locuslab/TOFU"

RETAIN_OF: Mapping[str, str] = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT_OF: Mapping[str, str] = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
DEFAULT_SPLIT = "forget10"
NUM_FORGET: Mapping[str, int] = {"forget01": 40, "forget05": 200, "forget10": 400}
"""Rows of each split; those of the smaller ones are the last of forget10."""

FILES: Mapping[str, int] = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain99": 3960,
    "retain95": 3800,
    "retain90": 3600,
    "holdout01": 40,
    "holdout05": 200,
    "holdout10": 400,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "retain_perturbed": 400,
    "real_authors": 100,
    "real_authors_perturbed": 100,
    "world_facts": 117,
    "world_facts_perturbed": 117,
}
"""Rows of each file of the published data set."""
SUFFIXES = (".jsonl", ".json", ".parquet")
"""Endings under which a file of the data set is looked for."""


@dataclass(frozen=True, slots=True)
class TofuSet:
    """One set of questions, each with its answer and, by the same place, a paraphrase and wrong answers."""

    rows: Rows
    paraphrases: tuple[str, ...] = ()
    """The answers in other words; empty for a set without them."""
    wrong: tuple[tuple[str, ...], ...] = ()
    """Wrong answers of the same form; empty for a set without them."""


@dataclass(frozen=True, slots=True)
class Tofu:
    """What one split is scored on."""

    forget: TofuSet
    retain: TofuSet
    real_authors: TofuSet
    world_facts: TofuSet
    holdout: TofuSet | None
    """Questions of authors that no model was trained on; None where the folder has none."""


def read_tofu(folder: str | Path, split: str = DEFAULT_SPLIT) -> Tofu:
    """Read what a split of TOFU is scored on.

    These are {split}_perturbed, retain_perturbed, real_authors_perturbed and world_facts_perturbed, and
    holdout{01,05,10} if it is there, each .jsonl, .json or .parquet. Where only forget10_perturbed is there, the split
    is its last 40 or 200 rows, as published. Rows are named "row1", "row2", ...

    Raises:
        DataError: there is no such split, a file is missing, or a row of it is not usable.
    """
    folder = Path(folder)
    check_split(split)
    holdout = find_file(folder, HOLDOUT_OF[split])
    return Tofu(
        forget=_forget(folder, split),
        retain=read_set(folder, "retain_perturbed"),
        real_authors=read_set(folder, "real_authors_perturbed"),
        world_facts=read_set(folder, "world_facts_perturbed"),
        holdout=None if holdout is None else read_set(folder, HOLDOUT_OF[split]),
    )


def read_set(folder: Path, name: str) -> TofuSet:
    """Read one file of the data set, by its name without ending.

    Raises:
        DataError: it is missing, or a row of it is not usable.
    """
    path = the_file(folder, name)
    records = open_records(path)
    rows: list[Row] = []
    lines: list[int] = []
    paraphrases: list[str] = []
    wrong: list[tuple[str, ...]] = []
    for number, record in records.entries:
        where = records.where(number)
        question, answer = (check_text(record.get(name), name, where) for name in ("question", "answer"))
        rows.append(Row(f"row{len(rows) + 1}", question, answer, "default", "question"))
        lines.append(number)
        if "paraphrased_answer" in record:
            paraphrases.append(check_text(record["paraphrased_answer"], "paraphrased_answer", where))
        if "perturbed_answer" in record:
            wrong.append(_wrong_answers(record, where))
    if not rows:
        raise DataError(f"{path}: expected rows with question and answer, found none: the file is empty")
    for column, found in (("paraphrased_answer", paraphrases), ("perturbed_answer", wrong)):
        if found and len(found) != len(rows):
            raise DataError(f"{path}: expected '{column}' in every row or in none, found it in {len(found)}")
    understood = f"{len(rows)} rows: question/answer"
    return TofuSet(
        Rows(str(path), tuple(rows), tuple(lines), records.unit, ids_given=False, understood=understood),
        tuple(paraphrases),
        tuple(wrong),
    )


def check_split(split: str) -> None:
    """Refuse the name of a split that TOFU does not have.

    Raises:
        DataError: saying which there are.
    """
    if split not in RETAIN_OF:
        raise DataError(f"split: expected one of {', '.join(RETAIN_OF)}, got '{split}'{nearest(split, RETAIN_OF)}")


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of the data set with this name and one of the endings; None where there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def the_file(folder: Path, name: str) -> Path:
    """Return the file of the data set with this name.

    Raises:
        DataError: there is none.
    """
    path = find_file(folder, name)
    if path is None:
        there = ", ".join(sorted(p.stem for p in folder.iterdir())[:10]) if folder.is_dir() else "no folder"
        raise DataError(
            f"{folder}: expected TOFU's file {name}.jsonl, found {there or 'nothing'}; `letheon data tofu --to DIR` "
            "downloads it"
        )
    return path


def _forget(folder: Path, split: str) -> TofuSet:
    if find_file(folder, f"{split}_perturbed") is not None:
        return read_set(folder, f"{split}_perturbed")
    whole = read_set(folder, "forget10_perturbed")
    return _last(whole, NUM_FORGET[split])


def _last(whole: TofuSet, num_rows: int) -> TofuSet:
    """Return the last rows of a set, named anew from row1, as those of a file of their own."""
    first = max(0, len(whole.rows) - num_rows)
    chosen = whole.rows.select(range(first, len(whole.rows)))
    rows = tuple(Row(f"row{n}", row.prompt, row.answer, row.task, row.kind) for n, row in enumerate(chosen, 1))
    named = Rows(chosen.source, rows, chosen.lines, chosen.unit, ids_given=False, understood=chosen.understood)
    return TofuSet(named, whole.paraphrases[first:], whole.wrong[first:])


def _wrong_answers(record: Record, where: str) -> tuple[str, ...]:
    found = record["perturbed_answer"]
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise DataError(f"{where}: expected a list of wrong answers in 'perturbed_answer', got {type(found).__name__}")
    return tuple(check_text(text, "perturbed_answer", where) for text in found)
