"""A model whose weights lie in shares, written one weight at a time, so that no process ever holds the whole."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from letheon.model.checkpoint_files import INDEX, WEIGHTS
from letheon.model.sharding import WholeState, state_of

MOST_BYTES = 5 * 10**9
"""Of a file; a larger tensor has one of its own."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls dtypes."""
_ALIGNMENT = 8
"""Bytes of which the length of a header is a multiple."""


def write_sharded(
    model: PreTrainedModel, state: Mapping[str, Tensor] | None, folder: Path, *, most_bytes: int = MOST_BYTES
) -> None:
    """Write a model whose weights lie in shares in the Hugging Face layout: configurations and safetensors.

    `state` gives the weights in place of the model's own, by the plain model's names. One process writes, while the
    others send their shares.

    Raises:
        OSError: a file cannot be written.
    """
    state = state_of(model) if state is None else state
    assert isinstance(state, WholeState)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)
    if model.generation_config is not None and model.can_generate():
        model.generation_config.save_pretrained(folder)
    tensors = state.without_repeats()
    files = list(_files(tensors, most_bytes))
    if len(files) == 1:
        _write(folder / WEIGHTS, files[0], tensors, state)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        path = folder / f"model-{number:05}-of-{len(files):05}.safetensors"
        _write(path, names, tensors, state)
        places |= dict.fromkeys(names, path.name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(tensors: Mapping[str, Tensor], most_bytes: int) -> Iterator[list[str]]:
    """Which tensors go into each file, in order."""
    names, size = list[str](), 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > most_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _write(path: Path, names: list[str], tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        first, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            value = state[name].detach().cpu().contiguous()
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
