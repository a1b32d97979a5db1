"""What is measured of each row of TOFU, as plain numbers that results.json holds, and what follows from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from letheon.evaluation.metrics.memorisation import SMALL, arithmetic_truth_ratio, chosen_probability, truth_ratio
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.scores.predictions import Prediction

FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS, HOLDOUT = "forget", "retain", "real_authors", "world_facts", "holdout"

RowValues = Mapping[str, Any]
"""By name: `loss` of the answer, `paraphrase_loss`, `wrong_losses` (a list), and of forget and holdout rows `exact`,
`strength`, `sound_strength`, `min_k`, `min_k_plus_plus`, `zlib`. Losses in nats a label; what was not measured is
absent."""
Likelihoods = Mapping[str, Mapping[str, RowValues]]
"""Values by set and row id."""


def right_loss(values: RowValues) -> float | None:
    """Return the loss of the answer that wrong ones are compared with: the paraphrase where there is one."""
    found: float | None = values.get("paraphrase_loss", values.get("loss"))
    return found


def ratio_of(values: RowValues, *, small: float = SMALL) -> float | None:
    """Return the truth ratio of a row; None without wrong answers or a right one."""
    right, wrong = right_loss(values), values.get("wrong_losses")
    return truth_ratio(right, wrong, small=small) if right is not None and wrong else None


def truth_ratios(rows: Mapping[str, RowValues], *, small: float = SMALL) -> list[float]:
    """Return the truth ratio of each row that has one."""
    return [ratio for values in rows.values() if (ratio := ratio_of(values, small=small)) is not None]


def arithmetic_truth_ratios(rows: Mapping[str, RowValues]) -> list[float]:
    """Return the truth ratio, by the arithmetic mean over the wrong answers, of each row that has one."""
    pairs = [(right_loss(values), _wrong(values)) for values in rows.values()]
    return [arithmetic_truth_ratio(right, wrong) for right, wrong in pairs if right is not None and wrong]


def probabilities(rows: Mapping[str, RowValues]) -> list[float]:
    """Return exp(-loss) of each row's answer."""
    return [math.exp(-values["loss"]) for values in rows.values() if "loss" in values]


def chosen(rows: Mapping[str, RowValues], *, small: float = SMALL) -> list[float]:
    """Return the probability of each row's answer among its options."""
    return [
        chosen_probability(math.exp(-values["loss"]), [math.exp(-loss) for loss in _wrong(values)], small=small)
        for values in rows.values()
        if "loss" in values and _wrong(values)
    ]


def recall_of(prediction: Prediction) -> float:
    """Return the ROUGE-L recall of a prediction as open-unlearning takes it: of the stripped text."""
    return plain_rouge(prediction.generation.strip(), prediction.answer).rouge_l_recall


def _wrong(values: RowValues) -> Sequence[float]:
    found: Sequence[float] = values.get("wrong_losses", ())
    return found
