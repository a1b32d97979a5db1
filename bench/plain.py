"""The paper's step as anyone would write it first: the yardstick.

A PEFT model, a right-padded batch, a forward with the adapter off and one with it on, float32 logits of the whole
vocabulary at every position, two log-softmaxes, Adam (Bronec and Helcl 2025, arXiv 2503.13690):

    loss = NPO(forget) + gamma * NLL(retain) + delta * KL(reference || policy)(retain)
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import kl_div, softplus
from torch.nn.utils.rnn import pad_sequence

from letheon.data.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """B sequences, right-padded to the T tokens of the longest."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64, 1 at tokens."""
    is_answer: Tensor
    """(B, T - 1) bool: whether position t predicts an answer token."""
    is_forget: Tensor
    """(B, 1) bool."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The numbers of the loss."""

    beta: float = 0.5
    gamma: float = 1.0
    delta: float = 0.5


def pad(
    sequences: Collection[TokenSequence], is_forget: Collection[bool], *, device: torch.device | str = "cpu"
) -> PaddedBatch:
    """Return `sequences`, at least one, as one batch."""
    input_ids = pad_sequence([torch.tensor(s.input_ids) for s in sequences], batch_first=True)
    lengths = torch.tensor([len(s.input_ids) for s in sequences])[:, None]
    answer_starts = torch.tensor([s.answer_start for s in sequences])[:, None]
    positions = torch.arange(input_ids.shape[1])[None]
    is_answer = (positions >= answer_starts) & (positions < lengths)
    return PaddedBatch(
        input_ids=input_ids.to(device),
        attention_mask=(positions < lengths).long().to(device),
        is_answer=is_answer[:, 1:].to(device),
        is_forget=torch.tensor(list(is_forget))[:, None].to(device),
    )


def plain_loss(model: PeftModel, batch: PaddedBatch, weights: Weights) -> Tensor:
    """Return the loss, a scalar; a role without a token in the batch adds nothing."""
    with torch.no_grad(), model.disable_adapter():
        reference = _log_softmax(model, batch)
    policy = _log_softmax(model, batch)
    labels = batch.input_ids[:, 1:, None]
    log_probs = policy.gather(-1, labels)[..., 0]
    reference_log_probs = reference.gather(-1, labels)[..., 0]

    forget = batch.is_answer & batch.is_forget
    retain = batch.is_answer & ~batch.is_forget
    npo = 2 / weights.beta * softplus(weights.beta * (log_probs - reference_log_probs))
    kl = kl_div(policy[retain], reference[retain], reduction="none", log_target=True).sum(-1)
    return _mean(npo[forget]) - weights.gamma * _mean(log_probs[retain]) + weights.delta * _mean(kl)


def plain_step(model: PeftModel, batch: PaddedBatch, *, optimiser: torch.optim.Optimizer, weights: Weights) -> float:
    """Take one step of `optimiser` and return the loss before it."""
    optimiser.zero_grad()
    loss = plain_loss(model, batch, weights)
    loss.backward()
    optimiser.step()
    return loss.item()


def _log_softmax(model: PeftModel, batch: PaddedBatch) -> Tensor:
    """Log-probabilities (B, T - 1, V), float32, of the token after each position."""
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits[:, :-1].float().log_softmax(-1)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)
