"""What bitsandbytes stores of a matrix, codes of 8 or 4 bits and their scales, and the numbers that these stand for.

int8        W_ij = c_ij s_i / 127, s_i the absmax of row i (Dettmers et al. 2022, arXiv 2208.07339)
nf4, fp4    W_ij = code(c_ij) s, s the absmax of a block of 64 numbers, row after row (Dettmers et al. 2023, arXiv
            2305.14314); the scales may be stored in 8 bits themselves
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor

_INT8_STEP = 7.874015718698502e-3
"""1 / 127, rounded as in bitsandbytes, so that the numbers have the same bits."""


def is_quantised(weight: Tensor) -> bool:
    """Return whether a parameter holds codes in place of numbers."""
    return getattr(weight, "quant_state", None) is not None or getattr(weight, "SCB", None) is not None


def matrix_shape(weight: Tensor) -> torch.Size:
    """Return the shape of the matrix (O, D) that a parameter holds, quantised or not."""
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else torch.Size(state.shape)


def dequantised(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix (O, D) that a quantised parameter stands for: exact in float32, else rounded once."""
    codes, state = weight.detach().data, getattr(weight, "quant_state", None)
    if state is None:
        scales: Tensor = weight.SCB  # type: ignore[attr-defined]
        # Widened first: a product of int8 and float32 takes ten times as long.
        return codes.float().mul_(scales[:, None]).mul_(_INT8_STEP).to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    wanted = copy(state)
    wanted.dtype = dtype
    matrix: Tensor = dequantize_4bit(codes, wanted)
    return matrix


def exact_matrix(weight: Tensor) -> Tensor:
    """Return the matrix that a parameter holds, quantised or not, in float32."""
    return dequantised(weight, torch.float32) if is_quantised(weight) else weight.float()


def stored_bytes(weight: Tensor) -> int:
    """Return the bytes of a parameter and of the scales beside it."""
    state: Any = getattr(weight, "quant_state", None)
    if state is None:
        scales = getattr(weight, "SCB", None)
        return weight.nbytes + (0 if scales is None else int(scales.nbytes))
    beside = [state.absmax, state.code]
    if state.nested:
        beside += [state.state2.absmax, state.state2.code, state.offset]
    return weight.nbytes + sum(int(tensor.nbytes) for tensor in beside)
