"""The suite of MUSE (Shi et al., arXiv 2407.06460), as open-unlearning or MUSE's own code scores it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from letheon.evaluation.metrics.memorisation import attack_auc, mean, privacy_leak
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.evaluation.sound import sound_variants
from letheon.evaluation.suite import Asked, Measured, Note, Plot, Reading, Suite, Target
from letheon.evaluation.suites.muse.listing import (
    ATTACKS,
    DEFAULT_AUC,
    KNOWN,
    MEMORISATION,
    ORIGINAL,
    ORIGINAL_NAMES,
    PARITIES,
    PUBLISHED_AUC,
    SETS,
    SUMMARY_NAMES,
)
from letheon.scores.predictions import Prediction
from letheon.scores.results import Evaluation, PlainResults
from letheon.scores.score import SOUND, Scores
from letheon.settings import EvaluateSettings
from letheon.storage.run_folder import MUSE_SUMMARY_FILE, RESULTS_FILE, Entry

_SIDES = ("members", "holdout")


def _ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    from letheon.evaluation.suites.muse.measure import ask  # brings torch along, which reports do without

    return ask(settings, note)


def _measure(target: Target, asked: Asked) -> Measured:
    from letheon.evaluation.suites.muse.measure import measure

    return measure(target, asked)


def _aggregate(blank: PlainResults, measured: Measured) -> PlainResults:
    """Return the mean ROUGE-L F1 of each set, memorisation, the attacks' AUCs and the privacy leak; of nothing none."""
    others = measured.others
    is_original = others.get("parity") == ORIGINAL
    never: Mapping[str, Any] = others.get("never", {})
    values: dict[str, float | None] = {
        name: mean([_rouge(p, stems=not is_original) for p in measured.predictions if p.split == name]) for name in SETS
    }
    values |= {name: mean(others.get("memorised", {}).get(name, ())) for name in MEMORISATION}
    values |= _attacks(others.get("texts", {}), never)
    values["privacy_leak"] = privacy_leak(values["mia.min_k"], _never_auc(others))
    counts = {name: {"rows": sum(p.split == name for p in measured.predictions)} for name in SETS}
    sound = sound_variants(KNOWN, {name: mean(found) for name, found in others.get(SOUND, {}).items()})
    missing = {name: _reason(name, is_original=is_original) for name, value in values.items() if value is None}
    return replace(
        blank,
        scores=Scores((*(replace(s, value=values[s.name], missing=missing.get(s.name)) for s in KNOWN), *sound)),
        num_rows=counts,
        missing={**measured.missing, **missing},
        warnings=(*blank.warnings, *_warnings(values, others)),
        measured=dict(others),
    )


def _rouge(prediction: Prediction, *, stems: bool) -> float:
    return plain_rouge(prediction.generation, prediction.answer, stems=stems).rouge_l_f1


def _attacks(texts: Mapping[str, Mapping[str, list[float]]], never: Mapping[str, Any]) -> dict[str, float | None]:
    members, holdout = texts.get("members", {}), texts.get("holdout", {})
    found = {f"mia.{name}": attack_auc(members.get(name, ()), holdout.get(name, ())) for name in ATTACKS}
    sides = [(texts.get(side, {}).get("loss", ()), never.get("losses", {}).get(side, ())) for side in _SIDES]
    are_known = all(len(own) == len(known) for own, known in sides)
    gains = [[a - b for a, b in zip(own, known, strict=True)] for own, known in sides] if are_known else [[], []]
    return {**found, "mia.reference": attack_auc(*gains)}


def _never_auc(others: Mapping[str, Any]) -> float:
    """Return the AUC of Min-K that a model has which never knew the texts: its own, a published one, or a guess."""
    if others.get("never"):
        return float(others["never"]["min_k_auc"])
    published = PUBLISHED_AUC.get(str(others.get("corpus"))) if others.get("parity") == ORIGINAL else None
    return DEFAULT_AUC if published is None else 1 - published


def _reason(name: str, *, is_original: bool) -> str:
    if is_original and name in (*MEMORISATION, "mia.min_k_plus_plus"):
        return f"MUSE's own code has no such score; --parity {PARITIES[0]} has it"
    if name == "mia.reference":
        return f"needs a model trained without the texts: --never MODEL, or its {RESULTS_FILE} by --never-results FILE"
    return "nothing was asked for it"


def _warnings(values: Mapping[str, float | None], others: Mapping[str, Any]) -> list[str]:
    found, is_original = [], others.get("parity") == ORIGINAL
    advice = "give --never MODEL or --never-results FILE"
    if values["privacy_leak"] is not None and not others.get("never"):
        found.append(
            f"privacy leak is against the AUC of the Llama 2 that MUSE's authors trained without the texts; {advice}"
            if is_original
            else f"privacy leak is against an AUC of {DEFAULT_AUC}, a guess, and not against that of a model trained "
            f"without the texts to forget; {advice}"
        )
    if is_original and others.get("dtype") != "float32":
        found.append(f"MUSE's own code takes float32 weights, these are {others.get('dtype')}")
    if others.get("num_cut"):
        found.append(
            f"{others['num_cut']} questions after worked ones have more than 512 tokens and lost their ends, as in "
            f"open-unlearning{_instead(others.get(SOUND))}"
        )
    if values["extraction_strength"] is not None:
        found.append(
            "extraction strength is never 0, as in open-unlearning: a text of L tokens counts at least 1/L; the score "
            "from 0 is beside it"
        )
    return found


def _instead(sound: Mapping[str, Any] | None) -> str:
    """Say where the scores of whole questions are; nothing where they were not asked for."""
    if sound is None:
        return ""
    if not sound:
        return "; whole they are longer than the model's context"
    return f"; scores of whole questions stand beside the others, under names that end in _{SOUND}"


def _files(evaluation: Evaluation) -> Mapping[Entry, str]:
    scores = evaluation.results.scores
    is_original = evaluation.results.measured.get("parity") == ORIGINAL
    names = ORIGINAL_NAMES if is_original else SUMMARY_NAMES
    found = {name: value for own, name in names.items() if (value := scores.value(own)) is not None}
    if is_original:
        found = {name: value if name == "privleak" else 100 * value for name, value in found.items()}
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
    Reading("Exact memorisation", "0 to 1, ↓ lower is better", "share of the true continuation's likeliest tokens."),
    Reading(
        "Extraction strength", "0 to 1, ↓ lower is better", "share of a continuation's end that its beginning gives."
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
    plot=Plot("knowmem_retain", "knowmem_forget"),
    takes=("never", "never_results", "sound"),
    unpredicted=("texts", "memorised"),
    parities=PARITIES,
    sets=SETS,
    files=_files,
)
