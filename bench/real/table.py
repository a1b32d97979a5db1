"""The numbers of `bench.real` as tables, one row a model, and what the models said beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.audits import COLUMNS
from letheon.report.tables import Table, to_markdown

Numbers = Mapping[str, Any]
"""What was measured of a model, as real.json has it."""

_COLUMNS: tuple[tuple[str, tuple[str, ...], str, float], ...] = (
    ("forget recall", ("forget", "recall"), "{:.3f}", 1),
    ("forget word for word", ("forget", "whole"), "{:.2f}", 1),
    ("forget refused", ("forget", "num_refused"), "{:.0f}", 1),
    ("retain recall", ("retain", "recall"), "{:.3f}", 1),
    ("retain word for word", ("retain", "whole"), "{:.2f}", 1),
    ("task aggregate", ("official", "task_aggregate"), "{:.3f}", 1),
    ("MIA AUC", ("official", "membership_auc"), "{:.3f}", 1),
    ("final", ("official", "final"), "{:.3f}", 1),
    ("MMLU", ("mmlu", "accuracy"), "{:.3f}", 1),
    ("text loss", ("text", "loss"), "{:.3f}", 1),
    ("chat right", ("chat", "num_right"), "{:.0f}", 1),
    ("lost", ("chat", "num_lost"), "{:.0f}", 1),
    ("won", ("chat", "num_won"), "{:.0f}", 1),
    ("chat refused", ("chat", "num_refused"), "{:.0f}", 1),
    ("chat answer loss", ("chat", "loss_before"), "{:.2f}", 1),
    ("forget gibberish", ("forget", "degenerate"), "{:.2f}", 1),
    ("retain gibberish", ("retain", "degenerate"), "{:.2f}", 1),
    ("forget answer loss", ("forget", "loss_before"), "{:.2f}", 1),
    ("wall s", ("cost", "wall_s"), "{:.0f}", 1),
    ("CPU s", ("cost", "process_s"), "{:.0f}", 1),
    ("peak MiB", ("cost", "peak_bytes"), "{:,.0f}", 2**20),
)
"""Heading, where the number is, its form and its unit."""

AUDITED = ("given without an attack", *COLUMNS.values(), "verdict")
"""What an audit found, as `bench.audits.audited_cells` gives it."""
OTHER_SEED = "ours, seed "
"""How the name of a further run of ours begins; the number follows."""
_MOST_CHARACTERS = 160


def report(parts: Mapping[str, Mapping[str, Numbers]]) -> str:
    """Return all parts as Markdown."""
    return "\n".join(f"## {part}\n\n{_part(part, models)}" for part, models in parts.items())


def _part(part: str, models: Mapping[str, Numbers]) -> str:
    attacks = attacks_table(part, models)
    tables = [numbers_table(part, models), *([attacks] if attacks.rows else [])]
    return "\n".join([*map(to_markdown, tables), said(models)])


def numbers_table(part: str, models: Mapping[str, Numbers]) -> Table:
    """Return a row for each model, and one for the means of ours; a column stands where some model has its number."""
    shown = [column for column in _COLUMNS if any(_number(found, column[1]) is not None for found in models.values())]
    rows = tuple(
        (name, *(_cell(_mean(group, place), form, unit) for _, place, form, unit in shown))
        for name, group in _rows(models)
    )
    return Table(f"Part {part}", ("model", *(heading for heading, *_ in shown)), rows)


def attacks_table(part: str, models: Mapping[str, Numbers]) -> Table:
    """Return a row for each model that was attacked."""
    rows = tuple(
        (name, *(found["audit"][column] for column in AUDITED)) for name, found in models.items() if "audit" in found
    )
    return Table(f"Part {part}, attacked", ("model", *AUDITED), rows)


def said(models: Mapping[str, Numbers]) -> str:
    """Return the answers to the chat questions, and to the first rows of each side, model by model."""
    return "\n".join(
        to_markdown(_answers(kind, models, most)) for kind, most in (("chat", 10), ("forget", 3), ("retain", 3))
    )


def _answers(kind: str, models: Mapping[str, Numbers], most: int) -> Table:
    answers = {name: found[kind]["answers"][:most] for name, found in models.items()}
    questions = [one["prompt"] for one in next(iter(answers.values()))]
    rows = tuple(
        (_short(question), *(_short(given[place]["answer"]) for given in answers.values()))
        for place, question in enumerate(questions)
    )
    return Table(f"Answers, {kind}", ("asked", *answers), rows)


def _rows(models: Mapping[str, Numbers]) -> Iterator[tuple[str, Sequence[Numbers]]]:
    """Yield each model, and with several seeds of ours all of them together."""
    for name, found in models.items():
        yield name, [found]
    seeds = [found for name, found in models.items() if name == "ours" or name.startswith(OTHER_SEED)]
    if len(seeds) > 1:
        yield f"ours, mean of {len(seeds)} seeds", seeds


def _mean(group: Sequence[Numbers], place: tuple[str, ...]) -> float | None:
    values = [value for value in (_number(found, place) for found in group) if value is not None]
    return fmean(values) if len(values) == len(group) else None


def _number(found: Numbers, place: tuple[str, ...]) -> float | None:
    value: Any = found
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _cell(value: float | None, form: str, unit: float) -> str:
    return "" if value is None else form.format(value / unit)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."
