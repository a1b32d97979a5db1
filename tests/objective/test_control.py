"""Weights that follow what is measured, by hand."""

import pytest

from letheon.objective.control import DualAscent, Guarded


def test_dual_ascent_by_hand() -> None:
    ascent = DualAscent("retain_nll", initial=1.0, step_size=2.0, limit=0.5, warm_up_epochs=1)
    state = ascent.begin()
    assert ascent.factors(state) == {"retain_nll": 1.0}
    # The first epoch is warm-up: nothing moves, whatever the loss.
    state = ascent.after_step(state, {"retain_nll": 9.0}, ends_epoch=False)
    state = ascent.after_step(state, {"retain_nll": 9.0}, ends_epoch=True)
    assert ascent.factors(state) == {"retain_nll": 1.0}
    # 1 + 2 (0.8 - 0.5) = 1.6
    state = ascent.after_step(state, {"retain_nll": 0.8}, ends_epoch=False)
    assert ascent.factors(state)["retain_nll"] == pytest.approx(1.6)
    # A step without retain rows moves nothing.
    state = ascent.after_step(state, {"retain_nll": None, "flattening": 3.0}, ends_epoch=False)
    assert ascent.factors(state)["retain_nll"] == pytest.approx(1.6)
    # 1.6 + 2 (0.1 - 0.5) = 0.8, then not below 0.
    state = ascent.after_step(state, {"retain_nll": 0.1}, ends_epoch=False)
    assert ascent.factors(state)["retain_nll"] == pytest.approx(0.8)
    state = ascent.after_step(state, {"retain_nll": 0.0}, ends_epoch=True)
    assert ascent.factors(state)["retain_nll"] == 0.0
    assert state["epochs"] == 2
    # From 0 it comes back.
    state = ascent.after_step(state, {"retain_nll": 1.0}, ends_epoch=False)
    assert ascent.factors(state)["retain_nll"] == pytest.approx(1.0)


def test_guarded_by_hand() -> None:
    guard = Guarded("retain_nll", least=1.2, most=2.3)
    state = guard.begin()
    assert guard.factors(state) == {"retain_nll": 1.2}
    # First epoch: mean of 1 and 2 is 1.5; the step without retain rows does not count.
    state = guard.after_step(state, {"retain_nll": 1.0}, ends_epoch=False)
    assert guard.factors(state) == {"retain_nll": 1.2}
    state = guard.after_step(state, {"retain_nll": None}, ends_epoch=False)
    state = guard.after_step(state, {"retain_nll": 2.0}, ends_epoch=True)
    assert guard.factors(state) == {"retain_nll": 1.2}
    assert state["first"] == pytest.approx(1.5)
    # Second: mean 2, D = 0.5: 0.3 * 6^0.5 + 0.8 = 1.53485
    state = guard.after_step(state, {"retain_nll": 2.0}, ends_epoch=False)
    assert guard.factors(state) == {"retain_nll": 1.2}
    state = guard.after_step(state, {"retain_nll": 2.0}, ends_epoch=True)
    assert guard.factors(state)["retain_nll"] == pytest.approx(1.534847, abs=1e-6)
    # D = 0.1: 0.3 * 1.19623 + 0.8 = 1.15887 is below the least.
    state = guard.after_step(state, {"retain_nll": 1.6}, ends_epoch=True)
    assert guard.factors(state)["retain_nll"] == 1.2
    # D = 1: 0.3 * 6 + 0.8 = 2.6 is above the most; less loss than in the first epoch gives the least.
    state = guard.after_step(state, {"retain_nll": 2.5}, ends_epoch=True)
    assert guard.factors(state)["retain_nll"] == 2.3
    state = guard.after_step(state, {"retain_nll": 0.5}, ends_epoch=True)
    assert guard.factors(state)["retain_nll"] == 1.2
    assert state["first"] == pytest.approx(1.5)


def test_a_collapse_gives_the_most_weight_however_large_the_loss() -> None:
    guard = Guarded("retain_nll", least=1.2, most=2.3)
    state = guard.after_step(guard.begin(), {"retain_nll": 1.0}, ends_epoch=True)
    state = guard.after_step(state, {"retain_nll": 5e3}, ends_epoch=True)  # 6^4999 is beyond every float
    assert guard.factors(state)["retain_nll"] == 2.3


@pytest.mark.parametrize(
    "control",
    [DualAscent("retain_nll", initial=1.0, step_size=0.3, limit=0.5), Guarded("retain_nll", least=1.2, most=2.3)],
)
def test_a_control_goes_on_from_its_state_alone(control: DualAscent | Guarded) -> None:
    losses = [0.9, 1.4, 0.2, None, 2.0, 1.7, 0.4]
    state, seen = control.begin(), []
    for step, loss in enumerate(losses):
        state = control.after_step(state, {"retain_nll": loss}, ends_epoch=step % 3 == 2)
        seen.append(dict(state))
    for cut in range(1, len(losses)):
        state = dict(seen[cut - 1])
        for step in range(cut, len(losses)):
            state = control.after_step(state, {"retain_nll": losses[step]}, ends_epoch=step % 3 == 2)
        assert dict(state) == seen[-1]
