"""The file of a study, checked like all settings, with the changes of the command line."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from letheon.errors import SettingsError, nearest
from letheon.settings import OF_SCORING, EvaluateSettings, Names, Settings, UnlearnSettings, read_config
from letheon.storage.yaml_text import parse_yaml
from letheon.studies.known import aims_of, known_scores

Deviation = Literal["sample", "population"]

SHOWN = ("name", "deviation", "compare", "references", "published")
"""Settings of a study that say how its results are shown."""

_OWN_EVALUATION = ("epochs", "original")
_SET_BY_STUDY = ("out", "seed", "resume")


def _seeds(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(value))
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds), Field(min_length=1)]
"""The seeds of each configuration: a list, or how many, counted from 0."""


class SearchRange(Settings):
    """The values that a search may give a setting: `choices`, or numbers from `low` to `high`."""

    command: ClassVar[str] = "search"
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    choices: tuple[Any, ...] | None = Field(None, min_length=1, description="One of these.")
    low: float | None = Field(None, description="Smallest number.")
    high: float | None = Field(None, description="Largest number.")
    log: bool = Field(False, description="Draw on a logarithmic scale.")
    whole: bool = Field(False, alias="int", description="Draw whole numbers.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_range = self.low is not None and self.high is not None
        if (self.choices is not None) == (self.low is not None or self.high is not None) or (
            self.choices is None and not is_range
        ):
            raise ValueError("either choices, or low and high")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low below high, not {self.low:g} and {self.high:g}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("low above 0 for a logarithmic scale")
        if self.whole and any(end is not None and end != int(end) for end in (self.low, self.high)):
            raise ValueError("whole numbers as low and high where int is true")
        return self


class StudySettings(Settings):
    """A study, as its file describes it."""

    command: ClassVar[str] = "study"
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    name: str = Field("study", description="Title of tables and figures.")
    recipe: str | None = Field(None, description="Published configuration to begin from.")
    base: dict[str, Any] = Field(default_factory=dict, description="Settings of `unlearn` that all runs share.")
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Setting: its values; all combinations are run."
    )
    entries: tuple[dict[str, Any], ...] = Field((), alias="list", description="Configurations one by one.")
    search: dict[str, SearchRange] = Field(default_factory=dict, description="Setting: where to look for its value.")
    objectives: Names = Field(
        (), description="What a search makes as good as it can; several give a Pareto front. Default: the suite's own."
    )
    sampler: Literal["auto", "tpe", "nsga2", "random"] = Field("auto", description="Which sampler of Optuna searches.")
    pruner: Literal["none", "median", "successive-halving", "hyperband"] = Field(
        "none", description="Which pruner of Optuna ends hopeless runs, by interim scores; in a grid or list: median."
    )
    trials: int = Field(20, ge=1, description="Configurations that a search tries, over all of its processes.")
    seeds: Seeds = Field((0,), description="Seeds of each configuration, or how many.")
    evaluate: dict[str, Any] | None = Field(
        None, description="Settings of `evaluate`, `epochs` to score, and `original: false` to leave out the start."
    )
    baselines: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Name: settings of a run that is a row of its own."
    )
    references: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Name: scores of another model on the same rows, such as one trained without those to forget, "
        "shown as a row of their own.",
    )
    published: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="Name: scores from elsewhere, shown as a row of their own."
    )
    deviation: Deviation = Field("sample", description="Which standard deviation tables and figures show.")
    compare: Literal["best", "all"] | dict[str, Any] = Field(
        "best", description="Compare with the best configuration, all with all, or with the one of these settings."
    )
    keep_models: bool = Field(False, description="Keep each run's merged model when it is scored.")

    @property
    def others(self) -> dict[str, dict[str, float]]:
        """Scores that the study did not take itself, by the label of their row."""
        return {**self.references, **{f"{name} (published)": scores for name, scores in self.published.items()}}

    @property
    def sha256(self) -> str:
        """The fingerprint of the study as read."""
        return hashlib.sha256(json.dumps(self.as_read(), sort_keys=True).encode()).hexdigest()

    def as_read(self) -> dict[str, Any]:
        """Return the given settings as JSON values, without defaults, so that a later version adds none."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    @property
    def epochs(self) -> tuple[float, ...]:
        """The epochs to score officially, besides the result; ascending."""
        given = (self.evaluate or {}).get("epochs") or ()
        return tuple(sorted({float(epoch) for epoch in given}))

    @property
    def scores_original(self) -> bool:
        """Whether the model before unlearning is scored too."""
        return self.evaluate is not None and bool(self.evaluate.get("original", True))

    def evaluation(self, run: UnlearnSettings, *, model: str, out: Path) -> EvaluateSettings:
        """Return how a checkpoint of `run` is scored: on the run's own rows unless the study names others.

        Raises:
            SettingsError: a setting of the evaluation is unknown or out of range.
        """
        names = ("forget", "retain", "fields", "turns", "dtype", "device", "trust_remote_code")
        shared = {name: getattr(run, name) for name in names}
        if (self.evaluate or {}).get("suite") == run.suite:
            shared |= {"split": run.split, "data": run.data}
        own = {name: value for name, value in (self.evaluate or {}).items() if name not in _OWN_EVALUATION}
        return EvaluateSettings.of({**shared, **own, "model": model, "out": out})


def read_study(path: Path, *, changes: Iterable[str] = ()) -> StudySettings:
    """Read a study's file; each of `changes` is NAME=VALUE, NAME a setting of the runs, `evaluate.NAME` or the study's.

    Raises:
        SettingsError: the file or a change cannot be read, or what they say together is no study.
    """
    values = {"name": path.stem, **read_config(path)}
    for change in changes:
        _apply(values, change)
    try:
        _check_sections(values)
        study = StudySettings.of(values)
        _check(study)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return study


def study_path(name: str) -> Path:
    """Return the file of a study: a path, or the name of one that comes with Letheon.

    Raises:
        SettingsError: there is neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    folder = Path(__file__).parent.parent / "recipes" / "studies"
    known = sorted(found.stem for found in folder.glob("*.yaml"))
    if name not in known:
        raise SettingsError(
            f"study: expected a YAML file or one of {', '.join(known)}, got '{name}'{nearest(name, known)}"
        )
    return folder / f"{name}.yaml"


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise SettingsError(f"set: expected NAME=VALUE, got '{change}'")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"set: {name}: expected a YAML value, got '{text}' ({type(error).__name__})") from error
    of_study = {field.alias or known for known, field in StudySettings.model_fields.items()}
    if name.startswith("evaluate."):
        values["evaluate"] = {**(values.get("evaluate") or {}), name.removeprefix("evaluate."): value}
    elif name in of_study:
        values[name] = value
    else:
        values["base"] = {**(values.get("base") or {}), name: value}


def _check_sections(values: Mapping[str, Any]) -> None:
    """Refuse settings of runs beside the sections of a study."""
    of_study = {field.alias or known for known, field in StudySettings.model_fields.items()} | set(
        StudySettings.model_fields
    )
    misplaced = [name for name in values if name in UnlearnSettings.model_fields and name not in of_study]
    if misplaced:
        raise SettingsError(
            f"{', '.join(misplaced)}: expected the sections of a study, got settings of runs; put them under `base:`"
        )


def _check(study: StudySettings) -> None:
    _check_names(study)
    if study.search and (study.grid or study.entries):
        raise SettingsError("search: expected either a search, or a grid and a list, got both; leave out one of them")
    if study.pruner != "none" and len(study.objectives) > 1:
        raise SettingsError(
            "pruner: Optuna can prune by one objective only; leave out the pruner or name one objective"
        )
    if study.pruner not in ("none", "median") and not study.search:
        raise SettingsError(
            f"pruner: {study.pruner} ends runs of a search only; in a grid or list write median, or leave it out"
        )
    scores, aims = known_scores(study), aims_of(study)
    for score in aims:
        _known(score, scores, "objectives")
    if study.search and study.evaluate is None:
        official = [name for name in aims if not name.startswith("interim.")]
        if official:
            raise SettingsError(
                f"objectives: {', '.join(official)} need an `evaluate` section; without one there are the scores that "
                "runs take themselves, such as interim.score"
            )
    for section in ("references", "published"):
        for row, found in getattr(study, section).items():
            for score in found:
                _known(score, scores, f"{section}.{row}")
    if any(not isinstance(epoch, int | float) or epoch <= 0 for epoch in (study.evaluate or {}).get("epochs") or ()):
        raise SettingsError(f"evaluate.epochs: expected epochs above 0, got {(study.evaluate or {}).get('epochs')!r}")


def _check_names(study: StudySettings) -> None:
    of_runs = UnlearnSettings.model_fields
    settings: list[tuple[str, Mapping[str, Any]]] = [("base", study.base), ("grid", study.grid)]
    settings += [("search", study.search)]
    settings += [(f"list[{number}]", entry) for number, entry in enumerate(study.entries)]
    settings += [(f"baselines.{name}", given) for name, given in study.baselines.items()]
    for place, given in settings:
        labels = ("name", "recipe") if place.startswith(("list", "baselines")) else ()
        for name in UnlearnSettings.without_removed(given):
            if name in _SET_BY_STUDY:
                raise SettingsError(f"{place}: '{name}' is set by the study (seeds, --out); leave it out")
            if name in OF_SCORING:
                raise SettingsError(
                    f"{place}: '{name}' says how a single run is scored; a study's runs are scored as its section "
                    "`evaluate` says; put it there, or leave it out"
                )
            if not name.startswith("coefficients."):
                _known(name, [*of_runs, *labels], place)
    own = [*EvaluateSettings.model_fields, *_OWN_EVALUATION]
    for name in study.evaluate or {}:
        _known(name, [known for known in own if known not in ("model", "out")], "evaluate")


def _known(name: str, names: Iterable[str], place: str) -> None:
    if name not in names:
        raise SettingsError(f"{place}: '{name}' is not known here{nearest(name, names)}")
