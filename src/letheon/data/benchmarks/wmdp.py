"""WMDP (Li et al., arXiv 2403.03218): multiple-choice questions on knowledge that can do harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from letheon.data.benchmarks.columns import text_in
from letheon.data.benchmarks.downloading import Download, download_from_hub
from letheon.data.records import Record, check_text, open_records
from letheon.errors import DataError
from letheon.settings.suites import SuiteFiles

HUB_REPOSITORY = "cais/wmdp"
SUBJECTS: Mapping[str, str] = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
"""Each part by what its prompt says that it is about."""
NUM_QUESTIONS: Mapping[str, int] = {"bio": 1273, "chem": 408, "cyber": 1987}
OWN_ROWS = SuiteFiles({})
NUM_CHOICES = 4
_SUFFIXES = ("parquet", "jsonl", "json")


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with four choices."""

    text: str
    choices: tuple[str, ...]
    answer: int
    """Which choice is right, from 0."""


def read_wmdp(folder: str | Path) -> dict[str, tuple[ChoiceQuestion, ...]]:
    """Read the parts that are there: wmdp-bio, wmdp-chem and wmdp-cyber, as published or a file each.

    Published is FOLDER/wmdp-bio/test-00000-of-00001.parquet; a file is FOLDER/wmdp-bio.jsonl, .json or .parquet, with
    the columns question, choices (a list) and answer (0 to 3).

    Raises:
        DataError: there is none of them, or a question is not usable.
    """
    paths = _files(Path(folder))
    if not paths:
        raise DataError(
            f"{folder}: expected wmdp-bio, wmdp-chem or wmdp-cyber, each a folder with test*.parquet or a .jsonl; "
            "`letheon data wmdp --to DIR` downloads them"
        )
    return {name: _read(path) for name, path in paths.items()}


def has_wmdp(folder: str | Path) -> bool:
    """Return whether a part of WMDP is there."""
    return bool(_files(Path(folder)))


def download_wmdp(to: str | Path, *, token: str | None = None, overwrite: bool = False) -> tuple[Path, ...]:
    """Download WMDP from the hub to the folder `to`, with the size and SHA-256 of each file in SOURCE.json.

    Raises:
        DataError: the network is not there, or what came is not WMDP.
        OutputError: an earlier download is there and `overwrite` is not set, or the folder cannot be written to.
    """
    patterns = [f"wmdp-{name}/*" for name in SUBJECTS]
    return download_from_hub(
        HUB_REPOSITORY, to, patterns=patterns, check=check_download, token=token, overwrite=overwrite
    )


def check_download(folder: Path) -> None:
    """Refuse a folder that lacks a part of WMDP, or has another number of its questions.

    Raises:
        DataError: saying which.
    """
    found = {name: len(questions) for name, questions in read_wmdp(folder).items()}
    if found != NUM_QUESTIONS:
        raise DataError(f"{folder}: expected {dict(NUM_QUESTIONS)} questions as published, got {found}")


def _files(folder: Path) -> dict[str, Path]:
    return {name: path for name in SUBJECTS if (path := _file_of(folder, f"wmdp-{name}")) is not None}


def _file_of(folder: Path, name: str) -> Path | None:
    published = [path for suffix in _SUFFIXES for path in sorted((folder / name).glob(f"test*.{suffix}"))]
    single = (path for suffix in _SUFFIXES if (path := folder / f"{name}.{suffix}").is_file())
    return published[0] if published else next(single, None)


def _read(path: Path) -> tuple[ChoiceQuestion, ...]:
    records = open_records(path)
    questions = tuple(choice_question(record, records.where(number)) for number, record in records.entries)
    if not questions:
        raise DataError(f"{path}: expected questions, found none: the file is empty")
    return questions


def choice_question(record: Record, where: str) -> ChoiceQuestion:
    """Return the question of a record with the columns question, choices (a list of four) and answer (0 to 3).

    Raises:
        DataError: the record is none; `where` says which.
    """
    choices, answer = record.get("choices"), record.get("answer")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
        raise DataError(f"{where}: expected a list of {NUM_CHOICES} choices in 'choices', got {str(choices)[:60]!r}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < NUM_CHOICES:
        raise DataError(f"{where}: expected a number from 0 to 3 in 'answer', got {str(answer)[:60]!r}")
    texts = tuple(check_text(choice, "choices", where) for choice in choices)
    return ChoiceQuestion(text_in(record, "question", where), texts, answer)


DOWNLOAD = Download(
    "Download the questions of WMDP (MIT) from the Hugging Face hub.", lambda folder, _: download_wmdp(folder)
)
"""What `letheon data wmdp` does."""
