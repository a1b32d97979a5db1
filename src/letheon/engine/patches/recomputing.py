"""Gradient checkpointing: a decoder layer's backward pass computes the activations again.

A step then holds one vector of the model's width for each token and layer in place of everything inside the layers,
and costs one more forward: 6 N operations a token under an adapter in place of 4 N. The last layer is left as it is,
since its backward pass comes first: its insides would be back at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from letheon.model.forwards import replaced_forwards
from letheon.model.layers import decoder_layers


@contextmanager
def recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let the decoder layers of `model` but the last forget their insides until the backward pass, in the block.

    The block must last until the backward pass is over.

    Raises:
        ModelError: the model's layers cannot be told.
    """
    layers = [layer for layer in list(decoder_layers(model))[:-1] if not _is_recomputed(layer)]
    with replaced_forwards(layers, lambda layer: _Recomputed(layer.forward)):
        yield


def _is_recomputed(layer: torch.nn.Module) -> bool:
    return isinstance(layer.__dict__.get("forward"), _Recomputed)


class _Recomputed:
    """The forward of one layer."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Return the layer's output, and keep only its inputs."""
        if not torch.is_grad_enabled():
            return self._forward(*given, **named)
        return checkpoint(self._forward, *given, use_reentrant=False, **named)
