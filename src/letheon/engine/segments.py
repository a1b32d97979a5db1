"""A low-rank product of its own for each segment of rows, through one frozen matrix.

The rows (N, D) of P adapters lie back to back. The frozen product is one for all; of the low-rank part

    y = W x + b + s_m B_m A_m x,    m the adapter that the row belongs to,

each segment meets its own matrices alone. No adapter's numbers enter a sum of another's, not even times zero, so an
adapter that is not finite leaves the others as they are. On a CPU the segments are products one after another, in the
layout of `lowrank`; on a GPU they are padded to one length and one rank and multiplied at once, since there the number
of kernels is what counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from letheon.devices import bring
from letheon.model.widening import in_dtype_of, keep_for_backward, kept_for_backward


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the rows of each adapter lie among N rows."""

    cuts: tuple[int, ...]
    """(P + 1,) offsets on the host: adapter m has rows cuts[m] to cuts[m + 1]."""
    slots: Tensor | None = None
    """(N,) int64, the place of each row among P T, T the longest segment; None where segments are not padded."""

    @property
    def num_rows(self) -> int:
        """N."""
        return self.cuts[-1]

    @property
    def spans(self) -> list[slice]:
        """The rows of each adapter."""
        return [slice(start, end) for start, end in pairwise(self.cuts)]

    def pad(self, rows: Tensor) -> Tensor:
        """Return (P, T, K) of rows (N, K), zeros behind each adapter's own."""
        assert self.slots is not None
        num, longest = len(self.cuts) - 1, _longest(self.cuts)
        padded = rows.new_zeros(num * longest, rows.shape[-1]).index_copy(0, self.slots, rows)
        return padded.view(num, longest, -1)

    def unpad(self, padded: Tensor) -> Tensor:
        """Return the rows (N, K) of (P, T, K)."""
        assert self.slots is not None
        return padded.flatten(0, 1).index_select(0, self.slots)


def segments_of(lengths: Sequence[int], *, device: torch.device, pads: bool | None = None) -> Segments:
    """Return the segments of adapters with so many rows each; `pads` is true on a GPU unless told otherwise."""
    cuts = [0]
    for length in lengths:
        cuts.append(cuts[-1] + length)
    if not (device.type != "cpu" if pads is None else pads):
        return Segments(tuple(cuts))
    longest = _longest(cuts)
    slots = [number * longest + place for number, length in enumerate(lengths) for place in range(length)]
    return Segments(tuple(cuts), bring(torch.tensor(slots, dtype=torch.int64), device))


def segmented_linear(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scalings: Sequence[float],
    segments: Segments,
) -> Tensor:
    """Return y (.., O) of states (.., D), N rows in all, with frozen W (O, D) and b (O,) of any dtype.

    `downs` holds A_m (r_m, D), `ups` B_m (O, r_m), float32; ranks may differ. Differentiable in states, A_m and B_m.
    """
    product = _Sliced if segments.slots is None else _Padded
    return cast(
        "Tensor",
        product.apply(states, weight, bias, segments, tuple(scalings), *downs, *ups),  # type: ignore[no-untyped-call]
    )


def _longest(cuts: Sequence[int]) -> int:
    return max((end - start for start, end in pairwise(cuts)), default=0)


class _Sliced(torch.autograd.Function):
    """The segments one after another."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        segments: Segments,
        scalings: tuple[float, ...],
        *factors: Tensor,
    ) -> Tensor:
        """Return y (.., O) of states (.., D)."""
        rows = states.reshape(-1, states.shape[-1])
        downs, ups = factors[: len(scalings)], factors[len(scalings) :]
        output = linear(rows, in_dtype_of(rows, weight), bias)
        inners, all_up_rows = list[Tensor](), list[Tensor]()
        for span, down, up, scaling in zip(segments.spans, downs, ups, scalings, strict=True):
            inners.append(rows[span].to(down.dtype) @ down.T)
            all_up_rows.append((up.T * scaling).contiguous())
            _add_product(output[span], inners[-1], all_up_rows[-1])
        keep_for_backward(ctx, weight, rows, *downs, *all_up_rows, *inners)
        ctx.segments, ctx.scalings = segments, scalings
        return _as_new(output, states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of states, A_m and B_m; None for frozen ones."""
        weight, rows, *others = kept_for_backward(ctx)
        num, segments = len(ctx.scalings), ctx.segments
        downs, all_up_rows, inners = others[:num], others[num : 2 * num], others[2 * num :]
        of_output = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_states = of_output @ in_dtype_of(of_output, weight) if ctx.needs_input_grad[0] else None
        of_downs, of_ups = list[Tensor](), list[Tensor]()
        for m, (span, scaling) in enumerate(zip(segments.spans, ctx.scalings, strict=True)):
            exact = of_output[span].to(downs[m].dtype)
            of_inner = exact @ all_up_rows[m].T
            of_ups.append((inners[m].T @ exact).T * scaling)
            of_downs.append(of_inner.T @ rows[span].to(downs[m].dtype))
            if of_states is not None:
                _add_product(of_states[span], of_inner, downs[m])
        shaped = None if of_states is None else of_states.view(*gradients[0].shape[:-1], -1)
        return shaped, None, None, None, None, *of_downs, *of_ups


@lru_cache(maxsize=64)
def _factors(scalings: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors (P,) of adapters, brought to the device once and not for every layer of every step."""
    return bring(torch.tensor(scalings, dtype=dtype), device)


class _Padded(torch.autograd.Function):
    """The segments padded to one length, the matrices to one rank, and all multiplied at once."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them so
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        segments: Segments,
        scalings: tuple[float, ...],
        *factors: Tensor,
    ) -> Tensor:
        """Return y (.., O) of states (.., D)."""
        rows = states.reshape(-1, states.shape[-1])
        downs, ups = factors[: len(scalings)], factors[len(scalings) :]
        output = linear(rows, in_dtype_of(rows, weight), bias)
        down_rows = pad_sequence(list(downs), batch_first=True)  # (P, r, D)
        up_rows = pad_sequence([up.T for up in ups], batch_first=True)  # (P, r, O)
        up_rows = up_rows * _factors(scalings, up_rows.dtype, up_rows.device)[:, None, None]
        inner = segments.pad(rows.to(down_rows.dtype)) @ down_rows.mT
        output += segments.unpad(inner @ up_rows)
        keep_for_backward(ctx, weight, rows, down_rows, up_rows, inner)
        ctx.segments, ctx.scalings, ctx.ranks = segments, scalings, [len(down) for down in downs]
        return _as_new(output, states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of states, A_m and B_m; None for frozen ones."""
        weight, rows, down_rows, up_rows, inner = kept_for_backward(ctx)
        segments = ctx.segments
        of_output = gradients[0].reshape(-1, gradients[0].shape[-1])
        exact = segments.pad(of_output.to(down_rows.dtype))
        of_inner = exact @ up_rows.mT
        of_up_rows = (inner.mT @ exact) * _factors(ctx.scalings, up_rows.dtype, up_rows.device)[:, None, None]
        of_down_rows = of_inner.mT @ segments.pad(rows.to(down_rows.dtype))
        shaped = None
        if ctx.needs_input_grad[0]:
            of_states = of_output @ in_dtype_of(of_output, weight)
            of_states += segments.unpad(of_inner @ down_rows)
            shaped = of_states.view(*gradients[0].shape[:-1], -1)
        of_downs = [part[:rank] for part, rank in zip(of_down_rows, ctx.ranks, strict=True)]
        of_ups = [part[:rank].T for part, rank in zip(of_up_rows, ctx.ranks, strict=True)]
        return shaped, None, None, None, None, *of_downs, *of_ups


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a float32 product in place, rounded once where `target` is not float32.

    Not by a product in bfloat16, as in `lowrank`: on a CPU each length of a segment would cost a kernel (sizes.py).
    """
    if target.dtype == left.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right


def _as_new(output: Tensor, states: Tensor) -> Tensor:
    # Not a view in autograd's eyes: OLMo clamps its queries, keys and values in place.
    return cast("Tensor", torch.ops.aten._unsafe_view(output, (*states.shape[:-1], output.shape[-1])))
