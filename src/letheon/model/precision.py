"""The precision of a run: how its weights lie in memory, and in which dtype they are multiplied.

    float32    both
    bfloat16   both
    widened    as the checkpoint stores them (16 bits), multiplied in float32 (widening.py)

Head, losses, adapter and optimiser run in float32 whatever it is.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch.nn.functional import linear

from letheon.devices import kind_of
from letheon.model.widening import NARROW

Precision = Literal["float32", "bfloat16", "widened"]
Asked = Literal["auto", "float32", "bfloat16", "widened"]

_TRIES = 3
_HOPELESS = 4
"""How many times slower bfloat16 is in a small product where a large one need not be tried."""


@dataclass(frozen=True, slots=True)
class ProductRates:
    """Floating-point operations a second in matrix products."""

    bfloat16: float
    float32: float

    @property
    def slowdown(self) -> float:
        """How many times slower bfloat16 is; below 1 where it is faster."""
        return self.float32 / self.bfloat16


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why."""

    precision: Precision
    line: str
    """What is chosen and what was measured, in one line."""


def choose_precision(
    stored: torch.dtype, *, asked: Asked, device: str | None, was: Precision | None = None, is_sharded: bool = False
) -> Choice:
    """Return the precision here for a checkpoint that is stored in a dtype; `was` is that of a run that goes on.

    "auto" is the checkpoint's own dtype where it is float32, and where bfloat16 products run here at least as fast as
    float32's; else its 16-bit weights are widened. float16 weights are widened on a CPU, which is exact, and rounded to
    bfloat16 on a GPU. Weights in shares (sharding.py) become float32 where others are widened for their products.
    """
    is_gpu = kind_of(device) != "cpu"
    if asked == "auto" and was is not None:
        return Choice(was, f"precision: {was}, as the run began")
    if asked == "auto":
        best = _best(stored, is_gpu=is_gpu)
        if is_sharded and best.precision == "widened":
            return Choice("float32", f"precision: float32; the checkpoint has {_name(stored)}, slower to multiply here")
        return best
    if asked == "bfloat16" and not is_gpu and (rates := product_rates()).slowdown > 1:
        return Choice(
            asked,
            f"precision: bfloat16, as asked for; its products run here at {_rates(rates)} in float32, {_times(rates)} "
            "times slower; --dtype auto keeps 16-bit weights and multiplies them in float32",
        )
    if asked == "widened" and stored not in NARROW:
        return Choice("float32", f"precision: weights {_name(stored)} as stored, so there is nothing to widen")
    return Choice(asked, f"precision: {asked}, as asked for; the checkpoint has {_name(stored)}")


def resolved_precision(asked: Asked) -> Precision:
    """Return a precision that was chosen; float32 where "auto" is still open."""
    return "float32" if asked == "auto" else asked


@cache
def product_rates() -> ProductRates:
    """Measure on this CPU how fast matrices are multiplied, within some milliseconds; once a process."""
    small = ProductRates(*(_rate(dtype, rows=32, width=256) for dtype in (torch.bfloat16, torch.float32)))
    if small.slowdown > _HOPELESS:
        return small
    return ProductRates(*(_rate(dtype, rows=128, width=768) for dtype in (torch.bfloat16, torch.float32)))


def _best(stored: torch.dtype, *, is_gpu: bool) -> Choice:
    as_stored = f"precision: weights {_name(stored)} as stored"
    if stored not in NARROW:
        return Choice("float32", "precision: weights and products in float32")
    if is_gpu:
        rounded = as_stored if stored == torch.bfloat16 else "precision: float16 weights rounded to bfloat16"
        return Choice("bfloat16", f"{rounded}, products in bfloat16")
    if stored == torch.float16:
        return Choice("widened", f"{as_stored}, each matrix widened to float32 for its products")
    rates = product_rates()
    if rates.slowdown <= 1:
        return Choice("bfloat16", f"{as_stored}, products in bfloat16 ({_rates(rates)} in float32)")
    return Choice(
        "widened",
        f"{as_stored}, each matrix widened to float32 for its products (in bfloat16 they run at {_rates(rates)})",
    )


@torch.no_grad()
def _rate(dtype: torch.dtype, *, rows: int, width: int) -> float:
    """The best of a few products, after one that warms up."""
    states, weight = (torch.ones(size, width, dtype=dtype) for size in (rows, width))
    linear(states, weight)
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        linear(states, weight)
        taken.append(time.perf_counter() - began)
    return 2 * rows * width * width / max(min(taken), 1e-9)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rates(rates: ProductRates) -> str:
    """Gigaflops of bfloat16 and float32."""
    return f"{rates.bfloat16 / 1e9:.3g} against {rates.float32 / 1e9:.3g} GFLOP/s"


def _times(rates: ProductRates) -> str:
    return f"{rates.slowdown:.0f}" if rates.slowdown >= 10 else f"{rates.slowdown:.2g}"
