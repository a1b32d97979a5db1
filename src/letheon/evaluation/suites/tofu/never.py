"""What is known of a model that was trained without the forget rows: the measure of forget quality and privacy leak."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.memorisation import SMALL, attack_auc, by_metric, truth_ratio
from letheon.evaluation.suites.tofu.rows import FORGET, HOLDOUT, Likelihoods, truth_ratios
from letheon.scores.results import SCHEMA
from letheon.scores.score import SOUND
from letheon.storage.run_folder import RESULTS_FILE, TOFU_EVAL_FILE

_TRUTH_RATIO = ("forget_truth_ratio", "forget_Truth_Ratio")
"""What versions of open-unlearning call the truth ratio of the forget rows."""
_AGGREGATED, _LOG_OF_FORGET = "eval_log_aggregated.json", "eval_log_forget.json"
"""A result file of TOFU's own repository, and the part of it on the forget rows."""


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
    measured: tuple[str, str] | None = None
    """Split and parity by which it was measured; None where the file does not say."""
    sound: "Never | None" = None
    """The same with every token (sound.py); None where it is not known."""


def never_of(source: str, likelihoods: Likelihoods, *, sound: Likelihoods | None = None, small: float = SMALL) -> Never:
    """Return what the likelihoods of such a model say; `sound` are those with every token, `small` as in
    `truth_ratio`."""
    forget, holdout = likelihoods.get(FORGET, {}), likelihoods.get(HOLDOUT, {})
    return Never(
        source,
        tuple(truth_ratios(forget, small=small)),
        attack_auc(by_metric(forget, "min_k"), by_metric(holdout, "min_k")),
        tuple(by_metric(forget, "loss")),
        tuple(by_metric(holdout, "loss")),
        sound=None if sound is None else never_of(source, sound, small=small),
    )


def read_never(path: Path, *, small: float = SMALL) -> Never:
    """Read the results of such a model: of this suite, of open-unlearning, or of TOFU's own repository.

    These are results.json or its folder, TOFU_EVAL.json, and eval_log_aggregated.json; `small` as in `truth_ratio`.

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
        never = _read(data, str(path), small)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"never_results: {path}: does not hold scores of TOFU's forget rows; {_EXPECTED}"
        ) from error
    if not never.truth_ratios:
        raise EvaluationError(f"never_results: {path}: holds no truth ratios of forget rows; {_EXPECTED}")
    return never


_EXPECTED = (
    f"give the {RESULTS_FILE} that `letheon evaluate --suite tofu` wrote for a model trained without the forget rows, "
    f"or open-unlearning's {TOFU_EVAL_FILE}, or the {_AGGREGATED} of TOFU's own repository"
)


def _read(data: Mapping[str, Any], source: str, small: float) -> Never:
    if data.get("schema") == SCHEMA:
        measured: Mapping[str, Any] = data["measured"]
        sound = measured.get(SOUND, {}).get("likelihood")
        never = never_of(source, measured["likelihood"], sound=sound, small=small)
        return replace(never, measured=(str(measured["split"]), str(measured["parity"])))
    return _of_log(data, source, small) if _LOG_OF_FORGET in data else _of_eval(data, source)


def _of_log(data: Mapping[str, Any], source: str, small: float) -> Never:
    right, wrong = (data[_LOG_OF_FORGET][name] for name in ("avg_paraphrased_loss", "average_perturb_loss"))
    return Never(source, tuple(truth_ratio(float(right[row]), wrong[row], small=small) for row in right))


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
