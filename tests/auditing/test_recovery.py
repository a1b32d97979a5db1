"""Recovery, AUC and intervals: hand-worked numbers, properties, agreement with naive versions."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from letheon.auditing.recovery import (
    Draws,
    Interval,
    Sides,
    area,
    area_weights,
    auc,
    auc_shift,
    corrected_level,
    draw,
    fewest_documents,
    own_recoveries,
    recoveries,
    remaining,
    rows_for,
    true_positives,
)

LEVEL = 0.95


def alone(num: int, *, is_paired: bool = False, seed: int = 0) -> Draws:
    """Draws of rows that are each a document, as many of the control's."""
    return draw(np.arange(num), None if is_paired else np.arange(num), seed=seed)


def sides(before: float, after: float, attacked: float, control: float, control_attacked: float) -> Sides:
    """The same for each of 20 rows."""
    rows = [np.full(20, value) for value in (before, after, control)]
    return Sides(rows[0], rows[1], np.full((1, 20), attacked), rows[2], np.full((1, 20), control_attacked))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1.0, 0.2, 0.6, 0.2, 0.2), 0.5),  # (0.6 - 0.2) / (1 - 0.2)
        ((1.0, 0.2, 0.6, 0.1, 0.3), 0.25),  # ((0.6 - 0.2) - (0.3 - 0.1)) / (1 - 0.2)
        ((1.0, 0.0, 0.1, 0.1, 0.1), 0.0),  # back to what an ignorant model says: nothing is recovered
        ((1.0, 0.0, 0.5, 0.1, 0.1), 0.4),  # (0.5 - 0.1) / 1
        ((0.9, 0.4, 0.9, 0.4, 0.4), 1.0),
    ],
)
def test_recovery_by_hand(given: tuple[float, ...], expected: float) -> None:
    (found,) = recoveries(sides(*given), alone(20), level=LEVEL) or []
    assert found.value == pytest.approx(expected)
    # Rows that are all alike leave no uncertainty.
    assert (found.low, found.high) == pytest.approx((expected, expected))


def test_without_forgetting_there_is_no_recovery() -> None:
    assert recoveries(sides(1.0, 0.96, 1.0, 0.1, 0.1), alone(20), level=LEVEL) is None


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    zero = np.zeros(400)
    found = Sides(np.ones(400), zero, values[None], zero, np.zeros((1, 400)))
    (interval,) = recoveries(found, alone(400, is_paired=True, seed=1), level=LEVEL) or []
    half = 1.96 * values.std() / 20
    # The ends of 4000 draws have an error of about a fiftieth of the half width.
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_rows_of_one_document_are_drawn_together() -> None:
    """Ten rows for each of 40 documents, which are known whole or not at all, say no more than 40 rows do."""
    known = (np.arange(40) % 2).astype(np.float64)
    ones, zero = np.ones(40), np.zeros(40)
    (apart,) = recoveries(Sides(ones, zero, known[None], zero, zero[None]), alone(40), level=LEVEL) or []
    documents = np.repeat(np.arange(40), 10)
    many = [np.repeat(values, 10) for values in (ones, zero, known)]
    whole = Sides(many[0], many[1], many[2][None], many[1], many[1][None])
    (joined,) = recoveries(whole, draw(documents, documents, seed=0), level=LEVEL) or []
    assert (joined.value, joined.low, joined.high) == pytest.approx((apart.value, apart.low, apart.high))
    (careless,) = recoveries(whole, alone(400), level=LEVEL) or []
    # Ten times the rows narrow an interval by the root of ten.
    assert (joined.high - joined.low) / (careless.high - careless.low) == pytest.approx(10**0.5, rel=0.15)


def test_every_draw_is_a_sample_of_as_many_documents() -> None:
    drawn = draw(np.array([0, 0, 1, 2]), np.array([0, 1]), seed=0)
    assert drawn.rows.sum(1) == pytest.approx(1.0)
    assert np.array_equal(drawn.rows[:, 0], drawn.rows[:, 1])
    # All three draws of the document with two rows, none of the others, once in 27.
    assert (drawn.rows[:, 0] == 0.5).mean() == pytest.approx(1 / 27, abs=0.01)


def test_paired_rows_that_move_together_leave_no_uncertainty() -> None:
    values = np.random.default_rng(0).random(50)
    zero, ones = np.zeros(50), np.ones(50)
    same = Sides(ones, zero, values[None], zero, values[None])
    (found,) = recoveries(same, alone(50, is_paired=True), level=LEVEL) or []
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    (loose,) = recoveries(same, alone(50), level=LEVEL) or []
    assert loose.low < -0.05 < 0.05 < loose.high


def test_what_remains_by_hand() -> None:
    one, half, tenth = np.ones(10), np.full(10, 0.55), np.full(10, 0.1)
    draws = alone(10, is_paired=True)
    assert remaining(one, half, tenth, draws, level=LEVEL).value == pytest.approx(0.5)
    assert remaining(one, tenth, tenth, draws, level=LEVEL).high == pytest.approx(0.0)
    # A control that knows as much as the model before: nothing was there to forget.
    assert remaining(one, one, one, draws, level=LEVEL).value == 0.0


def test_a_measure_of_its_own_is_a_share_of_what_lies_above_the_control() -> None:
    rows = {name: np.full((2, 8), value) for name, value in (("after", 0.5), ("before", 0.9), ("control", 0.1))}
    found = own_recoveries(rows["after"], rows["before"], rows["control"], alone(8, is_paired=True), level=LEVEL)
    assert [one.value for one in found or []] == pytest.approx([0.5, 0.5])
    same = rows["before"]
    assert own_recoveries(same, same, same, alone(8, is_paired=True), level=LEVEL) is None


def test_the_auc_is_that_of_scikit_learn_with_ties() -> None:
    draw = np.random.default_rng(0)
    seen, unseen = (draw.integers(*ends, size).astype(np.float64) for ends, size in (((0, 6), 30), ((1, 8), 40)))
    assert auc(seen, unseen) == pytest.approx(roc_auc_score([1] * 30 + [0] * 40, [*seen, *unseen]))


def test_the_shift_of_an_auc_is_measured_against_the_control_on_the_same_rows() -> None:
    draw = np.random.default_rng(0)
    seen, unseen = draw.normal(1, 1, 60), draw.normal(0, 1, 60)
    own, shift = auc_shift(seen, unseen, None, alone(60), level=LEVEL)
    assert shift.value == pytest.approx(own.value - 0.5)
    assert own.low < own.value < own.high
    _, same = auc_shift(seen, unseen, (seen, unseen), alone(60), level=LEVEL)
    assert (same.low, same.high) == (0.0, 0.0)
    _, other = auc_shift(-seen, -unseen, (seen, unseen), alone(60), level=LEVEL)
    assert other.high < 0


def values_of(found: tuple[Interval, Interval]) -> tuple[float, float]:
    return found[0].value, found[1].value


def test_true_positives_are_told_on_both_sides() -> None:
    unseen = np.arange(100.0)
    draws = draw(np.arange(10), np.arange(100), seed=0)
    assert values_of(true_positives(np.full(10, 200.0), unseen, draws, level=LEVEL)) == (1.0, 0.0)
    assert values_of(true_positives(np.full(10, -1.0), unseen, draws, level=LEVEL)) == (0.0, 1.0)
    # Five of a hundred lie above 94, so that all of ten seen rows at 94.5 are found, and none at 94.
    assert values_of(true_positives(np.full(10, 94.5), unseen, draws, level=LEVEL)) == (1.0, 0.0)
    assert values_of(true_positives(np.full(10, 94.0), unseen, draws, level=LEVEL)) == (0.0, 0.0)
    own = draw(np.arange(100), np.arange(100), seed=0)
    assert values_of(true_positives(unseen, unseen, own, level=LEVEL)) == (0.05, 0.05)
    # No row is found above a value that all of them share.
    assert values_of(true_positives(np.ones(100), np.ones(100), own, level=LEVEL)) == (0.0, 0.0)


def test_the_interval_of_true_positives_is_that_of_a_naive_bootstrap() -> None:
    generator = np.random.default_rng(0)
    seen, unseen = generator.normal(1, 1, 40), generator.normal(0, 1, 60).round(1)
    naive = []
    for _ in range(4000):
        drawn = np.sort(generator.choice(unseen, 60))
        threshold = min(value for value in drawn if (drawn > value).mean() <= 0.05)
        naive.append((generator.choice(seen, 40) > threshold).mean())
    found, _ = true_positives(seen, unseen, draw(np.arange(40), np.arange(60), seed=1), level=LEVEL)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.051)


def test_the_level_is_shared_among_findings() -> None:
    assert corrected_level(0.95, 1) == pytest.approx(0.95)
    assert corrected_level(0.95, 5) == pytest.approx(0.99)


def test_documents_without_which_nothing_is_excluded() -> None:
    assert fewest_documents(0.05) == 60
    assert fewest_documents(0.1) == 30
    # Half as wide needs four times the rows, whatever documents they are of.
    wide = Interval(0.0, -0.2, 0.2)
    assert rows_for(0.1, wide, 100, 100) == rows_for(0.1, wide, 100, 40) == 400
    # Three rows a document: 60 documents have 180.
    assert rows_for(0.05, Interval(0.0, 0.0, 0.0), 30, 10) == 180


def test_points_weigh_by_the_gaps_beside_them() -> None:
    # log(1 + s) of 0, 1, 7 is 0, 1, 3 in powers of two: the trapezoids are 1 and 2 wide.
    assert area_weights([0, 1, 7]) == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    # The gaps of 8, 4, 4 bits: all of the width lies between the first two, though it falls.
    assert area_weights([8, 4, 4]) == pytest.approx([1 / 2, 1 / 2, 0])
    assert area_weights([4, 4]) == pytest.approx([1 / 2, 1 / 2])
    assert area_weights([32]) == pytest.approx([1])
    assert area([], []) == 0.0


def test_the_mean_height_of_recoveries_is_the_recovery_of_the_mean_height() -> None:
    generator = np.random.default_rng(0)
    before, after, control = np.full(30, 0.9), generator.random(30) * 0.2, generator.random(30) * 0.1
    attacked, theirs = generator.random((3, 30)), generator.random((3, 30)) * 0.2
    strengths, draws = [1.0, 5.0, 100.0], alone(30)
    each = recoveries(Sides(before, after, attacked, control, theirs), draws, level=LEVEL) or []
    at = area_weights(strengths)[None]
    (whole,) = recoveries(Sides(before, after, at @ attacked, control, at @ theirs), draws, level=LEVEL) or []
    assert whole.value == pytest.approx(area(strengths, [one.value for one in each]))
    assert whole.low < whole.value < whole.high


def test_the_area_is_the_mean_height_over_the_logarithm_of_strength() -> None:
    assert area([1, 10, 100], [0.4, 0.4, 0.4]) == pytest.approx(0.4)
    assert area([1, 3], [0.0, 1.0]) == pytest.approx(0.5)
    assert area([8], [0.3]) == 0.3
