"""From a study to its configurations: which settings, under which name."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from letheon.errors import SettingsError
from letheon.recipes import recipe_settings
from letheon.settings import RowSettings
from letheon.studies.spec import StudySettings

Role = Literal["study", "baseline"]

_DOTTED = "coefficients."


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings that are run once with each seed."""

    label: str
    values: Mapping[str, Any]
    """What the study varies, as its file names it."""
    settings: Mapping[str, Any]
    """All that is set, without seed and folder."""
    role: Role = field(default="study")


def configurations(study: StudySettings) -> list[Configuration]:
    """List the configurations of a grid or a list, or of both combined, then the baselines; none for a bare search.

    A study that varies nothing is one configuration.

    Raises:
        SettingsError: a recipe is not known, or two configurations have one name.
    """
    found = [] if study.search else _varied(study)
    found += [baseline(study, name, given) for name, given in study.baselines.items()]
    labels = [configuration.label for configuration in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SettingsError(
            f"study: two configurations have the name '{twice[0]}'; give each its own `name`, or remove one"
        )
    return found


def configuration_of(study: StudySettings, values: Mapping[str, Any]) -> Configuration:
    """Return the configuration in which the study's settings are changed to `values`.

    A `recipe` among them takes the place of the study's, a `name` the place of the label.
    """
    varied = {name: value for name, value in values.items() if name not in ("name", "recipe")}
    recipe = values.get("recipe", study.recipe)
    published = recipe_settings(recipe) if recipe else {}
    shown = {**({"recipe": values["recipe"]} if "recipe" in values else {}), **varied}
    label = str(values.get("name") or label_of(shown) or study.name)
    return Configuration(label, shown, _undotted({**published, **study.base, **varied}))


def baseline(study: StudySettings, name: str, given: Mapping[str, Any]) -> Configuration:
    """Return a baseline: its own recipe and settings, of the study's base only which model and rows are meant."""
    own = {key: value for key, value in given.items() if key not in ("name", "recipe")}
    published = recipe_settings(given["recipe"]) if "recipe" in given else {}
    shared = {key: value for key, value in study.base.items() if key in RowSettings.model_fields}
    return Configuration(name, {}, _undotted({**published, **shared, **own}), "baseline")


def label_of(values: Mapping[str, Any]) -> str:
    """Return settings as a name: "gamma=1, delta=0.5"."""
    return ", ".join(f"{name.removeprefix(_DOTTED)}={_shown(value)}" for name, value in values.items())


def _varied(study: StudySettings) -> list[Configuration]:
    names = list(study.grid)
    products: Sequence[tuple[Any, ...]] = list(itertools.product(*study.grid.values()))
    entries: Sequence[Mapping[str, Any]] = study.entries or ({},)
    found = []
    for entry in entries:
        for product in products:
            cell = dict(zip(names, product, strict=True))
            both = entry.keys() & cell.keys()
            if both:
                raise SettingsError(f"list: '{min(both)}' is also in the grid; leave it out of one of them")
            label = {"name": ", ".join(filter(None, (entry["name"], label_of(cell))))} if "name" in entry else {}
            found.append(configuration_of(study, {**entry, **cell, **label}))
    return found


def _undotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gather `coefficients.NAME` under `coefficients`."""
    plain = {name: value for name, value in values.items() if not name.startswith(_DOTTED)}
    dotted = {name.removeprefix(_DOTTED): value for name, value in values.items() if name.startswith(_DOTTED)}
    if dotted:
        plain["coefficients"] = {**(plain.get("coefficients") or {}), **dotted}
    return plain


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(_shown, value))
    return str(value)
