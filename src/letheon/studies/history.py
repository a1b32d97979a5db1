"""Which studies were run in a folder: each as read, by its fingerprint, and under which of them each run was begun.

studies/SHA256.json   a study as read, changes of the command line included
begun/IDENTITY.json   the fingerprint of the study under which a run was begun
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError, OutputError, SettingsError
from letheon.report.files import flat_items, read_mapping
from letheon.storage.files import write_json
from letheon.storage.fingerprints import short
from letheon.storage.run_folder import BEGUN_FOLDER, RUNS_FOLDER, SETTINGS_FILE, STUDIES_FOLDER, STUDY_FILE
from letheon.studies.records import StudyRecord, read_study_record
from letheon.studies.spec import SHOWN, StudySettings

_MOST_CHANGES = 8


def note_study(study: StudySettings, out: Path) -> None:
    """Keep the study as it was read, unless that is kept already."""
    path = _path_of(study.sha256, out)
    if not path.exists():
        _make(path.parent)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, {"sha256": study.sha256, "first_run": time, "study": study.as_read()})


def note_begun(study: StudySettings, out: Path, identity: str) -> None:
    """Keep under which study a run was begun."""
    _make(out / BEGUN_FOLDER)
    write_json(out / BEGUN_FOLDER / f"{identity}.json", {"study_sha256": study.sha256})


def begun_under(out: Path, identity: str) -> str | None:
    """Return the fingerprint of the study under which a run was begun; None where that is not recorded."""
    try:
        found = read_mapping(out / BEGUN_FOLDER / f"{identity}.json").get("study_sha256")
    except EvaluationError as error:
        raise OutputError(str(error)) from error
    return None if found is None else str(found)


def describe_change(study: StudySettings, out: Path, identities: Collection[str]) -> str | None:
    """Describe what has changed since a study was last run in `out`; None if nothing has, or there was no study.

    `identities` are those of the runs that it consists of now.
    """
    if not (out / STUDY_FILE).is_file():
        return None
    try:
        there = read_study_record(out)
    except (EvaluationError, SettingsError):
        return None  # it is written anew
    known = {run.identity for run in there.runs if run.state != "waiting"}
    same = len(known.intersection(identities))
    kept = "" if study.search else f"; of {len(known)} runs there {same} are this study's too"
    if same < len(known) and not study.search:
        kept += ", the others stay in runs/ and are in none of its tables"
    before = there.sha256 or there.study.sha256
    if before != study.sha256:
        changed = changes(there.study.as_read(), study.as_read())
        return (
            f"the study run here last is {short(before)}, this one is {short(study.sha256)}: {'; '.join(changed)}{kept}"
        )
    if same < len(known) and not study.search:
        return f"what the runs of study {short(before)} read, model, rows or documents, has changed{kept}"
    return None


def describe_unshown(study: StudySettings, out: Path) -> str | None:
    """Say what of a study's file has no effect on a report of what was run under another; None where all agrees."""
    there = read_study_record(out)
    ran, given = ({k: v for k, v in one.as_read().items() if k not in SHOWN} for one in (there.study, study))
    if ran == given:
        return None
    return (
        f"the runs here are of study {short(there.sha256 or there.study.sha256)}, the file gives "
        f"{short(study.sha256)}: {'; '.join(changes(ran, given))}; only {', '.join(SHOWN)} are taken from it"
    )


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say in which settings two studies differ, with both values."""
    then, now = dict(flat_items(there)), dict(flat_items(here))
    names = [name for name in dict.fromkeys([*then, *now]) if then.get(name) != now.get(name)]
    found = [f"{name}: {then.get(name, 'the default')} there, {now.get(name, 'the default')} here" for name in names]
    more = len(found) - _MOST_CHANGES
    return [*found[:_MOST_CHANGES], *([f"{more} more"] if more > 0 else [])]


def study_facts(record: StudyRecord, out: Path) -> Iterator[tuple[str, str]]:
    """Yield the fingerprint of the study, and of each one under which its runs were begun with how many were."""
    here = record.sha256 or record.study.sha256
    counts = Counter(run.study_sha256 for run in record.runs if run.state != "waiting")
    yield "this study", f"{here}, under which {_runs(counts.pop(here, 0))} begun"
    unknown = counts.pop(None, 0)
    for sha256, number in counts.most_common():
        yield f"study {short(sha256)}", f"{sha256}, under which {_runs(number)} begun; {_compared(record, sha256, out)}"
    if unknown:
        yield "not recorded", f"under which study {_runs(unknown)} begun"
    others = _others(record, out)
    if others:
        yield "other runs", f"{others} in runs/ that are not this study's and are in none of its tables"


def _runs(number: int) -> str:
    return f"{number} {'run was' if number == 1 else 'runs were'}"


def _compared(record: StudyRecord, sha256: str | None, out: Path) -> str:
    """How an earlier study differs from that of the record, whose runs have the same settings in both."""
    try:
        there = read_mapping(_path_of(str(sha256), out)).get("study")
    except EvaluationError:
        there = None
    if not isinstance(there, Mapping):
        return "what it was is not recorded"
    said = "; ".join(changes(there, record.study.as_read())) or "nothing but what is shown"
    return f"their settings are the same in both, which differ in {said}"


def _others(record: StudyRecord, out: Path) -> int:
    """How many runs of the folder are not in the record."""
    known = {(out / run.folder).name for run in record.runs}
    return sum(path.parent.name not in known for path in (out / RUNS_FOLDER).glob(f"*/{SETTINGS_FILE}"))


def _path_of(sha256: str, out: Path) -> Path:
    # Only the digits of a hash make up the name, whatever a file says.
    return out / STUDIES_FOLDER / f"{''.join(c for c in sha256 if c in '0123456789abcdef')}.json"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
