"""The course that finds its own learning rate and end: phases worked by hand, and a run that reaches its goals."""

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from letheon.data.rows import Row, Rows
from letheon.data.schedules import MixedSchedule
from letheon.errors import SettingsError
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.training.judge import StateScore
from letheon.unlearning.automatic import FORGOTTEN, RETAINED, AutomaticCourse
from letheon.unlearning.interim import BETTER
from letheon.unlearning.resolve import (
    FIXED_RATE,
    LEAST_EPOCHS,
    LEAST_STEPS,
    build_schedule,
    finds_rate,
    resolve_end,
    resolve_settings,
)
from letheon.unlearning.run import unlearn
from running import After, events, knowing_model, model_of, run, same, short_run


class Scores:
    """A judge of scores that were measured elsewhere; one with too large a retain loss has collapsed."""

    better = BETTER
    num_tokens = 0

    def score(self, **_: Any) -> StateScore:
        raise AssertionError("the course scores nothing")

    def collapse(self, score: StateScore) -> str | None:
        return "collapse" if (score.values.get("retain_loss") or 0) > 1 else None

    def noise(self, score: StateScore) -> float:
        return 0.0

    def is_preferred(self, score: StateScore) -> bool:
        return False

    def describe(self, score: StateScore) -> str:
        return ""


def recalls(step: int, forget: float, retain: float, match: float = 0.0) -> StateScore:
    values = {
        "forget_recall": forget,
        "forget_match": match,
        "retain_recall": retain,
        "score": (1 - forget + retain) / 2,
    }
    return StateScore(step, step / 10, values)


def settings(**changes: object) -> UnlearnSettings:
    given = {"model": "m", "forget": "f", "retain": "r", "out": "o", **changes}
    return resolve_settings(UnlearnSettings.of(given))


def course(
    num_epochs: int = 20,
    start: tuple[float, float] = (1.0, 1.0),
    general: tuple[str, ...] = (),
    instead: tuple[str, ...] = (),
    num_forget: int = 20,
    **changes: object,
) -> AutomaticCourse:
    """A course over 40 rows, four in a step, scored every ten steps."""
    schedule = MixedSchedule(40, 4, 0, num_epochs)
    given = settings(epochs=num_epochs, **changes)
    before, is_dialled = recalls(0, *start, match=1.0), given.dial == "membership"
    terms = ("npo",), general, instead
    return AutomaticCourse(given, schedule, Scores(), before, 1e-3, num_forget, *terms, is_dialled=is_dialled)


def hiding(step: int, auc: float | None, retain: float = 1.0) -> StateScore:
    """A state of which the forget rows are gone."""
    one = recalls(step, 0.0, retain)
    return StateScore(step, one.epoch, {**one.values, "membership_auc": auc})


def teaching(step: int, taught: float, forget: float = 0.04, retain: float = 1.0) -> StateScore:
    """A state of which forget rows get other answers."""
    one = recalls(step, forget, retain)
    return StateScore(step, one.epoch, {**one.values, "instead_recall": taught})


def history(*found: tuple[float, float]) -> list[StateScore]:
    return [recalls(10 * number, *one) for number, one in enumerate(found, start=1)]


def test_the_rate_rises_linearly_up_to_the_first_scoring() -> None:
    assert [course().learning_rate(step, []) for step in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])


def test_the_rate_doubles_until_the_rows_are_being_forgotten_fast_enough() -> None:
    # From 1 to .9: at this pace .05 is 8.5 scorings away, too slow; from .9 to .6, less than two.
    found = history((1.0, 1.0), (0.9, 1.0), (0.6, 0.98))
    rates = [course().learning_rate(10 * n, found[:n]) for n in (1, 2, 3)]
    assert rates == pytest.approx([2e-3, 4e-3, 4e-3])


def test_the_rate_rises_to_a_limit() -> None:
    found = history(*[(1.0, 1.0)] * 9)
    assert course().learning_rate(90, found) == pytest.approx(32e-3)


def test_a_gradient_much_larger_than_usual_is_clipped() -> None:
    usual = [1.0, 3.0, 128.0, 0.5, 1.0, 2.0, 1.0]
    assert course(num_forget=40).max_gradient_norm(7, usual) is None  # too few to say what is usual
    assert course(num_forget=40).max_gradient_norm(8, [*usual, 1.0]) == 2.0  # twice the median, 1
    assert course(max_gradient_norm=0.3).max_gradient_norm(8, [*usual, 1.0]) == 0.3


def test_what_is_usual_follows_from_the_steps_with_forget_rows() -> None:
    few = course(num_forget=4)
    forgets = [step for step in range(32, 64) if any(row < 4 for row in few.schedule.rows(step))]
    norms = [5.0 if step in forgets else 0.01 for step in range(32, 64)]
    assert 8 <= len(forgets) < 16, "most steps have retain rows alone"
    assert few.max_gradient_norm(64, norms) == 10.0
    # With one forget row there are three or four such steps of 32: nothing says what is usual.
    assert course(num_forget=1).max_gradient_norm(64, norms) is None


@pytest.mark.parametrize("begun", [recalls(20, 0.89, 1.0, match=1.0), recalls(20, 1.0, 1.0, match=0.89)])
def test_the_model_is_held_on_general_text_once_forgetting_has_begun(begun: StateScore) -> None:
    held = course(general=("general_kl",))
    found = [recalls(10, 0.91, 1.0, match=0.91)]
    assert held.factors([]) == held.factors(found) == {"npo": 1.0, "general_kl": 0.0}
    assert held.factors([*found, begun]) == {"npo": 1.0, "general_kl": 1.0}
    assert held.factors([*found, begun, recalls(30, 0.5, 1.0, match=1.0)])["general_kl"] == 1.0


def test_above_a_moderate_rate_the_hold_on_general_text_is_loosened_before_the_rate_rises() -> None:
    held = course(general=("general_kl",))
    found = history((0.8, 1.0), *[(0.8, 1.0)] * 7)
    rates = [held.learning_rate(10 * n, found[:n]) for n in range(1, 9)]
    assert rates == pytest.approx([2e-3, 4e-3, 4e-3, 4e-3, 4e-3, 8e-3, 16e-3, 32e-3])
    anchors = [held.factors(found[:n])["general_kl"] for n in range(1, 9)]
    assert anchors == [1, 1, 1 / 4, 1 / 16, 1 / 64, 1 / 64, 1 / 64, 1 / 64]
    end = [*found, recalls(held.total_steps, 0.8, 1.0)]
    said = "stood in the way, counted for 0.015625 of its weight"
    assert str(held.why_stop(end)).endswith(said)
    assert "general text" not in str(course().why_stop(end))


def test_in_a_cool_down_the_hold_on_general_text_is_tightened_again() -> None:
    held = course(general=("general_kl",))
    found = history((0.8, 1.0), *[(0.8, 1.0)] * 4)
    assert held.factors(found)["general_kl"] == 1 / 64
    goal = recalls(60, 0.04, 1.0)
    assert held.factors([*found, goal])["general_kl"] == 1 / 4
    assert held.factors([*found, goal, recalls(70, 0.2, 1.0), recalls(80, 0.2, 1.0)])["general_kl"] == 1 / 64
    assert held.factors([*found[:3], recalls(40, 0.04, 1.0)])["general_kl"] == 1  # and no more than it was


def test_the_first_damage_halves_the_rate_which_then_rises_slowly() -> None:
    found = history((1.0, 1.0), (0.6, 0.8), (0.58, 0.9), (0.56, 1.0))
    rates = [course().learning_rate(10 * n, found[:n]) for n in (1, 2, 3, 4)]
    assert rates == pytest.approx([2e-3, 1e-3, 1e-3, 1.25e-3])
    assert course().factors(found) == {"npo": 1.0}


def test_damage_after_that_makes_forget_terms_lighter_until_the_retain_rows_are_back() -> None:
    one = course()
    damaged = history((1.0, 1.0), (0.6, 0.8), (0.5, 0.7))
    assert one.factors(damaged) == {"npo": 0.25}
    gains = [*damaged, recalls(40, 0.5, 0.8)]
    assert one.phase(gains) == one.phase(damaged)
    back = [*gains, recalls(50, 0.48, 1.0)]  # and forgetting is slow
    assert one.factors(back) == {"npo": 0.5}
    assert one.factors([*back, recalls(60, 0.46, 1.0)]) == {"npo": 1.0}
    assert one.learning_rate(60, [*back, recalls(60, 0.46, 1.0)]) == pytest.approx(1e-3)


def test_where_lighter_forget_terms_do_not_help_the_rate_falls_too() -> None:
    found = history((1.0, 1.0), (0.6, 0.8), (0.5, 0.78), (0.5, 0.75))
    assert course().learning_rate(40, found) == pytest.approx(0.5e-3)
    assert course().factors(found) == {"npo": 0.125}


def test_training_goes_back_from_ruined_retain_rows_and_the_rate_is_halved() -> None:
    one = course()
    found = history((1.0, 1.0), (0.6, 0.9), (0.0, 0.69), (0.0, 0.6))
    assert [one.goes_back_to(found[:n]) for n in range(1, 5)] == [None, None, None, found[1]]
    assert [one.learning_rate(10 * n, found[:n]) for n in (2, 3, 4)] == pytest.approx([2e-3, 1e-3, 0.5e-3])
    assert one.needed(found) == {20}
    # From .6, where it went back to, to .3 is fast, and the ruined state is neither kept nor what is settled.
    on = [*found, recalls(50, 0.3, 1.0, match=0.8), recalls(60, 0.04, 1.0, match=0.5)]
    assert one.learning_rate(50, on[:5]) == pytest.approx(0.5e-3)
    assert one.phase(on).cooling_from is None
    assert one.kept(found).step == 20
    assert one.kept([*on, recalls(70, 0.04, 1.0, match=0.1)]).step == 70


def test_retain_rows_that_come_back_by_themselves_are_not_ruined() -> None:
    one = course()
    # A gain of .1 leaves .35 up to .85, which takes more than three such scorings; one of .12 leaves .33.
    assert one.goes_back_to(history((1.0, 1.0), (0.6, 0.4), (0.5, 0.5))) is not None
    assert one.goes_back_to(history((1.0, 1.0), (0.6, 0.4), (0.5, 0.52))) is None
    assert one.goes_back_to(history((1.0, 1.0), (0.6, 0.4), (0.5, 0.7))) is None


def test_training_goes_back_past_damaged_states_to_the_last_that_was_not() -> None:
    one = course()
    found = history((1.0, 1.0), (0.9, 0.9), (0.6, 0.8), (0.5, 0.5), (0.5, 0.5))
    assert one.goes_back_to(found) is found[1]
    assert one.needed(found[:3]) == {20, 30}  # the best so far, and that one


def test_training_goes_back_nowhere_without_an_undamaged_state_or_at_the_lowest_rate() -> None:
    one = course()
    assert one.goes_back_to(history((0.5, 0.5), (0.5, 0.5))) is None
    found = history((1.0, 1.0), *[(0.5, 0.5)] * 6)
    # It is lost at 30 and gone back to 10, from where the next two are alike, at half the first learning rate.
    assert [one.goes_back_to(found[:n]) is None for n in range(1, 8)] == [True, True, False, True, True, True, True]
    hardly_known = history((1.0, 0.2), (0.5, 0.0), (0.5, 0.0))
    assert course(start=(1.0, 0.2)).goes_back_to(hardly_known) is None


def test_a_cool_down_that_ruins_retain_rows_is_no_cool_down_any_more() -> None:
    one = course()
    found = [*history((0.5, 0.97), (0.04, 0.96)), recalls(25, 0.04, 0.5), recalls(30, 0.04, 0.5)]
    assert one.goes_back_to(found) is found[1]
    assert one.phase(found).cooling_from is None


def test_once_the_rows_are_forgotten_all_that_is_missing_of_the_retain_rows_is_damage() -> None:
    found = history((1.0, 1.0), (0.04, 0.9), (0.04, 0.9))
    assert [course().learning_rate(10 * n, found[:n]) for n in (1, 2)] == pytest.approx([2e-3, 1e-3])
    assert course().factors(found) == {"npo": 0.25}


def test_once_both_goals_are_reached_the_rate_falls_to_zero_and_the_run_ends() -> None:
    one = course()
    found = history((0.5, 0.97), (0.04, 0.96))
    assert one.why_stop(found) is None
    rates = [one.learning_rate(step, found) for step in (20, 30, 39)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.05e-3])
    assert one.factors(found) == {"npo": 1.0}
    halfway = [*found, recalls(30, 0.2, 0.9)]  # what is measured inside a cool-down decides nothing
    assert one.learning_rate(39, halfway) == pytest.approx(0.05e-3)
    assert one.why_stop(halfway) is None
    assert (
        one.why_stop([*halfway, recalls(40, 0.03, 0.99)])
        == "forgotten: recall forget 0.030 (0.000 of tokens), retain 0.990"
    )


def test_a_cool_down_that_ends_short_of_a_goal_is_followed_by_more_training() -> None:
    one = course()
    found = [*history((0.5, 0.97), (0.04, 0.96)), recalls(30, 0.04, 0.96), recalls(40, 0.2, 1.0)]
    assert one.why_stop(found) is None
    assert one.learning_rate(40, found) == pytest.approx(1e-3)


def test_the_goal_of_retain_rows_counts_from_what_was_known() -> None:
    found = history((0.5, 0.8), (0.04, 0.77), (0.04, 0.77), (0.04, 0.77))
    assert (course(start=(1.0, 0.8)).why_stop(found) or "").startswith("forgotten")
    assert course(start=(1.0, 1.0)).why_stop(found) is None


def test_settings_that_are_resolved_twice_leave_a_run_the_same_time(rows: list[Row]) -> None:
    """As a study resolves them."""
    asked = {"model": "m", "forget": "f", "retain": "r", "out": "o"}
    for changes, epochs in (
        ({}, LEAST_EPOCHS),
        ({"epochs": 20}, 20),
        ({"learning_rate": 1e-3}, 20),
        ({"max_steps": 9}, LEAST_EPOCHS),
        ({"max_steps": 9, "epochs": 20}, 20),
        ({"max_steps": 9, "learning_rate": 1e-3}, 20),
    ):
        once = resolve_settings(UnlearnSettings.of({**asked, **changes}))
        twice = resolve_settings(once)
        many = Rows("made", tuple(rows * 20), tuple(range(20 * len(rows))))
        assert resolve_end(once, twice, many, many).epochs == epochs


@pytest.mark.parametrize(
    ("last", "missed"),
    [
        ((0.3, 1.0), "a forget recall of 0.05"),
        ((0.0, 0.8), "a retain recall of 0.950"),
        ((0.3, 0.8), "a forget recall of 0.05 and a retain recall of 0.950"),
    ],
)
def test_a_run_that_reaches_its_last_step_says_which_goal_it_missed(last: tuple[float, float], missed: str) -> None:
    reason = course(num_epochs=2).why_stop(history((0.9, 1.0), last))
    assert (
        reason
        == f"finished without reaching {missed}: recall forget {last[0]:.3f} (0.000 of tokens), retain {last[1]:.3f}"
    )


def test_rows_that_were_never_known_are_not_called_forgotten() -> None:
    found = history((0.02, 1.0), (0.02, 1.0), (0.02, 1.0))
    assert (course(start=(0.02, 1.0)).why_stop(found) or "").startswith("nothing to forget, as before: ")


def test_phases_are_those_of_the_history_that_is_asked_about() -> None:
    """What is remembered of one history has no say in another."""
    one, damaged, other = course(), history((1.0, 1.0), (0.6, 0.8)), history((1.0, 1.0), (0.6, 0.99), (0.3, 0.99))
    phases = [one.phase(found) for found in (damaged, other, damaged[:1], other[:2], [], damaged)]
    assert phases == [course().phase(found) for found in (damaged, other, damaged[:1], other[:2], [], damaged)]


def test_of_the_states_that_reached_both_goals_the_best_is_kept() -> None:
    found = history((0.06, 1.0), (0.04, 0.96), (0.03, 0.97), (0.0, 0.94))
    assert course().kept(found).step == 30
    assert course().kept(found[:1]).step == 10


def test_texts_that_still_match_are_not_forgotten_until_that_has_settled() -> None:
    """Greedy decoding departs from them early; what comes after is still there, and is still being forgotten."""
    one = course()
    falling = [recalls(10 * n, 0.04, 1.0, match) for n, match in enumerate((0.9, 0.8, 0.7, 0.6), start=1)]
    assert one.phase(falling).cooling_from is None
    settled = [*falling, *(recalls(50 + 10 * n, 0.04, 1.0, match) for n, match in enumerate((0.58, 0.57, 0.56)))]
    assert [one.phase(settled[:n]).cooling_from for n in (5, 6, 7)] == [None, None, 70]
    assert one.kept(settled).step == 70  # the earlier ones are as good by their recalls, and match more
    assert one.phase([*falling, recalls(50, 0.04, 1.0, 0.14)]).cooling_from == 50  # too little to wait for


def test_with_documents_a_run_goes_on_until_forget_texts_cost_no_less_than_these() -> None:
    one, other = course(holdout=Path("h.jsonl")), course()
    telling = [hiding(10, 1.0), hiding(20, 0.7), hiding(30, 0.6)]
    assert one.phase(telling).cooling_from is None
    assert one.phase(telling).rate == 1e-3
    assert other.phase(telling).cooling_from == 10
    gone = [*telling, hiding(40, 0.5)]
    assert one.phase(gone).cooling_from == 40
    assert one.why_stop([*gone, hiding(50, 0.3), hiding(60, 0.3)]) is not None
    assert one.why_stop([*gone, hiding(50, 0.5), hiding(60, 0.6)]) is None  # it came back in the cool-down
    assert one.phase([*telling, hiding(40, None)]).cooling_from is None


def test_a_whole_cool_down_is_kept_where_the_dial_takes_back_what_it_hides_too_well() -> None:
    dialled, not_dialled = course(holdout=Path("h.jsonl")), course(holdout=Path("h.jsonl"), dial="none")
    found = [hiding(10, 0.5), hiding(20, 0.4, retain=0.97), hiding(30, 0.2, retain=0.98)]
    assert dialled.phase(found).is_over
    assert [one.kept(found).step for one in (dialled, not_dialled)] == [30, 10]
    assert dialled.kept(found[:2]).step == 10  # stopped within it


def test_a_whole_cool_down_is_kept_where_other_answers_are_taught() -> None:
    taught, plain = course(instead=("instead_nll",)), course()
    found = [teaching(10, 1.0), teaching(20, 0.95, retain=0.98), teaching(30, 0.9, retain=0.97)]
    assert [one.phase(found).is_over for one in (taught, plain)] == [True, True]
    assert [one.kept(found).step for one in (taught, plain)] == [30, 10]
    assert taught.kept(found[:2]).step == 10  # stopped within it


def test_texts_that_are_not_hidden_soon_enough_speed_up_a_run() -> None:
    one = course(holdout=Path("h.jsonl"))
    # Of what is to fall, each has fallen by less than a third of the rest; then one of them by as much.
    slow = [hiding(10, 1.0), hiding(20, 1.0), hiding(30, 0.95), hiding(40, 0.81), hiding(50, 0.8)]
    assert [one.phase(slow[:n]).rate for n in range(1, 6)] == [1e-3, 2e-3, 4e-3, 4e-3, 8e-3]
    matches = [recalls(10 * n, 0.04, 1.0, match) for n, match in enumerate((0.9, 0.65, 0.6), start=1)]
    assert [one.phase(matches[:n]).rate for n in (1, 2, 3)] == [2e-3, 2e-3, 4e-3]
    assert course().phase(matches).rate == 1e-3  # where nothing is to be hidden


def test_other_answers_count_once_the_rows_are_forgotten_and_for_more_until_they_are_learnt() -> None:
    one = course(instead=("instead_nll",))
    found = [teaching(10, 0.0, forget=0.5), teaching(20, 0.2), teaching(30, 0.5), teaching(40, 0.89)]
    weights = [one.factors(found[:n])["instead_nll"] for n in range(5)]
    assert weights == [0, 0, 1 / 8, 1 / 4, 1 / 2]
    assert one.phase(found).cooling_from is None
    learnt = [*found, teaching(50, 0.9)]
    assert (one.phase(learnt).cooling_from, one.factors(learnt)["instead_nll"]) == (50, 1 / 2)
    assert one.factors([teaching(10 * n, 0.0) for n in range(1, 12)])["instead_nll"] == 32
    end = [*found, teaching(one.total_steps, 0.5)]
    assert str(one.why_stop(end)).startswith("finished without reaching a recall of the other answers of 0.9: ")


def test_a_run_that_ends_without_its_goals_says_what_its_kept_state_misses() -> None:
    one = course(num_epochs=3, instead=("instead_nll",))
    found = [teaching(10, 0.0), teaching(20, 0.2), teaching(30, 0.2, forget=0.2, retain=0.6)]
    assert one.kept(found).step == 20
    missed = "a recall of the other answers of 0.9: recall forget 0.040 (0.000 of tokens), retain 1.000"
    assert one.why_stop(found) == f"finished without reaching {missed}"


def test_other_answers_that_spread_to_the_retain_rows_count_for_less() -> None:
    one = course(instead=("instead_nll",))
    found = [teaching(10 * n, 0.1, retain=0.9 - n / 10) for n in range(1, 5)]
    phases = [one.phase(found[:n]) for n in range(1, 5)]
    assert [phase.rate for phase in phases] == pytest.approx([0.5e-3] * 4)
    assert [phase.factor for phase in phases] == [1, 1 / 4, 1 / 4, 1 / 4]
    assert [phase.taught for phase in phases] == [1 / 8, 1 / 8, 1 / 32, 1 / 64]
    assert one.phase([*found, teaching(50, 0.1, retain=0.4)]).factor == 1 / 8  # they cannot count for less
    learnt = [*found[:2], teaching(30, 1.0, retain=0.5)]  # what is left is not of their making
    assert one.phase(learnt).rate == pytest.approx(0.5e-3)
    assert one.phase(learnt).taught == 1 / 8


def test_other_answers_that_do_not_count_yet_are_not_blamed_for_damage() -> None:
    one = course(instead=("instead_nll",))
    found = [teaching(10 * n, 0.0, forget, retain) for n, (forget, retain) in enumerate(
        ((1.0, 1.0), (0.9, 1.0), (0.5, 0.8), (0.45, 0.78), (0.4, 0.75)), start=1
    )]  # fmt: skip
    phases = [one.phase(found[:n]) for n in range(1, 6)]
    assert [phase.rate for phase in phases] == pytest.approx([2e-3, 4e-3, 2e-3, 2e-3, 1e-3])
    assert [phase.factor for phase in phases] == [1, 1, 1, 1 / 4, 1 / 8]
    assert [phase.taught for phase in phases] == [0] * 5


def test_a_model_that_hardly_knows_the_rows_is_held_as_soon_as_they_count_as_forgotten() -> None:
    one = course(general=("general_kl",), instead=("instead_nll",), start=(0.04, 1.0))
    assert one.factors([teaching(10, 0.0, forget=0.04)]) == {"npo": 1.0, "general_kl": 1.0, "instead_nll": 1 / 8}


def test_patience_begins_once_the_rows_are_forgotten() -> None:
    one = course(patience=2)
    waiting = history(*[(1.0, 1.0)] * 5)
    assert one.why_stop(waiting) is None
    forgotten = [recalls(60, 0.0, 1.0, match=0.9), recalls(70, 0.0, 0.9, match=0.9), recalls(80, 0.0, 0.9, match=0.9)]
    assert one.why_stop([*waiting, *forgotten[:2]]) is None
    assert one.why_stop([*waiting, *forgotten]) == "patience: score not better for 2 scorings"


def test_a_state_past_a_budget_is_not_kept_though_it_alone_reached_the_goals() -> None:
    one, states = course(), history((0.5, 1.0), (0.0, 1.0))
    last = StateScore(20, 2.0, {**states[1].values, "retain_loss": 2.0})
    assert one.why_stop([states[0], last]) == "collapse"
    assert one.kept([states[0], last]).step == 10
    assert one.kept(states).step == 20


def test_what_the_general_text_counted_for_is_said_of_both_parts_of_a_run() -> None:
    """Above four times the first rate the KL is loosened first; in a cool-down it counts sixteen times as much."""
    one = course(general=("general_kl",))
    slow = history((1.0, 1.0), (0.98, 1.0), (0.89, 1.0), (0.87, 1.0), (0.85, 1.0))
    assert one.phase(slow).anchor == 1 / 64
    found = [*slow, recalls(60, 0.0, 1.0), recalls(70, 0.0, 1.0), recalls(80, 0.0, 1.0)]
    assert one.factors(found)["general_kl"] == 0.25
    said = str(one.why_stop(found))
    assert said.endswith("counted for 0.015625 of its weight, and for 0.25 in the cool-down")


def test_a_largest_number_of_steps_lets_a_run_take_them(rows: list[Row]) -> None:
    settings = resolve_settings(
        UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", "max_steps": 3000})
    )
    few = Rows("made", tuple(rows), tuple(range(len(rows))))
    steps_per_epoch = build_schedule(settings, few, few).steps_per_epoch
    assert resolve_end(settings, settings, few, few).epochs * steps_per_epoch >= 3000


def test_a_run_says_that_its_texts_are_still_told_from_documents() -> None:
    reason = course(num_epochs=1, holdout=Path("h.jsonl")).why_stop([hiding(10, 0.9, retain=0.5)])
    assert reason is not None
    assert reason.startswith("finished without reaching a membership AUC of 0.525 and a retain recall of 0.950")


def test_a_state_in_which_texts_come_back_is_no_goal() -> None:
    one = course()
    found = [recalls(10 * n, 0.04, 0.8, 0.3) for n in range(1, 5)]
    assert one.phase([*found, recalls(50, 0.04, 1.0, 0.4)]).cooling_from is None
    assert one.phase([*found, recalls(50, 0.04, 1.0, 0.34)]).cooling_from == 50


def test_decisions_follow_from_the_scores_alone() -> None:
    """So that a resumed run, which has the scores of the checkpoint, takes the same ones."""
    found = history((0.9, 1.0), (0.5, 0.6), (0.3, 0.9), (0.04, 0.96), (0.04, 0.97))
    for earlier, later in pairwise(range(len(found) + 1)):
        one, other = course(), course()
        one.phase(found[:earlier])
        assert one.phase(found[:later]) == other.phase(found[:later])


@pytest.mark.parametrize(("name", "finds"), [("low-rank-npo", True), ("sugd", False), ("task-vector", False)])
def test_methods_whose_forgetting_scores_cannot_follow_have_a_fixed_rate(name: str, finds: bool) -> None:
    given = settings(method=name)
    assert finds_rate(given, get_method(name)) is finds
    assert given.learning_rate == ("auto" if finds else FIXED_RATE)
    assert given.checkpoint_epochs == (1 if finds else 5)


def test_rows_that_are_left_out_of_training_cannot_be_followed() -> None:
    with pytest.raises(SettingsError, match=r"validation: .* set --learning-rate"):
        settings(validation=0.1)
    assert settings(validation=0.1, learning_rate=1e-3).validation == 0.1


@pytest.mark.parametrize("changes", [{"warm_up": 1.0}, {"learning_rate_schedule": "linear"}])
def test_a_schedule_of_the_rate_needs_a_rate(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="has no effect with --learning-rate auto"):
        settings(**changes)
    assert settings(learning_rate=1e-3, **changes).learning_rate == 1e-3


# Whole runs


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings that name no learning rate and no number of epochs, of a run over rows that the model knows."""
    made = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    return {name: value for name, value in made.items() if name not in ("epochs", "learning_rate", "checkpoint_epochs")}


def test_a_run_without_any_number_reaches_both_goals_and_ends(given: dict[str, Any]) -> None:
    report = run(given)
    assert report.reason.startswith("forgotten: ")
    assert (report.kept.values["forget_recall"] or 0) <= FORGOTTEN
    assert (report.kept.values["retain_recall"] or 0) >= RETAINED
    text = (given["out"] / "run.yaml").read_text()
    assert "learning_rate: auto" in text
    assert "epochs: 134" in text  # steps of two rows over six rows: 400 steps at the least
    steps, scored = events(given["out"], "step"), events(given["out"], "interim")
    assert report.num_steps == len(steps) < LEAST_STEPS
    assert [one["step"] for one in scored] == list(range(3, len(steps) + 1, 3))
    assert steps[-1]["learning_rate"] < max(one["learning_rate"] for one in steps) / 2
    # Refusals that do not count yet are not computed.
    forgotten = next(one["step"] for one in scored if one["forget_recall"] <= FORGOTTEN)
    taught = [one["terms"]["instead_nll"] for one in steps]
    assert not any(taught[:forgotten])
    assert any(taught[forgotten:])


def test_epochs_to_keep_do_not_change_the_course(given: dict[str, Any], tmp_path: Path) -> None:
    once, named = run(given), run(given, score_at="2,30", out=tmp_path / "named")
    assert same(model_of(once), model_of(named))
    kept = {path.name for path in (named.folder / "checkpoints").iterdir()}
    assert {"step-6"} < kept
    assert not (once.folder / "checkpoints" / "step-6").exists()


def test_a_run_that_goes_on_takes_the_same_steps(given: dict[str, Any], tmp_path: Path) -> None:
    whole = model_of(run(given))
    parts = {**given, "out": tmp_path / "parts"}
    unlearn(UnlearnSettings.of(parts), observer=After(10, lambda: signal.raise_signal(signal.SIGTERM)))
    assert same(model_of(run(parts, resume=True)), whole)


def test_lighter_forget_terms_count_less_in_the_loss(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutomaticCourse, "factors", lambda course, history: dict.fromkeys(course.forget_terms, 0.25))
    run(given, epochs=2)
    for step in events(given["out"], "step"):
        names = ("npo", "retain_nll", "retain_kl", "instead_nll", "general_kl")
        npo, nll, kl, instead, general_kl = (step["terms"][name] or 0.0 for name in names)
        assert step["loss"] == pytest.approx(0.25 * npo + nll + 0.5 * kl + 0.1 * instead + general_kl)
