"""TOFU (Maini et al., arXiv 2401.06121): its splits, with paraphrased and wrong answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from letheon.data.benchmarks.columns import text_in
from letheon.data.benchmarks.downloading import Download, download_from_hub
from letheon.data.records import Record, check_text, open_records
from letheon.data.rows import Row, Rows
from letheon.errors import DataError, nearest
from letheon.settings.suites import SuiteFiles

NAME = "tofu"
HUB_REPOSITORY = "locuslab/TOFU"

RETAIN_OF: Mapping[str, str] = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT_OF: Mapping[str, str] = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
DEFAULT_SPLIT = "forget10"
OWN_ROWS = SuiteFiles(
    {split: (split, RETAIN_OF[split]) for split in ("forget10", "forget05", "forget01")},
    whole="full",
    holdout=HOLDOUT_OF,
)
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
ROWS_SHA256: Mapping[str, str] = {
    "full": "70b2e64cbed7421002573dcc8cbe2c5a40440138212d3f0738fffca435f5efb0",
    "forget01": "ce1b90c87c83fb9f4e1b336eb1321acee7ab873084b01539a4c879266b8d0080",
    "forget05": "800c37e9cf9848ec124f6b14d6cedfa27236069ecd20c28ff12ba2d82844d396",
    "forget10": "cbd2e39199b68ec8354821af35c886a8536e57a93708a69de8ff554018f30481",
    "retain99": "ddcd30cf789d6629112ce7cd12126bb78c6588c3ab7e4882bc5aa26f0d6a60dc",
    "retain95": "f50d3ec9c5421c695111dfa2cae8f969beb5e23b1f98a8ac39de3a5a421a67e7",
    "retain90": "32d66c09c48268eac28b090cea8376c1e593e695938a451ddaf200853f716537",
    "holdout01": "d922d485d0a87737f60843d0669c93de6bd626fd59d81eaa7fb8505dda59f6b5",
    "holdout05": "bd5c64f09efcf984bfb350eea5f01368ea19be7d2f0a153ee59f0b2f79ded631",
    "holdout10": "68ed8918a626b226f58a5c0ec04a23b5b02dd64b00125c1c27a323ad00ac4b46",
    "forget01_perturbed": "d7aac148d75a8c21af170f59b95ba1d39988851c585f96ef5c189c5845862c2b",
    "forget05_perturbed": "1e9a5c36c3ef27cc043afd1ff1a4d0f078733a88e3ad948444bd6977aeffed26",
    "forget10_perturbed": "ac3f8ff7323feef84d99358fa7e8412b13d1375898e96bcf3b54cf4851fd565e",
    "retain_perturbed": "20f21b50f15f0c503396b73552ff1b4748e20ae85f4838e22ab0b406e67c67db",
    "real_authors": "abd5d176b970fe17f3accb782e0497de4bcd42e51ba09c11393674f1672631c0",
    "real_authors_perturbed": "f8c43eeb3607ddb77100ff6b37ef94dfd3a538ae2e4878a1efe18d274d4479b2",
    "world_facts": "ff926313eb5d6079a07936d4a7537121dca9187ef96bc68f59bb48493d496897",
    "world_facts_perturbed": "b6bdaa1dea60dacee839ce88241bc36dcd13bdcf5b9fcd9e50249f1b47df8238",
}
"""Hashes of the rows of the files, as `rows_sha256` makes them."""
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
        question, answer = (text_in(record, name, where) for name in ("question", "answer"))
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


def download_tofu(to: str | Path, *, token: str | None = None, overwrite: bool = False) -> tuple[Path, ...]:
    """Download TOFU from the hub to the folder `to`, with the size and SHA-256 of each file in SOURCE.json.

    Raises:
        DataError: the network is not there, or what came is not TOFU.
        OutputError: an earlier download is there and `overwrite` is not set, or the folder cannot be written to.
    """
    patterns = [f"{name}{suffix}" for name in FILES for suffix in SUFFIXES]
    return download_from_hub(
        HUB_REPOSITORY, to, patterns=patterns, check=check_download, token=token, overwrite=overwrite
    )


def check_download(folder: Path) -> None:
    """Refuse a folder that lacks what the split forget10 is scored on, or a file with another number of rows.

    Raises:
        DataError: naming the file.
    """
    read_tofu(folder)
    for name, num_rows in FILES.items():
        found = len(read_set(folder, name).rows) if find_file(folder, name) is not None else num_rows
        if found != num_rows:
            raise DataError(f"{the_file(folder, name)}: expected {num_rows} rows as published, got {found}")


def changed_files(folder: str | Path) -> tuple[str, ...]:
    """Return which files hold other rows than those whose hashes are known here; files that are missing do not count.

    Scores on other rows cannot be compared with published ones.
    """
    folder = Path(folder)
    return tuple(
        name
        for name, known in ROWS_SHA256.items()
        if find_file(folder, name) is not None and rows_sha256(read_set(folder, name)) != known
    )


def _doubt(folder: Path) -> str | None:
    changed = changed_files(folder)
    if not changed:
        return None
    return (
        f"{', '.join(changed)}: the rows are not those of the release known here; scores on them cannot be compared "
        "with published ones"
    )


def rows_sha256(rows: TofuSet) -> str:
    """Return the sha256 of questions, answers, paraphrases and wrong answers, in order, whatever their file format."""
    digest = hashlib.sha256()
    for index, row in enumerate(rows.rows):
        paraphrase, wrong = rows.paraphrases[index : index + 1], rows.wrong[index : index + 1]
        digest.update(json.dumps([row.prompt, row.answer, paraphrase, wrong]).encode())
    return digest.hexdigest()


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


DOWNLOAD = Download(
    "Download TOFU (MIT) from the Hugging Face hub: all splits, with paraphrased and wrong answers.",
    lambda folder, _: download_tofu(folder),
    doubt=_doubt,
)
"""What `letheon data tofu` does."""
