"""RWKU (Jin et al., arXiv 2406.10890): what a model knows of famous people, asked directly and by way of attacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from letheon.data.benchmarks.columns import text_in
from letheon.data.benchmarks.downloading import Download, download_from_hub
from letheon.data.records import Record, check_text, open_records
from letheon.data.rows import Row, Rows
from letheon.errors import DataError, nearest
from letheon.settings.suites import SuiteFiles

HUB_REPOSITORY = "jinzhuoran/RWKU"
OWN_ROWS = SuiteFiles({})
FORGET_CLOZE, FORGET_QUESTIONS, FORGET_ATTACKS = "forget_cloze", "forget_questions", "forget_attacks"
NEIGHBOUR_CLOZE, NEIGHBOUR_QUESTIONS, FLUENCY = "neighbour_cloze", "neighbour_questions", "fluency"
FORGET_SETS = (FORGET_CLOZE, FORGET_QUESTIONS, FORGET_ATTACKS)
FILES: Mapping[str, str] = {
    FORGET_CLOZE: "forget_level1",
    FORGET_QUESTIONS: "forget_level2",
    FORGET_ATTACKS: "forget_level3",
    NEIGHBOUR_CLOZE: "neighbor_level1",
    NEIGHBOUR_QUESTIONS: "neighbor_level2",
    FLUENCY: "fluency",
}
"""The published file of each set; neighbours are people and things close to the person to forget."""
NUM_FORGET: Mapping[str, int] = {FORGET_CLOZE: 3268, FORGET_QUESTIONS: 2879, FORGET_ATTACKS: 6984}
NUM_NEIGHBOURS = 11379
"""Published probes of neighbours, both sets together."""
PLAIN = "default"
"""The type of a probe whose file names none."""
ANY = "(any answer)"
"""The answer to an instruction without one; answers to instructions are compared with nothing."""
_SUFFIXES = ("json", "jsonl", "parquet")


@dataclass(frozen=True, slots=True)
class _Probe:
    row: Row
    line: int
    subject: str


def read_rwku(folder: str | Path, subject: str | None = None) -> dict[str, Rows]:
    """Read the sets that are there, from FOLDER/All or FOLDER itself, in the published layout.

    These are forget_level1 to 3 and neighbor_level1 and 2 (columns query, answer, subject, of forget_level3 also type)
    and fluency (instruction, output), each NAME.json, NAME.jsonl or NAME.parquet. The task of a row is its type. With a
    `subject` there are only the probes about this person; those of fluency are about nobody, and stay.

    Raises:
        DataError: there is no file with probes to forget, a row is not usable, or no probe is about the subject.
    """
    root = root_of(folder)
    paths = {name: path for name, file in FILES.items() if (path := file_of(root, file)) is not None}
    if not set(paths) & set(FORGET_SETS):
        raise DataError(
            f"{root}: expected RWKU's forget_level1, forget_level2 or forget_level3 as .json, .jsonl or .parquet, "
            "found none; `letheon data rwku --to DIR` downloads them"
        )
    read = {name: _read(path, name) for name, path in paths.items()}
    if subject is not None:
        _check_subject(subject, {probe.subject for name in FORGET_SETS for probe in read.get(name, ())}, root)
        read = {name: [p for p in probes if p.subject in (subject, "")] for name, probes in read.items()}
    return {name: _rows(probes, paths[name]) for name, probes in read.items() if probes}


def download_rwku(to: str | Path, *, token: str | None = None, overwrite: bool = False) -> tuple[Path, ...]:
    """Download RWKU from the hub to the folder `to`, with the size and SHA-256 of each file in SOURCE.json.

    Raises:
        DataError: the network is not there, or what came is not RWKU.
        OutputError: an earlier download is there and `overwrite` is not set, or the folder cannot be written to.
    """
    return download_from_hub(
        HUB_REPOSITORY, to, patterns=["All/*"], check=check_download, token=token, overwrite=overwrite
    )


def check_download(folder: Path) -> None:
    """Refuse a folder with another number of probes than published.

    Raises:
        DataError: saying how many there are.
    """
    found = {name: len(rows) for name, rows in read_rwku(folder).items()}
    num_neighbours = found.get(NEIGHBOUR_CLOZE, 0) + found.get(NEIGHBOUR_QUESTIONS, 0)
    if {name: found.get(name, 0) for name in FORGET_SETS} != NUM_FORGET or num_neighbours != NUM_NEIGHBOURS:
        raise DataError(
            f"{folder}: expected {dict(NUM_FORGET)} probes to forget and {NUM_NEIGHBOURS} of neighbours as published, "
            f"got {found}"
        )


def root_of(folder: str | Path) -> Path:
    """Return where the files are: FOLDER/All, or else FOLDER itself."""
    folder = Path(folder)
    return folder / "All" if (folder / "All").is_dir() else folder


def file_of(root: Path, name: str) -> Path | None:
    """Return the file of this name, whatever its format; None where there is none."""
    return next((path for suffix in _SUFFIXES if (path := root / f"{name}.{suffix}").is_file()), None)


def _check_subject(subject: str, known: set[str], root: Path) -> None:
    if subject not in known:
        hint = nearest(subject, sorted(known))
        raise DataError(f"split: expected a person whom probes in {root} are about, got '{subject}'{hint}")


def _read(path: Path, name: str) -> list[_Probe]:
    records = open_records(path)
    read = _instruction if name == FLUENCY else _probe
    found = [read(record, records.where(number), number) for number, record in records.entries]
    if not found:
        raise DataError(f"{path}: expected probes, found none: the file is empty")
    return found


def _probe(record: Record, where: str, line: int) -> _Probe:
    query, answer, subject = (text_in(record, name, where) for name in ("query", "answer", "subject"))
    kind = check_text(record["type"], "type", where) if record.get("type") is not None else PLAIN
    return _Probe(Row("", query, answer, kind, "question"), line, subject)


def _instruction(record: Record, where: str, line: int) -> _Probe:
    instruction = text_in(record, "instruction", where)
    output = check_text(record.get("output") or "", "output", where, may_be_empty=True)
    return _Probe(Row("", instruction, output.strip() or ANY, PLAIN, "completion"), line, "")


def _rows(probes: Sequence[_Probe], path: Path) -> Rows:
    rows = tuple(Row(f"row{n}", p.row.prompt, p.row.answer, p.row.task, p.row.kind) for n, p in enumerate(probes, 1))
    unit = "row" if path.suffix == ".parquet" else "item" if path.suffix == ".json" else "line"
    return Rows(str(path), rows, tuple(p.line for p in probes), unit, ids_given=False)


DOWNLOAD = Download(
    "Download RWKU (CC BY 4.0) from the Hugging Face hub: probes of 200 famous people and of what is close to them, "
    "texts for the membership attack, and questions on general abilities.",
    lambda folder, _: download_rwku(folder),
)
"""What `letheon data rwku` does."""
