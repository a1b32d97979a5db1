"""The head: labels, normalisers and KL without keeping logits, against the plain formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from letheon.engine import head as head_module
from letheon.engine.head import (
    Head,
    expected_embedding,
    forward_kl,
    head_of,
    kl_from_expectation,
    label_values,
    likeliest,
    project,
    reverse_kl,
)

NUM_TOKENS, WIDTH, VOCABULARY = 7, 5, 11


def random_head(*, bias: bool = False, scale: float = 1.0, softcap: float | None = None) -> Head:
    generator = torch.Generator().manual_seed(0)
    return Head(
        weight=torch.randn(VOCABULARY, WIDTH, generator=generator),
        bias=torch.randn(VOCABULARY, generator=generator) if bias else None,
        scale=scale,
        softcap=softcap,
    )


def random_states(seed: int) -> Tensor:
    return torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(NUM_TOKENS) % VOCABULARY
HEADS = [random_head(), random_head(bias=True), random_head(bias=True, scale=0.3), random_head(softcap=2.0)]


@pytest.fixture(params=[3, 1024], ids=["blocks", "whole"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of the vocabulary at once: three, which leaves a last block of two, or all."""
    monkeypatch.setattr(head_module, "CHUNK_ROWS", request.param)
    monkeypatch.setattr(head_module, "LEAST_BLOCK", request.param)
    monkeypatch.setattr(head_module, "BLOCK_LOGITS", {"cpu": 1})
    return int(request.param)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("block")
def test_label_values_and_gradients_equal_log_softmax(head: Head) -> None:
    states, naive_states = random_states(1).requires_grad_(), random_states(1).requires_grad_()
    weights = torch.linspace(-1, 2, NUM_TOKENS)
    found = label_values(states, LABELS, head)
    logits = head.scale * naive_states @ head.weight.T
    logits = logits if head.bias is None else logits + head.bias
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    naive = logits.log_softmax(-1)[range(NUM_TOKENS), LABELS]
    assert torch.allclose(found.log_probs, naive, atol=1e-5)
    assert torch.allclose(found.label_logits, logits[range(NUM_TOKENS), LABELS], atol=1e-5)
    # A loss that uses both outputs, so that both gradients are checked.
    ((found.log_probs**2 * weights).sum() + (found.log_normalisers * weights).sum()).backward()
    ((naive**2 * weights).sum() + (logits.logsumexp(-1) * weights).sum()).backward()
    assert states.grad is not None
    assert naive_states.grad is not None
    assert torch.allclose(states.grad, naive_states.grad, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.usefixtures("block")
def test_the_likeliest_token_and_the_labels_log_probability_equal_those_of_the_logits(head: Head) -> None:
    states = random_states(4)
    logits = project(states, head)
    for shift in range(VOCABULARY):
        labels = (LABELS + shift) % VOCABULARY
        chosen, log_probs = likeliest(states, labels, head)
        assert torch.equal(chosen, logits.argmax(-1))
        assert torch.allclose(log_probs, logits.log_softmax(-1)[range(NUM_TOKENS), labels], atol=1e-5)


@pytest.mark.usefixtures("block")
def test_of_equally_likely_tokens_the_first_is_chosen() -> None:
    head = Head(weight=torch.zeros(VOCABULARY, WIDTH), bias=torch.tensor([0.0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1]))
    chosen, log_probs = likeliest(random_states(1), LABELS, head)
    assert chosen.tolist() == [2] * NUM_TOKENS
    # Eight tokens at 0 and three at 1: lse = ln(8 + 3e).
    assert log_probs[2].item() == pytest.approx(1 - math.log(8 + 3 * math.e), abs=1e-6)


@pytest.mark.usefixtures("block")
def test_logits_of_any_size_do_not_overflow() -> None:
    head, states = random_head(), 100 * random_states(1)
    expected = (states.double() @ head.weight.double().T).log_softmax(-1)
    found = label_values(states, LABELS, head)
    assert torch.allclose(found.log_probs.double(), expected[range(NUM_TOKENS), LABELS], rtol=1e-5, atol=1e-3)
    embedding = expected_embedding(states, head)
    assert torch.allclose(embedding.double(), expected.exp() @ head.weight.double(), atol=1e-3)


@pytest.mark.usefixtures("block")
def test_a_bfloat16_head_gives_what_its_weight_gives_in_float32() -> None:
    narrow = replace(random_head(bias=True), weight=random_head().weight.bfloat16())
    wide = replace(narrow, weight=narrow.weight.float())
    states = random_states(1)
    assert torch.equal(label_values(states, LABELS, narrow).log_probs, label_values(states, LABELS, wide).log_probs)
    assert torch.equal(expected_embedding(states, narrow), expected_embedding(states, wide))


@pytest.mark.parametrize("head", [head for head in HEADS if head.is_linear])
@pytest.mark.usefixtures("block")
def test_kl_from_the_expected_embedding_equals_the_sum_over_the_vocabulary(head: Head) -> None:
    reference = random_states(2)
    embedding = expected_embedding(reference, head)
    normalisers = project(reference, head).logsumexp(-1)
    offset = (embedding.double() * reference.double() * head.scale).sum(-1) - normalisers.double()
    states, naive_states = random_states(3).requires_grad_(), random_states(3).requires_grad_()
    found = label_values(states, LABELS, head)
    kl = kl_from_expectation(found.log_normalisers, states, embedding=embedding, offset=offset, head=head)
    naive = forward_kl(project(naive_states, head), project(reference, head))
    assert torch.allclose(kl, naive, atol=2e-6)
    kl.sum().backward()
    naive.sum().backward()
    assert states.grad is not None
    assert naive_states.grad is not None
    assert torch.allclose(states.grad, naive_states.grad, atol=1e-5)


def test_kl_is_zero_with_zero_gradient_at_the_reference() -> None:
    head, states = random_head(), random_states(2).requires_grad_()
    embedding = expected_embedding(states.detach(), head)
    found = label_values(states, LABELS, head)
    offset = (embedding.double() * states.detach().double()).sum(-1) - found.log_normalisers.detach().double()
    kl = kl_from_expectation(found.log_normalisers, states, embedding=embedding, offset=offset, head=head)
    assert kl.abs().max().item() < 1e-6
    kl.sum().backward()
    assert states.grad is not None
    assert states.grad.abs().max().item() < 1e-6


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = ln 2 - H(q) = .75 ln 1.5 + .25 ln .5
    logits, reference = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log()
    assert forward_kl(logits, reference).item() == pytest.approx(0.130812, abs=1e-6)
    # KL(p || q) = .5 ln(.5/.75) + .5 ln(.5/.25)
    assert reverse_kl(logits, reference).item() == pytest.approx(0.143841, abs=1e-6)


def test_empty_batches_give_empty_values() -> None:
    found = label_values(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64), random_head())
    assert found.log_probs.shape == (0,)
    assert expected_embedding(torch.zeros(0, WIDTH), random_head()).shape == (0, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_is_the_models_own_and_no_copy(model: PreTrainedModel, dtype: torch.dtype) -> None:
    torch.nn.Module.to(model, dtype)
    own = model.get_output_embeddings().weight.requires_grad_(False)
    assert head_of(model).weight.data_ptr() == own.data_ptr()
