"""Losses on hidden states: hand-worked numbers, properties, parity with naive versions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from letheon.objective.activation import random_direction, rmu_forget, rmu_retain
from token_batches import tokens

WIDTH = 8


def states(num: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, WIDTH, generator=generator).requires_grad_()


def test_rmu_forget_by_hand() -> None:
    # u = (.6, .8), c = 5: target (3, 4); distances (0, 3) and (1, 0) squared are 9 and 1
    activations, direction = torch.tensor([[3.0, 7.0], [2.0, 4.0]]), torch.tensor([0.6, 0.8])
    assert rmu_forget(activations, direction, tokens(1, 1), scale=5.0).item() == pytest.approx(5.0)
    assert rmu_forget(activations, direction, tokens(1, 1), scale=torch.tensor(5.0)).item() == pytest.approx(5.0)


def test_rmu_retain_by_hand() -> None:
    # differences (1, 2), (0, 0), (2, 0): (5 + 0 + 4) / 3
    activations = torch.tensor([[1.0, 2.0], [3.0, 3.0], [2.0, 1.0]])
    reference = torch.tensor([[0.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    assert rmu_retain(activations, reference, tokens(2, 1)).item() == pytest.approx(3.0)


def test_both_terms_are_the_width_times_the_published_means() -> None:
    # what keeps scale and retain weight of the published code meaningful here
    activations, reference, direction = states(7), states(7, seed=1), random_direction(WIDTH, seed=0)
    forget = rmu_forget(activations, direction, tokens(3, 4), scale=6.5)
    retain = rmu_retain(activations, reference, tokens(3, 4))
    published = mse_loss(activations, (6.5 * direction).expand_as(activations))
    assert forget.item() == pytest.approx(WIDTH * published.item(), rel=1e-5)
    assert retain.item() == pytest.approx(WIDTH * mse_loss(activations, reference).item(), rel=1e-5)


def test_directions_are_positive_unit_vectors_that_only_the_seed_decides() -> None:
    direction = random_direction(64, seed=3)
    torch.rand(5)
    assert torch.equal(random_direction(64, seed=3), direction)
    assert not torch.equal(random_direction(64, seed=4), direction)
    assert direction.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert direction.min().item() >= 0
    assert direction.dtype == torch.float32


def test_drawing_a_direction_leaves_the_runs_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_direction(WIDTH, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_descent_steers_towards_the_target_and_stops_there() -> None:
    activations, direction = states(4), random_direction(WIDTH, seed=0)
    (gradient,) = torch.autograd.grad(rmu_forget(activations, direction, tokens(4), scale=6.5), activations)
    assert torch.allclose(gradient, 2 * (activations - 6.5 * direction) / 4, rtol=1e-5)
    arrived = (6.5 * direction).expand(4, -1)
    assert rmu_forget(arrived, direction, tokens(4), scale=6.5).item() == 0


def test_the_retain_term_is_zero_and_flat_at_the_reference() -> None:
    activations = states(5)
    value = rmu_retain(activations, activations.detach(), tokens(5))
    (gradient,) = torch.autograd.grad(value, activations)
    assert value.item() == 0
    assert gradient.abs().max().item() == 0


def test_pieces_of_a_step_add_up() -> None:
    activations, reference, direction = states(7), states(7, seed=1), random_direction(WIDTH, seed=0)
    whole = tokens(3, 4)
    pieces = ((slice(0, 3), tokens(3)), (slice(3, 7), tokens(4)))
    forget = sum(
        rmu_forget(activations[part], direction, replace(of, counts=whole.counts), scale=2.0).item()
        for part, of in pieces
    )
    retain = sum(
        rmu_retain(activations[part], reference[part], replace(of, counts=whole.counts)).item() for part, of in pieces
    )
    assert forget == pytest.approx(rmu_forget(activations, direction, whole, scale=2.0).item(), rel=1e-6)
    assert retain == pytest.approx(rmu_retain(activations, reference, whole).item(), rel=1e-6)


def test_sequences_of_another_role_do_not_matter() -> None:
    activations, direction = states(5), random_direction(WIDTH, seed=0)
    among_others = tokens(0, 2, 0, 3, has_role=(False, True, False, True))
    expected = rmu_forget(activations, direction, tokens(2, 3), scale=2.0)
    assert torch.equal(rmu_forget(activations, direction, among_others, scale=2.0), expected)


def test_losses_compute_in_float32_from_bfloat16_states() -> None:
    # 300^2 * 8 has more digits than bfloat16, and the difference of two states of 300 fewer than float32
    activations = torch.full((3, WIDTH), 300.0, dtype=torch.bfloat16, requires_grad=True)
    reference = torch.full((3, WIDTH), 298.0, dtype=torch.bfloat16)
    value = rmu_retain(activations, reference, tokens(3))
    assert value.dtype == torch.float32
    assert value.item() == 4 * WIDTH
    towards = rmu_forget(activations, torch.zeros(WIDTH), tokens(3), scale=1.0)
    assert towards.item() == 300**2 * WIDTH
    (gradient,) = torch.autograd.grad(value + towards, activations)
    assert gradient.isfinite().all()


def test_a_step_without_tokens_gives_zero_with_a_gradient() -> None:
    none = torch.zeros(0, WIDTH, requires_grad=True)
    absent = tokens(0, has_role=(False,))
    value = rmu_forget(none, random_direction(WIDTH, seed=0), absent, scale=2.0) + rmu_retain(none, none, absent)
    assert value.item() == 0
    value.backward()
