"""The dial's line search, on curves that are worked out by hand."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from letheon.unlearning.dial.search import (
    CLOSE_ENOUGH,
    FIRST_SCALES,
    MOST_SCALES,
    SAME_RECALL,
    Choice,
    DialBudgets,
    Fault,
    Limits,
    Point,
    choose_by_membership,
    choose_by_recall,
    next_scale,
)

Curve = Callable[[float], float]


def point(
    scale: float,
    auc: float | None,
    *,
    forget: float = 0.0,
    retain: float = 1.0,
    text: float | None = 3.0,
    instead: float | None = None,
) -> Point:
    taught = {} if instead is None else {"instead_recall": instead}
    values = {"forget_recall": forget, "retain_recall": retain, "text_loss": text, "score": 0.5, **taught}
    return Point(scale, values, auc)


def by_membership(
    auc: Curve,
    *,
    forget_recall: Curve = lambda s: 1 - s,
    retain_recall: Curve = lambda _: 1.0,
    text_loss: Curve = lambda _: 3.0,
    **budgets: Any,
) -> Choice:
    def measure(scale: float) -> Point:
        values = {"forget": forget_recall(scale), "retain": retain_recall(scale), "text": text_loss(scale)}
        return point(scale, auc(scale), **values)

    return choose_by_membership(measure, DialBudgets(**{"forget": 1.0, **budgets}))


def scales(choice: Choice) -> list[float]:
    return [one.scale for one in choice.points]


def test_a_point_scores_as_the_attack_does() -> None:
    assert [point(1, auc).membership for auc in (1.0, 0.0, 0.5, 0.75)] == [0, 0, 1, 0.5]
    assert point(1, None).membership == 0


def test_an_auc_that_falls_evenly_is_met_at_its_middle() -> None:
    # The AUC is 1 at scale 0 and 0 at scale 0.8: 0.5 at 0.4. Between 0 and 0.5 (.375) the chord meets 0.5 at
    # 0.5 * .5 / .625 = 0.4, so one measurement after the first four is enough.
    choice = by_membership(lambda s: max(0.0, 1 - s / 0.8))
    assert choice.point.scale == 0.4
    assert choice.reason is None
    assert scales(choice) == [0.0, 0.4, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("at", [0.08, 0.333, 0.61, 0.743, 0.97])
def test_a_steep_auc_is_met_too(at: float) -> None:
    choice = by_membership(lambda s: 1 / (1 + math.exp(40 * (s - at))))
    assert choice.point.membership >= 0.9
    assert abs(choice.point.scale - at) < 0.02
    assert len(choice.points) <= MOST_SCALES


def test_a_step_is_approached_by_halving_until_the_interval_is_narrow() -> None:
    choice = by_membership(lambda s: 1.0 if s < 0.6 else 0.2)
    assert choice.point.membership == pytest.approx(0.4)
    assert 0.6 <= choice.point.scale <= 1
    inside = [s for s in scales(choice) if 0.5 <= s <= 0.75]
    assert max(s for s in inside if s < 0.6) > 0.55
    assert len(choice.points) <= MOST_SCALES


def test_an_auc_that_never_comes_down_to_one_half_leaves_the_scale_at_one() -> None:
    # Nothing promises more than the end of the line, so nothing beyond the first four is measured.
    choice = by_membership(lambda s: 1 - 0.3 * s)
    assert (choice.point.scale, choice.reason) == (1.0, None)
    assert len(choice.points) == len(FIRST_SCALES)


def test_an_auc_that_falls_and_rises_again_is_met_where_it_crosses() -> None:
    # 0.5 is crossed on the way down (at .3) and on the way up (at .9); both are as good, and either may be found.
    choice = by_membership(lambda s: 0.5 + 2 * (s - 0.3) * (s - 0.9))
    assert choice.point.membership >= CLOSE_ENOUGH
    assert min(abs(choice.point.scale - at) for at in (0.3, 0.9)) < 0.02


def test_a_dip_between_two_scales_is_looked_for_beside_the_best() -> None:
    # A valley at 0.65, which does not reach 0.5: 0.75 is the best of the first four.
    choice = by_membership(lambda s: 0.6 + 2 * abs(s - 0.65))
    assert choice.point.scale == pytest.approx(0.65, abs=0.05)
    assert choice.point.membership > point(0.75, 0.8).membership


def test_a_retain_budget_that_binds_is_met_from_within() -> None:
    # Membership is best at 0.7, but between 0.6 and 1 retain recall is 0.2 lower than at both ends.
    def retain(scale: float) -> float:
        return 0.8 if 0.6 < scale < 1 else 1.0

    choice = by_membership(lambda s: 1 - s / 1.4, retain_recall=retain, retain=0.05)
    assert 0.58 <= choice.point.scale <= 0.6
    assert by_membership(lambda s: 1 - s / 1.4, retain_recall=retain, retain=0.2).point.scale == 0.7


def test_what_training_itself_lost_of_the_retain_rows_counts_against_no_scale() -> None:
    # From 1 before to 0.6 after: 0.7 keeps more than scale 1 does and hides better.
    choice = by_membership(lambda s: 1 - s / 1.4, retain_recall=lambda s: 1 - 0.4 * s, retain=0.0)
    assert choice.point.scale == 0.7


def test_a_text_budget_that_binds_is_met_from_within() -> None:
    # The loss of unseen text rises by the scale, so with 0.25 nats the scale is at most 0.25.
    def at_most(nats: float) -> float:
        return by_membership(lambda s: 1 - s / 1.4, text_loss=lambda s: 3 + s, text=nats).point.scale

    assert at_most(0.25) == 0.25
    assert 0.29 <= at_most(0.3) <= 0.3
    assert at_most(0.8) == 0.7


def test_a_forget_budget_that_binds_is_met_from_within() -> None:
    # Membership is best at 0.4, where the model still knows the forget rows.
    choice = by_membership(lambda s: 1 - s / 0.8, forget_recall=lambda s: 1.0 if s < 0.57 else 0.05, forget=0.1)
    assert 0.57 <= choice.point.scale <= 0.58


def test_scales_between_one_limit_and_another_are_found() -> None:
    # Below 0.6 the model still knows the forget rows, above 0.7 unseen text costs too much: 0.5 and 0.75 are past
    # limits, and what is within them lies between.
    choice = by_membership(
        lambda s: 1 / (1 + math.exp(40 * (s - 0.66))),
        forget_recall=lambda s: 1.0 if s < 0.6 else 0.0,
        text_loss=lambda s: 9.0 if s > 0.7 else 3.0,
        forget=0.1,
        text=1.0,
    )
    assert choice.point.scale == pytest.approx(0.66, abs=0.01)


def test_where_no_scale_is_within_the_budgets_it_stays_at_one_and_says_so() -> None:
    choice = by_membership(lambda s: 1 - s / 1.4, text_loss=lambda s: 3.0 if s == 0 else 9.0, text=1.0)
    assert choice.point.scale == 1.0
    assert choice.reason == "no scale that was measured is within the budgets"
    assert len(choice.points) <= MOST_SCALES


def test_limits_are_counted_from_both_ends() -> None:
    limits = Limits.of(
        point(0, 1.0, forget=1.0, retain=0.9), point(1, 0.0, forget=0.02, retain=0.8, text=5.0),
        DialBudgets(forget=0.1, retain=0.05, text=1.0),
    )  # fmt: skip
    assert limits == Limits(pytest.approx(0.12), pytest.approx(0.75), 4.0, -0.1)  # type: ignore[arg-type]
    assert limits.fault(point(0.5, 0.5, forget=0.12, retain=0.75, text=4.0)) is None
    assert limits.fault(point(0.5, 0.5, forget=0.13)) is Fault.RECALLS
    assert limits.fault(point(0.5, 0.5, forget=0.13, retain=0.74)) is Fault.DAMAGES
    assert limits.fault(point(0.5, 0.5, text=4.1)) is Fault.DAMAGES
    assert limits.fault(point(0.5, None, text=math.nan)) is Fault.DAMAGES
    assert limits.fault(point(0.5, None, text=math.inf)) is Fault.DAMAGES


def test_scale_0_is_never_chosen() -> None:
    # The AUC is 0.5 for the model before already: the nearest scale above it that was measured is taken.
    choice = by_membership(lambda s: 0.5 - s / 2)
    assert choice.point.scale > 0


def test_of_equal_scores_the_lower_forget_recall_is_taken_then_the_smaller_scale() -> None:
    # A plateau of AUC 0.4 from 0.5 on; what is measured below 0.5 recalls all.
    def tied(forget: Iterable[float]) -> float:
        recalls = dict(zip((0.0, 0.5, 0.75, 1.0), forget, strict=True))

        def measure(scale: float) -> Point:
            return point(scale, 1.0 if scale == 0 else 0.4, forget=recalls.get(scale, 1.0))

        return choose_by_membership(measure, DialBudgets(forget=1.0)).point.scale

    assert tied([1.0, 0.3, 0.2, 0.4]) == 0.75
    assert tied([1.0, 0.2, 0.2, 0.2]) == 0.5


def test_no_more_is_measured_once_the_score_is_close_to_1() -> None:
    ends = [point(0, 1.0), point(0.25, 0.9), point(1, 0.0)]
    limits = Limits.of(ends[0], ends[-1], DialBudgets())
    assert next_scale([*ends, point(0.5, 0.509), point(0.75, 0.2)], limits) is None
    assert next_scale([*ends, point(0.5, 0.511), point(0.75, 0.2)], limits) is not None


def test_a_scale_at_which_other_answers_are_lost_is_too_small() -> None:
    taught = point(1, 0.0, instead=0.95)
    limits = Limits.of(point(0, 1.0, forget=1.0, instead=0.0), taught, DialBudgets(forget=0.1))
    assert limits.fault(point(0.5, 0.5, instead=0.85)) is None
    assert limits.fault(point(0.5, 0.5, instead=0.8)) is Fault.RECALLS

    def measure(scale: float) -> Point:
        return point(scale, None, forget=1.0 if scale < 0.25 else 0.0, instead=0.95 if scale > 0.6 else 0.2)

    assert 0.6 < choose_by_recall(measure).point.scale < 0.7


def test_an_interval_that_ends_past_the_limits_is_not_taken_where_one_within_crosses_too() -> None:
    found = [
        point(0, 1.0), point(0.25, 0.2), point(0.5, 0.8), point(0.75, 0.2, retain=0.5), point(1, 0.1),
    ]  # fmt: skip
    scale = next_scale(found, Limits.of(found[0], found[-1], DialBudgets()))
    assert scale is not None
    assert 0 < scale < 0.5


def test_the_search_stops_where_the_time_is_up() -> None:
    def choice_after(num: int) -> Choice:
        left = iter([True] * (num - 1))
        return choose_by_membership(lambda s: point(s, 1 - s), DialBudgets(), goes_on=lambda: next(left, False))

    assert choice_after(1).reason == "the time was up before another scale could be measured"
    assert choice_after(1).point.scale == 1.0
    # 1, 0 and 0.5 were measured; 0.5 is the best of them.
    assert (choice_after(3).point.scale, len(choice_after(3).points)) == (0.5, 3)


def by_recall(forget: Curve) -> Choice:
    return choose_by_recall(lambda s: point(s, None, forget=forget(s)))


def test_the_smallest_scale_that_recalls_no_more_is_found() -> None:
    # Recall is 1 - 2 s down to 0 at 0.5; within 0.01 of that from 0.495 on.
    choice = by_recall(lambda s: max(0.0, 1 - 2 * s))
    assert choice.point.scale == pytest.approx(0.5, abs=0.01)
    assert choice.point.forget_recall <= SAME_RECALL
    assert choice.reason is None
    assert len(choice.points) <= MOST_SCALES


def test_recall_that_rises_again_below_a_scale_stops_the_way_down() -> None:
    # At 0.25 to 0.35 the recall dips to its last level once more; all that is larger must be at it too.
    choice = by_recall(lambda s: 0.0 if s >= 0.6 or 0.25 <= s <= 0.35 else 0.4)
    assert choice.point.scale == pytest.approx(0.6, abs=0.01)
    assert choice.point.scale >= 0.6


def test_texts_that_still_match_keep_the_scale_up() -> None:
    """Greedy decoding departs from them at every scale; how much of them matches falls from 1 at 0 to 0 at 1."""

    def measure(scale: float) -> Point:
        recall = 0.0 if scale > 0.1 else 1.0
        one = point(scale, None, forget=recall)
        return replace(one, values={**one.values, "forget_match": 1 - scale})

    choice = choose_by_recall(measure)
    assert choice.point.scale == pytest.approx(0.95, abs=0.01)
    assert choice.point.scale >= 0.95


def test_recall_that_only_the_last_step_brings_down_leaves_the_scale_near_1() -> None:
    assert by_recall(lambda s: 1.0 - s).point.scale == pytest.approx(0.992, abs=0.003)
    assert by_recall(lambda s: 0.0 if s == 1 else 1.0).point.scale == 1.0


def test_where_nothing_was_forgotten_the_scale_stays_at_1_and_says_so() -> None:
    choice = by_recall(lambda _: 0.7)
    assert choice.point.scale == 1.0
    assert choice.reason == "the model recalls no more of the forget rows without what was trained"
    assert scales(choice) == [0.0, 1.0]


@pytest.mark.parametrize("at", [0.003, 0.03, 0.26, 0.51, 0.77, 0.999])
def test_a_search_by_recall_measures_at_most_twelve_scales_each_once(at: float) -> None:
    choice = by_recall(lambda s: 0.0 if s >= at else 1.0)
    assert at <= choice.point.scale <= at + 0.01
    assert len(set(scales(choice))) == len(choice.points) <= MOST_SCALES


def test_numbers_that_json_has_no_word_for_are_left_out() -> None:
    assert point(0.5, None, text=math.inf).flat() == {
        "scale": 0.5, "auc": None, "forget_recall": 0.0, "retain_recall": 1.0, "text_loss": None, "score": 0.5,
    }  # fmt: skip
