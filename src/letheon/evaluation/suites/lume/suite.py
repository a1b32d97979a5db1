"""The suite of LUME and SemEval-2025 Task 4: its scores, and what it asks, measures and aggregates."""

from collections.abc import Mapping

from letheon.evaluation.suite import Asked, Measured, Note, Reading, Suite, Target
from letheon.evaluation.suites.lume.checks import impossible
from letheon.evaluation.suites.lume.official import aggregate, official_text
from letheon.evaluation.suites.lume.results import LumeResults, read_lume
from letheon.scores.results import Evaluation
from letheon.settings import EvaluateSettings
from letheon.storage.run_folder import OFFICIAL_FILE, Entry


def _ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    from letheon.evaluation.suites.lume.ask import ask  # brings torch along, which reports do without

    return ask(settings, note)


def _measure(target: Target, asked: Asked) -> Measured:
    from letheon.evaluation.suites.lume.measure import measure

    return measure(target, asked)


def _files(evaluation: Evaluation) -> Mapping[Entry, str]:
    return {OFFICIAL_FILE: official_text(LumeResults.of(evaluation.results))}


_LOWER, _HIGHER = "0 to 1, ↓ lower is better", "0 to 1, ↑ higher is better"

READINGS = (
    Reading(
        "Forget regurgitation",
        _LOWER,
        "how much of the true text the model still writes when given its beginning; mean ROUGE-L recall over the "
        "completions.",
    ),
    Reading(
        "Forget knowledge",
        _LOWER,
        "the share of questions about the forget rows that it still answers word for word.",
    ),
    Reading("Retain regurgitation and retain knowledge", _HIGHER, "the same two on the rows it was to keep."),
    Reading(
        "Task aggregate",
        _HIGHER,
        "harmonic mean of the retain scores and of one minus each forget score; a single zero among them makes it "
        "zero.",
    ),
    Reading(
        "MIA AUC",
        "0 to 1, → 0.5 is best",
        "how often a document the model was trained on has a lower loss than one it never saw.",
    ),
    Reading("MIA score", _HIGHER, "1 − 2 |AUC − 0.5|."),
    Reading(
        "MMLU accuracy",
        _HIGHER,
        "multiple-choice questions with four options on general subjects; guessing gives about 0.25.",
    ),
    Reading("Final score", _HIGHER, "arithmetic mean of task aggregate, MIA score and MMLU accuracy."),
    Reading(
        "",
        "",
        "A generation that is empty, or reads as a missing value (“NA”, “null”), is scored as the text “nan”, as the "
        "official script does.",
    ),
)

SUITE = Suite(
    name="lume",
    scores=LumeResults("lume", "").scores,
    objective="final",
    ask=_ask,
    measure=_measure,
    aggregate=aggregate,
    readings=READINGS,
    takes=("members", "nonmembers", "mmlu", "mmlu_limit", "mmlu_harness", "max_new_tokens"),
    unpredicted=("mia", "mmlu"),
    read=read_lume,
    impossible=impossible,
    files=_files,
)
