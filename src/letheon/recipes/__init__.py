"""Published configurations as short YAML files: differences from the defaults only.

The comment that begins a file says what was published and what differs; its last sentence, from "source:" on, names
where the values were read: repository, file and commit, or what could not be read.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from letheon.errors import SettingsError, nearest
from letheon.settings import read_config

_SOURCE = " source: "


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with Letheon."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Return the settings that the file of a recipe holds.

    Raises:
        SettingsError: there is none of that name.
    """
    return read_config(_path(name))


def recipe_settings(name: str) -> dict[str, Any]:
    """Return the settings of a run by a recipe: those of its file, and no dial unless that names one.

    The result is left as the recipe's authors trained it, with holdout documents too.

    Raises:
        SettingsError: there is none of that name.
    """
    return {"dial": "none", **read_recipe(name)}


@dataclass(frozen=True, slots=True)
class RecipeText:
    """What the file of a recipe says."""

    note: str
    """What was published and what differs here, one paragraph."""
    source: str
    """Where the values were read."""
    settings: str
    """The settings as YAML."""


def recipe_text(name: str) -> RecipeText:
    """Return the parts of a recipe's file.

    Raises:
        SettingsError: there is none of that name.
    """
    lines = _path(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    note, _, source = comment.partition(_SOURCE)
    settings = "\n".join(line for line in lines if not line.startswith("#"))
    return RecipeText(note.strip(), source.strip(), settings)


def _path(name: str) -> Path:
    known = recipe_names()
    if name not in known:
        raise SettingsError(f"recipe: expected one of {', '.join(known)}, got '{name}'{nearest(name, known)}")
    return Path(str(files(__name__) / f"{name}.yaml"))
