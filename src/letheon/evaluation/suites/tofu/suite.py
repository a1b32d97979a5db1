"""The suite of TOFU (Maini et al., arXiv 2401.06121), with the further scores of open-unlearning."""

from collections.abc import Mapping

from letheon.evaluation.suite import Asked, Measured, Note, Plot, Reading, Suite, Target
from letheon.evaluation.suites.tofu.aggregate import aggregate
from letheon.evaluation.suites.tofu.files import eval_text, original_text, summary_text
from letheon.evaluation.suites.tofu.listing import KNOWN, ORIGINAL, PARITIES, SUMMARIES
from letheon.scores.results import Evaluation
from letheon.scores.score import Scores
from letheon.settings import EvaluateSettings
from letheon.storage.run_folder import TOFU_EVAL_FILE, TOFU_SUMMARY_FILE, Entry


def _ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    from letheon.evaluation.suites.tofu.ask import ask  # brings torch along, which reports do without

    return ask(settings, note)


def _measure(target: Target, asked: Asked) -> Measured:
    from letheon.evaluation.suites.tofu.measure import measure

    return measure(target, asked)


def _files(evaluation: Evaluation) -> Mapping[Entry, str]:
    if evaluation.results.measured.get("parity") == ORIGINAL:
        return {TOFU_SUMMARY_FILE: original_text(evaluation.results)}
    return {TOFU_SUMMARY_FILE: summary_text(evaluation.results), TOFU_EVAL_FILE: eval_text(evaluation)}


_LOWER, _HIGHER = "0 to 1, ↓ lower is better", "0 to 1, ↑ higher is better"

READINGS = (
    Reading(
        "Probability",
        "0 to 1, ↓ lower is better on forget rows, ↑ higher elsewhere",
        "the answer's probability by its mean log-probability a token; of real authors and world facts, among the "
        "options.",
    ),
    Reading(
        "ROUGE-L",
        "0 to 1, ↓ lower is better on forget rows, ↑ higher elsewhere",
        "mean ROUGE-L recall of the answers in what the model says.",
    ),
    Reading(
        "Truth ratio",
        _HIGHER,
        "whether true answers are likelier than wrong ones of the same form. Forget rows: 1 where both are equally "
        "likely. Other rows: 1 where wrong answers are far less likely.",
    ),
    Reading("Exact memorisation", _LOWER, "the share of the answers' tokens that are the likeliest ones."),
    Reading("Extraction strength", _LOWER, "the share of an answer's end that follows from its beginning."),
    Reading(
        "MIA AUC",
        "0 to 1, → that of a model that never knew the rows, about 0.5, is best",
        "how often a forget row looks more familiar to the model than a row that no model was trained on.",
    ),
    Reading(
        "Privacy leak",
        "percent, → 0 is best",
        "how far the Min-K attack's AUC is from that of a model that never knew the rows. Negative: the rows are still "
        "recognised.",
    ),
    Reading(
        "Forget quality",
        _HIGHER,
        "p-value that the truth ratios are those of a model that never knew the rows; above 0.05 they cannot be told "
        "apart.",
    ),
    Reading(
        "Model utility",
        _HIGHER,
        "harmonic mean of probability, ROUGE-L and truth ratio over retain rows, real authors and world facts.",
    ),
)

SUITE = Suite(
    name="tofu",
    scores=Scores((*KNOWN, *SUMMARIES)),
    objective="forget_quality",
    ask=_ask,
    measure=_measure,
    aggregate=aggregate,
    readings=READINGS,
    plot=Plot("model_utility", "forget_quality", is_log=True, level=0.05),
    takes=("never", "never_results", "max_new_tokens", "sound"),
    unpredicted=("likelihood",),
    parities=PARITIES,
    sets=("forget", "retain", "real_authors", "world_facts"),
    files=_files,
)
