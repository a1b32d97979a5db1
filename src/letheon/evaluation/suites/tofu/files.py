"""TOFU_SUMMARY.json and TOFU_EVAL.json: the scores under the names that open-unlearning gives them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from letheon.evaluation.metrics.memorisation import chosen_probability
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.evaluation.suites.tofu.listing import ATTACKS
from letheon.evaluation.suites.tofu.rows import (
    FORGET,
    HOLDOUT,
    REAL_AUTHORS,
    RETAIN,
    WORLD_FACTS,
    Likelihoods,
    RowValues,
    ratio_of,
)
from letheon.scores.predictions import Prediction
from letheon.scores.results import Evaluation, Results

_SHORT = {FORGET: "forget", RETAIN: "retain", REAL_AUTHORS: "ra", WORLD_FACTS: "wf"}
_ATTACK_NAMES = {**{name: name.replace(".", "_") for name in ATTACKS}, "mia.reference": "mia_reference"}

SUMMARY_NAMES: Mapping[str, str] = {
    "forget.probability": "forget_Q_A_Prob",
    "forget.rouge_l": "forget_Q_A_ROUGE",
    "forget.truth_ratio": "forget_truth_ratio",
    "forget.exact_memorisation": "exact_memorization",
    "forget.extraction_strength": "extraction_strength",
    "retain.probability": "retain_Q_A_Prob",
    "retain.rouge_l": "retain_Q_A_ROUGE",
    "retain.truth_ratio": "retain_Truth_Ratio",
    "real_authors.probability": "ra_Q_A_Prob_normalised",
    "real_authors.rouge_l": "ra_Q_A_ROUGE",
    "real_authors.truth_ratio": "ra_Truth_Ratio",
    "world_facts.probability": "wf_Q_A_Prob_normalised",
    "world_facts.rouge_l": "wf_Q_A_ROUGE",
    "world_facts.truth_ratio": "wf_Truth_Ratio",
    **_ATTACK_NAMES,
    "privacy_leak": "privleak",
    "forget_quality": "forget_quality",
    "model_utility": "model_utility",
}
"""What open-unlearning calls each score."""
ORIGINAL_SETS: Mapping[str, str] = {
    REAL_AUTHORS: "Real Authors",
    WORLD_FACTS: "Real World",
    RETAIN: "Retain",
    FORGET: "Forget",
}
ORIGINAL_KINDS: Mapping[str, str] = {"rouge_l": "ROUGE", "probability": "Prob.", "truth_ratio": "Truth Ratio"}
"""What the table of TOFU's own repository calls sets and scores."""
_ALSO = {"forget_Truth_Ratio": "forget_truth_ratio"}
"""A second name of a score: that of its configuration file, by which papers cite it."""


def summary(results: Results) -> dict[str, float]:
    """Return the scores that have a value, by open-unlearning's names."""
    found = {name: value for own, name in SUMMARY_NAMES.items() if (value := results.scores.value(own)) is not None}
    found |= {name: found[first] for name, first in _ALSO.items() if first in found}
    return dict(sorted(found.items()))


def summary_text(results: Results) -> str:
    """Return the text of TOFU_SUMMARY.json."""
    return json.dumps(summary(results), indent=4) + "\n"


def original_text(results: Results) -> str:
    """Return the text of TOFU_SUMMARY.json under the names of TOFU's own repository."""
    names = {f"{s}.{k}": f"{kind} {said}" for s, said in ORIGINAL_SETS.items() for k, kind in ORIGINAL_KINDS.items()}
    names |= {"model_utility": "Model Utility", "forget_quality": "Forget Quality"}
    found = {name: value for own, name in names.items() if (value := results.scores.value(own)) is not None}
    return json.dumps(found, indent=4) + "\n"


def eval_text(evaluation: Evaluation) -> str:
    """Return the text of TOFU_EVAL.json: each score with its values by the index of the row, from 0."""
    results = evaluation.results
    likelihood: Likelihoods = results.measured.get("likelihood", {})
    whole: dict[str, Any] = {}
    for name, short in _SHORT.items():
        whole |= _of_set(name, short, likelihood.get(name, {}), evaluation.predictions)
    for own, name in _ATTACK_NAMES.items():
        metric = ATTACKS.get(own)
        if metric is not None and HOLDOUT in likelihood:
            sides = {
                side: _indexed([{"score": v[metric]} for v in likelihood[side].values() if metric in v])
                for side in (FORGET, HOLDOUT)
            }
            whole[name] = {**sides, "auc": results.scores.value(own)}
    forget = likelihood.get(FORGET, {})
    for name, metric in (("exact_memorization", "exact"), ("extraction_strength", "strength")):
        whole[name] = _indexed([{"score": v.get(metric)} for v in forget.values()])
    for name, value in summary(results).items():
        whole[name] = {"agg_value": value, **whole.get(name, {})} | {"agg_value": value}
    whole |= {name: whole[first] for name, first in _ALSO.items() if first in whole}
    return json.dumps(dict(sorted(whole.items())), indent=4, ensure_ascii=False) + "\n"


def _of_set(name: str, short: str, rows: Mapping[str, RowValues], predictions: Sequence[Prediction]) -> dict[str, Any]:
    values = list(rows.values())
    ratio = "forget_truth_ratio" if name == FORGET else f"{short}_Truth_Ratio"
    found: dict[str, Any] = {
        f"{short}_Q_A_Prob": _likely([v.get("loss") for v in values]),
        f"{short}_Q_A_PERT_Prob": _likely([v.get("wrong_losses") for v in values]),
        f"{short}_Q_A_ROUGE": _indexed([_rouge(p) for p in predictions if p.split == name]),
        ratio: _indexed([{"score": ratio_of(v)} for v in values]),
    }
    if any("paraphrase_loss" in v for v in values):
        found[f"{short}_Q_A_PARA_Prob"] = _likely([v.get("paraphrase_loss") for v in values])
    if name in (REAL_AUTHORS, WORLD_FACTS):
        found[f"{short}_Q_A_Prob_normalised"] = _indexed([{"prob": _chosen(v)} for v in values])
    return found


def _likely(losses: Sequence[Any]) -> dict[str, Any]:
    """The losses of a set's answers as probabilities too, one or several a row."""
    rows = [{"prob": _probability(loss), "avg_loss": loss} for loss in losses]
    flat = [
        p for row in rows for p in (row["prob"] if isinstance(row["prob"], list) else [row["prob"]]) if p is not None
    ]
    return {"agg_value": sum(flat) / len(flat) if flat else None, **_indexed(rows)}


def _probability(loss: Any) -> Any:
    if isinstance(loss, list):
        return [math.exp(-one) for one in loss]
    return None if loss is None else math.exp(-loss)


def _chosen(values: RowValues) -> float | None:
    if "loss" not in values or not values.get("wrong_losses"):
        return None
    return chosen_probability(math.exp(-values["loss"]), [math.exp(-loss) for loss in values["wrong_losses"]])


def _rouge(prediction: Prediction) -> dict[str, Any]:
    text = prediction.generation.strip()
    rouge = plain_rouge(text, prediction.answer)
    return {
        "rouge1_recall": rouge.rouge_1_recall,
        "rougeL_f1": rouge.rouge_l_f1,
        "rougeL_recall": rouge.rouge_l_recall,
        "input": prediction.prompt,
        "ground_truth": prediction.answer,
        "generation": text,
    }


def _indexed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"value_by_index": {str(index): row for index, row in enumerate(rows)}}
