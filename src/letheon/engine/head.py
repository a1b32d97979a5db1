"""From states at answer positions to log-probabilities and KL, without keeping logits.

With a frozen linear head z = W h the loss needs, of all the logits of a position, only the label's z_y, the normaliser
lse(z) and their gradients in h: W_y and W^T softmax(z). Both are gathered in the forward pass in one walk through the
vocabulary, block by block with a running maximum, so A x V numbers never live at once and each block of W is read from
memory once for both products. The forward KL follows from them and the stored expected embedding of the reference
E = W^T p_ref (D numbers a position):

    KL(ref || theta) = lse(W h) - lse_ref - E . (h - h_ref)

Products and softmax run in float32 whatever the dtype of the trunk; a frozen W stays in its own, each block is widened
as it is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from letheon.errors import ModelError
from letheon.model.sharding import gather

CHUNK_ROWS = 1024
"""Positions whose logits are formed at once where whole distributions are compared."""
BLOCK_LOGITS = {"cpu": 2**19, "cuda": 2**25}
"""Logits formed at once in a walk through the vocabulary: what a core's own cache holds, or what fills a GPU."""
LEAST_BLOCK = 1024
"""Tokens of the vocabulary in a block, at least."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From logits of policy and reference (R, V) to (R,)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The map from final states (.., D) to logits (.., V): softcap(scale * (W h) + b)."""

    weight: Tensor
    """(V, D): in the model's dtype if frozen, float32 and part of the graph if trained."""
    bias: Tensor | None
    """(V,), likewise."""
    scale: float = 1.0
    """Factor on the states (Cohere's logit_scale, Granite's 1 / logits_scaling)."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2)."""

    @property
    def is_linear(self) -> bool:
        """Whether the logits are a linear map of the states."""
        return self.softcap is None

    @property
    def is_frozen(self) -> bool:
        """Whether the head is not trained."""
        return not self.weight.requires_grad

    def copy(self) -> "Head":
        """Return a copy of the head that later changes of its weight do not affect."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, weight=self.weight.detach().clone(), bias=bias)


@dataclass(frozen=True, slots=True)
class LabelValues:
    """What the head says of each label; all (A,), float32."""

    label_logits: Tensor
    log_normalisers: Tensor

    @property
    def log_probs(self) -> Tensor:
        """Log-probability of each label, nats."""
        return self.label_logits - self.log_normalisers


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of `model`: its very weight if that is frozen, detached, and in float32 if it is trained.

    Raises:
        ModelError: the model has no output embeddings.
    """
    layer = model.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise ModelError(
            f"{type(model).__name__} has no language-model head (output embeddings); "
            "give a causal language model, one that AutoModelForCausalLM loads"
        )
    gather(layer)
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    scale = scale if isinstance(scale, int | float) else 1.0  # MPT's may be a word, about attention
    bias = getattr(layer, "bias", None)
    return Head(
        weight=_as_trained(layer.weight),
        bias=None if bias is None else _as_trained(bias),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _as_trained(parameter: Tensor) -> Tensor:
    return parameter.float() if parameter.requires_grad else parameter.detach()


def project(states: Tensor, head: Head) -> Tensor:
    """Return the logits (A, V), float32, of states (A, D)."""
    bias = None if head.bias is None else head.bias.float()
    logits = linear(states.float() * head.scale, head.weight.float(), bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def label_values(states: Tensor, labels: Tensor, head: Head) -> LabelValues:
    """Return the labels' logits and the normalisers of states (A, D), differentiable in the states and a trained head.

    `labels` is (A,) int64.
    """
    if not (head.is_linear and head.is_frozen):
        return _recomputed_label_values(states, labels, head)
    label_logits, log_normalisers = _LabelValues.apply(  # type: ignore[no-untyped-call]
        states.float() * head.scale, labels, head.weight, head.bias
    )
    return LabelValues(label_logits=label_logits, log_normalisers=log_normalisers)


def _recomputed_label_values(states: Tensor, labels: Tensor, head: Head) -> LabelValues:
    """The same by plain autograd, chunk by chunk, the logits formed again in the backward pass."""
    chunks = [
        checkpoint(
            lambda rows, wanted: logit_values(project(rows, head), wanted),
            rows,
            wanted,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for rows, wanted in zip(states.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True)
    ]
    return LabelValues(
        label_logits=torch.cat([chunk.label_logits for chunk in chunks]),
        log_normalisers=torch.cat([chunk.log_normalisers for chunk in chunks]),
    )


def divergence_by_logits(
    states: Tensor, reference_states: Tensor, *, head: Head, reference_head: Head, divergence: Divergence
) -> Tensor:
    """Return the divergence (R,), float32, nats, at each of R positions from the states (R, D) of policy and reference.

    For heads that are trained or not linear. Differentiable in `states` and `head`; logits are formed chunk by chunk
    and again in the backward pass.
    """

    def of_chunk(rows: Tensor, reference_rows: Tensor) -> Tensor:
        with torch.no_grad():
            reference_logits = project(reference_rows, reference_head)
        return divergence(project(rows, head), reference_logits)

    pairs = zip(states.split(CHUNK_ROWS), reference_states.split(CHUNK_ROWS), strict=True)
    return torch.cat([checkpoint(of_chunk, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs])


def forward_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(ref || theta) at each position: (A, V), (A, V) float32 -> (A,), range [0, inf)."""
    log_p, log_q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def reverse_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(theta || ref) at each position: (A, V), (A, V) float32 -> (A,), range [0, inf)."""
    return forward_kl(reference_logits, logits)


def logit_values(logits: Tensor, labels: Tensor) -> LabelValues:
    """Return the same from logits (A, V), float32, by plain autograd."""
    return LabelValues(
        label_logits=logits.gather(-1, labels[:, None])[:, 0], log_normalisers=torch.logsumexp(logits, dim=-1)
    )


@torch.no_grad()
def likeliest(states: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return of states (A, D) the token (A,) int64 that greedy decoding would choose, given the true tokens before it,
    and the log-probability (A,) float32 of `labels` (A,)."""
    chosen = torch.zeros_like(labels)
    best = torch.full(labels.shape, -torch.inf, device=states.device)
    total = torch.zeros_like(best)
    label_logits = torch.zeros_like(best)
    for first, block in _blocks(head, len(states)):
        logits = project(states, block)
        value, index = logits.max(-1)
        chosen = torch.where(value > best, index + first, chosen)
        inside = (labels >= first) & (labels < first + logits.shape[-1])
        found = logits.gather(-1, torch.where(inside, labels - first, 0)[:, None])[:, 0]
        label_logits = torch.where(inside, found, label_logits)
        highest = torch.maximum(best, value)
        total = total * (best - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(-1)
        best = highest
    return chosen, label_logits - best - total.log()


@torch.no_grad()
def expected_embedding(states: Tensor, head: Head) -> Tensor:
    """Return E = W^T softmax(W h), float32, of each state with a linear head: (A, D) -> (A, D)."""
    _, expected = _normalised(states.float() * head.scale, head.weight, head.bias)
    return expected


def kl_from_expectation(
    log_normalisers: Tensor, states: Tensor, *, embedding: Tensor, offset: Tensor, head: Head
) -> Tensor:
    """Return KL(ref || theta) (R,), float32, in nats, over the full vocabulary, of R positions with a linear head.

    `log_normalisers` (R,) and `states` (R, D) are the policy's, `embedding` (R, D) float32 is the reference's expected
    output embedding and `offset` (R,) float64 its E . h_ref - lse_ref. Differentiable in the first two. The value is a
    difference of large numbers, so it carries an absolute error of about 1e-6 and can be that much below 0; the
    gradient W^T p_theta - E carries none of it.
    """
    alignment = (embedding.double() * (states.double() * head.scale)).sum(-1)
    return (log_normalisers.double() - alignment + offset).float()


def _blocks(head: Head, num_rows: int) -> Iterator[tuple[int, Head]]:
    """Yield the head cut along the vocabulary, in float32, each with its first token."""
    # All GPUs are filled alike; a plan, on "meta", counts with the blocks of a CPU.
    kind = "cpu" if head.weight.device.type in ("cpu", "meta") else "cuda"
    at_once = max(BLOCK_LOGITS[kind] // max(num_rows, 1), LEAST_BLOCK)
    for first in range(0, head.weight.shape[0], at_once):
        block = slice(first, first + at_once)
        bias = None if head.bias is None else head.bias[block].float()
        yield first, replace(head, weight=head.weight[block].float(), bias=bias)


def _normalised(rows: Tensor, weight: Tensor, bias: Tensor | None, *, expects: bool = True) -> tuple[Tensor, Tensor]:
    """Return lse(z) (A,) and W^T softmax(z) (A, D) of scaled states (A, D), the latter zeros unless it `expects`."""
    highest = rows.new_full((len(rows), 1), -torch.inf)
    total = rows.new_zeros(len(rows), 1)
    expected = torch.zeros_like(rows)
    for _, block in _blocks(Head(weight, bias), len(rows)):
        logits = linear(rows, block.weight, block.bias)
        higher = torch.maximum(highest, logits.amax(-1, keepdim=True))
        rescaling = (highest - higher).exp_()
        shares = logits.sub_(higher).exp_()
        total = total.mul_(rescaling).add_(shares.sum(-1, keepdim=True))
        if expects:
            expected = torch.addmm(expected.mul_(rescaling), shares, block.weight)
        highest = higher
    return (highest + total.log())[:, 0], expected.div_(total)


class _LabelValues(torch.autograd.Function):
    """Label logits and normalisers, whose gradients in the states are formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return label logits and normalisers (A,) of scaled states (A, D)."""
        log_normalisers, expected = _normalised(states, weight, bias, expects=ctx.needs_input_grad[0])
        of_labels = weight[labels].float()
        label_logits = (states * of_labels).sum(-1)
        if bias is not None:
            label_logits += bias[labels]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(expected, of_labels)
        return label_logits, log_normalisers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient (A, D) of the states."""
        of_label, of_normaliser = gradients
        expected, of_labels = ctx.saved_tensors
        return of_label[:, None] * of_labels + of_normaliser[:, None] * expected, None, None, None
