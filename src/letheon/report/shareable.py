"""What of a run's settings and provenance may be shown to others: no paths, no command line, no machine."""

import re
from collections.abc import Mapping
from pathlib import Path

from letheon.storage.hub import is_hub_id

PLACES = (
    *(
        "model",
        "forget",
        "retain",
        "out",
        "tokenizer",
        "alternatives",
        "general",
        "instead",
        "holdout",
        "members",
        "nonmembers",
        "mmlu",
        "never",
        "never_results",
        "data",
    ),
    "cache_dir",
)
"""Settings that say where something lies."""
HIDDEN = "[path]"

_PRIVATE = frozenset({"command", "machine", "source", "reference_store", "folders", "attempts", "host", "user"})
"""Entries of provenance.json that tell of the machine and of what lies on it."""
_PATH = re.compile(r"(?<![\w/.])(?:~|[A-Za-z]:)?[/\\](?!/)[^\s,;:'\")]+")
"""An absolute path; of one with spaces, what comes before the first."""


def shareable_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Return a run's settings with a word in capitals for each place; a hub id is everybody's and stays."""
    return {
        name: name.upper() if name in PLACES and _is_private_place(name, value) else value
        for name, value in settings.items()
        if name in PLACES or not _shows_path(value)
    }


def shareable_provenance(provenance: Mapping[str, object], *, settings: Mapping[str, object]) -> dict[str, object]:
    """Return a run's provenance without entries that tell of the machine or name a place of the run."""
    places = places_in(settings)
    return {
        name: shareable_provenance(value, settings=settings) if isinstance(value, Mapping) else value
        for name, value in provenance.items()
        if name not in _PRIVATE
        and (isinstance(value, Mapping) or not (_shows_path(value) or any(place in str(value) for place in places)))
    }


def shareable_text(text: str, *, settings: Mapping[str, object]) -> str:
    """Return `text` with a word in place of each path in it."""
    for place in places_in(settings):
        text = text.replace(place, HIDDEN)
    return _PATH.sub(HIDDEN, text)


def places_in(settings: Mapping[str, object]) -> list[str]:
    """Return the paths among the settings, longest first; a bare name is a word like others and tells of no place."""
    values = {str(settings[name]) for name in PLACES if _is_private_place(name, settings.get(name))}
    return sorted((value for value in values if "/" in value or Path(value).suffix), key=len, reverse=True)


def _is_private_place(name: str, value: object) -> bool:
    is_public = (name in ("model", "tokenizer") and is_hub_id(str(value))) or (
        name in ("general", "instead") and value in ("auto", "holdout", "refusal")
    )
    return value is not None and not is_public


def _shows_path(value: object) -> bool:
    return _PATH.search(str(value)) is not None
