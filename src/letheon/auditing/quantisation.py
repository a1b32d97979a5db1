"""Quantisation: does rounding the weights bring the forgotten rows back?

Unlearning that moves weights by less than a rounding step is undone where the model is stored in 8 or 4 bits (Zhang et
al. 2024, arXiv 2410.16454). The matrices of the merged model are rounded to the nearest code and widened again, so any
machine can do it, and the model computes in its own dtype with the weights that a quantised copy would have:

* int8: a scale for each output channel, absmax / 127 (the weights of LLM.int8(), Dettmers et al. 2022, arXiv
  2208.07339). Activations stay as they are.
* nf4, fp4: blocks of 64 weights, each scaled by its absmax in float32, and a codebook of 16 values (QLoRA, Dettmers et
  al. 2023, arXiv 2305.14314; bitsandbytes, whose `load_in_4bit` takes fp4 unless told otherwise).

As there, the head, embeddings and norms are left alone.

A model that was trained to refuse has moved its weights too far for rounding to undo. So the attack is shown to work on
a second model that hides the rows, every weight of which rounds to the same nf4 code as before (controls.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.auditing.attack import HIDING, HIDING_UNTIL_ROUNDED, Attack, Knowledge, Point, Subject
from letheon.auditing.knowledge import ask, values_of
from letheon.data.rows import Row
from letheon.model.layers import trunk_of
from letheon.model.targets import EXPERT_MATRICES
from letheon.progress import Progressed

Kind = Literal["int8", "nf4", "fp4"]

BITS: dict[Kind, int] = {"int8": 8, "nf4": 4, "fp4": 4}
"""Bits of a stored weight, from the weakest attack to the strongest."""

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, scaled to -1 to 1, with an exact 0 (QLoRA, appendix E)."""

_FP4_SIDE = (0.0625 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12, 8 / 12, 1.0)
FP4 = (*(-value for value in reversed(_FP4_SIDE)), 0.0, *_FP4_SIDE)
"""Sign, two bits of exponent and one of mantissa, over the largest, 12; +0 and -0 are one value, so there are 15."""

CODEBOOKS = {"nf4": NF4, "fp4": FP4}
BLOCK = 64
"""Weights that share a scale."""
ROOM = 0.02
"""Share of an interval that `code_intervals` keeps from either end."""
_INT8_MAX = 127


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter whose last two axes are a matrix that states are multiplied by."""

    parameter: Tensor
    is_transposed: bool
    """Whether its rows are inputs: (..., in, out) rather than (..., out, in)."""


def round_to_channels(weight: Tensor) -> Tensor:
    """Return `weight` (..., out, in) as int8 keeps it: round(127 w / s) s / 127, where s is the absmax of the channel.

    The result is float32; a channel of zeros stays as it is.
    """
    wide = weight.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / _INT8_MAX
    return torch.where(scale > 0, (wide / scale).round() * scale, wide)


def round_to_codes(weight: Tensor, codes: Sequence[float]) -> Tensor:
    """Return `weight` as 4 bits keep it: in each `BLOCK` values, row after row, the nearest code times their absmax.

    `codes` rise from -1 to 1. Halfway between two the lower is taken, as bitsandbytes does. The last block may be
    shorter. The result is float32, of the shape of `weight`; a block of zeros stays as it is.
    """
    blocks, scale = _blocks(weight)
    book = torch.tensor(codes, device=weight.device)
    return _unblocked(book[_nearest(blocks, scale, book)] * scale, weight)


def code_intervals(weight: Tensor, codes: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest values, float32, that `round_to_codes` takes for the same codes as `weight`.

    The largest value of a block is its scale and cannot move. From other ends the `ROOM` is kept, so that nothing is
    carried over them by rounding to 16 bits.
    """
    blocks, scale = _blocks(weight)
    book = torch.tensor(codes, device=weight.device)
    ends = torch.cat([book[:1], (book[1:] + book[:-1]) / 2, book[-1:]]) * scale
    nearest = _nearest(blocks, scale, book)
    low, high = ends.gather(1, nearest), ends.gather(1, nearest + 1)
    room = ROOM * (high - low)
    is_fixed = blocks.abs() >= scale
    return (
        _unblocked(torch.where(is_fixed, blocks, torch.minimum(blocks, low + room)), weight),
        _unblocked(torch.where(is_fixed, blocks, torch.maximum(blocks, high - room)), weight),
    )


def rounded(weight: Tensor, kind: Kind) -> Tensor:
    """Return `weight` (..., out, in) rounded to the codes of `kind`, in its own dtype."""
    found = round_to_channels(weight) if kind == "int8" else round_to_codes(weight, CODEBOOKS[kind])
    return found.to(weight.dtype)


def matrices_of(model: PreTrainedModel) -> list[Matrix]:
    """Return the matrices below the head of `model`: those of linear layers and of routed experts, each once."""
    head = model.get_output_embeddings()
    found: dict[int, Matrix] = {}
    for module in trunk_of(model).modules():
        if module is not head:
            found.update({id(matrix.parameter): matrix for matrix in _matrices_in(module)})
    return list(found.values())


def intervals_of(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """Return the `code_intervals` of a matrix under nf4, each of the shape of its parameter."""
    weight = matrix.parameter.detach()
    low, high = code_intervals((weight.mT if matrix.is_transposed else weight).contiguous(), NF4)
    return (low.mT, high.mT) if matrix.is_transposed else (low, high)


@contextmanager
def quantised(model: PreTrainedModel, kind: Kind) -> Iterator[None]:
    """Let `model` compute with rounded weights while the block runs; its own are put back after.

    Takes as much memory again as the matrices do.
    """
    matrices = matrices_of(model)
    originals = [matrix.parameter.data for matrix in matrices]
    try:
        for matrix, own in zip(matrices, originals, strict=True):
            weight = own.mT if matrix.is_transposed else own
            new = rounded(weight.contiguous(), kind)
            matrix.parameter.data = (new.mT if matrix.is_transposed else new).contiguous()
        yield
    finally:
        for matrix, own in zip(matrices, originals, strict=True):
            matrix.parameter.data = own


def attack(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Ask for the rows with weights of 8 and of 4 bits."""
    points: list[Point] = []
    for kind, bits in BITS.items():
        with quantised(subject.model, kind):
            texts = ask(subject, rows, tell, stage=f"asking in {kind}")
        points.append(Point(float(bits), values_of(rows, texts), label=kind, texts=tuple(texts)))
    return Knowledge(tuple(range(len(rows))), tuple(points))


def _blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (N, BLOCK) of a weight, float32, the last filled up with zeros, and their scales (N, 1)."""
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    return blocks, blocks.abs().amax(dim=-1, keepdim=True)


def _unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    return blocks.flatten()[: like.numel()].view(like.shape)


def _nearest(blocks: Tensor, scale: Tensor, book: Tensor) -> Tensor:
    """The places in `book` of the codes nearest to the values of blocks."""
    scaled = torch.where(scale > 0, blocks / scale, blocks)
    return torch.bucketize(scaled, (book[1:] + book[:-1]) / 2)


def _matrices_in(module: nn.Module) -> Iterator[Matrix]:
    if isinstance(module, (nn.Linear, Conv1D)):
        yield Matrix(module.weight, is_transposed=isinstance(module, Conv1D))
        return
    is_transposed = bool(getattr(module, "is_transposed", False))
    for name, parameter in module.named_parameters(recurse=False):
        if name in EXPERT_MATRICES and parameter.ndim == 3:
            yield Matrix(parameter, is_transposed)


ATTACKS = (
    Attack(
        name="quantisation",
        title="Rounding to 8 and 4 bits",
        source="Zhang et al. 2024, arXiv 2410.16454",
        unit="bits",
        run=attack,
        passes=3.0,
        hidden_in=(HIDING, HIDING_UNTIL_ROUNDED),
    ),
)
