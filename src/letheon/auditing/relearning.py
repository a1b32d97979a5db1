"""Relearning: a few steps of training on something else than what is then asked.

On part: half of the forget rows is trained on and the other half asked, cut by subject, so that the answers cannot be
inferred; what comes back was never gone (Deeb and Roger 2024, arXiv 2410.08827). On unrelated rows: rows to keep, which
have the form and other content; on general text. Text that is but loosely related does it (Hu et al. 2024, arXiv
2406.13356; Lynch et al. 2024, arXiv 2402.16835).

Differs from these: the learning rate follows the width of the model (`scaled_rate`), and the loss is that of
memorising, prompts included.
"""

from collections.abc import Callable, Sequence
from functools import partial

from letheon.auditing.attack import Attack, Given, Knowledge, Point, Subject
from letheon.auditing.finetuning import What, has_broken, row_sequences, text_sequences, tuning
from letheon.auditing.knowledge import ask, values_of
from letheon.auditing.rows import halves
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence
from letheon.errors import DivergenceError
from letheon.progress import Progressed

STEPS = (1, 5, 20, 100)
"""After how many steps the rows are asked."""
_FEWEST = 2
"""Rows, or pieces of text, without which training says nothing."""

Material = Callable[[Subject, Sequence[Row]], tuple[list[int], list[TokenSequence]]]
"""Returns the places of the rows to ask and what to train on."""


def relearn(subject: Subject, rows: Sequence[Row], tell: Progressed, *, material: Material, what: What) -> Knowledge:
    """Train a copy of the model on `material`, and ask the rows along the way."""
    asked, sequences = material(subject, rows)
    wanted = [rows[place] for place in asked]
    points: list[Point] = []
    notes: list[str] = []
    with tuning(subject, sequences, what=what) as trained:
        for steps in STEPS:
            try:
                trained.train_to(steps, partial(tell, "relearning"))
            except DivergenceError as error:
                notes.append(has_broken(error))
                break
            texts = ask(trained.subject, wanted, tell, stage=f"asking after {steps} steps")
            points.append(Point(steps, values_of(wanted, texts), texts=tuple(texts)))
    return Knowledge(tuple(asked), tuple(points), tuple(notes))


def _part(subject: Subject, rows: Sequence[Row]) -> tuple[list[int], list[TokenSequence]]:
    asked, trained = halves(rows)
    return asked, row_sequences(subject, [rows[place] for place in trained])


def _unrelated(subject: Subject, rows: Sequence[Row]) -> tuple[list[int], list[TokenSequence]]:
    return list(range(len(rows))), row_sequences(subject, subject.given.retain)


def _text(subject: Subject, rows: Sequence[Row]) -> tuple[list[int], list[TokenSequence]]:
    return list(range(len(rows))), text_sequences(subject, subject.given.text)


def _needs_halves(given: Given) -> str | None:
    for name, rows in (("forget", given.rows), ("placebo", given.unseen)):
        if min(map(len, halves(rows))) < _FEWEST:
            return (
                f"the {name} rows ({len(rows)}) cannot be cut into two halves of at least {_FEWEST} rows that share "
                "no subject; give more rows"
            )
    return None


def _needs_retain(given: Given) -> str | None:
    return None if len(given.retain) >= _FEWEST else "there are no rows to keep to train on; give them by --retain"


def _needs_text(given: Given) -> str | None:
    return None if given.text else "there is no general text to train on; give it by --text"


def _attack(name: str, title: str, what: What, material: Material, **facts: object) -> Attack:
    how = {"lora": "an adapter", "weights": "all weights"}[what]
    run = partial(relearn, material=material, what=what)
    source = _PART_SOURCE if name == "part" else _OTHER_SOURCE
    return Attack(f"relearning-{name}-{what}", f"Relearning on {title}, {how}", source, "steps", run, **facts)  # type: ignore[arg-type]


_PART_SOURCE = "Deeb and Roger 2024, arXiv 2410.08827"
_OTHER_SOURCE = "Hu et al. 2024, arXiv 2406.13356; Lynch et al. 2024, arXiv 2402.16835"

ATTACKS = (
    _attack("part", "half of the rows", "lora", _part, needs=_needs_halves, passes=12.0, halves=True),
    _attack("part", "half of the rows", "weights", _part, needs=_needs_halves, passes=12.1, halves=True),
    _attack("unrelated", "rows to keep", "lora", _unrelated, needs=_needs_retain, passes=12.2),
    _attack("unrelated", "rows to keep", "weights", _unrelated, needs=_needs_retain, passes=12.3, is_default=False),
    _attack("text", "general text", "lora", _text, needs=_needs_text, passes=12.4),
    _attack("text", "general text", "weights", _text, needs=_needs_text, passes=12.5, is_default=False),
)
