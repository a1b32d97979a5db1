"""The type of a method: its weighted terms, its schedule and settings, and its paper.

The methods themselves are declared in catalogue.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from letheon.errors import SettingsError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from letheon.objective.control import Control
    from letheon.objective.parts import Term

Value = float | str


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The numbers and choices that a method's terms take, by name."""

    values: Mapping[str, Value]
    seed: int = 0
    """Seed of what a term draws at random (RMU's direction)."""

    def number(self, name: str) -> float:
        """Return a number."""
        return float(self.values[name])

    def choice(self, name: str) -> str:
        """Return a choice."""
        return str(self.values[name])


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A setting of a method's loss."""

    default: Value
    """The published value."""
    meaning: str
    choices: tuple[str, ...] = ()
    """The values that a choice can take; empty for a number."""
    minimum: float = 0.0
    """The least value of a number."""
    is_share: bool = False
    """Whether it is a share: above 0 and at most 1."""


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Other answers to the prompts of the forget rows."""

    kind: Literal["refusals", "refusal", "random-tokens", "other-answers", "generated", "given"]
    replace: bool
    """Whether they stand in place of the forget rows, rather than beside them."""
    per_row: int = 1
    """How many a row has; epochs take turns."""

    def beside(self, rows: Sequence[int], *, num_forget: int, num_rows: int, epoch: int) -> list[int]:
        """Put other answers to the forget rows of a step beside them, or in their place.

        Other answers are numbered from `num_rows` on, `per_row` to a forget row, and epochs take turns among these.
        """
        others = [num_rows + row * self.per_row + epoch % self.per_row for row in rows if row < num_forget]
        return [*(row for row in rows if row >= num_forget or not self.replace), *others]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to unlearn."""

    name: str
    formula: str
    paper: str
    """Authors, year, title, arXiv id."""
    terms: Callable[[Coefficients], tuple[Term, ...]]
    coefficients: Mapping[str, Coefficient] = field(default_factory=lambda: MappingProxyType({}))
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Published values of settings of `unlearn` that this method is not itself without: schedule, what is adapted."""
    alternatives: Alternatives | None = None
    control: Callable[[Coefficients], Control] | None = None
    """How weights follow what was measured while training."""
    runs: tuple[Mapping[str, Value], ...] = (MappingProxyType({}),)
    """Coefficients of each run that the method consists of; one run for most."""
    finish: Literal["keep", "negate", "ties"] = "keep"
    """What becomes of the trained weights: kept, subtracted in place of added, or merged over the runs."""
    layer: str | None = None
    """The coefficient that names a decoder layer, "auto" for one about a quarter of the way up; None if none does."""
    notes: str = ""
    """Where it differs from what was published."""


def resolve(method: Method, given: Mapping[str, Value], *, seed: int = 0) -> Coefficients:
    """Return the method's coefficients: those given, and its published values for the rest.

    Raises:
        SettingsError: one was given that the method does not take, or a value that it cannot have.
    """
    for name, value in given.items():
        if name not in method.coefficients:
            takes = ", ".join(method.coefficients) or "no coefficients"
            raise SettingsError(
                f"{name}: method '{method.name}' does not take it (it takes {takes})"
                f"{nearest(name, method.coefficients)}; leave it out"
            )
        _check_value(name, value, method.coefficients[name], is_layer=name == method.layer)
    defaults = {name: coefficient.default for name, coefficient in method.coefficients.items()}
    return Coefficients({**defaults, **given}, seed)


def _check_value(name: str, value: Value, coefficient: Coefficient, *, is_layer: bool) -> None:
    if coefficient.choices:
        if value not in coefficient.choices:
            raise SettingsError(
                f"{name}: expected one of {', '.join(coefficient.choices)}, got {value!r}"
                f"{nearest(str(value), coefficient.choices)}"
            )
        return
    if is_layer and value == "auto":
        return
    try:
        number = float(value)
    except ValueError:
        raise SettingsError(f"{name}: expected a number, got {value!r}") from None
    if coefficient.is_share and not 0 < number <= 1:
        raise SettingsError(f"{name}: expected a share above 0 and at most 1, got {value!r}")
    if not coefficient.minimum <= number < float("inf"):
        raise SettingsError(f"{name}: expected a number of at least {coefficient.minimum:g}, got {value!r}")
