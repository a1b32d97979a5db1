"""One-dimensional optimal transport of losses: texts to forget are to cost what unseen texts cost. Minimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from letheon.objective.values import Tokens


def transported(losses: Tensor, goals: Tensor) -> Tensor:
    """Return where the optimal transport map takes each of `losses`: T(l) = Q(F(l)).

    F is the distribution function of `losses` (N,), where the i-th smallest, counted from 0, is at (i + 0.5) / N; of
    equal ones the earlier is the smaller. Q is the quantile function of `goals` (M,): its j-th smallest lies at
    (j + 0.5) / M, linear in between and constant beyond both ends. In one dimension the monotone map is the optimal one
    for every convex cost (Peyré and Cuturi 2019, Computational Optimal Transport, arXiv 1803.00567). Both are in nats,
    float32, and so is the result (N,). N = M gives the goals in the order of the losses.

    Raises:
        ValueError: there is no goal.
    """
    if not len(goals):
        raise ValueError("expected at least one loss to transport to, got none; give the run --holdout documents")
    ranks = torch.empty_like(losses)
    ranks[losses.argsort(stable=True)] = torch.arange(len(losses), dtype=losses.dtype, device=losses.device)
    place = ((ranks + 0.5) / max(len(losses), 1) * len(goals) - 0.5).clamp(0, len(goals) - 1)
    ordered = goals.sort().values
    below = place.floor().long()
    above = (below + 1).clamp_max(len(goals) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)


def transport(log_probs: Tensor, targets: Tensor, tokens: Tokens) -> Tensor:
    """W = mean over sequences of (l_s - t_s)^2 / 2, where l_s = - (1/L_s) sum_t log p_t is a sequence's mean loss.

    `log_probs` (A,) float32 at forget tokens; `targets` (S,) float32, the loss that each sequence is to have, in nats a
    token, with any value at sequences of another role. Gives a scalar in squared nats, [0, inf), 0 if there are no
    sequences or each has arrived. The derivative by l_s is (l_s - t_s) / S_forget: it shrinks on the way, is zero on
    arrival and turns back whoever went too far, where that of gradient ascent never ends.
    """
    gaps = -tokens.sequence_means(log_probs) - targets
    return tokens.mean_over_sequences(gaps.square() / 2)
