"""Types of values that several settings have: lists from one text, spans of layers, dates, files."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

DEFAULT_DATE = "2024-07-26"
"""The date given to chat templates that write today's date, so that a run gives the same bytes on every day; the date
that Llama 3.1's template falls back on."""
DEFAULT_SUITE = "lume"
MOST_EPOCHS = 1_000_000
MOST_RANKS = 65_536
LARGEST_SEED = 2**32 - 1
"""Generators are seeded with multiples of it, which must stay below 2**63."""


def _split_names(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(name for part in parts for piece in part.split(",") if (name := piece.strip()))


def _split_numbers(value: Any) -> Any:
    parts = _split_names(value)
    return (value,) if isinstance(value, int | float) else parts


Parity = Literal["open-unlearning", "original"]
"""Whose code defines the scores of a suite: open-unlearning's, or that of the paper which the suite is from."""

Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
"""A list of names; a text is split at commas."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(_split_numbers), Field(min_length=1)]
"""A list of numbers; a text is split at commas."""


def _check_span(value: str) -> str:
    if not re.fullmatch(r"(-?\d+)?:(-?\d+)?", value):
        raise ValueError('a span of layers such as "-8:" or "0:6"')
    return value


Span = Annotated[str, AfterValidator(_check_span)]
"""Some of a list, as a slice."""


def _check_date(value: Any) -> Any:
    if isinstance(value, date):  # YAML reads one by itself
        return value.isoformat()
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError) as error:
        raise ValueError("a date such as 2024-07-26") from error


IsoDate = Annotated[str, BeforeValidator(_check_date)]
"""A date as YEAR-MONTH-DAY."""


def _check_device_name(value: str) -> str:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError("a device such as cpu, cuda, cuda:1, xpu or mps")
    return value


Device = Annotated[str, AfterValidator(_check_device_name)]
"""A device by torch's name; whether it is there is not checked here."""


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|)\s*", value)
    if found is None:
        raise ValueError("a length of time such as 10m, 90s or 2h")
    return float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]]


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""Seconds; a text may have the unit s, m or h."""


def _none_of_it(value: Any) -> Any:
    return None if value == "none" else str(value) if isinstance(value, Path) else value


Rate = Annotated[float, Field(gt=0)] | Literal["auto"]
"""A learning rate, or "auto" for one that follows the scores."""

General = Annotated[str | None, BeforeValidator(_none_of_it)]
"""A file, "auto", or None, which a text writes as "none"."""

Instead = Annotated[str | None, BeforeValidator(_none_of_it)]
"""A file, "refusal", "auto", or None, which a text writes as "none"."""


def _check_named(value: str) -> str:
    if not value.strip():
        raise ValueError("the name of a file")
    return value


Sources = Annotated[
    tuple[Annotated[str, AfterValidator(_check_named)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""One or more files."""
