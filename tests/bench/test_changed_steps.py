"""Changed training steps, on a real step of a tiny model: each changes the forget terms alone, and as it says."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest
import torch
from bench.case import adapt, build_case
from bench.changed_steps import CHANGES, Sides, added_to_states, changed, moved
from bench.rows import workload
from bench.shapes import Shape, make_model
from torch import Tensor

from letheon.training.step import DeviceParts, add_gradients
from letheon.unlearning.problem import Problem

TINY = Shape("tiny", width=32, num_layers=2, num_heads=4, intermediate=64, vocab_size=400, is_tied=True, context=256)
WHOLE_STEP = 100_000
"""Tokens, more than a step has."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Steps of low-rank NPO whose adapter is not zero."""
    made = build_case(
        adapt(make_model(TINY, dtype=torch.float32, device=torch.device("cpu"))),
        workload(TINY, None, num_steps=2, batch_size=4),
    ).problem
    with torch.no_grad():
        for parameter in made.adapted.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    made.adapted.update_model()
    return made


def sides_of(problem: Problem) -> Sides:
    return Sides(problem, problem.rows_of_step(0), {"max_tokens": WHOLE_STEP})


def taken(problem: Problem) -> Tensor:
    return torch.cat([one.flatten() for one in sides_of(problem).take_gradients()])


def step_of(problem: Problem, name: str, size: float) -> tuple[DeviceParts, Tensor]:
    parts, _ = changed(name, size)(problem, problem.rows_of_step(0), max_tokens=WHOLE_STEP)
    return parts, taken(problem)


def plain(problem: Problem) -> tuple[DeviceParts, Tensor]:
    parts, _ = add_gradients(problem, problem.rows_of_step(0), max_tokens=WHOLE_STEP)
    return parts, taken(problem)


def forget_gradients(problem: Problem) -> list[Tensor]:
    sides = sides_of(problem)
    sides.add_forget()
    return sides.take_gradients()


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in gradients])


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_size_zero_is_none_and_a_real_one_is_some(problem: Problem, name: str) -> None:
    _, expected = plain(problem)
    assert torch.allclose(step_of(problem, name, 0.0)[1], expected, atol=1e-6)
    assert not torch.allclose(step_of(problem, name, 0.5)[1], expected, atol=1e-4)
    # Weights and hooks are as they were.
    assert torch.equal(plain(problem)[1], expected)


def test_sharpness_takes_the_forget_gradient_at_weights_moved_along_it(problem: Problem) -> None:
    own = forget_gradients(problem)
    with moved(problem.adapted, own, 0.3 / float(flat(own).norm())):
        ahead = flat(forget_gradients(problem))
    expected = plain(problem)[1] - flat(own) + ahead
    assert torch.allclose(step_of(problem, "sharpness", 0.3)[1], expected, atol=1e-6)


def test_noise_is_as_long_as_it_says(problem: Problem) -> None:
    length = float(flat(forget_gradients(problem)).norm())
    added = step_of(problem, "noisy-gradients", 2.0)[1] - plain(problem)[1]
    # The length of a few thousand normal numbers deviates by a percent or two.
    assert float(added.norm()) == pytest.approx(2.0 * length, rel=0.05)


@pytest.mark.parametrize("name", ["noisy-states", "adversarial-states"])
def test_states_move_by_a_share_of_their_length(problem: Problem, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def watched(sides: Sides, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        def measure(states: Tensor) -> Tensor:
            move: Tensor = change(states)
            shares.append(move.detach().norm(dim=-1) / states.detach().norm(dim=-1))
            return move

        return added_to_states(sides, measure)

    monkeypatch.setattr("bench.changed_steps.added_to_states", watched)
    step_of(problem, name, 0.3)
    of_forget = shares[-1][shares[-1] > 0]
    assert len(of_forget) > 10
    assert torch.allclose(of_forget, torch.full_like(of_forget, 0.3), rtol=1e-4)


def test_adversarial_states_make_the_forget_terms_larger(problem: Problem) -> None:
    before, _ = plain(problem)
    after, _ = step_of(problem, "adversarial-states", 0.1)
    forget = [name for name in problem.part_names if not name.startswith("retain")]
    assert forget
    assert sum(float(after[name] or 0.0) for name in forget) > sum(float(before[name] or 0.0) for name in forget)
