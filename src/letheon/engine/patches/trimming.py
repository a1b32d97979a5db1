"""The last decoder layer at answer positions only.

Above the last layer's keys and values nothing of a position is read but by the head, and the head reads answer
positions alone. So its query and output projections and its MLP, which work on each position by itself, run there
only; elsewhere they give zeros, which nobody reads. Of a row whose answer is a quarter of its tokens this saves about
two thirds of that layer, forward and backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.errors import ModelError
from letheon.model.forwards import replaced_forwards
from letheon.model.layers import decoder_layers

POSITION_WISE = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
"""Modules of a decoder layer that work on each position by itself, where it has modules of these names."""


@dataclass(slots=True)
class Selection:
    """The positions that are wanted of the forward in progress; None for all."""

    positions: Tensor | None = None

    @contextmanager
    def at(self, positions: Tensor) -> Iterator[None]:
        """Want `positions` (A,) int64 of a forward within the block."""
        self.positions = positions
        try:
            yield
        finally:
            self.positions = None


@contextmanager
def trimmed(model: PreTrainedModel, selection: Selection) -> Iterator[None]:
    """Let the last layer of `model` work at `selection.positions` only while the block lasts."""
    modules = [module for module in _position_wise(model) if not isinstance(module.__dict__.get("forward"), _Selected)]
    with replaced_forwards(modules, lambda module: _Selected(module.forward, selection)):
        yield


class _Selected:
    """The forward of one module, at the selected positions."""

    def __init__(self, forward: Any, selection: Selection) -> None:
        self._forward = forward
        self._selection = selection

    def __call__(self, states: Tensor, *rest: Any, **named: Any) -> Any:
        """Return (1, N, O) of states (1, N, D), zeros where no one asks."""
        positions = self._selection.positions
        if positions is None:
            return self._forward(states, *rest, **named)
        chosen = self._forward(states.index_select(1, positions), *rest, **named)
        return chosen.new_zeros(*states.shape[:-1], chosen.shape[-1]).index_copy(1, positions, chosen)


def _position_wise(model: PreTrainedModel) -> list[nn.Module]:
    try:
        last = decoder_layers(model)[-1]
    except ModelError:
        return []
    named = dict(last.named_modules())
    return [named[name] for name in POSITION_WISE if name in named]
