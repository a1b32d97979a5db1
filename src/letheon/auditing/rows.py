"""The rows of an audit: which are asked, how they are cut by subject, and placebo rows."""

import random
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from letheon.data.benchmarks.synthetic import Size, generate
from letheon.data.rows import Row

_PART = re.compile(r"(?:(?:sc|qa)\d+|#\d+)$")
_PLACEBO_SEED = 1_000_003
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'-]{2,}")
_WORD = re.compile(r"\w+")
_TELLING_WORDS = 3
_MOST_SHARED = 0.1
"""Share of the rows above which a word says nothing about whom a row is."""


def document_of(row: Row) -> str:
    """Return the part of a row's id that names its document: "X" of LUME's `Xsc1` and `Xqa0`, of `X#1` of a
    conversation; the whole id of others."""
    return _PART.sub("", row.id)


def documents_of(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Return (R,) which document each row is of, numbered in the order of their first rows."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(document_of(row), len(numbers)) for row in rows], dtype=np.int64)


def subjects_of(rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of the rows that speak of one subject together, in the order of their first rows.

    Rows are of one subject if their ids name one document (LUME's `Xsc1` and `Xqa0`, `X#1` of a conversation). Where no
    id does, they are if they share a name: a capitalised word inside a sentence that at most a tenth of the rows have.
    Where such names join most of the rows, each row is a subject.
    """
    keys = [[f"id {document_of(row)}"] for row in rows]
    if len({key for [key] in keys}) < len(rows):
        return _joined(keys)
    named = [[*key, *_names(row)] for key, row in zip(keys, rows, strict=True)]
    counts: dict[str, int] = {}
    for found in named:
        for name in found:
            counts[name] = counts.get(name, 0) + 1
    most = max(2, int(_MOST_SHARED * len(rows)))
    groups = _joined([[n for n in found if n.startswith("id ") or counts[n] <= most] for found in named])
    return groups if max(map(len, groups), default=0) <= max(1, len(rows) // 2) else _joined(keys)


def halves(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return the places of the rows to ask and of those to train on: each subject goes to the half that is smaller.

    With one subject there is nothing to cut, and the second half is empty.
    """
    asked: list[int] = []
    trained: list[int] = []
    for group in subjects_of(rows):
        smaller = asked if len(asked) <= len(trained) else trained
        smaller += group
    return asked, trained


def sample(rows: Sequence[Row], num: int, *, seed: int) -> list[Row]:
    """Return at most `num` rows, subject by subject in random order, so that a cut of the list cuts few subjects."""
    groups = subjects_of(rows)
    random.Random(seed).shuffle(groups)
    return [rows[place] for group in groups for place in group][:num]


def made_up(like: Sequence[Row], num: int) -> list[Row]:
    """Return up to `num` made-up rows with as many questions, completions and documents in the hundred as `like` has.

    They come from the made-up benchmark, from a seed that `letheon data synthetic` is not usually given.
    """
    size = Size(max(1, num // 8), max(1, num // 12), 1, max(1, num // 2), 1, 1, 1, 1)
    pool = generate(_PLACEBO_SEED, size).holdout
    wanted = [num * sum(row.kind == kind for row in like) / max(1, len(like)) for kind in ("question", "completion")]
    questions, texts = ([row for row in pool if row.kind == kind] for kind in ("question", "completion"))
    chosen = {row.id for found, count in zip((questions, texts), wanted, strict=True) for row in found[: round(count)]}
    rows = [row for row in pool if row.id in chosen]
    if like and all(row.is_document for row in like):
        return [Row(row.id, "", f"{row.prompt} {row.answer}", row.task, row.kind) for row in rows]
    return rows


def telling(rows: Sequence[Row], others: Sequence[Row]) -> frozenset[int]:
    """Return the places of the rows whose answers cannot be guessed, so that a model that gives one has seen it.

    Such an answer has at least three words, of which at least one stands in no row of another subject, here or in
    `others`: answers made of a few words that all rows share are hit by chance.
    """
    subject_of = {place: number for number, group in enumerate(subjects_of(rows)) for place in group}
    elsewhere = {word for row in others for word in _words(f"{row.prompt} {row.answer}")}
    users: dict[str, set[int]] = {}
    for place, row in enumerate(rows):
        for word in _words(f"{row.prompt} {row.answer}"):
            users.setdefault(word, set()).add(subject_of[place])
    return frozenset(
        place
        for place, row in enumerate(rows)
        if len(row.answer.split()) >= _TELLING_WORDS
        and any(len(users[word]) == 1 and word not in elsewhere for word in _words(row.answer))
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _names(row: Row) -> list[str]:
    return sorted(set(_NAME.findall(f"{row.prompt} {row.answer}")))


def _joined(keys: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the places whose keys are linked by shared ones."""
    group_of = list(range(len(keys)))

    def root(place: int) -> int:
        while group_of[place] != place:
            group_of[place] = place = group_of[group_of[place]]
        return place

    first: dict[str, int] = {}
    for place, found in enumerate(keys):
        for key in found:
            one, other = sorted((root(first.setdefault(key, place)), root(place)))
            group_of[other] = one
    groups: dict[int, list[int]] = {}
    for place in range(len(keys)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())
