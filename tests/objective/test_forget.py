"""Losses on forget rows: hand-worked numbers, properties, parity with naive versions on padded batches."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from letheon.objective.forget import (
    ce_u,
    gradient_ascent,
    gradient_ascent_by_sequence,
    margin_flattening,
    npo_batch,
    npo_logits,
    npo_sequence,
    npo_token,
    satimp,
    simnpo,
    undial,
    wga,
)
from letheon.objective.values import Tokens
from token_batches import Answers, both_layouts, check_that_pieces_add_up, random_answers, tokens

BETAS = [0.01, 0.1, 0.5, 2.0]

Loss = Callable[[Answers, Tokens], Tensor]

LOSSES: dict[str, Loss] = {
    "ga": lambda a, t: gradient_ascent(a.log_probs, t),
    "ga-by-sequence": lambda a, t: gradient_ascent_by_sequence(a.log_probs, t),
    "npo-token": lambda a, t: npo_token(a.log_probs, a.reference_log_probs, t, beta=0.5),
    "npo-sequence": lambda a, t: npo_sequence(a.log_probs, a.reference_log_probs, t, beta=0.1),
    "npo-logits": lambda a, t: npo_logits(a.logits, a.reference_logits, t, beta=0.1),
    "simnpo": lambda a, t: simnpo(a.log_probs, t, beta=2.5, margin=0.3),
    "wga": lambda a, t: wga(a.log_probs, t, beta=0.7),
    "satimp": lambda a, t: satimp(a.log_probs, t, beta1=1.5, beta2=0.5),
    "undial": lambda a, t: undial(a.logits, a.reference_logits, a.labels, t, beta=10.0),
    "ce-u": lambda a, t: ce_u(a.logits, a.labels, t),
    "margin-flattening": lambda a, t: margin_flattening(a.logits, t),
}
"""Those of which a step can be computed in pieces."""
LOWERS_THE_LABEL = sorted(LOSSES.keys() - {"npo-logits", "margin-flattening"})  # to these the label is nothing special
ALL: dict[str, Loss] = {**LOSSES, "npo-batch": lambda a, t: npo_batch(a.log_probs, a.reference_log_probs, t, beta=0.1)}


def random_pair(num: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return -5 * torch.rand(num, generator=generator), -5 * torch.rand(num, generator=generator)


def test_gradient_ascent_by_hand() -> None:
    # (ln .5 + ln .25 + ln .125) / 3 = -(1 + 2 + 3) ln 2 / 3
    log_probs = torch.tensor([0.5, 0.25, 0.125]).log()
    assert gradient_ascent(log_probs, tokens(2, 1)).item() == pytest.approx(-2 * math.log(2))


def test_npo_token_by_hand() -> None:
    # ratios p/q are 2 and 1/2; with beta 1: 2 * (ln(1 + 2) + ln(1 + 1/2)) / 2 = ln 3 + ln 1.5
    log_probs, reference = torch.tensor([0.4, 0.1]).log(), torch.tensor([0.2, 0.2]).log()
    assert npo_token(log_probs, reference, tokens(1, 1), beta=1.0).item() == pytest.approx(math.log(4.5), rel=1e-6)


def test_npo_sequence_by_hand() -> None:
    # sequence 0: r = ln(2 * 2) = ln 4, sequence 1: r = ln(1/2); beta 1: 2 * (ln 5 + ln 1.5) / 2
    log_probs, reference = torch.tensor([0.4, 0.4, 0.1]).log(), torch.tensor([0.2, 0.2, 0.2]).log()
    assert npo_sequence(log_probs, reference, tokens(2, 1), beta=1.0).item() == pytest.approx(math.log(7.5), rel=1e-6)


def test_npo_batch_by_hand() -> None:
    # r = mean(ln 2, ln 2, -ln 2) = ln(2) / 3; beta 3: (2/3) ln(1 + 2)
    log_probs, reference = torch.tensor([0.4, 0.4, 0.1]).log(), torch.tensor([0.2, 0.2, 0.2]).log()
    expected = 2 / 3 * math.log(3)
    assert npo_batch(log_probs, reference, tokens(2, 1), beta=3.0).item() == pytest.approx(expected, rel=1e-6)


def test_npo_logits_by_hand() -> None:
    # differences ln 3, 0, 0, 0 over two positions and two entries; beta 1: 2 * (ln 4 + 3 ln 2) / 4
    logits = torch.tensor([[math.log(3), 0.0], [1.0, 2.0]])
    reference = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert npo_logits(logits, reference, tokens(2), beta=1.0).item() == pytest.approx(2.5 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("loss", [npo_token, npo_sequence, npo_batch])
def test_npo_at_the_reference_is_two_over_beta_log_two(loss: Callable[..., Tensor], beta: float) -> None:
    log_probs, _ = random_pair(7)
    value = loss(log_probs, log_probs, tokens(3, 4), beta=beta)
    assert value.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("loss", [npo_token, npo_batch])
def test_npo_has_the_gradient_of_gradient_ascent_at_the_reference(loss: Callable[..., Tensor], beta: float) -> None:
    reference, _ = random_pair(7)
    log_probs = reference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(log_probs, reference, tokens(3, 4), beta=beta), log_probs)
    (expected,) = torch.autograd.grad(gradient_ascent(log_probs, tokens(3, 4)), log_probs)
    assert torch.allclose(gradient, expected, rtol=1e-6)


def test_npo_sequence_has_the_gradient_of_summed_ascent_at_the_reference() -> None:
    reference, _ = random_pair(7)
    log_probs = reference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(npo_sequence(log_probs, reference, tokens(3, 4), beta=0.1), log_probs)
    assert torch.allclose(gradient, torch.full((7,), 1 / 2), rtol=1e-6)  # d/d log p of the mean over 2 sequences of s


def test_npo_tends_to_gradient_ascent_as_beta_vanishes() -> None:
    log_probs, reference = (values.double() for values in random_pair(6, seed=3))
    beta = 1e-6
    shifted = npo_token(log_probs, reference, tokens(6), beta=beta) - 2 / beta * math.log(2)
    ascent = gradient_ascent(log_probs - reference, tokens(6))
    assert shifted.item() == pytest.approx(ascent.item(), abs=1e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_dialects_equal_naive_versions(beta: float) -> None:
    log_probs, reference = random_pair(9, seed=1)
    lengths = [2, 4, 3]
    ratios = [part.sum() for part in (log_probs - reference).split(lengths)]
    naive_token = -(2 / beta) * logsigmoid(-beta * (log_probs - reference)).mean()
    naive_sequence = -(2 / beta) * torch.stack([logsigmoid(-beta * r) for r in ratios]).mean()
    naive_batch = -(2 / beta) * logsigmoid(-beta * (log_probs.mean() - reference.mean()))
    for loss, naive in ((npo_token, naive_token), (npo_sequence, naive_sequence), (npo_batch, naive_batch)):
        assert torch.allclose(loss(log_probs, reference, tokens(*lengths), beta=beta), naive, rtol=1e-5)


@pytest.mark.parametrize("loss", [npo_token, npo_sequence, npo_batch])
def test_npo_saturates_for_forgotten_and_stays_finite_for_likely_tokens(loss: Callable[..., Tensor]) -> None:
    reference = torch.zeros(2)
    forgotten = loss(torch.full((2,), -1e4), reference, tokens(1, 1), beta=0.5)
    likely = loss(torch.full((2,), 1e4), reference, tokens(1, 1), beta=0.5)
    assert forgotten.item() == pytest.approx(0, abs=1e-6)
    assert likely.item() == pytest.approx(2e4, rel=1e-5)


def test_gradient_ascent_by_sequence_by_hand() -> None:
    # sequence 0: mean of ln .5 and ln .5, sequence 1: ln .125; -(1 + 3) ln 2 / 2, where the mean of tokens has 5/3
    log_probs = torch.tensor([0.5, 0.5, 0.125]).log()
    assert gradient_ascent_by_sequence(log_probs, tokens(2, 1)).item() == pytest.approx(-2 * math.log(2))


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 1.5 * 1.125), (math.log(2), 2 * 1.25)])
def test_simnpo_by_hand(margin: float, expected: float) -> None:
    # mean log-probabilities ln(1/2) and ln(1/8), beta 1: 2 * (ln(1 + e^m / 2) + ln(1 + e^m / 8)) / 2
    log_probs = torch.tensor([0.25, 1.0, 0.125]).log()
    value = simnpo(log_probs, tokens(2, 1), beta=1.0, margin=margin)
    assert value.item() == pytest.approx(math.log(expected), rel=1e-6)


def test_wga_by_hand() -> None:
    # (.5 ln .5 + .25 ln .25) / 2 = -(.5 + .5) ln 2 / 2
    assert wga(torch.tensor([0.5, 0.25]).log(), tokens(2), beta=1.0).item() == pytest.approx(-0.5 * math.log(2))


def test_satimp_by_hand() -> None:
    # .5^2 * .5 * (- ln 2) and .25^2 * .75 * (-2 ln 2), halved
    value = satimp(torch.tensor([0.5, 0.25]).log(), tokens(1, 1), beta1=2.0, beta2=1.0)
    assert value.item() == pytest.approx(-(0.125 + 0.09375) / 2 * math.log(2), rel=1e-6)


def test_undial_by_hand() -> None:
    # softmax(ln 6 - ln 2, ln 2) = (.6, .4) against (1/4, 3/4)
    value = undial(
        torch.tensor([[1.0, 3.0]]).log(),
        torch.tensor([[6.0, 2.0]]).log(),
        torch.tensor([0]),
        tokens(1),
        beta=math.log(2),
    )
    assert value.item() == pytest.approx(0.6 * math.log(4) + 0.4 * math.log(4 / 3), rel=1e-6)


def test_ce_u_by_hand() -> None:
    # the policy says (1/2, 1/4, 1/4); without the first it is (0, 1/2, 1/2), and 2 * (1/2) ln 4 = ln 4
    value = ce_u(torch.tensor([[2.0, 1.0, 1.0]]).log(), torch.tensor([0]), tokens(1))
    assert value.item() == pytest.approx(math.log(4), rel=1e-6)


def test_margin_flattening_by_hand() -> None:
    # (6 - 3)^2 and (3 - 1)^2
    logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert margin_flattening(logits, tokens(1, 1)).item() == pytest.approx(6.5)


def naive_ga_by_sequence(rows: list[Answers]) -> Tensor:
    return torch.stack([row.log_probs.mean() for row in rows]).mean()


def naive_simnpo(rows: list[Answers]) -> Tensor:
    means = torch.stack([row.log_probs.sum() / len(row.labels) for row in rows])
    return -(2 / 2.5) * logsigmoid(-2.5 * means - 0.3).mean()


def naive_wga(rows: list[Answers]) -> Tensor:
    probs = torch.cat([row.log_probs for row in rows]).exp()
    return (probs**0.7 * probs.log()).mean()


def naive_satimp(rows: list[Answers]) -> Tensor:
    probs = torch.cat([row.log_probs for row in rows]).exp()
    return (probs**1.5 * (1 - probs) ** 0.5 * probs.log()).mean()


def naive_undial(rows: list[Answers]) -> Tensor:
    losses = []
    for row in rows:
        lowered = row.reference_logits - 10 * torch.eye(row.logits.shape[-1])[row.labels]
        losses.append(-(lowered.softmax(-1) * row.logits.softmax(-1).log()).sum(-1))
    return torch.cat(losses).mean()


def naive_ce_u(rows: list[Answers]) -> Tensor:
    losses = []
    for row in rows:
        probs = row.logits.softmax(-1)
        others = probs * (1 - torch.eye(row.logits.shape[-1])[row.labels])
        losses.append(-(others / others.sum(-1, keepdim=True) * probs.log()).sum(-1))
    return torch.cat(losses).mean()


def naive_margin_flattening(rows: list[Answers]) -> Tensor:
    logits = torch.cat([row.logits for row in rows])
    return torch.stack([(row.max() - row.sum() / len(row)) ** 2 for row in logits]).mean()


NAIVE: dict[str, Callable[[list[Answers]], Tensor]] = {
    "ga": lambda rows: torch.cat([row.log_probs for row in rows]).mean(),
    "ga-by-sequence": naive_ga_by_sequence,
    "npo-token": lambda rows: (
        -4 * logsigmoid(-0.5 * torch.cat([row.log_probs - row.reference_log_probs for row in rows])).mean()
    ),
    "npo-sequence": lambda rows: (
        -20 * logsigmoid(-0.1 * torch.stack([(row.log_probs - row.reference_log_probs).sum() for row in rows])).mean()
    ),
    "npo-batch": lambda rows: (
        -20 * logsigmoid(-0.1 * torch.cat([row.log_probs - row.reference_log_probs for row in rows]).mean())
    ),
    "npo-logits": lambda rows: (
        -20 * logsigmoid(-0.1 * torch.cat([row.logits - row.reference_logits for row in rows])).mean()
    ),
    "simnpo": naive_simnpo,
    "wga": naive_wga,
    "satimp": naive_satimp,
    "undial": naive_undial,
    "ce-u": naive_ce_u,
    "margin-flattening": naive_margin_flattening,
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_equal_naive_versions_on_a_padded_batch(name: str, seed: int) -> None:
    # labels and logits one apart, or a mean over prompt, padding or retain positions, would show here
    layouts = both_layouts("forget", seed=seed)
    value = ALL[name](layouts.answers, layouts.role)
    assert torch.allclose(value, NAIVE[name](layouts.padded), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_pieces_of_a_step_add_up(name: str) -> None:
    check_that_pieces_add_up(LOSSES[name])


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_sequences_does_not_matter(name: str) -> None:
    answers = random_answers(3, 1, 4)
    turned = answers.of(2, 0, 1)
    assert ALL[name](turned, turned.tokens).item() == pytest.approx(ALL[name](answers, answers.tokens).item(), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_sequences_of_another_role_do_not_matter(name: str) -> None:
    answers = random_answers(3, 4)
    among_others = tokens(0, 3, 0, 4, 0, has_role=(False, True, False, True, False))
    assert torch.equal(ALL[name](answers, among_others), ALL[name](answers, answers.tokens))


@pytest.mark.parametrize("name", ALL)
def test_a_step_without_forget_rows_gives_zero_with_a_gradient(name: str) -> None:
    answers = random_answers()
    value = ALL[name](answers, tokens(0, 0, has_role=(False, False)))
    assert value.item() == 0
    value.backward()


@pytest.mark.parametrize("name", ALL)
def test_losses_are_finite_in_float32_from_bfloat16_logits(name: str) -> None:
    answers = random_answers(3, 4)
    exact = ALL[name](answers, answers.tokens)
    rounded = replace(answers, logits=answers.logits.bfloat16().float())
    value = ALL[name](rounded, rounded.tokens)
    assert value.dtype == torch.float32
    # bfloat16 keeps 8 bits of a logit, which moves a log-probability by up to about .02 nats
    assert value.item() == pytest.approx(exact.item(), rel=0.05, abs=0.05)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("factor", [0.0, 1e3, -1e3])
def test_losses_and_gradients_are_finite_at_extreme_logits(name: str, factor: float) -> None:
    answers = random_answers(3, 4).scaled(factor)
    value = ALL[name](answers, answers.tokens)
    (gradient,) = torch.autograd.grad(value, answers.logits)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOWERS_THE_LABEL)
def test_a_step_of_descent_lowers_the_labels(name: str) -> None:
    answers = random_answers(3, 4)
    answers = replace(answers, reference_logits=answers.logits.detach().clone())
    (gradient,) = torch.autograd.grad(LOSSES[name](answers, answers.tokens), answers.logits)
    after = replace(answers, logits=answers.logits - 0.1 * gradient)
    assert (after.log_probs < answers.log_probs).all()


@pytest.mark.parametrize("length", [1, 3])
def test_simnpo_does_not_see_the_length_of_an_answer(length: int) -> None:
    once = simnpo(torch.tensor([-0.3, -2.0]), tokens(1, 1), beta=2.5, margin=0.0)
    repeated = torch.tensor([-0.3] * length + [-2.0])
    assert simnpo(repeated, tokens(length, 1), beta=2.5, margin=0.0).item() == pytest.approx(once.item(), rel=1e-6)


def test_simnpo_weighs_a_sequence_by_how_likely_it_still_is() -> None:
    log_probs = torch.tensor([-0.5, -1.5, -4.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(simnpo(log_probs, tokens(2, 1), beta=2.5, margin=0.3), log_probs)
    weights = 2 * torch.sigmoid(2.5 * torch.tensor([-1.0, -1.0, -4.0]) + 0.3)
    assert torch.allclose(gradient, weights / torch.tensor([2.0, 2.0, 1.0]) / 2, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_the_weights_of_wga_carry_no_gradient(beta: float) -> None:
    log_probs = torch.tensor([-0.1, -1.0, -6.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(wga(log_probs, tokens(3), beta=beta), log_probs)
    assert torch.allclose(gradient, log_probs.detach().exp() ** beta / 3, rtol=1e-5)


def test_the_weights_of_satimp_carry_no_gradient() -> None:
    log_probs = torch.tensor([-0.1, -1.0, -6.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(satimp(log_probs, tokens(3), beta1=5.0, beta2=1.0), log_probs)
    probs = log_probs.detach().exp()
    assert torch.allclose(gradient, probs**5 * (1 - probs) / 3, rtol=1e-5)


def test_weighted_ascents_contain_each_other() -> None:
    log_probs, _ = random_pair(6)
    assert torch.equal(wga(log_probs, tokens(2, 4), beta=0.0), gradient_ascent(log_probs, tokens(2, 4)))
    weighted = satimp(log_probs, tokens(2, 4), beta1=1.5, beta2=0.0)
    assert torch.equal(weighted, wga(log_probs, tokens(2, 4), beta=1.5))


def test_satimp_bears_a_log_probability_that_rounded_above_zero() -> None:
    log_probs = torch.tensor([1e-6, -1.0], requires_grad=True)
    value = satimp(log_probs, tokens(2), beta1=5.0, beta2=0.5)
    (gradient,) = torch.autograd.grad(value, log_probs)
    assert value.isfinite()
    assert gradient[0].item() == 0


def test_undial_is_least_and_flat_at_the_lowered_reference() -> None:
    answers = random_answers(3, 4)
    onehot = torch.eye(answers.logits.shape[-1])[answers.labels]
    lowered = (answers.reference_logits - 3 * onehot).requires_grad_()
    value = undial(lowered, answers.reference_logits, answers.labels, answers.tokens, beta=3.0)
    (gradient,) = torch.autograd.grad(value, lowered)
    entropy = torch.distributions.Categorical(logits=lowered).entropy().mean()
    assert value.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert gradient.abs().max().item() < 1e-7
    elsewhere = undial(answers.logits, answers.reference_logits, answers.labels, answers.tokens, beta=3.0)
    assert elsewhere.item() > value.item()


def test_undial_without_doubt_leaves_the_reference_alone() -> None:
    answers = random_answers(5)
    logits = answers.reference_logits.clone().requires_grad_()
    value = undial(logits, answers.reference_logits, answers.labels, answers.tokens, beta=0.0)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.abs().max().item() < 1e-7


def test_undial_changes_no_input() -> None:
    answers = random_answers(5)
    before = answers.reference_logits.clone()
    undial(answers.logits, answers.reference_logits, answers.labels, answers.tokens, beta=10.0)
    ce_u(answers.logits, answers.labels, answers.tokens)
    assert torch.equal(answers.reference_logits, before)
    assert answers.logits.isfinite().all()


def test_the_gradient_of_ce_u_is_bounded_by_the_label_probability() -> None:
    answers = random_answers(4)
    (gradient,) = torch.autograd.grad(ce_u(answers.logits, answers.labels, answers.tokens), answers.logits)
    at_label = gradient.gather(-1, answers.labels[:, None])[:, 0]
    assert torch.allclose(at_label, answers.log_probs.exp() / 4, rtol=1e-5, atol=1e-7)
    # what the label loses the others gain in proportion to what they have
    probs = answers.logits.softmax(-1)
    share = probs / (1 - answers.log_probs.exp())[:, None]
    expected = (probs - share * (1 - torch.eye(probs.shape[-1])[answers.labels])) / 4
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_margin_flattening_pulls_the_likeliest_token_to_the_mean() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(margin_flattening(logits, tokens(1)), logits)
    # 2 (6 - 3) times (1 at the largest, less 1/3 everywhere)
    assert torch.allclose(gradient, torch.tensor([[-2.0, -2.0, 4.0]]), rtol=1e-6)


def test_margin_flattening_is_zero_only_at_the_uniform_distribution_whatever_the_offset() -> None:
    assert margin_flattening(torch.full((2, 5), 7.5), tokens(2)).item() == 0
    logits = random_answers(6).logits
    shifted = margin_flattening(logits + 3, tokens(6))
    assert shifted.item() == pytest.approx(margin_flattening(logits, tokens(6)).item(), rel=1e-5)
    assert shifted.item() > 0
