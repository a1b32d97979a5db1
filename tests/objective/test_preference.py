"""Losses on pairs: hand-worked numbers, properties at the reference, parity with a naive version."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from letheon.objective.forget import npo_sequence
from letheon.objective.preference import dpo
from letheon.objective.values import Tokens
from token_batches import Answers, random_answers, tokens


def pairs(*, seed: int = 0) -> tuple[Answers, Answers]:
    """Three chosen answers and the three to forget, of unlike lengths."""
    return random_answers(2, 4, 1, seed=seed), random_answers(3, 1, 5, seed=seed + 1)


def sides(chosen: Answers, rejected: Answers) -> tuple[Tokens, Tokens]:
    """Tokens of a batch that holds the rejected sequences first, then the chosen ones."""
    num = len(chosen.lengths)
    absent = (0,) * num
    return (
        tokens(*absent, *chosen.lengths, has_role=(False,) * num + (True,) * num),
        tokens(*rejected.lengths, *absent, has_role=(True,) * num + (False,) * num),
    )


def loss(chosen: Answers, rejected: Answers, *, beta: float, of: tuple[Tokens, Tokens] | None = None) -> Tensor:
    chosen_tokens, rejected_tokens = of or sides(chosen, rejected)
    return dpo(
        chosen.log_probs,
        chosen.reference_log_probs,
        chosen_tokens,
        rejected.log_probs,
        rejected.reference_log_probs,
        rejected_tokens,
        beta=beta,
    )


def test_dpo_by_hand() -> None:
    # pair 0: r = ln 2 for the chosen, ln(1/2 * 1/2) for the rejected, difference ln 8; pair 1: 0 - ln 3
    # beta 1: 2 * (ln(1 + 1/8) + ln(1 + 3)) / 2
    chosen, chosen_reference = torch.tensor([0.4, 0.2]).log(), torch.tensor([0.2, 0.2]).log()
    rejected, rejected_reference = torch.tensor([0.1, 0.1, 0.6]).log(), torch.tensor([0.2, 0.2, 0.2]).log()
    value = dpo(chosen, chosen_reference, tokens(1, 1), rejected, rejected_reference, tokens(2, 1), beta=1.0)
    assert value.item() == pytest.approx(math.log(1.125 * 4), rel=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_equals_a_naive_version(beta: float) -> None:
    chosen, rejected = pairs()
    ratios = [[(a.of(k).log_probs - a.of(k).reference_log_probs).sum() for k in range(3)] for a in (chosen, rejected)]
    naive = torch.stack([logsigmoid(beta * (win - lose)) for win, lose in zip(*ratios, strict=True)]).mean()
    assert torch.allclose(loss(chosen, rejected, beta=beta), -(2 / beta) * naive, rtol=1e-5)


def test_pairs_may_be_laid_out_in_any_way_that_keeps_their_order() -> None:
    chosen, rejected = pairs()
    # chosen, rejected, chosen, rejected, ... with a retain sequence in between
    interleaved = (
        tokens(2, 0, 0, 4, 0, 1, 0, has_role=(True, False, False, True, False, True, False)),
        tokens(0, 3, 0, 0, 1, 0, 5, has_role=(False, True, False, False, True, False, True)),
    )
    value = loss(chosen, rejected, beta=0.1, of=interleaved)
    assert value.item() == pytest.approx(loss(chosen, rejected, beta=0.1).item(), rel=1e-6)


def test_whom_an_answer_is_paired_with_matters_and_the_order_of_pairs_does_not() -> None:
    chosen, rejected = pairs()
    expected = loss(chosen, rejected, beta=1.0).item()
    assert loss(chosen.of(2, 0, 1), rejected.of(2, 0, 1), beta=1.0).item() == pytest.approx(expected, rel=1e-5)
    assert loss(chosen.of(2, 0, 1), rejected, beta=1.0).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_at_the_reference_is_two_over_beta_log_two_with_the_gradient_of_the_difference(beta: float) -> None:
    chosen, rejected = (torch.tensor([-1.0, -2.0, -0.5], requires_grad=True) for _ in range(2))
    value = dpo(chosen, chosen.detach(), tokens(2, 1), rejected, rejected.detach(), tokens(1, 2), beta=beta)
    gradients = torch.autograd.grad(value, (chosen, rejected))
    assert value.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)
    assert torch.allclose(gradients[0], torch.full((3,), -0.5))
    assert torch.allclose(gradients[1], torch.full((3,), 0.5))


def test_dpo_is_npo_where_the_chosen_answers_stand_still() -> None:
    chosen, rejected = pairs()
    still = replace(chosen, logits=chosen.reference_logits)
    npo = npo_sequence(rejected.log_probs, rejected.reference_log_probs, rejected.tokens, beta=0.1)
    assert loss(still, rejected, beta=0.1).item() == pytest.approx(npo.item(), rel=1e-6)


def test_a_step_of_descent_prefers_the_chosen_answers() -> None:
    chosen, rejected = pairs()
    gradients = torch.autograd.grad(loss(chosen, rejected, beta=0.1), (chosen.logits, rejected.logits))
    assert (replace(chosen, logits=chosen.logits - 0.1 * gradients[0]).log_probs > chosen.log_probs).all()
    assert (replace(rejected, logits=rejected.logits - 0.1 * gradients[1]).log_probs < rejected.log_probs).all()


def test_pieces_of_whole_pairs_add_up() -> None:
    chosen, rejected = pairs()
    whole = loss(chosen, rejected, beta=0.5)
    expected = torch.autograd.grad(whole, (chosen.logits, rejected.logits))
    total = torch.zeros(())
    for part in ((0, 2), (1,)):
        piece = chosen.of(*part), rejected.of(*part)
        of = [
            replace(side, counts=answers.tokens.counts)
            for side, answers in zip(sides(*piece), (chosen, rejected), strict=True)
        ]
        total = total + loss(*piece, beta=0.5, of=(of[0], of[1]))
    gradients = torch.autograd.grad(total, (chosen.logits, rejected.logits))
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("factor", [0.0, 1e3, -1e3])
def test_dpo_and_its_gradient_are_finite_at_extreme_logits(factor: float) -> None:
    chosen, rejected = (answers.scaled(factor) for answers in pairs())
    value = loss(chosen, rejected, beta=0.1)
    gradients = torch.autograd.grad(value, (chosen.logits, rejected.logits))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_step_without_pairs_gives_zero_with_a_gradient() -> None:
    nothing, neither = random_answers(), tokens(0, has_role=(False,))
    value = loss(nothing, nothing, beta=0.1, of=(neither, neither))
    assert value.item() == 0
    value.backward()


def test_sides_of_unequal_number_are_refused() -> None:
    chosen, rejected = pairs()
    with pytest.raises(AssertionError, match="unequal sides"):
        loss(chosen.of(0, 1), rejected, beta=0.1, of=(tokens(2, 4), tokens(3, 1, 5)))
    cut = replace(tokens(2, 4), counts=chosen.tokens.counts)
    with pytest.raises(AssertionError, match="piece"):
        loss(chosen.of(0, 1), rejected, beta=0.1, of=(cut, tokens(3, 1, 5)))
