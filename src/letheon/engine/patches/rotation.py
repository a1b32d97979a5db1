"""Positions that a model rotates otherwise in long sequences than in short ones, in a batch that holds both.

"longrope" (Phi-3) takes other frequencies for a whole batch once one sequence in it is longer than a limit. Here both
rotations are formed, and each sequence gets the one that it has alone. "dynamic" stretches its frequencies with the
longest sequence so far and keeps them for the batches that follow, so that what a long sequence is alone depends on
what came before it: such sequences are refused.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from letheon.devices import bring
from letheon.errors import ModelError
from letheon.model.forwards import replaced_forwards


@contextmanager
def rotated_alone(model: PreTrainedModel, lengths: Collection[int], *, is_packed: bool) -> Iterator[None]:
    """Let each of the sequences of a forward be rotated as it is alone while the block runs.

    They lie back to back in one row, or each in a row of its own, padded on the right.

    Raises:
        ModelError: that cannot be had of this model with sequences of these lengths.
    """
    # The search through a model's modules takes as long as a small part of a step: only where it may matter.
    modules = _rotations(model) if changes_rotation(model.config, lengths) else []
    check_lengths(model.config, lengths, can_be_mixed=bool(modules))
    if not _are_mixed(model.config, lengths):
        yield
        return
    with replaced_forwards(modules, lambda module: _EachAlone(module, lengths, is_packed=is_packed)):
        yield


def check_lengths(config: PreTrainedConfig, lengths: Collection[int], *, can_be_mixed: bool) -> None:
    """Refuse sequences whose positions a model would rotate otherwise together than alone.

    Raises:
        ModelError: such lengths are in one batch.
    """
    for rope in _ropes(config):
        kind, limit = rope.get("rope_type"), _limit(rope, config)
        if limit is None or not lengths or max(lengths) <= limit:
            continue
        if kind == "dynamic" or (min(lengths) <= limit and not can_be_mixed):
            raise ModelError(
                f"expected sequences of at most {limit} tokens, because the model changes its position encoding for a "
                f"whole batch above that (rope type '{kind}'), got sequences of {min(lengths)} to {max(lengths)} "
                f"tokens; give --max-length {limit}"
            )


def changes_rotation(config: PreTrainedConfig, lengths: Collection[int]) -> bool:
    """Return whether some of texts of these lengths are rotated otherwise than the shortest, so that none may share."""
    limits = [limit for rope in _ropes(config) if (limit := _limit(rope, config)) is not None]
    return bool(lengths) and max(lengths) > min(limits, default=max(lengths))


class _EachAlone:
    """The forward of a module that returns cosines and sines of rotations."""

    def __init__(self, module: Any, lengths: Collection[int], *, is_packed: bool) -> None:
        self._config: PreTrainedConfig = module.config
        self._own: Callable[..., tuple[Tensor, Tensor]] = module.forward
        self._lengths, self._is_packed = lengths, is_packed

    def __call__(self, states: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B, T, d), for packed sequences (1, N, d)."""
        named = kwargs.get("layer_type", args[0] if args else None)
        rope = self._config.rope_parameters or {}
        limit = _limit(rope if named is None else rope[named], self._config)
        if limit is None:
            return self._own(states, position_ids, *args, **kwargs)
        together = self._own(states, position_ids, *args, **kwargs)  # as in the longest
        short = self._own(states, position_ids.clamp(max=limit - 1), *args, **kwargs)
        places = [length > limit for length in self._lengths for _ in range(length if self._is_packed else 1)]
        is_long = bring(torch.tensor(places), states.device)
        is_long = is_long[None, :, None] if self._is_packed else is_long[:, None, None]
        cosines, sines = (torch.where(is_long, *pair) for pair in zip(together, short, strict=True))
        return cosines, sines


def _are_mixed(config: PreTrainedConfig, lengths: Collection[int]) -> bool:
    limits = [limit for rope in _ropes(config) if (limit := _limit(rope, config)) is not None]
    return bool(lengths) and any(min(lengths) <= limit < max(lengths) for limit in limits)


def _rotations(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of transformers that make rotations by length."""
    found = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "longrope" in (kinds.values() if isinstance(kinds, dict) else [kinds]) and hasattr(module, "config"):
            found.append(module)
    return found


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """What the configuration says of rotations, of each kind of layer."""
    ropes: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]


def _limit(rope: dict[str, Any], config: PreTrainedConfig) -> int | None:
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return None
    limit = config.get_text_config().max_position_embeddings
    if rope["rope_type"] == "longrope":
        limit = rope.get("original_max_position_embeddings", limit)
    return int(limit)


def lengths_of(boundaries: Collection[int]) -> list[int]:
    """Return the lengths of sequences that lie back to back between these offsets."""
    return [end - start for start, end in pairwise(boundaries)]
