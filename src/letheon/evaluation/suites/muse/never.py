"""What is known of a model that was trained without the texts to forget: the measure of privacy leak."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError, shown
from letheon.evaluation.metrics.memorisation import attack_auc
from letheon.scores.results import SCHEMA
from letheon.storage.run_folder import RESULTS_FILE

TextValues = Mapping[str, Mapping[str, Sequence[float]]]
"""By side ("members", "holdout") and name ("loss", "min_k", ...), a value for each text."""


@dataclass(frozen=True, slots=True)
class Never:
    """A model that never knew the texts."""

    source: str
    """Its checkpoint, or the file of its results."""
    min_k_auc: float
    """AUC of Min-K."""
    losses: Mapping[str, Sequence[float]]
    """By side, the loss of each text; empty where they are not known."""


def never_of(source: str, texts: TextValues) -> Never:
    """Return what the values of the texts under such a model say.

    Raises:
        EvaluationError: there are no values of one of the sides.
    """
    members, holdout = texts.get("members", {}), texts.get("holdout", {})
    auc = attack_auc(members.get("min_k", ()), holdout.get("min_k", ()))
    if auc is None:
        raise EvaluationError(f"{source}: expected Min-K of texts to forget and of others, found none; {_EXPECTED}")
    return Never(source, auc, {side: tuple(values.get("loss", ())) for side, values in texts.items()})


def read_never(path: Path, *, corpus: str, parity: str) -> Never:
    """Read results.json or its folder, or open-unlearning's MUSE_EVAL.json.

    Raises:
        EvaluationError: the file cannot be read, holds no Min-K, or is of another corpus or parity.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"never_results: {path}: cannot be read ({error}); {_EXPECTED}") from error
    if not isinstance(data, Mapping):
        raise EvaluationError(f"never_results: {path}: expected a JSON object, got {shown(data)}; {_EXPECTED}")
    try:
        if data.get("schema") != SCHEMA:
            return Never(str(path), float(data["mia_min_k"]["agg_value"]), {})
        measured: Mapping[str, Any] = data["measured"]
        found, asked = (str(measured["corpus"]), str(measured["parity"])), (corpus, parity)
        never = never_of(f"never_results: {path}", measured["texts"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"never_results: {path}: has no AUC of Min-K of MUSE's texts; {_EXPECTED}") from error
    if found != asked:
        raise EvaluationError(
            f"never_results: {path}: expected scores of {corpus} by --parity {parity}, got those of {found[0]} by "
            f"--parity {found[1]}; score that model again in the same way"
        )
    return never


_EXPECTED = (
    f"give the {RESULTS_FILE} that `letheon evaluate --suite muse` wrote for a model trained without the texts to "
    "forget, or open-unlearning's MUSE_EVAL.json"
)
