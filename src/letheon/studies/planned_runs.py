"""From configurations and seeds to runs: settings in full, an identity that outlives the study file, a folder."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.errors import OutputError, SettingsError
from letheon.objective.catalogue import get_method
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.settings.facts import FILE, INCIDENTAL, facts_of
from letheon.storage.files import write_json
from letheon.storage.provenance import hash_file
from letheon.storage.run_folder import RUNS_FOLDER
from letheon.studies.grid import Configuration
from letheon.studies.spec import StudySettings
from letheon.unlearning.resolve import effective, most_epochs, resolve_settings

_IDENTITY_LENGTH = 12
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a study."""

    configuration: Configuration
    seed: int
    settings: UnlearnSettings
    """In full, `out` included."""
    identity: str
    """A hash of all settings that matter and of the files they name: equal for equal runs, whatever they are called."""

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.settings.out

    @property
    def name(self) -> str:
        """What the run is called where people look."""
        return f"{self.configuration.label}, seed {self.seed}"


@dataclass(slots=True)
class Hashes:
    """The sha256 of files and folders, kept in `path` so that a checkpoint is read once and not at each start."""

    path: Path
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, source: str | Path) -> str:
        """Return a hash of what `source` holds, or its name where it is none of this machine's files."""
        path = Path(source)
        if path.is_file():
            return self._file(path)
        if not path.is_dir():
            return str(source)
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".md")
        parts = [(p.relative_to(path).as_posix(), self._file(p)) for p in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _file(self, path: Path) -> str:
        if not self._known and self.path.is_file():
            self._known = _read_known(self.path)
        facts = path.stat()
        stamp = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
        found = self._known.get(str(path.resolve()), {})
        if {name: found.get(name) for name in stamp} != stamp or "sha256" not in found:
            found = {**stamp, "sha256": hash_file(path)}
            self._known[str(path.resolve())] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._known)
        return str(found["sha256"])


def planned_runs(
    study: StudySettings, found: Sequence[Configuration], *, out: Path, hashes: Hashes
) -> list[PlannedRun]:
    """Return the runs of these configurations, those of one configuration side by side, each checked as `unlearn` does.

    Raises:
        SettingsError: the settings of a configuration contradict each other, or two configurations are the same run.
    """
    runs = [
        planned_run(study, configuration, seed, out=out, hashes=hashes)
        for configuration in found
        for seed in study.seeds
    ]
    named: dict[str, PlannedRun] = {}
    for run in runs:
        other = named.setdefault(run.identity, run)
        if other is not run:
            raise SettingsError(f"study: '{other.name}' and '{run.name}' have the same settings; remove one of them")
    return runs


def planned_run(
    study: StudySettings, configuration: Configuration, seed: int, *, out: Path, hashes: Hashes
) -> PlannedRun:
    """Return one run of a configuration.

    Raises:
        SettingsError: its settings contradict each other.
    """
    try:
        given = UnlearnSettings.of({**configuration.settings, "seed": seed, "out": out})
        settings = _scored_at(study, given)
        _check_epochs(study, settings)
    except SettingsError as error:
        raise SettingsError(f"{configuration.label}: {error}") from error
    identity = identity_of(settings, hashes)
    folder = _folder_of(out / RUNS_FOLDER, configuration, seed, identity)
    return PlannedRun(configuration, seed, settings.model_copy(update={"out": folder}), identity)


def identity_of(settings: UnlearnSettings | EvaluateSettings, hashes: Hashes) -> str:
    """Return a hash of all settings that matter, files by what they hold."""
    values = effective(settings) if isinstance(settings, UnlearnSettings) else settings.plain()
    # Defaults are left out, so that a setting which a later version adds leaves runs what they are.
    defaults = {name: field.get_default() for name, field in type(settings).model_fields.items()}
    if values.get("learning_rate") == "auto" and "epochs" in settings.model_fields_set:
        del defaults["epochs"]  # a run that finds its own end has another limit where none is given
    facts = facts_of(type(settings))
    matter = {
        name: hashes.of(value) if facts[name].kind is FILE and value is not None else value
        for name, value in values.items()
        if facts[name].change is not INCIDENTAL and (name not in defaults or value != defaults[name])
    }
    return hashlib.sha256(json.dumps(matter, sort_keys=True, default=str).encode()).hexdigest()[:_IDENTITY_LENGTH]


def _scored_at(study: StudySettings, given: UnlearnSettings) -> UnlearnSettings:
    """Resolve settings so that states are kept at those of the epochs of the study that the run may reach."""
    settings = resolve_settings(given)
    most = most_epochs(settings, get_method(settings.method), given.model_fields_set)
    wanted = [epoch for epoch in study.epochs if epoch <= most]
    if not wanted:
        return settings
    return settings.model_copy(update={"score_at": tuple(sorted({*wanted, *(settings.score_at or ())}))})


def _check_epochs(study: StudySettings, settings: UnlearnSettings) -> None:
    method = get_method(settings.method)
    if study.epochs and settings.score_at and method.finish != "keep":
        raise SettingsError(
            f"evaluate.epochs: method '{method.name}' changes the weights after training, so earlier states are not "
            f"results; leave out the epochs"
        )


def _folder_of(runs: Path, configuration: Configuration, seed: int, identity: str) -> Path:
    """The folder that holds this run already, under whatever name, else one with a name that can be read."""
    held = sorted(runs.glob(f"*-{identity}"))
    if held:
        return held[0]
    readable = re.sub(r"[^A-Za-z0-9.=+-]+", "-", configuration.label).strip("-.")[:_LONGEST_NAME]
    return runs / f"{readable}-seed{seed}-{identity}"


def _read_known(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: expected the hashes that a study keeps ({error}); delete the file") from error
    return dict(known) if isinstance(known, Mapping) else {}
