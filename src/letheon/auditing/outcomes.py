"""What each attack found, kept in the folder of an audit, so that an audit that was ended goes on where it was."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from letheon.processes import from_first, on_first
from letheon.storage.fingerprints import hash_values
from letheon.storage.run_folder import OUTCOMES_FILE, write_json_entry

_T = TypeVar("_T")

_OF_UNLEARNED = "model_sha256"
"""The fingerprint on which the outcomes of other models than the unlearned one do not depend."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model says to rows without an attack."""

    values: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The outcomes in a folder; one of other models, rows or settings counts as none."""

    folder: Path
    """The folder of the audit."""
    read: Mapping[str, Any]
    """Fingerprints of all that outcomes depend on."""

    def get(self, name: str, kind: Any, make: Callable[[], _T], *, is_of_unlearned: bool) -> _T:
        """Return the outcome `name` of type `kind`, made and kept unless it is there.

        What is not of the unlearned model is kept for audits of other results of unlearning.
        """
        depends = {key: value for key, value in self.read.items() if is_of_unlearned or key != _OF_UNLEARNED}
        key = hash_values([depends])
        kept: list[_T] = from_first(lambda: self._kept(name, kind, key))
        if kept:
            return kept[0]
        made = make()
        on_first(lambda: self._keep(name, key, TypeAdapter(kind).dump_python(made, mode="json")))
        return from_first(lambda: made)

    def _kept(self, name: str, kind: Any, key: str) -> list[Any]:
        """The outcome in a list, which is empty where there is none."""
        kept = read_values(self.folder / OUTCOMES_FILE)
        with suppress(KeyError, TypeError, ValidationError):
            if kept[name]["key"] == key:
                return [TypeAdapter(kind).validate_python(kept[name]["outcome"])]
        return []

    def _keep(self, name: str, key: str, outcome: Any) -> None:
        kept = read_values(self.folder / OUTCOMES_FILE)
        write_json_entry(self.folder, OUTCOMES_FILE, {**kept, name: {"key": key, "outcome": outcome}})


def read_values(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
