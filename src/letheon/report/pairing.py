"""Which evaluations are a run's: files are joined by fingerprints and by nothing else, never by where they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from letheon.data.forms import CHAT
from letheon.scores.results import Results
from letheon.storage.fingerprints import CALLED, short

Side = Literal["before", "after"]
SIDES: tuple[Side, ...] = ("before", "after")

_AGAIN = "run `letheon evaluate` again"


@dataclass(frozen=True, slots=True)
class Pairing:
    """How an evaluation that lies in a run's folder, or in that of its study, goes with the run."""

    side: Side
    results: Results
    differences: tuple[str, ...] = ()
    """What shows that it is not of this run, or not what was measured; it is then no evidence for the run."""
    unchecked: tuple[str, ...] = ()
    """What neither shows that it is of this run nor that it is not."""
    elsewhere: str | None = None
    """Where it lies by the run's folder, if not in it."""

    @property
    def place(self) -> str:
        """Where it lies."""
        return self.elsewhere or f"evaluation/{self.side}"


def pair(
    side: Side,
    results: Results,
    *,
    read: Mapping[str, Any],
    provenance: Mapping[str, Any],
    contradictions: tuple[str, ...] = (),
    unchecked: tuple[str, ...] = (),
) -> Pairing:
    """Compare an evaluation with a run: the model (before: the run's base, after: its result), rows and form.

    `read` are the fingerprints of what the run read, `provenance` is its provenance.json; `contradictions` say where
    the results do not follow from their predictions, `unchecked` why that could not be found out.
    """
    found = [_model(side, results, read, provenance), *_rows(results, read), _form(results, read)]
    return Pairing(
        side,
        results,
        (*contradictions, *(one.text for one in found if one and one.differs)),
        (*unchecked, *(one.text for one in found if one and not one.differs)),
    )


def named_form(template: str, date: str) -> str:
    """Return a form by its name, with its date where the form writes one."""
    return f"{template}, {date}" if template == CHAT else template


def read_of(results: Results) -> Mapping[str, Any]:
    """Return the fingerprints of what an evaluation read; none in a file of an earlier version."""
    read = results.provenance.get("read")
    return read if isinstance(read, Mapping) else {}


@dataclass(frozen=True, slots=True)
class _Finding:
    text: str
    differs: bool


def _model(side: Side, results: Results, read: Mapping[str, Any], provenance: Mapping[str, Any]) -> _Finding | None:
    there = read_of(results)
    if side == "before":
        which, files, weights = (
            "the model that the run began with",
            read.get("model_sha256"),
            _weights(read, provenance),
        )
    else:
        which, files, weights = "the model that the run left", _part(provenance, "result").get("model_sha256"), None
    if files is not None and files == there.get("model_sha256"):
        return None
    # The same weights may lie in other files; other bits of them may be those of another precision.
    if weights is not None and weights == _weights(there, results.provenance):
        return None
    if files is None or there.get("model_sha256") is None:
        return _Finding(f"whether it scored {which}: there is no fingerprint to tell", differs=False)
    return _Finding(
        f"it scored another model ({short(there['model_sha256'])}) than {which} ({short(files)})", differs=True
    )


def _rows(results: Results, read: Mapping[str, Any]) -> list[_Finding | None]:
    return [_side_of_rows(name, read_of(results).get(name), read.get(name)) for name in _ROWS]


_ROWS = ("forget_sha256", "retain_sha256")


def _side_of_rows(name: str, there: object, here: object) -> _Finding | None:
    rows = CALLED[name]
    if there is None or here is None:
        return _Finding(f"whether it scored {rows} of the run: there is no fingerprint to tell", differs=False)
    if there != here:
        other = rows.replace("the ", "other ", 1)
        return _Finding(f"it scored {other} ({short(there)}) than the run read ({short(here)})", differs=True)
    return None


def _form(results: Results, read: Mapping[str, Any]) -> _Finding | None:
    template, date = read.get("template"), read.get("date")
    if results.form is None or template is None:
        return _Finding("whether it asked the rows in the run's form: none is recorded", differs=False)
    asked = results.form
    if asked.template != template:
        return _Finding(f"it asked the rows in form '{asked.template}', the run's is '{template}'", differs=True)
    if template == CHAT and date is not None and asked.date != date:
        return _Finding(f"it asked the rows with the date {asked.date}, the run's is {date}", differs=True)
    return None


def _weights(read: Mapping[str, Any], provenance: Mapping[str, Any]) -> object:
    return read.get("weights_sha256") or _part(provenance, "model").get("sha256")


def _part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = mapping.get(name)
    return found if isinstance(found, Mapping) else {}


def refusal(pairings: tuple[Pairing, ...]) -> str | None:
    """Say which evaluations are not of this run, and what differs; None if there are none such."""
    said = [
        f"{one.place} does not belong to this run: {'; '.join(one.differences)}" for one in pairings if one.differences
    ]
    return f"{'; '.join(said)}; {_AGAIN}" if said else None


def doubt(pairings: tuple[Pairing, ...]) -> str | None:
    """Say what cannot be checked of the evaluations that may be the run's; None if all can."""
    said = [f"{one.place}: {'; '.join(one.unchecked)}" for one in pairings if one.unchecked and not one.differences]
    return f"{'; '.join(said)}; {_AGAIN}" if said else None
