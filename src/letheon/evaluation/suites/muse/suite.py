"""The suite of MUSE (Shi et al., arXiv 2407.06460), as open-unlearning scores it."""

import json
from collections.abc import Mapping
from dataclasses import replace

from letheon.evaluation.metrics.memorisation import attack_auc, mean, privacy_leak
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.evaluation.suite import Asked, Measured, Note, Reading, Suite, Target
from letheon.scores.results import Evaluation, PlainResults
from letheon.scores.score import Score, Scores
from letheon.settings import EvaluateSettings
from letheon.storage.run_folder import MUSE_SUMMARY_FILE, Entry

DEFAULT_AUC = 0.5
SETS = ("verbatim_memory", "knowmem_forget", "knowmem_retain")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")

KNOWN = (
    Score("verbatim_memory", "Verbatim memorisation", "lower", "forgetting", is_headline=True),
    Score("knowmem_forget", "Forget knowledge", "lower", "forgetting", is_headline=True),
    Score("knowmem_retain", "Retain knowledge", "higher", "retention", is_headline=True),
    Score("mia.loss", "MIA AUC, loss", 0.5, "privacy"),
    Score("mia.zlib", "MIA AUC, zlib", 0.5, "privacy"),
    Score("mia.min_k", "MIA AUC, Min-K", 0.5, "privacy"),
    Score("mia.min_k_plus_plus", "MIA AUC, Min-K++", 0.5, "privacy"),
    Score("privacy_leak", "Privacy leak (%)", 0.0, "privacy", bounds=None, is_headline=True),
)
SUMMARY_NAMES: Mapping[str, str] = {
    "verbatim_memory": "forget_verbmem_ROUGE",
    "knowmem_forget": "forget_knowmem_ROUGE",
    "knowmem_retain": "retain_knowmem_ROUGE",
    **{f"mia.{name}": f"mia_{name}" for name in ATTACKS},
    "privacy_leak": "privleak",
}
"""What open-unlearning calls each score."""


def _ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    from letheon.evaluation.suites.muse.measure import ask  # brings torch along, which reports do without

    return ask(settings, note)


def _measure(target: Target, asked: Asked) -> Measured:
    from letheon.evaluation.suites.muse.measure import measure

    return measure(target, asked)


def _aggregate(blank: PlainResults, measured: Measured) -> PlainResults:
    """Return the mean ROUGE-L F1 of each set, the attacks' AUCs and the privacy leak; of nothing there is none."""
    texts: Mapping[str, Mapping[str, list[float]]] = measured.others.get("texts", {})
    members, holdout = texts.get("members", {}), texts.get("holdout", {})
    values: dict[str, float | None] = {
        name: mean([plain_rouge(p.generation, p.answer).rouge_l_f1 for p in measured.predictions if p.split == name])
        for name in SETS
    }
    values |= {f"mia.{name}": attack_auc(members.get(name, ()), holdout.get(name, ())) for name in ATTACKS}
    never = measured.others.get("never_auc")
    values["privacy_leak"] = privacy_leak(values["mia.min_k"], DEFAULT_AUC if never is None else float(never))
    guess = (
        f"privacy leak is against an AUC of {DEFAULT_AUC}, a guess, and not against that of a model trained without "
        "the texts to forget; give --never-results"
    )
    counts = {name: {"rows": sum(p.split == name for p in measured.predictions)} for name in SETS}
    missing = {name: "nothing was asked for it" for name, value in values.items() if value is None}
    return replace(
        blank,
        scores=Scores(tuple(replace(s, value=values[s.name], missing=missing.get(s.name)) for s in KNOWN)),
        num_rows=counts,
        missing={**measured.missing, **missing},
        warnings=(*blank.warnings, *([guess] if never is None and values["privacy_leak"] is not None else [])),
        measured=dict(measured.others),
    )


def _files(evaluation: Evaluation) -> Mapping[Entry, str]:
    scores = evaluation.results.scores
    found = {name: value for own, name in SUMMARY_NAMES.items() if (value := scores.value(own)) is not None}
    return {MUSE_SUMMARY_FILE: json.dumps(dict(sorted(found.items())), indent=4) + "\n"}


READINGS = (
    Reading(
        "Verbatim memorisation",
        "0 to 1, ↓ lower is better",
        "mean ROUGE-L F1 between the true continuation of a text to forget and 128 tokens of the model's.",
    ),
    Reading(
        "Forget and retain knowledge",
        "0 to 1, ↓ lower is better on forget texts, ↑ higher on retain texts",
        "mean ROUGE-L F1 of answers to questions after worked ones.",
    ),
    Reading(
        "Privacy leak",
        "percent, → 0 is best",
        "how far the Min-K attack's AUC is from that of a model that never knew the texts.",
    ),
)

SUITE = Suite(
    name="muse",
    scores=Scores(KNOWN),
    objective="privacy_leak",
    ask=_ask,
    measure=_measure,
    aggregate=_aggregate,
    readings=READINGS,
    unpredicted=("texts",),
    sets=SETS,
    files=_files,
)
