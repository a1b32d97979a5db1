"""The fingerprint of a model as it lies in memory."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from letheon.model.loading import load_config
from letheon.model.sharding import state_of
from letheon.model.widening import widening_of


def fingerprint(model: PreTrainedModel) -> str:
    """Return the sha256 of the model's configuration and weights as they are in memory, adapters left out."""
    return _digest(model.config, state_of(model), is_widened=widening_of(model) is not None)


def fingerprint_as_saved(
    model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, *, trust_remote_code: bool = False
) -> str:
    """Return what `fingerprint` finds of a model that was saved to `folder` with the weights of `state`."""
    config = load_config(str(folder), trust_remote_code=trust_remote_code)
    return _digest(config, state, is_widened=widening_of(model) is not None)


@torch.no_grad()
def _digest(config: PreTrainedConfig, state: Mapping[str, Any], *, is_widened: bool) -> str:
    plain = config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        plain.pop(name, None)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    if is_widened:
        digest.update(b"widened")  # a model without norms and biases lies in memory as one in bfloat16 does
    for name in sorted(name for name in state if ".lora_" not in name):
        tensor = state[name]
        digest.update(f"{name.replace('.base_layer', '')} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
