"""MUSE (Shi et al., arXiv 2407.06460): texts to say by heart, questions, and texts for the membership attack."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from letheon.data.benchmarks.columns import text_in
from letheon.data.benchmarks.downloading import Download, download_from_hub
from letheon.data.records import Record, open_records
from letheon.data.rows import Row, Rows
from letheon.errors import DataError, nearest
from letheon.settings.suites import SuiteFiles

CORPORA = ("news", "books")
NUM_FOLDS = 4
FOLDS = {"scal": "folds of growing size, each forgotten by the target", "sust": "folds forgotten one after the other"}
"""Parts of the texts to forget of News, by the folder that they are in."""
OWN_ROWS = SuiteFiles(
    {
        **{corpus: (f"{corpus}/raw/forget", f"{corpus}/raw/retain1") for corpus in CORPORA},
        **{
            f"news-{kind}-{fold}": (f"news/{kind}/forget_{fold}", "news/raw/retain1")
            for kind in FOLDS
            for fold in range(1, NUM_FOLDS + 1)
        },
    },
    are_questions=False,
)
HUB_REPOSITORIES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
_SUFFIXES = ("parquet", "json", "jsonl")


@dataclass(frozen=True, slots=True)
class Muse:
    """What a model is scored on."""

    verbmem: Rows
    """Beginnings of texts to forget, each with its continuation."""
    forget: Rows
    """Questions about the texts to forget."""
    retain: Rows
    """Questions about the texts to keep."""
    forget_shots: tuple[Row, ...]
    """Worked questions, shown before those about the texts to forget."""
    retain_shots: tuple[Row, ...]
    members: tuple[str, ...]
    """Texts to forget, whole."""
    holdout: tuple[str, ...]
    """Texts that no model was trained on."""


def corpus_of(split: str) -> str:
    """Return the corpus that a split is of: "news" of "news-sust-2"."""
    return split.split("-", maxsplit=1)[0]


def read_muse(folder: str | Path, corpus: str = "news") -> Muse:
    """Read what a model is scored on, from FOLDER/CORPUS or FOLDER itself, in the published layout.

    That is verbmem/forget (columns prompt, gt), knowmem/{forget,retain}_qa and {forget,retain}_qa_icl (question,
    answer) and privleak/{forget,holdout} (text), each NAME-00000-of-00001.parquet, NAME.json or NAME.jsonl.

    Raises:
        DataError: a file is missing, or a row of it is not usable.
    """
    if corpus not in CORPORA:
        raise DataError(f"split: expected one of {', '.join(CORPORA)}, got '{corpus}'{nearest(corpus, CORPORA)}")
    folder = Path(folder)
    root = folder / corpus if (folder / corpus).is_dir() else folder
    return Muse(
        verbmem=_pairs(root, "verbmem/forget", "prompt", "gt"),
        forget=_pairs(root, "knowmem/forget_qa", "question", "answer"),
        retain=_pairs(root, "knowmem/retain_qa", "question", "answer"),
        forget_shots=tuple(_pairs(root, "knowmem/forget_qa_icl", "question", "answer")),
        retain_shots=tuple(_pairs(root, "knowmem/retain_qa_icl", "question", "answer")),
        members=_texts(root, "privleak/forget"),
        holdout=_texts(root, "privleak/holdout"),
    )


def download_muse(
    to: str | Path, corpus: str = "news", *, token: str | None = None, overwrite: bool = False
) -> tuple[Path, ...]:
    """Download a corpus of MUSE from the hub to the folder `to`/CORPUS, with a record in its SOURCE.json.

    Raises:
        DataError: the network is not there, or what came is not MUSE.
        OutputError: an earlier download is there and `overwrite` is not set, or the folder cannot be written to.
    """
    patterns = [f"{part}/*" for part in ("verbmem", "knowmem", "privleak", "raw", "train", *FOLDS)]

    def check(folder: Path) -> None:
        read_muse(folder, corpus)

    return download_from_hub(
        HUB_REPOSITORIES[corpus], Path(to) / corpus, patterns=patterns, check=check, token=token, overwrite=overwrite
    )


def _the_file(root: Path, name: str) -> Path:
    whole = root / name
    found = [path for suffix in _SUFFIXES for path in sorted(whole.parent.glob(f"{whole.name}-*.{suffix}"))]
    found += [path for suffix in _SUFFIXES if (path := whole.with_name(f"{whole.name}.{suffix}")).is_file()]
    if not found:
        raise DataError(
            f"{root}: expected MUSE's {name} as .parquet, .json or .jsonl, found none; `letheon data muse --to DIR` "
            "downloads it"
        )
    return found[0]


def _records(path: Path) -> Iterable[tuple[int, str, Record]]:
    records = open_records(path)
    found = [(number, records.where(number), record) for number, record in records.entries]
    if not found:
        raise DataError(f"{path}: expected rows, found none: the file is empty")
    return found


def _pairs(root: Path, name: str, prompt: str, answer: str) -> Rows:
    path = _the_file(root, name)
    rows: list[Row] = []
    lines: list[int] = []
    for number, where, record in _records(path):
        asked, said = (text_in(record, column, where) for column in (prompt, answer))
        rows.append(
            Row(f"row{len(rows) + 1}", asked, said, "default", "question" if prompt == "question" else "completion")
        )
        lines.append(number)
    return Rows(
        str(path), tuple(rows), tuple(lines), ids_given=False, understood=f"{len(rows)} rows: {prompt}/{answer}"
    )


def _texts(root: Path, name: str) -> tuple[str, ...]:
    return tuple(text_in(record, "text", where) for _, where, record in _records(_the_file(root, name)))


DOWNLOAD = Download(
    "Download a corpus of MUSE from the Hugging Face hub.",
    download_muse,
    CORPORA,
)
"""What `letheon data muse` does."""
