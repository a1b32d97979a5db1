"""Scores of likelihoods, each worked out by hand."""

import math
import zlib

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from letheon.evaluation.metrics.memorisation import (
    attack_auc,
    chosen_probability,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    forget_truth_ratio,
    kept_truth_ratio,
    mean,
    min_k,
    model_utility,
    privacy_leak,
    sound_extraction_strength,
    truth_ratio,
    zlib_ratio,
)


def test_truth_ratio() -> None:
    # Wrong answers of probability 1/2 and 1/8 have the geometric mean 1/4; the right one has 1/2.
    assert truth_ratio(math.log(2), [math.log(2), math.log(8)]) == pytest.approx(0.5)
    assert truth_ratio(0.0, [0.0]) == pytest.approx(1.0)


def test_truth_ratios_of_sets() -> None:
    # min(1/2, 2), min(1, 1), min(4, 1/4)
    assert forget_truth_ratio([0.5, 1.0, 4.0]) == pytest.approx((0.5 + 1 + 0.25) / 3)
    # 1 - 1/2, 1 - 1, and nothing for 4
    assert kept_truth_ratio([0.5, 1.0, 4.0]) == pytest.approx(0.5 / 3)


def test_probability_among_options() -> None:
    assert chosen_probability(0.2, [0.1, 0.1]) == pytest.approx(0.5)
    assert chosen_probability(0.0, [0.0]) == 0.0


def test_model_utility_is_a_harmonic_mean_of_all_terms() -> None:
    assert model_utility([1.0, 0.5]) == pytest.approx(2 / 3)
    assert model_utility([1.0, 0.0]) == 0.0
    assert model_utility([1.0, None]) is None
    terms = [0.1 * n for n in range(1, 10)]
    assert model_utility(terms) == pytest.approx(float(hmean(terms)))


def test_forget_quality() -> None:
    # Two samples of three that do not overlap: D = 1, and 2 of the 20 ways of mixing them are as far apart.
    assert forget_quality([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert forget_quality([1, 2, 3], [1, 2, 3]) == 1.0
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=400).tolist(), rng.normal(0.1, size=400).tolist()
    inverted = ks_2samp(1 / (np.exp(one) + 1e-10), 1 / (np.exp(other) + 1e-10)).pvalue
    assert forget_quality(np.exp(one).tolist(), np.exp(other).tolist()) == pytest.approx(inverted, rel=1e-6)


@pytest.mark.parametrize(
    ("hits", "exact", "strength", "sound"),
    [
        ([True, True, True, True], 1.0, 1.0, 1.0),
        ([False, True, False, True], 0.5, 0.25, 0.25),
        ([True, False, True, True], 0.75, 0.5, 0.5),
        ([True, True, True, False], 0.75, 0.25, 0.0),  # k stops at L - 1 in the reference
        ([False], 0.0, 1.0, 0.0),
    ],
)
def test_memorisation_and_extraction(hits: list[bool], exact: float, strength: float, sound: float) -> None:
    assert exact_memorisation(hits) == exact
    assert extraction_strength(hits) == strength
    assert sound_extraction_strength(hits) == sound


def test_min_k_takes_the_least_likely() -> None:
    # int(.4 * 5) = 2: the lowest two are -5 and -4.
    assert min_k([-1, -5, -2, -4, -3]) == 4.5
    assert min_k([-1, -7]) == 7.0  # int(.8) = 0, but at least one


def test_zlib_ratio() -> None:
    assert zlib_ratio(2.0, "sea sea sea") == 2.0 / len(zlib.compress(b"sea sea sea"))


def test_attack_auc_is_1_where_members_have_lower_values() -> None:
    assert attack_auc([1, 2], [3, 4]) == 1.0
    assert attack_auc([1, 4], [2, 4]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_privacy_leak() -> None:
    assert privacy_leak(0.5, 0.5) == pytest.approx(0.0)
    assert privacy_leak(1.0, 0.5) == pytest.approx(-100.0)  # the rows are still recognised
    assert privacy_leak(0.4, 0.6) == pytest.approx(50.0)  # (0.6 - 0.4) / 0.4


def test_nothing_gives_no_number() -> None:
    assert mean([]) is None
    assert exact_memorisation([]) is None
    assert forget_truth_ratio([]) is None
    assert kept_truth_ratio([]) is None
    assert forget_quality([], [1.0]) is None
    assert forget_quality([1.0], []) is None
    assert attack_auc([], [1.0]) is None
    assert privacy_leak(None, 0.5) is None
    assert model_utility([]) is None
    # As in open-unlearning, a row without labels counts as not extracted at all.
    assert extraction_strength([]) == sound_extraction_strength([]) == min_k([]) == 0.0
