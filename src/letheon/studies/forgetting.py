"""Whether a configuration forgot its forget rows: what else it scores counts for nothing where it did not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from letheon.report.verdict import FORGOTTEN_SHARE, LITTLE_KNOWN
from letheon.scores.score import IN_FORM, Score
from letheon.studies.known import INTERIM_FORGOTTEN
from letheon.studies.records import RunRecord, StateScores

NO_ORIGINAL = "the model before unlearning was not scored on these rows"
OTHER_FORM = "the model before unlearning was asked in another form than the runs"
NOT_SCORED = "what it forgot was not scored"
NOT_KNOWN = "the model did not know its rows before the first step"
KNEW_LITTLE = "the model before unlearning knew little of the forget rows"


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What is gone of the score on the forget rows, by the score of the model before unlearning."""

    share: float | None
    """1 where nothing is left, 0 where all of it is; below 0 where the score rose; None where it cannot be told."""
    reason: str = ""
    """Why it cannot be told."""

    @property
    def is_forgotten(self) -> bool:
        """Whether so much is gone that a report on a run would call the rows forgotten."""
        return self.share is not None and self.share >= FORGOTTEN_SHARE


def forgetting_of(
    states: Sequence[tuple[RunRecord, StateScores]], originals: Mapping[str, StateScores], *, score: Score
) -> Forgetting:
    """Judge one configuration by the means over its seeds.

    `score` is what is forgotten, 1 - the mean score on the forget rows. It is compared with the same score of the
    model before unlearning, where that was taken on the same rows (and in the same form, if it is of their form), else
    with what the runs themselves found before their first step.
    """
    if any(run.is_unknown for run, _ in states):
        return Forgetting(None, NOT_KNOWN)
    official = [(state.scores.get(score.name), _original_score(run, state, originals, score)) for run, state in states]
    own = [(state.scores.get(INTERIM_FORGOTTEN), _recalled(run)) for run, state in states]
    for pairs in (official, own):
        known = [(after, before) for after, before in pairs if after is not None and before is not None]
        if known and len(known) == len(states):
            return _forgetting(fmean(1 - after for after, _ in known), fmean(1 - before for _, before in known))
    if not any(name in state.scores for _, state in states for name in (score.name, INTERIM_FORGOTTEN)):
        return Forgetting(None, NOT_SCORED)
    return Forgetting(None, OTHER_FORM if _are_asked_otherwise(states, originals, score) else NO_ORIGINAL)


def original_of(run: RunRecord, originals: Mapping[str, StateScores]) -> StateScores | None:
    """Return the scores of the model that a run began from; None where it was not scored."""
    if run.model is None:
        return next(iter(originals.values())) if len(originals) == 1 else None
    return originals.get(run.model)


def _original_score(
    run: RunRecord, state: StateScores, originals: Mapping[str, StateScores], score: Score
) -> float | None:
    original = original_of(run, originals)
    if original is None or (original.forget_rows and state.forget_rows and original.forget_rows != state.forget_rows):
        return None
    return None if _is_asked_otherwise(state, original, score) else original.scores.get(score.name)


def _is_asked_otherwise(state: StateScores, original: StateScores, score: Score) -> bool:
    return IN_FORM in score.variant and original.form != state.form


def _are_asked_otherwise(
    states: Sequence[tuple[RunRecord, StateScores]], originals: Mapping[str, StateScores], score: Score
) -> bool:
    pairs = ((original_of(run, originals), state) for run, state in states)
    return any(original is not None and _is_asked_otherwise(state, original, score) for original, state in pairs)


def _recalled(run: RunRecord) -> float | None:
    """What the run found forgotten before its first step."""
    recall = run.recalls.get("forget")
    return None if recall is None else 1 - recall


def _forgetting(after: float, before: float) -> Forgetting:
    return Forgetting(None, KNEW_LITTLE) if before < LITTLE_KNOWN else Forgetting(1 - after / before)
