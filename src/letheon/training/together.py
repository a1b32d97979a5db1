"""A step that several processes take together: their gradients, terms and counts added up."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from letheon.processes import added

Parts = dict[str, Tensor | None]

BUCKET = 2**26
"""Numbers that are added up at once: 256 MiB of gradients in float32, far more than an adapter has."""


def add_up(
    parameters: Sequence[nn.Parameter], names: Sequence[str], parts: Parts, num_tokens: int
) -> tuple[Parts, int]:
    """Add the gradients of all processes into each one's parameters; return the sums of their terms and tokens.

    `parts` are this process's terms, some or all of `names`; a term is None where no process has a token of its role.
    A step that leaves a gradient in no process leaves none. With an adapter all goes in one all-reduce.
    """
    device = parameters[0].device
    has_gradient = any(parameter.grad is not None for parameter in parameters)
    known = [float(parts.get(name) is not None) for name in names]
    values = [torch.zeros((), device=device) if (part := parts.get(name)) is None else part.float() for name in names]
    counts = torch.tensor([*known, float(num_tokens), float(has_gradient)], device=device)
    # What is not a gradient goes with the first bucket.
    first = torch.cat([torch.stack(values), counts]) if values else counts
    for number, bucket in enumerate(_buckets(parameters)):
        flat = torch.cat([*([first] if number == 0 else []), *(_gradient(parameter) for parameter in bucket)])
        total = added(flat)
        if number == 0:
            first, total = total.split([len(first), len(total) - len(first)])
        if first[-1] > 0:
            pieces = total.split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter).to(parameter.dtype)
    found = first[: len(names)]
    *is_known, tokens, _ = first[len(names) :].tolist()
    return {name: found[i] if is_known[i] else None for i, name in enumerate(names)}, round(tokens)


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().flatten().float()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket, size = list[nn.Parameter](), 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    yield bucket
