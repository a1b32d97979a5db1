"""How fluent answers are, as scores; the numbers are explained in evaluation/fluency.py."""

from collections.abc import Mapping

from letheon.scores.score import SHARE, Better, Score

Fluencies = Mapping[str, Mapping[str, float | None]]
"""Of each set of rows, "forget" and "retain", the numbers of `Fluency` by name; of a run also of `GENERAL`."""

GENERAL = "general"
"""Everyday questions, on nothing in particular, that a run did not train on."""
OWN_LOSS_BEFORE = "own_loss_before"
"""What the answers of the model before to these cost it, likewise; only there."""
CHANGED_NATS = 0.5
"""From how many nats a token more than its own answers those to `GENERAL` are called changed."""

PREFIX = "fluency."
DEGENERATE, LOSS_BEFORE = "degenerate", "loss_before"

_SHOWN: tuple[tuple[str, str, Better, tuple[float, float] | None], ...] = (
    (DEGENERATE, "answers that repeat themselves", "lower", SHARE),
    ("distinct_2", "distinct 2-grams of answers", "higher", SHARE),
    ("ended", "answers that end by themselves", "higher", SHARE),
    (LOSS_BEFORE, "answers under the model before (nats a token)", "lower", None),
)


def fluency_scores(found: Fluencies) -> tuple[Score, ...]:
    """Return the scores of each set of rows, named fluency.SET.NAME; what is not known is left out."""
    return tuple(
        Score(
            f"{PREFIX}{side}.{name}",
            f"{side.replace('_', ' ').capitalize()} {label}",
            better,
            "fluency",
            value,
            bounds=bounds,
        )
        for side, numbers in found.items()
        for name, label, better, bounds in _SHOWN
        if (value := numbers.get(name)) is not None
    )


def more_than_own(found: Fluencies) -> float | None:
    """Return by how many nats a token answers to `GENERAL` cost the model before more than its own; None if unknown."""
    numbers = found.get(GENERAL, {})
    loss, own = numbers.get(LOSS_BEFORE), numbers.get(OWN_LOSS_BEFORE)
    return None if loss is None or own is None else loss - own
