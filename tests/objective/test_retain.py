"""Losses on retain rows and divergences: hand-worked numbers, properties, parity with naive versions."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from letheon.engine.head import forward_kl, reverse_kl
from letheon.objective.retain import gold_kl, mean_kl, nll, nll_by_sequence
from letheon.objective.values import Tokens
from token_batches import Answers, both_layouts, check_that_pieces_add_up, random_answers, tokens

LOSSES: dict[str, Callable[[Answers, Tokens], Tensor]] = {
    "nll": lambda a, t: nll(a.log_probs, t),
    "nll-by-sequence": lambda a, t: nll_by_sequence(a.log_probs, t),
    "forward-kl": lambda a, t: mean_kl(forward_kl(a.logits, a.reference_logits), t),
    "reverse-kl": lambda a, t: mean_kl(reverse_kl(a.logits, a.reference_logits), t),
    "gold-kl": lambda a, t: gold_kl(a.log_probs, a.reference_log_probs, t),
}


def naive_kl(rows: list[Answers], *, forward: bool) -> Tensor:
    values = []
    for row in rows:
        ours, theirs = row.logits.softmax(-1), row.reference_logits.softmax(-1)
        p, q = (theirs, ours) if forward else (ours, theirs)
        values.append((p * (p / q).log()).sum(-1))
    return torch.cat(values).mean()


def naive_gold(rows: list[Answers]) -> Tensor:
    ours, theirs = (
        torch.cat(parts) for parts in zip(*((r.log_probs, r.reference_log_probs) for r in rows), strict=True)
    )
    return (theirs.exp() * (theirs - ours)).mean()


NAIVE: dict[str, Callable[[list[Answers]], Tensor]] = {
    "nll": lambda rows: -torch.cat([row.log_probs for row in rows]).mean(),
    "nll-by-sequence": lambda rows: -torch.stack([row.log_probs.mean() for row in rows]).mean(),
    "forward-kl": lambda rows: naive_kl(rows, forward=True),
    "reverse-kl": lambda rows: naive_kl(rows, forward=False),
    "gold-kl": naive_gold,
}


def test_nll_by_hand() -> None:
    # (1 + 1 + 3) ln 2 / 3 over tokens, (1 + 3) ln 2 / 2 over sequences
    log_probs = torch.tensor([0.5, 0.5, 0.125]).log()
    assert nll(log_probs, tokens(2, 1)).item() == pytest.approx(5 / 3 * math.log(2))
    assert nll_by_sequence(log_probs, tokens(2, 1)).item() == pytest.approx(2 * math.log(2))


def test_divergences_by_hand() -> None:
    # ref (1/2, 1/2), policy (1/4, 3/4): .5 ln 2 + .5 ln(2/3) and .25 ln(1/2) + .75 ln(3/2)
    logits, reference = torch.tensor([[1.0, 3.0]]).log(), torch.zeros(1, 2)
    assert forward_kl(logits, reference).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    expected = 0.75 * math.log(3) - math.log(2)
    assert reverse_kl(logits, reference).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_divergence_is_zero_and_flat_at_the_reference_and_positive_elsewhere(
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> None:
    # a cross-entropy by the name of KL has the same gradient but not this value
    answers = random_answers(6)
    logits = answers.reference_logits.clone().requires_grad_()
    at_reference = divergence(logits, answers.reference_logits)
    (gradient,) = torch.autograd.grad(at_reference.sum(), logits)
    assert at_reference.abs().max().item() < 1e-6
    assert gradient.abs().max().item() < 1e-6
    assert (divergence(answers.logits, answers.reference_logits) > 0.01).all()


def test_the_gradient_of_the_forward_divergence_is_the_difference_of_distributions() -> None:
    answers = random_answers(3, 2)
    (gradient,) = torch.autograd.grad(LOSSES["forward-kl"](answers, answers.tokens), answers.logits)
    expected = (answers.logits.softmax(-1) - answers.reference_logits.softmax(-1)) / 5
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_gold_dialect_is_no_divergence() -> None:
    # q = 1/2, p = 1: (1/2) ln(1/2) < 0
    value = gold_kl(torch.zeros(1), torch.tensor([0.5]).log(), tokens(1))
    assert value.item() == pytest.approx(-0.5 * math.log(2))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_equal_naive_versions_on_a_padded_batch(name: str, seed: int) -> None:
    layouts = both_layouts("retain", seed=seed)
    value = LOSSES[name](layouts.answers, layouts.role)
    assert torch.allclose(value, NAIVE[name](layouts.padded), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_pieces_of_a_step_add_up(name: str) -> None:
    check_that_pieces_add_up(LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_order_and_other_roles_do_not_matter(name: str) -> None:
    answers = random_answers(3, 4)
    turned = answers.of(1, 0)
    among_others = tokens(0, 3, 0, 4, has_role=(False, True, False, True))
    expected = LOSSES[name](answers, answers.tokens).item()
    assert LOSSES[name](turned, turned.tokens).item() == pytest.approx(expected, rel=1e-5)
    assert LOSSES[name](answers, among_others).item() == expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factor", [0.0, 1e3, -1e3])
def test_losses_and_gradients_are_finite_at_extreme_logits(name: str, factor: float) -> None:
    answers = random_answers(3, 4).scaled(factor)
    value = LOSSES[name](answers, answers.tokens)
    (gradient,) = torch.autograd.grad(value, answers.logits)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_without_retain_rows_gives_zero_with_a_gradient(name: str) -> None:
    answers = random_answers()
    value = LOSSES[name](answers, tokens(0, has_role=(False,)))
    assert value.item() == 0
    value.backward()


@pytest.mark.parametrize("name", ["nll", "nll-by-sequence"])
def test_a_step_of_descent_raises_the_labels(name: str) -> None:
    answers = random_answers(3, 4)
    (gradient,) = torch.autograd.grad(LOSSES[name](answers, answers.tokens), answers.logits)
    after = replace(answers, logits=answers.logits - 0.1 * gradient)
    assert (after.log_probs > answers.log_probs).all()
