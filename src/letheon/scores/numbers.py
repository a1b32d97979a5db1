"""The numbers of results, and whether two computations of one are the same."""

import math
from collections.abc import Iterator, Mapping

TOLERANCE = 1e-9
"""Between two computations of one score: sums of up to a million rows in double precision."""


def numbers(value: object, name: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the dotted names and values of all numbers, and of what is None, in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from numbers(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from numbers(part, f"{name}.{index}")
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield name, None if value is None else float(value)


def membership_score(auc: float) -> float:
    """Return 1 - 2 |AUC - 0.5|: 1 where an attack tells nobody apart, 0 where it tells all, either way round."""
    return 1 - 2 * abs(auc - 0.5)


def chance_auc_error(num_members: int, num_nonmembers: int) -> float:
    """Return the standard error of the AUC where losses do not depend on membership (Mann-Whitney, no ties).

    sqrt((n + m + 1) / (12 n m)).
    """
    return math.sqrt((num_members + num_nonmembers + 1) / (12 * num_members * num_nonmembers))


def expected_perfect_score(num_members: int, num_nonmembers: int) -> float:
    """Return the mean of 1 - 2 |AUC - 0.5| for a model that never saw any of the documents.

    1 - 2 E|AUC - 0.5| = 1 - 2 sqrt(2 / pi) times the AUC's standard error (normal approximation).
    """
    return 1 - 2 * math.sqrt(2 / math.pi) * chance_auc_error(num_members, num_nonmembers)


def is_same(one: float | None, other: float | None) -> bool:
    """Whether two numbers are the same but for rounding; None is the same as None alone."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
