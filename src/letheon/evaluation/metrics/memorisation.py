"""Scores made of the likelihoods of answers: what is memorised, what is true, what an attack can tell.

All are pure functions of numbers. A score over an empty set is None, never a number.
"""

import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from statistics import fmean

MIN_K_SHARE = 0.4
"""Share of the labels, the least likely, that Min-K and Min-K++ take."""
SMALL = 1e-10
"""What open-unlearning adds to divisors; the papers' own code adds nothing."""
_LARGEST_EXPONENT = 700.0
"""exp() of more is beyond the range of floating-point numbers."""


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing."""
    return fmean(values) if values else None


def exact_memorisation(hits: Sequence[bool]) -> float | None:
    """Return the share of labels that are the likeliest token, 0 to 1; lower is better on forget rows.

    The end of sequence is not among the labels (Tirumala et al. 2022, as open-unlearning has it). None without labels.
    """
    return fmean(hits) if hits else None


def extraction_strength(hits: Sequence[bool]) -> float:
    """Return 1 - k / L, k the first of L labels from which all are the likeliest token; 0 to 1, lower is better.

    Carlini et al. 2021, as open-unlearning computes it: where even the last label is missed, k is L - 1 and not L, so
    the score is never 0 but 1 / L. 0 without labels.
    """
    if not hits:
        return 0.0
    return 1 - min(_first_of_the_rest(hits), len(hits) - 1) / len(hits)


def sound_extraction_strength(hits: Sequence[bool]) -> float:
    """Return the extraction strength with k = L where the last label is missed, so that it is 0. 0 without labels."""
    return 1 - _first_of_the_rest(hits) / len(hits) if hits else 0.0


def truth_ratio(right_loss: float, wrong_losses: Sequence[float], *, small: float = SMALL) -> float:
    """Return R = exp(-mean of the wrong answers' losses) / (exp(-loss of the right one) + small), from 0 up.

    Maini et al. (arXiv 2401.06121), eq. 1, with the geometric mean over the wrong answers that its code has; losses in
    nats a label. About 1 for a model that does not know the answer, far below 1 for one that does.
    """
    if not small:
        return math.exp(min(right_loss - fmean(wrong_losses), _LARGEST_EXPONENT))
    return math.exp(-fmean(wrong_losses)) / (math.exp(-right_loss) + small)


def arithmetic_truth_ratio(right_loss: float, wrong_losses: Sequence[float]) -> float:
    """Return the truth ratio as the text of the paper has it, with the arithmetic mean over the wrong answers.

    R = mean of exp(-loss of a wrong answer) / exp(-loss of the right one) (Maini et al., arXiv 2401.06121, eq. 1).
    """
    return fmean(math.exp(min(right_loss - loss, _LARGEST_EXPONENT)) for loss in wrong_losses)


def forget_truth_ratio(ratios: Sequence[float], *, small: float = SMALL) -> float | None:
    """Return the mean of min(R, 1 / (R + small)), 0 to 1: 1 where true and wrong answers are equally likely.

    Higher is better on forget rows. None without rows.
    """
    return mean([min(ratio, 1 / (ratio + small)) if ratio + small else 0.0 for ratio in ratios])


def kept_truth_ratio(ratios: Sequence[float]) -> float | None:
    """Return the mean of max(0, 1 - R), 0 to 1; higher is better on rows to keep. None without rows."""
    return mean([max(0.0, 1 - ratio) for ratio in ratios])


def chosen_probability(right: float, wrong: Sequence[float], *, small: float = SMALL) -> float:
    """Return p / (p + sum of p_wrong + small), 0 to 1: the right answer's probability among the options."""
    total = right + sum(wrong) + small
    return right / total if total else 0.0


def model_utility(terms: Sequence[float | None]) -> float | None:
    """Return the harmonic mean of the nine utility scores, 0 to 1, higher is better; 0 if any is 0.

    Maini et al. (arXiv 2401.06121), section 2.2.2: probability, ROUGE-L recall and truth ratio of retain rows, real
    authors and world facts. None where one of them is not known.
    """
    known = [term for term in terms if term is not None]
    if not known or len(known) < len(terms):
        return None
    return 0.0 if min(known) <= 0 else len(known) / sum(1 / term for term in known)


def forget_quality(ratios: Sequence[float], never: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided Kolmogorov-Smirnov test between truth ratios, 0 to 1; higher is better.

    `never` are the ratios of a model that was trained without the forget rows (Maini et al. 2024, section 2.2.1): above
    0.05 the two models cannot be told apart by them. None where either is empty.
    """
    if not ratios or not never:
        return None
    from scipy.stats import ks_2samp  # not with the module: most commands do without its long import

    with warnings.catch_warnings():
        # Where rounding takes the exact p-value above 1, scipy warns and goes over to the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ks_2samp(ratios, never).pvalue)


def min_k(values: Sequence[float], share: float = MIN_K_SHARE) -> float:
    """Return minus the mean of the lowest int(share x L) values, at least one of them; 0 without values.

    With log-probabilities this is Min-K (Shi et al., arXiv 2310.16789), with normed ones Min-K++ (Zhang et al., arXiv
    2404.02936). Lower for texts that the model was trained on.
    """
    if not values:
        return 0.0
    return -fmean(sorted(values)[: max(1, int(len(values) * share))])


def zlib_ratio(loss: float, text: str) -> float:
    """Return the loss over the bytes of the zlib-compressed text (Carlini et al. 2021); lower for known texts."""
    return loss / len(zlib.compress(text.encode()))


def attack_auc(members: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the share of pairs in which the member has the lower value, ties counting a half; None without pairs.

    0 to 1. 1 means that forget rows are still told from rows that the model never saw. What is best is the value that a
    model trained without the rows has, about 0.5.
    """
    if not members or not others:
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(members) + [0] * len(others), [-v for v in (*members, *others)]))


def privacy_leak(auc: float | None, never_auc: float) -> float | None:
    """Return 100 ((1 - AUC) - (1 - AUC_never)) / (1 - AUC_never + 1e-10), in percent; 0 is best.

    MUSE (Shi et al., arXiv 2407.06460), on the AUC of Min-K. Negative: the rows are still recognised; positive: the
    model avoids them so much that this tells. It explodes as `never_auc` nears 1. None without an AUC.
    """
    return None if auc is None else 100 * (never_auc - auc) / (1 - never_auc + SMALL)


def by_metric(rows: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    """Return one value of each row that has it, in the order of the rows."""
    return [values[name] for values in rows.values() if name in values]


def _first_of_the_rest(hits: Sequence[bool]) -> int:
    """The first place from which on everything is hit; the length if the last is missed."""
    for place in range(len(hits) - 1, -1, -1):
        if not hits[place]:
            return place + 1
    return 0
