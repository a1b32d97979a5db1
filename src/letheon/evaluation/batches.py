"""Texts as batches of tokens for a model that is only read: what generation, membership and MMLU share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from letheon.data.sequences import text_ids
from letheon.model.loading import context_length

KEY_VALUE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""The kinds of cache layer that hold the keys and values of attention and nothing else."""

StepProgress = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def reading(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Put `model` in evaluation mode without gradients while the block runs; each module's own mode is put back after.

    Gives the model below a PEFT wrapper, its adapter layers in place.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        with torch.no_grad():
            unwrap: Any = getattr(model, "get_base_model", None)
            yield model if unwrap is None else unwrap()
    finally:
        for module, mode in modes:
            module.training = mode


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special_tokens: bool = True
) -> list[list[int]]:
    """Tokenise each text without template or truncation; a BOS where the tokenizer adds one, never an end (`text_ids`).

    Without `special_tokens` there is no BOS either.
    """
    if special_tokens or not texts:
        return text_ids(tokenizer, texts)
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids
    return ids


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the number of positions beyond which the model cannot compute, None for one that can go on.

    Learned position tables (GPT-2, OPT) end; rotary positions only leave the range that was trained.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _names_positions(name.rpartition(".")[2])
    ]
    return context_length(model.config) if tables else None


def length_batches(lengths: Sequence[int], *, max_rows: int, max_tokens: int | None = None) -> list[list[int]]:
    """Cut indices 0..len(lengths)-1, longest first, into batches of at most `max_rows` rows.

    `max_tokens` bounds rows x longest row; a longer row stands alone. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = batches[-1] if batches else []
        fits = max_tokens is None or (batch and (len(batch) + 1) * lengths[batch[0]] <= max_tokens)
        if batch and len(batch) < max_rows and fits:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def padded(rows: Sequence[Sequence[int]], *, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return input_ids and mask, both (B, T) int64, of `rows` padded with token 0 on the `side` "left" or "right"."""
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_side=side).to(device),
        pad_sequence(mask, batch_first=True, padding_side=side).to(device),
    )


def _names_positions(leaf: str) -> bool:
    return leaf == "wpe" or "position" in leaf
