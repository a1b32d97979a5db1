"""Where a study's numbers come from, by the files of its runs: model, rows, tokenizer, form, versions, machine."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError
from letheon.evaluation.registry import read_results
from letheon.report.files import flat_items, read_mapping, read_settings
from letheon.report.pairing import pair
from letheon.storage.run_folder import EVALUATIONS_FOLDER, PROVENANCE_FILE, RESULTS_FILE
from letheon.studies.records import RunRecord, StudyRecord

Facts = tuple[tuple[str, str], ...]

_INPUTS = ("read", "model", "tokenizer", "forget", "retain", "alternatives", "holdout", "form", "precision")
_SCORED = ("forget", "retain", "members", "nonmembers", "mmlu", "form")
_SOFTWARE = ("python", "packages", "machine")
_FORM = ("template", "date")
"""What an evaluation says of the form of its rows that is the same for all runs."""
_OF_ONE_RUN = ("out", "resume", "seed")
_MOST_VALUES = 4


@dataclass(frozen=True, slots=True)
class RunOrigin:
    """What the files of one run say; empty where they are not there."""

    run: RunRecord
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    scored: Mapping[str, Any]
    """The provenance of the evaluation of its result."""
    differences: tuple[str, ...] = ()
    """What shows that this evaluation is not of the run's result, its rows and its form."""


@dataclass(frozen=True, slots=True)
class Origins:
    """What the files of all runs say together."""

    inputs: Facts
    scored: Facts
    software: Facts
    settings: Mapping[str, Any]
    """Settings that all of the study's own runs share."""
    varied: tuple[str, ...]
    """Settings that differ between them."""
    forms: Mapping[str, int]
    """Form of the rows: how many runs trained in it."""
    fingerprints: Mapping[str, str]
    """The fingerprint of each run's result, by the run's identity, where its provenance.json has one."""
    differences: Mapping[str, int]
    """What shows that an evaluation is not of its run's result, rows and form: how many runs that holds for."""
    unread: tuple[str, ...]
    """Files that could not be read, and why."""


def origins_of(record: StudyRecord, folder: Path) -> Origins:
    """Read the files of a study's runs; what is missing is left out, what is broken is named."""
    unread: list[str] = []
    found = [_read_run(run, folder, unread) for run in record.runs]
    own = [origin for origin in found if origin.settings and origin.run.role == "study"]
    known = [origin for origin in own or found if origin.settings]
    names = dict.fromkeys(name for origin in known for name in origin.settings if name not in _OF_ONE_RUN)
    shared = [name for name in names if _is_shared(name, known)]
    provenances = [origin.provenance for origin in found if origin.provenance]
    return Origins(
        inputs=_gathered(provenances, _INPUTS),
        scored=_gathered([origin.scored for origin in found if origin.scored], _SCORED),
        software=_gathered(provenances, _SOFTWARE),
        settings={name: known[0].settings[name] for name in shared},
        varied=tuple(name for name in names if name not in shared),
        forms=Counter(str(form["template"]) for form in map(_form_of, provenances) if "template" in form),
        fingerprints={o.run.identity: sha for o in found if (sha := _fingerprint(o.provenance)) is not None},
        differences=Counter(text for origin in found for text in origin.differences),
        unread=tuple(unread),
    )


def run_folder(run: RunRecord, folder: Path) -> Path | None:
    """Return the folder of a run below its study's; None if it is not there, or lies elsewhere."""
    path = (folder / run.folder).resolve()
    return path if path != folder.resolve() and path.is_relative_to(folder.resolve()) and path.is_dir() else None


def _read_run(run: RunRecord, folder: Path, unread: list[str]) -> RunOrigin:
    path = run_folder(run, folder)
    if path is None:
        return RunOrigin(run, {}, {}, {})
    settings, provenance, results = {}, {}, {}
    differences: tuple[str, ...] = ()
    scores = path / EVALUATIONS_FOLDER / "after" / RESULTS_FILE
    try:
        settings = read_settings(path)
        provenance = read_mapping(path / PROVENANCE_FILE)
        results = read_mapping(scores)
        if results:
            read = provenance.get("read")
            known = read if isinstance(read, Mapping) else {}
            differences = pair("after", read_results(scores), read=known, provenance=provenance).differences
    except EvaluationError as error:
        unread.append(str(error))
    form = _form_of(results)
    asked = {"form": {name: form[name] for name in _FORM if name in form}} if form else {}
    scored = results.get("provenance")
    said = {**(scored if isinstance(scored, Mapping) else {}), **asked}
    return RunOrigin(run, settings, provenance, said, differences)


def _gathered(found: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Facts:
    """Return the facts under these names, each once where all agree, else every value with how many have it."""
    chosen = [dict(flat_items({name: one[name] for name in names if name in one})) for one in found]
    leaves = dict.fromkeys(leaf for one in chosen for leaf in one)
    return tuple((leaf, _said([one[leaf] for one in chosen if leaf in one], len(chosen))) for leaf in leaves)


def _said(values: Sequence[str], num_runs: int) -> str:
    counts = Counter(values)
    if counts == {values[0]: num_runs}:
        return values[0]
    shown = [f"{value} ({number} of {num_runs} runs)" for value, number in counts.most_common(_MOST_VALUES)]
    more = len(counts) - len(shown)
    return "; ".join([*shown, *([f"{more} other values"] if more else [])])


def _is_shared(name: str, found: Sequence[RunOrigin]) -> bool:
    return all(name in one.settings and one.settings[name] == found[0].settings[name] for one in found)


def _form_of(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    form = mapping.get("form")
    return form if isinstance(form, Mapping) else {}


def _fingerprint(provenance: Mapping[str, Any]) -> str | None:
    result = provenance.get("result")
    if not isinstance(result, Mapping):
        return None
    return next((value for name, value in flat_items(result) if "sha256" in name), None)
