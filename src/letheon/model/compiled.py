"""Norms and feed-forward blocks of the decoder layers, compiled by torch.compile.

They work on each position by itself, so that one function with symbolic lengths serves every layer and every pack: the
number of compilations grows neither with the layers nor with the steps. Attention depends on where the sequences of a
pack begin and end, and stays as it is. What dynamo would compile more often than its limit runs uncompiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from letheon.model.adapted import decoder_layers
from letheon.model.forwards import is_replaced, replaced_forwards

FEED_FORWARD = "mlp"
"""The name that most architectures give a layer's feed-forward block."""


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let the position-wise modules of the decoder layers of `model` run compiled while the block lasts.

    The first call of each kind compiles, which takes seconds to minutes and needs a C++ compiler on a CPU.

    Raises:
        ModelError: the model's layers cannot be told.
    """
    modules = [module for layer in decoder_layers(model) for module in _position_wise(layer)]
    modules = [module for module in modules if not is_replaced(module)]
    with replaced_forwards(modules, lambda module: MethodType(_compiled(type(module).forward), module)):
        yield


def _position_wise(layer: nn.Module) -> Iterator[nn.Module]:
    for name, module in layer.named_children():
        if name == FEED_FORWARD or "Norm" in type(module).__name__:
            yield module


@cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled forward of a class of modules: one for all of its instances, or dynamo would start anew."""
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=True)
    return compiled
