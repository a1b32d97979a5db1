"""Attention within the sequences of a pack, in place of a model's own.

Transformers hands the attention of its models to a function chosen by name. Ours keep to the sequence boundaries, so
that no mask is built and no token is padded:

    sequences   a scaled-dot-product call for each sequence, whose result does not depend on what else is in the pack
    varlen      one call of PyTorch's variable-length attention for all of them, on a GPU in half precision

Tokens at the end of a sequence that are padding see the sequence's other tokens and are seen by none, themselves
included, as with a model's own attention and a mask.

What the functions cannot do (a bias on the scores, attention in both directions) and models that do not call them are
refused, never computed otherwise.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from letheon.devices import bring, is_cpu
from letheon.model.widening import product_dtype

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # older versions of torch
    varlen_attn = None  # type: ignore[assignment]

Kernel = Literal["sequences", "varlen"]
NAMES: dict[Kernel, str] = {"sequences": "letheon_packed", "varlen": "letheon_varlen"}
"""What transformers knows them by."""


def kernels_for(model: PreTrainedModel) -> tuple[Kernel, ...]:
    """Return the kernels that the model's device and dtype allow, the fastest first."""
    is_half = product_dtype(model) in (torch.bfloat16, torch.float16)
    has_varlen = varlen_attn is not None and model.device.type == "cuda" and is_half
    return ("varlen", "sequences") if has_varlen else ("sequences",)


def bounds_of(
    trunk: PreTrainedModel, boundaries: tuple[int, ...], padding: tuple[int, ...], device: torch.device
) -> dict[str, Any]:
    """Return the boundaries of a pack as the keyword arguments that the attention of `trunk` takes.

    A pack with padding attends sequence by sequence whatever the kernel.
    """
    if any(padding):
        return {"boundaries": boundaries, "padding": padding}
    if trunk.config._attn_implementation != NAMES["varlen"]:
        return {"boundaries": boundaries}
    offsets = bring(torch.tensor(boundaries, dtype=torch.int32), device)
    return {"boundaries": boundaries, "offsets": offsets}


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kernel: Kernel,
    boundaries: tuple[int, ...] | None = None,
    offsets: Tensor | None = None,
    padding: tuple[int, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,  # transformers passes whatever its own attention functions take
) -> tuple[Tensor, None]:
    """Attend within each sequence; query (1, H, N, d), key and value (1, K, N, d) with K dividing H, s_aux (H,)."""
    name = type(module).__name__
    if boundaries is None or attention_mask is not None:
        raise ValueError(f"{name} is not told where sequences end")
    unknown = [other for other, given in others.items() if isinstance(given, Tensor) and other != "position_ids"]
    if unknown or others.get("is_causal") is False:
        raise ValueError(f"{name} wants {', '.join(unknown) or 'attention in both directions'}")
    dropout = dropout if module.training else 0.0
    is_fused = softcap is None and s_aux is None
    if kernel == "varlen" and padding is None:
        if not is_fused or dropout:
            raise ValueError(f"{name} wants a cap, sinks or dropout, which variable lengths cannot have")
        assert offsets is not None, "bounds_of gives both"
        longest = max(end - start for start, end in pairwise(boundaries))
        return _at_once(query, key, value, offsets, longest=longest, scaling=scaling, window=sliding_window), None
    dtype = query.dtype
    if dtype == torch.bfloat16 and is_cpu(query.device):
        # Its backward pass takes longer there than in float32.
        query, key, value = query.float(), key.float(), value.float()
    chosen = _attention if is_fused else partial(_plain_attention, softcap=softcap, sinks=s_aux)
    attend = partial(chosen, scaling=scaling, dropout=dropout, window=sliding_window)
    pieces = [
        attend(query[:, :, first:last], key[:, :, start:end], value[:, :, start:end], before=first - start)
        for start, first, last, end in _spans(boundaries, padding)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).to(dtype), None


def _spans(boundaries: tuple[int, ...], padding: tuple[int, ...] | None) -> Iterator[tuple[int, int, int, int]]:
    """Yield in order (start, first, last, end): the tokens from first to last attend to those from start to end."""
    for (start, end), num_padding in zip(pairwise(boundaries), padding or (0,) * (len(boundaries) - 1), strict=True):
        real = end - num_padding
        yield start, start, real, real
        if num_padding:
            yield start, real, end, real


def _at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    *,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend within all sequences by one call; offsets (S + 1,) int32."""
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    found = varlen_attn(
        queries,
        keys,
        values,
        offsets,
        offsets,
        longest,
        longest,
        scale=scaling,
        # As many tokens back, beside the token itself, as the window holds; 0 ahead makes it causal.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found[None]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *, before: int, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """Attention of queries (1, H, Q, d), the first of which has `before` tokens before it, to keys (1, K, T, d)."""
    groups = query.shape[1] // key.shape[1]
    mask = None
    if window is not None and window < before + query.shape[2]:
        mask = _visible(query, key, before=before, window=window)
        # No fused kernel takes a mask and grouped heads at once.
        key, value, groups = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), 1
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and before == 0,  # padding comes after all that it sees
        scale=scaling,
        enable_gqa=groups > 1,
    )


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    before: int,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention that no fused kernel offers.

    Scores pass through softcap * tanh(score / softcap) (Gemma 2); the softmax runs over the scores and one more number
    a head that takes weight from all tokens, `sinks` (H,) (GPT-OSS).
    """
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = _visible(query, key, before=before, window=window)
    # Not infinity: of padding that is further than a window from all tokens it would make NaN.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)[..., :length]
    return nn.functional.dropout(weights, dropout) @ value


def _visible(query: Tensor, key: Tensor, *, before: int, window: int | None) -> Tensor:
    """Return which of T keys each of Q queries sees, (Q, T) bool."""
    ids = torch.arange(before, before + query.shape[2], device=query.device)
    distance = ids[:, None] - torch.arange(key.shape[2], device=query.device)[None]
    return (distance >= 0) & (distance < (before + query.shape[2] if window is None else window))


for _kernel, _name in NAMES.items():
    AttentionInterface.register(_name, partial(_packed, kernel=_kernel))
