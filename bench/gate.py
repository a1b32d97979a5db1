"""Before anything is timed: does our step compute what the plain one does?"""

from dataclasses import dataclass
from math import hypot, sqrt

import torch
from torch import Tensor

from bench.case import Result, adapter_gradients_by_ours, adapter_gradients_by_plain, build_case
from bench.machine import Precision, dtype_of
from bench.rows import Workload
from letheon.errors import LetheonError
from letheon.model.adapters import LoraAdapter

TOLERANCE = 1e-5
"""Largest relative error in float32."""
ALLOWANCE = 1.15
"""How far our rounding error may exceed plain's in other precisions: over a few batches the two scatter about each
other by a tenth."""
NUM_STEPS = 4
_STEP_AWAY = 0.05
"""How far the adapter is moved from its start, where the gradients of half of it are zero."""


class GateError(LetheonError):
    """Our step does not compute what the plain one does."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Relative errors against the plain step in float32, over a few batches."""

    is_exact: bool
    """Whether plain, in float32, is itself what ours is compared with."""
    our_loss_error: float
    our_gradient_error: float
    """In float32 the largest over batches and tensors of the adapter; else the root mean square over batches, of all
    tensors together."""
    plain_loss_error: float
    plain_gradient_error: float

    @property
    def is_passed(self) -> bool:
        """Whether ours is the plain step's result in float32; elsewhere whether its gradient is no less exact."""
        if self.is_exact:
            return max(self.our_loss_error, self.our_gradient_error) <= TOLERANCE
        return self.our_gradient_error <= ALLOWANCE * self.plain_gradient_error


def check(adapted: LoraAdapter, work: Workload, precision: Precision) -> Gate:
    """Return how the two steps compare on the steps of `work`; the adapter is put back as it was.

    The weights are in the dtype of `precision` before and after; what is exact is computed from the same values in
    float32.

    Raises:
        GateError: they differ by more than they may.
    """
    start = {name: value.clone() for name, value in adapted.trained().items()}
    _move(adapted)
    plain = adapter_gradients_by_plain(adapted, work)
    exact = plain if precision == "float32" else _exact(adapted, work, precision)
    ours = adapter_gradients_by_ours(build_case(adapted, work))
    adapted.load_state(start)
    gate = compare(ours, plain, exact)
    if not gate.is_passed:
        raise GateError(f"our step is not the plain one, nothing is timed: {gate}")
    return gate


def compare(ours: list[Result], plain: list[Result], exact: list[Result]) -> Gate:
    """Return the errors of losses and gradients, batch by batch; `exact` is `plain` itself in float32."""
    is_exact = plain is exact
    gradient_error = _largest_error if is_exact else _error_together
    return Gate(
        is_exact=is_exact,
        our_loss_error=max(abs(o.loss / e.loss - 1) for o, e in zip(ours, exact, strict=True)),
        our_gradient_error=gradient_error(ours, exact),
        plain_loss_error=max(abs(p.loss / e.loss - 1) for p, e in zip(plain, exact, strict=True)),
        plain_gradient_error=gradient_error(plain, exact),
    )


def _largest_error(found: list[Result], exact: list[Result]) -> float:
    return max(
        _error(f, e)
        for one, other in zip(found, exact, strict=True)
        for f, e in zip(one.gradients, other.gradients, strict=True)
    )


def _error_together(found: list[Result], exact: list[Result]) -> float:
    errors = [_error(one.flat(), other.flat()) for one, other in zip(found, exact, strict=True)]
    return hypot(*errors) / sqrt(len(errors))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@torch.no_grad()
def _move(adapted: LoraAdapter) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        parameter.add_(_STEP_AWAY * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def _exact(adapted: LoraAdapter, work: Workload, precision: Precision) -> list[Result]:
    wanted = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    _cast(adapted, torch.float32)
    found = adapter_gradients_by_plain(adapted, work)
    _cast(adapted, dtype_of(precision))
    torch.set_float32_matmul_precision(wanted)
    return found


def _cast(adapted: LoraAdapter, dtype: torch.dtype) -> None:
    for parameter in adapted.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
