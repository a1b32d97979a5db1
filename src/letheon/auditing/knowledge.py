"""What a model knows of rows: exact match for questions, ROUGE-L recall for texts, asked in the form of the rows."""

from collections.abc import Sequence
from functools import partial

from letheon.auditing.attack import Subject
from letheon.data.forms import as_asked
from letheon.data.rows import Row
from letheon.evaluation.generation import generate_from
from letheon.evaluation.in_form import Asking, askings, said
from letheon.evaluation.metrics.exact_match import unicode_exact_match
from letheon.evaluation.metrics.rouge import unicode_rouge_l
from letheon.progress import Progressed

RECALLED = 0.5
"""ROUGE-L recall from which a text counts as recalled where an attack needs a yes or no."""


def value_of(row: Row, text: str) -> float:
    """Return how much of the row's answer `text` gives, 0 to 1: exact match for a question, else ROUGE-L recall.

    Both are the Unicode variants, which equal the official scores for ASCII. `row` is as it is asked (`as_asked`).
    """
    if row.kind == "question":
        return unicode_exact_match(text, row.answer)
    return unicode_rouge_l(text, row.answer)


def is_success(row: Row, text: str) -> bool:
    """Return whether `text` counts as the answer: an exact match, or a ROUGE-L recall of `RECALLED` for texts."""
    return value_of(row, text) >= (1.0 if row.kind == "question" else RECALLED)


def say(subject: Subject, ways: Sequence[Asking], rows: Sequence[Row], tell: Progressed, *, stage: str) -> list[str]:
    """Return the greedy answer to each way of asking; `rows` (as asked) says whose answer each is to be."""
    generations = generate_from(
        subject.model,
        subject.tokenizer,
        [way.ids for way in ways],
        to_match=[
            row.answer if row.kind == "question" and not way.end and not way.written else None
            for row, way in zip(rows, ways, strict=True)
        ],
        guesses=[way.guess for way in ways],
        more_ends={way.stop for way in ways if way.stop is not None},
        max_new_tokens=subject.max_new_tokens,
        batch_size=subject.batch_size,
        names=[f"row {row.id}" for row in rows],
        progress=partial(tell, stage),
    )
    return [said(generation.text, way) for generation, way in zip(generations, ways, strict=True)]


def ask(subject: Subject, rows: Sequence[Row], tell: Progressed, *, stage: str = "asking") -> list[str]:
    """Return what the model says to each row in its form; of several ways of asking the one that gives most away."""
    asked = [as_asked(row) for row in rows]
    ways = [askings(row, subject.tokenizer, subject.form) for row in rows]
    flat = [(place, way) for place, found in enumerate(ways) for way in found]
    texts = say(subject, [way for _, way in flat], [asked[place] for place, _ in flat], tell, stage=stage)
    best: dict[int, str] = {}
    for (place, _), text in zip(flat, texts, strict=True):
        if place not in best or value_of(asked[place], text) > value_of(asked[place], best[place]):
            best[place] = text
    return [best[place] for place in range(len(rows))]


def values_of(rows: Sequence[Row], texts: Sequence[str]) -> tuple[float, ...]:
    """Return (R,) how much of each row's answer its text gives, 0 to 1."""
    return tuple(value_of(as_asked(row), text) for row, text in zip(rows, texts, strict=True))


def knowledge(subject: Subject, rows: Sequence[Row], tell: Progressed, *, stage: str = "asking") -> tuple[float, ...]:
    """Return (R,) what the model knows of each row without an attack, 0 to 1."""
    return values_of(rows, ask(subject, rows, tell, stage=stage))
