"""What is known of a model that was trained without the forget rows: the measure of forget quality and privacy leak."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.memorisation import attack_auc, by_metric
from letheon.evaluation.suites.tofu.rows import FORGET, HOLDOUT, Likelihoods, truth_ratios
from letheon.scores.results import SCHEMA
from letheon.storage.run_folder import RESULTS_FILE, TOFU_EVAL_FILE

_TRUTH_RATIO = ("forget_truth_ratio", "forget_Truth_Ratio")
"""What versions of open-unlearning call the truth ratio of the forget rows."""


@dataclass(frozen=True, slots=True)
class Never:
    """A model that never knew the rows."""

    source: str
    """Its checkpoint, or the file of its results."""
    truth_ratios: tuple[float, ...]
    """Of the forget rows."""
    min_k_auc: float | None = None
    """AUC of Min-K; None where it was not measured."""
    forget_losses: tuple[float, ...] = ()
    holdout_losses: tuple[float, ...] = ()


def never_of(source: str, likelihoods: Likelihoods) -> Never:
    """Return what the likelihoods of such a model say."""
    forget, holdout = likelihoods.get(FORGET, {}), likelihoods.get(HOLDOUT, {})
    return Never(
        source,
        tuple(truth_ratios(forget)),
        attack_auc(by_metric(forget, "min_k"), by_metric(holdout, "min_k")),
        tuple(by_metric(forget, "loss")),
        tuple(by_metric(holdout, "loss")),
    )


def read_never(path: Path) -> Never:
    """Read the results of such a model: results.json of this suite, its folder, or open-unlearning's TOFU_EVAL.json.

    Raises:
        EvaluationError: the file cannot be read, or holds no truth ratios of forget rows.
    """
    if path.is_dir():
        found = [path / name for name in (str(RESULTS_FILE), str(TOFU_EVAL_FILE)) if (path / name).is_file()]
        path = found[0] if found else path / RESULTS_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"never_results: {path}: cannot be read ({error}); {_EXPECTED}") from error
    if not isinstance(data, Mapping):
        raise EvaluationError(f"never_results: {path}: expected a JSON object, got {shown(data)}; {_EXPECTED}")
    try:
        never = _of_results(data, str(path)) if data.get("schema") == SCHEMA else _of_eval(data, str(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"never_results: {path}: does not hold scores of TOFU's forget rows; {_EXPECTED}"
        ) from error
    if not never.truth_ratios:
        raise EvaluationError(f"never_results: {path}: holds no truth ratios of forget rows; {_EXPECTED}")
    return never


_EXPECTED = (
    f"give the {RESULTS_FILE} that `letheon evaluate --suite tofu` wrote for a model trained without the forget rows, "
    f"or open-unlearning's {TOFU_EVAL_FILE}"
)


def _of_results(data: Mapping[str, Any], source: str) -> Never:
    likelihoods: Likelihoods = data["measured"]["likelihood"]
    return never_of(source, likelihoods)


def _of_eval(data: Mapping[str, Any], source: str) -> Never:
    ratios = next(data[name] for name in _TRUTH_RATIO if name in data) if set(_TRUTH_RATIO) & set(data) else {}
    attack, losses = data.get("mia_min_k") or {}, data.get("mia_loss") or {}
    auc = attack.get("agg_value")
    return Never(
        source,
        tuple(_scores(ratios)),
        None if auc is None else float(auc),
        tuple(_scores(losses.get("forget") or {})),
        tuple(_scores(losses.get("holdout") or {})),
    )


def _scores(found: Mapping[str, Any]) -> Sequence[float]:
    return [float(one["score"]) for one in (found.get("value_by_index") or {}).values() if one["score"] is not None]
