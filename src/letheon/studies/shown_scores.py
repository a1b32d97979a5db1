"""Which scores a study shows, which of them stand for forgetting and retention, and what they are called."""

from letheon.scores.score import FORGOTTEN, IN_FORM, RETAINED, UNICODE
from letheon.studies.known import INTERIM, INTERIM_FORGOTTEN, INTERIM_RETAINED, known_scores
from letheon.studies.records import StateScores, StudyRecord

ORIGINAL_LABEL = "Original model"
TRADE_OFFS = ((FORGOTTEN, RETAINED), (INTERIM_FORGOTTEN, INTERIM_RETAINED))


def forgotten_score(record: StudyRecord) -> str:
    """Name the score that says what was forgotten: the suite's mean, or the variant to be read in its place.

    Of a suite without rows to forget it is what the runs found of themselves.
    """
    return versions_of(FORGOTTEN, record)[-1] if FORGOTTEN in known_scores(record.study) else INTERIM_FORGOTTEN


def versions_of(score: str, record: StudyRecord) -> tuple[str, ...]:
    """Name a score and the variants of it that the study shows; the last one stands for all of them."""
    known = known_scores(record.study)
    shows = {UNICODE: shows_scripts(record), IN_FORM: shows_forms(record)}
    variants = (one for one in known.values() if one.variant_of == score and all(shows[v] for v in one.variant))
    return (score, *(one.name for one in variants))


def scores_in(record: StudyRecord) -> tuple[str, ...]:
    """Name the scores that a study's tables show: the suite's headlines that there are, else the runs' own.

    Beside each stand its variants where these are to be looked at (see `versions_of`).
    """
    present = {name for _, state in labelled_states(record) for name in state.scores}
    official = [one for one in known_scores(record.study).values() if one.is_headline and not one.variant_of]
    found = tuple(name for one in official for name in versions_of(one.name, record) if name in present)
    return found or tuple(one.name for one in INTERIM if one.name in present)


def trade_off_in(record: StudyRecord) -> tuple[str, str] | None:
    """Name what is forgotten and what is retained: the official means, else the runs' own; None without either.

    Where variants are to be looked at they take the official means' place.
    """
    present = {name for run in record.runs for state in run.states for name in state.scores}
    pair = next((pair for pair in TRADE_OFFS if present.issuperset(pair)), None)
    if pair is None:
        return None
    forgotten, retained = (versions_of(name, record)[-1] for name in pair)
    return forgotten, retained


def trade_off_scores(record: StudyRecord) -> tuple[str, ...]:
    """Name what `trade_off_in` does and, of variants, what they stand for beside them; none without either."""
    pair = trade_off_in(record) or ()
    versions = [versions_of(name, record) for name in TRADE_OFFS[0] if versions_of(name, record)[-1] in pair]
    beside = [name for which in zip(*versions, strict=True) for name in which if name not in pair]
    return (*pair, *beside)


def shows_scripts(record: StudyRecord) -> bool:
    """Whether the Unicode variants belong beside the official scores.

    They do where these miss a part of the rows' script, as the evaluation of some state found, or where the study names
    one as an objective.
    """
    is_named = _is_an_aim(UNICODE, record)
    return is_named or any(state.script_notes for _, state in labelled_states(record))


def shows_forms(record: StudyRecord) -> bool:
    """Whether the scores in the rows' form belong beside those of raw prompts.

    They do where the form gives the model of some state other tokens, or where the study names one as an objective.
    """
    is_named = _is_an_aim(IN_FORM, record)
    return is_named or any(state.form_differs for _, state in labelled_states(record))


def _is_an_aim(variant: str, record: StudyRecord) -> bool:
    known = known_scores(record.study)
    return any(variant in known[name].variant for name in record.study.objectives if name in known)


def labelled_states(record: StudyRecord) -> list[tuple[str, StateScores]]:
    """List all scored states with what they are called: the models before unlearning first, then the runs'."""
    originals = list(record.original.items())
    named = {name: ORIGINAL_LABEL if len(originals) == 1 else f"{ORIGINAL_LABEL} {name}" for name, _ in originals}
    return [
        *((named[name], state) for name, state in originals),
        *((run.name, state) for run in record.runs for state in run.states),
    ]


def label_of_score(score: str, record: StudyRecord) -> str:
    """Return what a score is called in a study's tables and figures."""
    known = known_scores(record.study).get(score)
    return score if known is None else known.short_label
