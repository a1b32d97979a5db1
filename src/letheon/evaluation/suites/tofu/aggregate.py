"""From what was measured of TOFU's rows to its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from letheon.evaluation.metrics.memorisation import (
    attack_auc,
    by_metric,
    forget_quality,
    forget_truth_ratio,
    kept_truth_ratio,
    mean,
    model_utility,
    privacy_leak,
)
from letheon.evaluation.sound import sound_variants
from letheon.evaluation.suite import Measured
from letheon.evaluation.suites.tofu.listing import (
    ATTACKS,
    KNOWN,
    ORIGINAL,
    PARITIES,
    UTILITY_TERMS,
    WITH_OPTIONS,
    score_name,
    small_of,
)
from letheon.evaluation.suites.tofu.rows import (
    FORGET,
    HOLDOUT,
    RETAIN,
    Likelihoods,
    arithmetic_truth_ratios,
    chosen,
    probabilities,
    recall_of,
    truth_ratios,
)
from letheon.scores.results import PlainResults
from letheon.scores.score import FORGOTTEN, RETAINED, SOUND, Score, Scores

DEFAULT_AUC = 0.5
"""What privacy leak is measured against where nothing is known of a model that never knew the rows."""
NO_NEVER = "needs a model trained without the forget rows: --never MODEL, or its results by --never-results FILE"
_ASKED = (FORGET, RETAIN, *WITH_OPTIONS)
_NO_HOLDOUT = "the data folder has no holdout rows for this split"
_NOT_ORIGINAL = f"TOFU's own code has no such score; --parity {PARITIES[0]} has it"
_OF_OPEN_UNLEARNING = {
    *("forget.exact_memorisation", "forget.extraction_strength", "forget.extraction_strength_from_0"),
    *(*ATTACKS, "mia.reference", "privacy_leak"),
}
_OF_NEVER = ("mia.reference", "privacy_leak", "forget_quality")
_NO_LOSSES = "needs the losses of a model trained without the forget rows: --never MODEL, or results that hold them"


def aggregate(blank: PlainResults, measured: Measured) -> PlainResults:
    """Return the scores of what was measured; what cannot be computed is missing with its reason."""
    likelihood: Likelihoods = measured.others.get("likelihood", {})
    never: Mapping[str, Any] = measured.others.get("never", {})
    parity = str(measured.others.get("parity", PARITIES[0]))
    recalls = {name: [recall_of(p) for p in measured.predictions if p.split == name] for name in _ASKED}
    values = _values(likelihood, never, recalls, small=small_of(parity))
    reasons = _reasons(values, likelihood, never, measured)
    scores = tuple(
        replace(
            score,
            value=values.get(score.name),
            missing=None if values.get(score.name) is not None else reasons.get(score.name),
        )
        for score in KNOWN
    )
    sound = _sound_scores(measured, never)
    counts = {
        name: {"questions": len([p for p in measured.predictions if p.split == name])}
        for name in dict.fromkeys(p.split for p in measured.predictions)
    }
    return replace(
        blank,
        scores=Scores((*scores, *sound, *_summaries(values))),
        num_rows=counts,
        form=measured.form,
        missing=reasons,
        warnings=(*blank.warnings, *_warnings(values, never, measured, sound)),
        measured=dict(measured.others),
    )


def _values(
    likelihood: Likelihoods, never: Mapping[str, Any], recalls: Mapping[str, Sequence[float]], *, small: float
) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for name in _ASKED:
        rows = likelihood.get(name, {})
        values[f"{name}.probability"] = mean(chosen(rows, small=small) if name in WITH_OPTIONS else probabilities(rows))
        values[f"{name}.rouge_l"] = mean(recalls.get(name, ()))
        ratios = truth_ratios(rows, small=small)
        values[f"{name}.truth_ratio"] = (
            forget_truth_ratio(ratios, small=small) if name == FORGET else kept_truth_ratio(ratios)
        )
    forget, holdout = likelihood.get(FORGET, {}), likelihood.get(HOLDOUT, {})
    values["forget.truth_ratio_arithmetic"] = forget_truth_ratio(arithmetic_truth_ratios(forget), small=small)
    values["forget.exact_memorisation"] = mean(by_metric(forget, "exact"))
    values["forget.extraction_strength"] = mean(by_metric(forget, "strength"))
    values["forget.extraction_strength_from_0"] = mean(by_metric(forget, "sound_strength"))
    for attack, metric in ATTACKS.items():
        values[attack] = attack_auc(by_metric(forget, metric), by_metric(holdout, metric))
    values["mia.reference"] = _against_reference(forget, holdout, never)
    known_auc = never.get("min_k_auc")
    values["privacy_leak"] = privacy_leak(values["mia.min_k"], DEFAULT_AUC if known_auc is None else known_auc)
    values["forget_quality"] = forget_quality(truth_ratios(forget, small=small), never.get("truth_ratios", ()))
    values["model_utility"] = model_utility([values[name] for name in UTILITY_TERMS])
    return values


def _sound_scores(measured: Measured, never: Mapping[str, Any]) -> tuple[Score, ...]:
    """Return variants of the scores with every token, where that changes tokens; without those that are not known.

    Comparisons with a model that never knew the rows are left out where it is known by the reference's tokens alone.
    """
    sound = measured.others.get(SOUND)
    if sound is None:
        return ()
    values = _values(sound["likelihood"], never.get(SOUND) or {}, sound["recalls"], small=small_of(PARITIES[0]))
    unknown = {"forget.extraction_strength", *(_OF_NEVER if never and not never.get(SOUND) else ())}
    return sound_variants(KNOWN, values, without=unknown)


def _against_reference(
    forget: Mapping[str, Mapping[str, Any]], holdout: Mapping[str, Mapping[str, Any]], never: Mapping[str, Any]
) -> float | None:
    """The AUC of each row's loss less its loss under the model that never knew the rows."""
    sides = ((forget, never.get("forget_losses", ())), (holdout, never.get("holdout_losses", ())))
    losses = [(by_metric(rows, "loss"), list(known)) for rows, known in sides]
    if any(len(own) != len(known) for own, known in losses):
        return None
    members, others = ([a - b for a, b in zip(own, known, strict=True)] for own, known in losses)
    return attack_auc(members, others)


def _summaries(values: Mapping[str, float | None]) -> tuple[Score, Score]:
    """Return what was forgotten and retained: 1 - the mean, or the mean, of probability and ROUGE-L recall."""
    gone, left = (
        mean([value for kind in ("probability", "rouge_l") if (value := values[f"{name}.{kind}"]) is not None])
        for name in (FORGET, RETAIN)
    )
    return (
        Score(FORGOTTEN, "Forgotten", "higher", "summary", None if gone is None else 1 - gone),
        Score(RETAINED, "Retained", "higher", "summary", left),
    )


def _reasons(
    values: Mapping[str, float | None], likelihood: Likelihoods, never: Mapping[str, Any], measured: Measured
) -> dict[str, str]:
    reasons = dict(measured.missing)
    absent = {name for name, value in values.items() if value is None}
    if "forget_quality" in absent:
        reasons["forget_quality"] = NO_NEVER if not never else "there are no truth ratios of forget rows"
    if measured.others.get("parity") == ORIGINAL:
        return reasons | dict.fromkeys(absent & _OF_OPEN_UNLEARNING, _NOT_ORIGINAL) | _of_utility(values)
    for name in absent & {*ATTACKS, "privacy_leak"}:
        reasons[name] = _NO_HOLDOUT if HOLDOUT not in likelihood else "there are no likelihoods of forget rows"
    if "mia.reference" in absent:
        reasons["mia.reference"] = _NO_HOLDOUT if HOLDOUT not in likelihood else _NO_LOSSES
    return reasons | _of_utility(values)


def _of_utility(values: Mapping[str, float | None]) -> dict[str, str]:
    """Say why there is no model utility; nothing where there is."""
    terms = [score_name(name) for name in UTILITY_TERMS if values[name] is None]
    return {"model_utility": f"needs {', '.join(terms)}"} if terms else {}


def _warnings(
    values: Mapping[str, float | None], never: Mapping[str, Any], measured: Measured, sound: Sequence[Score]
) -> list[str]:
    found = []
    if values["privacy_leak"] is not None and never.get("min_k_auc") is None:
        found.append(
            f"privacy leak is against an AUC of {DEFAULT_AUC}, a guess, and not against that of a model trained "
            "without the forget rows; give --never-results or --never"
        )
    if never and never.get("min_k_auc") is not None and never["min_k_auc"] > 0.95:
        found.append(
            f"privacy leak is hardly meaningful: the model that never knew the rows has an AUC of "
            f"{never['min_k_auc']:.3f}, and the score divides by 1 - AUC"
        )
    if values["forget.extraction_strength"] is not None:
        found.append(
            "extraction strength is never 0, as in open-unlearning: a row of L tokens counts at least 1/L; the score "
            "from 0 is beside it"
        )
    if measured.others.get("parity") == ORIGINAL:
        found.append(
            "as in TOFU's own code: at most 300 rows of a set, 200 tokens of prompt and answer together, and no answer "
            "tag before the model's answer"
        )
    if measured.others.get("hides_turn_ends"):
        found.append(
            "the tokenizer's padding also ends turns in the prompts; as in open-unlearning, the model does not see "
            f"these tokens{_told(sound)}"
        )
    elif sound:
        found.append(
            "as in open-unlearning, the first token of most answers is not scored, and answers are generated after a "
            f"space of its own{_told(sound)}"
        )
    return found


def _told(sound: Sequence[Score]) -> str:
    """Say what the aggregates are with every token, and where the other scores are."""
    told = [
        f"{s.variant_of.replace('_', ' ')} is {s.value:.3g}" for s in sound if s.is_headline and s.role == "aggregate"
    ]
    return f"; with every token {' and '.join(told)} (scores whose names end in _{SOUND})" if told else ""
