"""The transport of losses, worked by hand: where each loss is to go, and the slope on the way and on arrival."""

import pytest
import torch

from letheon.objective.quantile import transport, transported
from letheon.objective.values import Counts, Tokens


def tokens_of(owner: list[int], num_sequences: int, *, of_step: int | None = None) -> Tokens:
    """Forget tokens of the sequences `owner`, all of which are to be forgotten."""
    index = torch.arange(len(owner))
    counts = Counts(len(owner), of_step or num_sequences)
    return Tokens(index, torch.tensor(owner, dtype=torch.int64), torch.arange(num_sequences), num_sequences, counts)


def test_as_many_goals_are_taken_in_the_order_of_the_losses() -> None:
    found = transported(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([5.0, 7.0, 6.0]))
    assert found.tolist() == [7.0, 5.0, 6.0]


def test_other_numbers_of_goals_are_interpolated() -> None:
    # Two losses at 1/4 and 3/4; four goals at 1/8, 3/8, 5/8 and 7/8: half way between the first and the last two.
    goals = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert transported(torch.tensor([0.2, 0.1]), goals).tolist() == [6.0, 1.5]
    # Four losses at 1/8 ... 7/8, two goals at 1/4 and 3/4: constant beyond them, and quarters between.
    assert transported(torch.arange(4.0), torch.tensor([2.0, 4.0])).tolist() == [2.0, 2.5, 3.5, 4.0]
    assert transported(torch.tensor([0.5, 0.1, 0.9]), torch.tensor([3.0])).tolist() == [3.0] * 3


def test_equal_losses_go_to_different_goals() -> None:
    assert transported(torch.zeros(3), torch.tensor([3.0, 1.0, 2.0])).tolist() == [1.0, 2.0, 3.0]


def test_without_a_goal_there_is_nothing_to_transport_to() -> None:
    with pytest.raises(ValueError, match="expected at least one loss to transport to"):
        transported(torch.zeros(2), torch.zeros(0))


def test_its_cost_is_no_larger_than_that_of_any_other_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    losses, goals = torch.rand(6, generator=generator), 5 + torch.rand(6, generator=generator)
    own = (transported(losses, goals) - losses).square().mean()
    for _ in range(50):
        other = goals[torch.randperm(6, generator=generator)]
        assert own <= (other - losses).square().mean() + 1e-6  # float32 sums


def test_the_loss_and_its_slope_by_hand() -> None:
    # Means 1 and 2 over two and one tokens; to go to 3 and 2: ((1 - 3)^2 + 0) / 2 / 2 = 1.
    log_probs = torch.tensor([-0.5, -1.5, -2.0], requires_grad=True)
    loss = transport(log_probs, torch.tensor([3.0, 2.0]), tokens_of([0, 0, 1], 2))
    assert loss.item() == pytest.approx(1.0)
    (slope,) = torch.autograd.grad(loss, log_probs)
    # d loss / d l = (l - t) / S = -1 and 0; l falls with each of its log-probabilities by 1 / L.
    assert slope.tolist() == [0.5, 0.5, 0.0]


def test_whoever_went_too_far_is_turned_back() -> None:
    log_probs = torch.tensor([-4.0], requires_grad=True)
    (slope,) = torch.autograd.grad(transport(log_probs, torch.tensor([3.0]), tokens_of([0], 1)), log_probs)
    assert slope.item() < 0  # descent makes it likelier


def test_pieces_of_a_step_add_up_and_no_sequence_gives_nothing() -> None:
    log_probs, targets = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([4.0, 4.0, 4.0])
    whole = transport(log_probs, targets, tokens_of([0, 1, 2], 3))
    first = transport(log_probs[:1], targets[:1], tokens_of([0], 1, of_step=3))
    rest = transport(log_probs[1:], targets[1:], tokens_of([0, 1], 2, of_step=3))
    assert whole.item() == pytest.approx(first.item() + rest.item())
    assert transport(log_probs[:0], targets[:0], tokens_of([], 0)).item() == 0
