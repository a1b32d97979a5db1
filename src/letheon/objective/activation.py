"""Losses on hidden states, in squared units of the states, minimised (RMU and adaptive RMU).

Shapes: A answer tokens of one role, D width. Every loss computes in float32 and gives a scalar; 0 for a step without
tokens of the role. Li et al. 2024 (WMDP), arXiv 2403.03218, Section 4; Huu-Tien et al. 2024, arXiv 2408.06223.

Differs from the published code, which averages over the width (and over padding): ||.||^2 is a sum over D here, as in
the paper, so both losses are D times theirs. Scale and retain weight mean the same in both, since the terms share the
factor; a weight of 1 / D on both gives the published code's gradients, which matters where gradients are clipped.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from letheon.objective.values import Tokens


def random_direction(width: int, *, seed: int) -> Tensor:
    """Return u (D,), float32, of length 1: entries uniform in [0, 1), then normalised.

    The same for the same `width` and `seed`, whatever has been drawn elsewhere. All entries are positive, as published,
    so every direction lies near the diagonal.
    """
    values = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return normalize(values, dim=0)


def rmu_forget(activations: Tensor, direction: Tensor, tokens: Tokens, *, scale: float | Tensor) -> Tensor:
    """RMU's forget term: mean_t ||h_t - c u||^2, c = `scale`.

    `activations` (A, D), any float dtype; `direction` u (D,) float32 of length 1, constant. Range [0, inf).
    """
    return tokens.mean((activations.float() - scale * direction).square().sum(-1))


def rmu_retain(activations: Tensor, reference_activations: Tensor, tokens: Tokens) -> Tensor:
    """RMU's retain term: mean_t ||h_t - h0_t||^2, h0 the reference's state; 0 at the reference.

    Both inputs (A, D), any float dtype, the second constant. Range [0, inf).
    """
    return tokens.mean((activations.float() - reference_activations.float()).square().sum(-1))
