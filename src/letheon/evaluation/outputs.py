"""Checks of a folder before scores are written to it or a report is made from it."""

from collections.abc import Mapping
from pathlib import Path

from letheon.errors import EvaluationError, OutputError, nearest
from letheon.evaluation.registry import read_results
from letheon.scores.results import Results
from letheon.storage.files import open_output_folder
from letheon.storage.run_folder import EVALUATIONS_FOLDER, RESULTS_FILE


def check_no_other_scores(out: Path, *, model: str, rows: Mapping[str, str]) -> str | None:
    """Refuse a folder with scores of another model or of other rows; return what to say of scores that are replaced.

    `rows` maps "forget" and "retain" to the files of rows. Scores of the same model on the same rows may be replaced.

    Raises:
        OutputError: the scores there are others, or cannot be read.
    """
    path = out / RESULTS_FILE
    if not path.exists():
        return None
    advice = f"choose another --out, or remove {path}"
    try:
        there = read_results(path)
    except EvaluationError as error:
        raise OutputError(f"{out}: already holds scores, which cannot be read ({error}); {advice}") from error
    found = {"model": there.model, **{side: _source_of(there, side) for side in rows}}
    asked = {"model": model, **rows}
    others = [f"{name} {found[name]}, not {asked[name]}" for name in asked if not _is_same(found[name], asked[name])]
    if others:
        raise OutputError(f"{out}: already holds an evaluation of {' and '.join(others)}; {advice}")
    return f"{out}: replaces the scores there, which are of the same model and rows"


def check_rescored(out: Path, results: Results, *, predictions: Path) -> None:
    """Make the folder for scores of `predictions`, and refuse one with scores of another model or of other rows.

    Raises:
        OutputError: `out` cannot be written to, or the scores there are others or cannot be read.
    """
    open_output_folder(out, advice="choose another --out", private=EVALUATIONS_FOLDER.is_private)
    if not _is_same(str(out), str(predictions.parent)):
        rows = {side: _source_of(results, side) for side in ("forget", "retain")}
        check_no_other_scores(out, model=results.model, rows=rows)


def check_is_folder(folder: Path) -> None:
    """Refuse a path that is not a folder, before looking for the files of a run.

    Raises:
        EvaluationError: there is none of that name, or it is a file.
    """
    if folder.is_dir():
        return
    around = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    what = "is a file" if folder.exists() else f"no such folder{nearest(folder.name, around)}"
    if folder.is_symlink() and not folder.exists():
        what = f"is a link to {folder.readlink()}, which is not there"
    raise EvaluationError(f"{folder}: {what}; expected the folder that a run, an evaluation or a study got as --out")


def _source_of(results: Results, side: str) -> str:
    """Return the file of rows that results name, "unknown" where they name none."""
    described = results.provenance.get(side)
    return str(described.get("source", "unknown")) if isinstance(described, Mapping) else "unknown"


def _is_same(one: str, other: str) -> bool:
    """Whether two names lead to the same file or folder, or are the same name of something elsewhere."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
