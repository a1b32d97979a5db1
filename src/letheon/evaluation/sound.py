"""Scores without a fault of the reference that changes them: variants beside the scores that follow the reference."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from letheon.scores.score import SOUND, Score


def sound_variants(
    known: Iterable[Score], values: Mapping[str, float | None], *, without: Collection[str] = ()
) -> tuple[Score, ...]:
    """Return variants of the known scores that have a value here, but for those named in `without`.

    What the values are made of is kept under the name of these variants among what was measured.
    """
    return tuple(
        replace(
            score,
            name=f"{score.name}_{SOUND}",
            label=f"{score.label} ({SOUND})",
            value=values[score.name],
            missing=None,
            variant_of=score.name,
            variant=(SOUND,),
        )
        for score in known
        if values.get(score.name) is not None and score.name not in without
    )
