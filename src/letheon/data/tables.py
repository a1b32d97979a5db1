"""A source whose columns are known: the first record decides what they mean, and the others are held to it."""

from collections.abc import Iterator, KeysView, Mapping
from dataclasses import astuple, dataclass, replace
from itertools import chain

from letheon.data.conversations import Answers, Exchange
from letheon.data.layouts import ACCEPTED, Layout, check_layout, find_layout, read_exchanges
from letheon.data.records import Record, Records, check_text, is_absent
from letheon.errors import DataError

_LARGEST_EXACT = 2.0**53
"""Below it each whole number is a float of its own; tables in which some ids are missing hold floats."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The columns of a row other than its texts."""

    id: str
    task: str
    kind: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What one record holds: the exchanges that become rows, and the record for its labels."""

    number: int
    """Where it stands in the source, from 1."""
    where: str
    id: str
    record: Record
    exchanges: list[Exchange]


@dataclass(slots=True)
class Table:
    """The records of a source and the meaning of their columns; read once."""

    records: Records
    fields: Mapping[str, str]
    labels: Labels
    layout: Layout
    ids_given: bool
    """False if the first record has no id; then none may have one."""
    first_columns: KeysView[str]
    columns: list[str]
    """All columns of the records read so far."""
    num_dropped: int = 0
    """Turns after the last answer, in the records read so far."""

    @property
    def text_columns(self) -> list[str]:
        """The columns read so far that hold no label."""
        return [name for name in self.columns if name not in astuple(self.labels)]

    def entries(self, answers: Answers) -> Iterator[Entry]:
        """Yield what each record holds.

        Raises:
            DataError: a record is not usable, or differs from the first one.
        """
        for count, (number, record) in enumerate(self.records.entries, 1):
            where = self.records.where(number)
            if record.keys() != self.first_columns:
                check_layout(self.layout, record, self.fields, where)
                self.columns += [name for name in record if name not in self.columns]
            row_id = self._id_of(record, where, count)
            exchanges, num_dropped = read_exchanges(record, self.layout, where, answers=answers)
            self.num_dropped += num_dropped
            yield Entry(number, where, row_id, record, exchanges)

    def _id_of(self, record: Record, where: str, count: int) -> str:
        """Return a record's id, "row<count>" where the source has none."""
        value = record.get(self.labels.id)
        if is_absent(value) == self.ids_given:
            raise DataError(f"{where}: expected an id in every row or in none, and this row differs from the first")
        if not self.ids_given:
            return f"row{count}"
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
            return str(int(value))
        return check_text(value, "id", where)


def begin_table(records: Records, fields: Mapping[str, str]) -> Table:
    """Read the first record and decide what the columns mean.

    Raises:
        DataError: there is no record, or its columns are not known.
    """
    begun = next(records.entries, None)
    if begun is None:
        raise DataError(f"{records.source}: expected rows with columns {ACCEPTED}; found none: the file is empty")
    number, first = begun
    labels = Labels(*(fields.get(name, name) for name in ("id", "task", "kind")))
    return Table(
        records=replace(records, entries=chain([begun], records.entries)),
        fields=fields,
        labels=labels,
        layout=find_layout(first, fields, records.where_named(number)),
        ids_given=not is_absent(first.get(labels.id)),
        first_columns=first.keys(),
        columns=list(first),
    )
