"""Random numbers of a step: they follow from the run's seed and the step's number, so no state of them is kept."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from letheon.data.packing import PackedBatch
from letheon.devices import kept_random_state
from letheon.model.lowrank import ADAPTER


def dropouts_of(model: nn.Module) -> tuple[nn.Dropout, ...]:
    """Return the dropout modules in front of the model's adapters, none where nothing is dropped."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    found = [layer.lora_dropout[ADAPTER] for layer in layers]
    return tuple(module for module in found if isinstance(module, nn.Dropout))


@contextmanager
def dropout_of_step(dropouts: Collection[nn.Dropout], *, seed: int, step: int) -> Iterator[None]:
    """Let `dropouts` drop what belongs to this step while the block lasts; the process's own random state stays.

    A run that enters at any step draws what the whole run would have drawn there.
    """
    if not dropouts:
        yield
        return
    with kept_random_state():
        torch.manual_seed(_seed(seed, step))
        try:
            for module in dropouts:
                module.train()
            yield
        finally:
            for module in dropouts:
                module.eval()


@contextmanager
def dropped_by_row(dropouts: Sequence[nn.Dropout], batch: PackedBatch, *, seed: int, step: int) -> Iterator[None]:
    """Let each row of a piece of a step drop what follows from its own number, while the block lasts.

    So nothing depends on the pieces that a step is computed in, nor on the processes that share its rows.
    """
    if not dropouts:
        yield
        return
    rows, lengths = batch.on_host.row_index.tolist(), [end - start for start, end in pairwise(batch.boundaries)]
    places = torch.arange(batch.num_tokens, device=batch.labels.device)
    padded = pad_sequence(list(places.split(lengths)), batch_first=True)
    # What a layer may be given, by its number of tokens: the rows padded to the longest, the answers alone, or all.
    layouts = {chosen.numel(): chosen.flatten() for chosen in (padded, batch.answer_positions, places)}
    try:
        for number, module in enumerate(dropouts):
            drawn = [(_seed(seed, step, number, row), length) for row, length in zip(rows, lengths, strict=True)]
            module.forward = partial(_drop, module.p, drawn, layouts)  # type: ignore[method-assign]
        yield
    finally:
        for module in dropouts:
            del module.forward


def _drop(share: float, drawn: Sequence[tuple[int, int]], layouts: Mapping[int, Tensor], states: Tensor) -> Tensor:
    """Return states (.., D) with a share of them 0 and the rest scaled up, as the seed of each row draws it.

    `drawn` has the seed and the tokens of each row; `layouts` says which of all tokens the states are.
    """
    width = states.shape[-1]
    chosen = layouts.get(states.numel() // width)
    if chosen is None:  # tokens in another order, as among experts
        return nn.functional.dropout(states, share)
    kept = [uniform(length, width, seed=seed, device=states.device) >= share for seed, length in drawn]
    return states * torch.cat(kept)[chosen].view(states.shape) / (1 - share)


def uniform(length: int, width: int, *, seed: int, device: torch.device) -> Tensor:
    """Return (length, width) float32 numbers from 0 to 1 that follow from the seed, drawn on the device itself."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.rand(length, width, device=device, generator=generator)


def _seed(*numbers: int) -> int:
    """Return a seed that follows from the numbers."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8]) >> 1
