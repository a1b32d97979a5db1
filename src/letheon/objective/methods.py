"""The type of a method: its weighted terms and their needs, its schedule and settings, and its paper.

The methods themselves are declared in catalogue.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from letheon.errors import SettingsError, nearest
from letheon.objective.terms import Needs, Roles, Tokens, TokenTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from letheon.data.packing import Role
    from letheon.objective.control import Control

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
class Term:
    """One weighted part of a loss."""

    name: str
    role: Role
    weight: float
    loss: Callable[[TokenTerms, Roles], Tensor]
    """The term's value on a batch, from the tokens of its role (and of others, where it compares them)."""
    needs: Needs = field(default_factory=Needs)
    splits: bool = True
    """Whether a step may be computed in pieces."""
    reads_reference: bool = False
    """Whether the loss reads the reference's log-probabilities of the answers."""


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Other answers to the prompts of the forget rows."""

    kind: Literal["refusals", "random-tokens", "other-answers", "generated"]
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


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to minimise and its unweighted parts by name; a part is None if the step has no token of its role."""

    total: Tensor
    parts: dict[str, Tensor | None]


def compose(
    terms: tuple[Term, ...], values: TokenTerms, roles: Roles, *, factors: Mapping[str, float] | None = None
) -> Loss:
    """Return the weighted sum of `terms`, at least one, over one batch; `factors` multiply their weights by name."""
    import torch  # here, so that methods are listed without it

    parts: dict[str, Tensor | None] = {}
    weighted: list[Tensor] = []
    for term in terms:
        part = term.loss(values, roles)
        weighted.append(term.weight * (factors or {}).get(term.name, 1.0) * part)
        parts[term.name] = part if tokens_of(roles, term.role).counts.tokens else None
    return Loss(total=torch.stack(weighted).sum(), parts=parts)


def tokens_of(roles: Roles, role: Role) -> Tokens:
    """Return the tokens of one role."""
    tokens: Tokens = getattr(roles, role)
    return tokens


def needs_of(terms: tuple[Term, ...]) -> Needs:
    """Return what `terms` need together.

    Raises:
        ValueError: they need KLs of two directions or the states of two layers, of which a batch gives one.
    """
    directions = {t.needs.kl for t in terms if t.needs.kl}
    layers = {t.needs.activations for t in terms if t.needs.activations is not None}
    for what, found in (("one direction of the KL", directions), ("the states of one layer", layers)):
        if len(found) > 1:
            names = ", ".join(t.name for t in terms if {t.needs.kl, t.needs.activations} & found)
            raise ValueError(
                f"expected terms that need at most {what}, got {', '.join(map(str, sorted(found)))} ({names}); "
                "declare them as methods of their own"
            )
    return Needs(
        kl=next(iter(directions), None),
        forget_logits=any(t.needs.forget_logits for t in terms),
        reference_logits=any(t.needs.reference_logits for t in terms),
        activations=next(iter(layers), None),
        general_kl=any(t.needs.general_kl for t in terms),
        run_losses=any(t.needs.run_losses for t in terms),
    )


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
