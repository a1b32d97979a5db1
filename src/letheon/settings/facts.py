"""What the rest of the code has to know of a setting: markers beside its type, and the facts that they add up to.

    rank: Annotated[int, FIXED, OWN, Requires("adapt", "lora")] = Field(5, ge=1, description="LoRA rank.")

Every field of `unlearn` has a `Change` and a `Population`; the other markers are optional. Flags, help, resuming,
studies and populations ask `facts_of`, so no list of names is kept anywhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TypeVar

from letheon.settings.base import Settings


class Change(Enum):
    """What another value makes of a run.

    Recomputed activations have the same bits, so gradient checkpointing may change half-way. Other devices, dtypes,
    pieces of a step and stored lower states round differently.
    """

    FIXED = "another run: none is resumed with another value"
    RESUMABLE = "another run, but a run may be resumed with another value"
    INCIDENTAL = "the same run: nothing that it finds depends on the value"


class Population(Enum):
    """Whether the runs that are trained together over one model share a value.

    The memory of a step also depends on the rank, which is not SIZED: the largest rank of all runs counts.
    """

    SHARED = "all of them have the same"
    OWN = "each has its own"
    SIZED = "each has its own, and the memory of its steps depends on it"


class Shown(Enum):
    """Where help shows a setting, if not under its heading."""

    FIRST = "with the settings used most"
    RARE = "in --help-all only"


class Kind(Enum):
    """What a value is, where its type does not say so."""

    FILE = "a file or folder that is read, or a hub id: a run is identified by what it holds"
    COEFFICIENT = "a coefficient of the method: whether it is taken, its default and its meaning are the method's"


@dataclass(frozen=True, slots=True)
class Requires:
    """Another setting without which this one has no effect, so that setting this one alone is an error."""

    setting: str
    values: tuple[str, ...]
    """The values of it that give this one an effect; empty: any that is given."""

    def __init__(self, setting: str, *values: str) -> None:
        object.__setattr__(self, "setting", setting)
        object.__setattr__(self, "values", values)

    def is_met(self, settings: Settings) -> bool:
        """Return whether the setting has an effect beside the others."""
        value = getattr(settings, self.setting)
        return value in self.values if self.values else value is not None and value is not False

    def __str__(self) -> str:
        return " ".join([f"--{self.setting.replace('_', '-')}", *filter(None, [" or ".join(self.values)])])


@dataclass(frozen=True, slots=True)
class RequiresMethod:
    """What a method must declare for the setting to have an effect."""

    attribute: str
    """The attribute of a `Method` that is not None."""
    description: str

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, slots=True)
class Alias:
    """A shorter flag."""

    flag: str


FIXED, RESUMABLE, INCIDENTAL = Change.FIXED, Change.RESUMABLE, Change.INCIDENTAL
SHARED, OWN, SIZED = Population.SHARED, Population.OWN, Population.SIZED
FIRST, RARE = Shown.FIRST, Shown.RARE
FILE, COEFFICIENT = Kind.FILE, Kind.COEFFICIENT


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one setting."""

    heading: str
    """That of the part that declares it."""
    change: Change | None
    """None for commands whose runs are neither resumed nor identified."""
    population: Population | None
    """None for settings that `unlearn` does not have."""
    shown: Shown | None
    kind: Kind | None
    requires: Requires | RequiresMethod | None
    alias: Alias | None


@cache
def facts_of(settings: type[Settings]) -> Mapping[str, Facts]:
    """Return the facts of each setting of a command, by name.

    Raises:
        TypeError: a setting has two markers of one kind.
    """
    return {name: _facts(settings, name) for name in settings.model_fields}


def names_where(settings: type[Settings], holds: Callable[[Facts], bool]) -> frozenset[str]:
    """Return the names of the settings whose facts are such."""
    return frozenset(name for name, facts in facts_of(settings).items() if holds(facts))


def _facts(settings: type[Settings], name: str) -> Facts:
    markers: list[object] = list(settings.model_fields[name].metadata)
    declares = (base for base in reversed(settings.__mro__) if issubclass(base, Settings) and name in base.model_fields)
    return Facts(
        heading=next(declares).heading,
        change=_only(markers, Change, name),
        population=_only(markers, Population, name),
        shown=_only(markers, Shown, name),
        kind=_only(markers, Kind, name),
        requires=_only(markers, Requires, name) or _only(markers, RequiresMethod, name),
        alias=_only(markers, Alias, name),
    )


_Marker = TypeVar("_Marker")


def _only(markers: list[object], kind: type[_Marker], name: str) -> _Marker | None:
    found = [marker for marker in markers if isinstance(marker, kind)]
    if len(found) > 1:
        raise TypeError(f"{name}: expected at most one {kind.__name__}, got {', '.join(map(str, found))}")
    return found[0] if found else None
