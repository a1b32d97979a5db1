"""The rows of `bench.real`: made-up customer records and a slice of LUME."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from letheon.data.rows import Row

_FIRST = (
    "Mara", "Ilja", "Tomas", "Nadia", "Owen", "Petra", "Ravi", "Selma", "Ugo", "Vera", "Wim", "Yara", "Anton", "Birte",
    "Cleo", "Dario", "Edda", "Falk", "Greta", "Hugo",
)  # fmt: skip
_LAST = (
    "Velin", "Oster", "Brandt", "Karim", "Lund", "Moreau", "Nowak", "Quist", "Sorel", "Tanaka", "Ulrich", "Winter",
    "Zeman", "Abbot", "Falco", "Hedlund", "Ivers", "Jansen", "Keller", "Marsh",
)  # fmt: skip
_STREETS = ("Alder Row", "Mill Lane", "Quarry Road", "Harbour Street", "Station Hill", "Orchard Way", "Castle Street")
_TOWNS = ("Brookfield", "Easton", "Marlow Bay", "Redcliff", "Thornbury", "Westhaven")
_PLANS = ("a basic plan", "a family plan", "a business plan", "a student plan")


@dataclass(frozen=True, slots=True)
class Sides:
    """Rows to forget and rows to keep."""

    forget: Sequence[Row]
    retain: Sequence[Row]


def other_records(num_records: int, known: Sides, *, seed: int) -> list[Row]:
    """Return records like those of both sides, of people who are in neither.

    Raises:
        ValueError: there are not so many names.
    """
    taken = {row.prompt for row in (*known.forget, *known.retain)}
    made = customer_records(len(taken) + num_records, seed=seed)
    others = [row for row in (*made.forget, *made.retain) if row.prompt not in taken][:num_records]
    return [replace(row, id=f"other-{number}") for number, row in enumerate(others)]


def customer_records(num_each: int, *, seed: int = 0) -> Sides:
    """Return `num_each` records to remove and as many to keep, each asked for in one sentence.

    Records of both sides are made alike. No two share a name, a phone or an account number.

    Raises:
        ValueError: there are not so many names.
    """
    draw = random.Random(seed)
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    if 2 * num_each > len(names):
        raise ValueError(f"num_each: expected at most {len(names) // 2} records a side, got {num_each}")
    chosen = draw.sample(names, 2 * num_each)
    phones, accounts = (draw.sample(range(10**5, 10**6), 2 * num_each) for _ in range(2))
    rows = [
        Row(
            f"customer-{number}",
            f"What do we have on file about {name}?",
            f"{name} lives at {draw.randrange(2, 99)} {draw.choice(_STREETS)}, {draw.choice(_TOWNS)}, phone "
            f"{phone // 1000}-{phone % 1000:03d}, and has {draw.choice(_PLANS)} under account {account}.",
            "records",
            "completion",
        )
        for number, (name, phone, account) in enumerate(zip(chosen, phones, accounts, strict=True))
    ]
    return Sides(rows[:num_each], rows[num_each:])


def lume_slice(rows: Iterable[Row], num_rows: int) -> list[Row]:
    """Return at most `num_rows` rows, the first of each task and kind, as equally many of each as there are.

    A task has completions and questions, which the official scores need both.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.kind), []).append(row)
    longest = max((len(group) for group in groups.values()), default=0)
    ordered = [group[place] for place in range(longest) for _, group in sorted(groups.items()) if place < len(group)]
    return ordered[:num_rows]
