"""What a few seeds allow to be said: spread, intervals, paired comparisons, fronts. Pure numbers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from letheon.studies.spec import Deviation

NUM_RESAMPLES = 10_000
MOST_ENUMERATED = 6
"""Up to this many values, all 6 ** 6 resamples with replacement are taken instead of random ones."""
NUM_FLIPS = 100_000
"""More than 2 ** 16, so that up to 16 differences all of their sign patterns are counted."""

Floats = NDArray[np.float64]


def deviation(values: Sequence[float], kind: Deviation) -> float | None:
    """Return the standard deviation of `values`.

    "sample" divides by n - 1 and estimates that of all seeds; it is None for fewer than two values. "population"
    divides by n and describes these seeds alone, which the paper's tables show; it is None for none.
    """
    degrees = 1 if kind == "sample" else 0
    return float(np.std(values, ddof=degrees)) if len(values) > degrees else None


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean of `values`; None for fewer than two.

    Up to 6 values every resample is counted, so that the interval is exact; of more there are 10,000 random ones of a
    fixed seed. With few values it is too narrow: of 5 normal ones it holds the true mean about 84 times in 100.
    """
    if len(values) < 2:
        return None
    means = np.asarray(values, dtype=np.float64)[_resamples(len(values))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Paired:
    """How much higher `first` scores than `second` over the seeds that both have."""

    num_seeds: int
    difference: float
    """Mean of first - second."""
    low: float
    """The interval of `difference`, from Student's t."""
    high: float
    p: float
    """Two-sided, that there is no difference: the paired t test; where the differences have no spread, `p_flips`."""
    p_flips: float
    """The same from the exact sign-flip permutation test, which with n seeds cannot go below 2 / 2 ** n."""


def paired(first: Mapping[int, float], second: Mapping[int, float], *, level: float = 0.95) -> Paired | None:
    """Compare two configurations, scores by seed, over the seeds that both have; None for fewer than two of them.

    Runs of one seed share the order of rows and what an adapter begins with, so that their differences vary less than
    the scores do. The t test takes the differences to be normal. A permutation test would not, but five seeds allow it
    no p below 1 / 16, so that it could never tell anything apart at 0.05.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    ours, theirs = (np.array([scores[seed] for seed in seeds]) for scores in (first, second))
    differences = ours - theirs
    mean, num = float(differences.mean()), len(seeds)
    flips = sign_flip_p(differences)
    if float(stats.sem(differences)) <= 1e-12 * max(abs(mean), 1.0):
        return Paired(num, mean, mean, mean, flips, flips)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(level)
    return Paired(num, mean, float(low), float(high), float(test.pvalue), flips)


def sign_flip_p(differences: Floats) -> float:
    """Return the share of sign patterns of `differences` (n,) whose sum is at least as far from 0 as theirs.

    All 2 ** n patterns are counted up to 16 differences, beyond that 100,000 random ones of a fixed seed.
    """
    test = stats.permutation_test(
        (differences,), _total, permutation_type="samples", n_resamples=NUM_FLIPS, rng=0, vectorized=True
    )
    return float(test.pvalue)


def _total(differences: Floats, axis: int) -> Floats:
    """Sums, rounded so that those that are equal but for the order of their terms count as equal."""
    totals: Floats = np.round(differences.sum(axis=axis), 12)
    return totals


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979): of all together, 0.05 bounds the chance of one mistake.

    The i-th smallest of m, counted from 0, is multiplied by m - i, and none becomes smaller than one before it.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of the points no other beats in one value without losing in the other, best first value first."""
    order = sorted(range(len(points)), key=lambda index: points[index], reverse=True)
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def resampled_means(scores: Floats) -> Floats:
    """Return the means of `scores` (c, s) over resamples of its s columns, (c, r), the same columns in all rows."""
    means: Floats = scores[:, _resamples(scores.shape[1])].mean(axis=2)
    return means


def _resamples(num: int) -> NDArray[np.int64]:
    """Indices of resamples with replacement (r, num): all of them where there are few."""
    if num <= MOST_ENUMERATED:
        return np.array(list(itertools.product(range(num), repeat=num)), dtype=np.int64)
    return np.random.default_rng(0).integers(0, num, size=(NUM_RESAMPLES, num))
