"""A checkpoint whose weights several processes read together, each the share that it keeps (sharding.py)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from letheon.errors import ModelError, SettingsError
from letheon.launcher import place
from letheon.model.checkpoint_files import weight_files
from letheon.model.companions import local_folder
from letheon.model.precision import Asked
from letheon.model.quantised import Quantise, is_quantised_checkpoint
from letheon.model.sharding import Group, Part, shard
from letheon.processes import highest

Found = tuple[list[str], list[str], list[tuple[str, tuple[int, ...], tuple[int, ...]]]]
"""Names that the files lack, that the model lacks, and whose shapes differ, with that of either."""


def load_sharded(
    source: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    check: Callable[[PreTrainedModel, Found], None],
) -> PreTrainedModel:
    """Return a frozen model of which each process holds its share; no process reads more, or ever holds the whole.

    All processes call it. `check` is given the model, without values, and what does not fit; it raises if that matters.

    Raises:
        ModelError: its decoder layers cannot be told, or a weight is not finite.
    """
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    model.tie_weights()
    files = Files(_folder_of(source))
    check(model, files.compared(model.state_dict(keep_vars=True)))
    groups, others = shard(model, device=device)
    names = _names(model)
    for group in groups:
        for part in group.parts:
            _read_share(files, names[id(part.parameter)], group, part)
    for parameter in others:
        parameter.data = files.values(names[id(parameter)]).to(device, parameter.dtype)
    for name, buffer in model.named_buffers():
        buffer.data = (files.values([name]) if name in files else buffer).to(device, buffer.dtype)
    _check_finite(groups, names, source)
    model.generation_config = _generation_config(source, model)
    return model


def check_sharding(config: PreTrainedConfig, *, dtype: Asked, quantise: Quantise | None, adapt: str = "lora") -> None:
    """Refuse to keep shares of weights where there are no processes to keep them in, or where that cannot be done.

    Raises:
        SettingsError: saying what to set instead.
    """
    if place().size == 1:
        raise SettingsError(
            "shard: expected several processes to keep a share of the weights each, got one; start them by torchrun "
            "--nproc-per-node N -m letheon ..., or leave out --shard (in a file of settings: shard: false)"
        )
    if quantise is not None or is_quantised_checkpoint(config):
        raise SettingsError(
            "shard: quantised weights cannot be kept in shares; leave out --shard, which 4 bits rarely need, or give "
            "an ordinary checkpoint without --quantise"
        )
    if dtype == "widened":
        raise SettingsError(
            "shard: weights in shares are not widened for each product; use --dtype bfloat16, float32 or auto"
        )
    if adapt != "lora":
        raise SettingsError(
            "shard: the weights are frozen, so they cannot be trained themselves; use --adapt lora, or leave out "
            "--shard"
        )


class Files:
    """The tensors of a checkpoint's safetensors files, read in part.

    A file is mapped while a tensor is read and no longer, so that what was read does not stay in memory.
    """

    def __init__(self, folder: Path) -> None:
        """Note which file each tensor is in."""
        self._path_of: dict[str, Path] = {}
        self._shape_of: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    self._path_of[name], self._shape_of[name] = path, tuple(file.get_slice(name).get_shape())

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor of this name."""
        return name in self._path_of

    def compared(self, tensors: Mapping[str, Tensor]) -> Found:
        """Return how the tensors of the files differ from those of a model, tied ones being there under one name."""
        there = {id(tensor) for name, tensor in tensors.items() if name in self}
        missing = [name for name, tensor in tensors.items() if id(tensor) not in there]
        mismatched = [
            (name, self._shape_of[name], tuple(tensor.shape))
            for name, tensor in tensors.items()
            if name in self and self._shape_of[name] != tuple(tensor.shape)
        ]
        return missing, [name for name in self._path_of if name not in tensors], mismatched

    def values(self, names: list[str], first: int = 0, last: int | None = None) -> Tensor:
        """Return the numbers of a tensor from the first to before the last, flat; of all, in its shape.

        `names` are those that it may have.
        """
        name = next(name for name in names if name in self)
        with safe_open(self._path_of[name], framework="pt") as file:
            shape = self._shape_of[name]
            if last is None or not shape:
                whole: Tensor = file.get_tensor(name)
                return whole
            row = max(torch.Size(shape[1:]).numel(), 1)
            rows: Tensor = file.get_slice(name)[first // row : -(-last // row)]
        begins = first - first // row * row
        return rows.reshape(-1)[begins : begins + last - first]


def _read_share(files: Files, names: list[str], group: Group, part: Part) -> None:
    first, last = group.within(part)
    if first == last:
        return
    size, dtype = part.parameter.element_size(), part.parameter.dtype
    values = files.values(names, (first - part.first_byte) // size, (last - part.first_byte) // size)
    begins = group.bytes.start
    group.share[first - begins : last - begins] = values.to(dtype).contiguous().view(torch.uint8).to(group.share.device)


def _names(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, several of a tied one."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _check_finite(groups: list[Group], names: Mapping[int, list[str]], source: str) -> None:
    """Refuse weights with NaN or infinite values, in all processes if one finds any."""
    parts = [(group, part) for group in groups for part in group.parts]
    broken = next((n for n, (group, part) in enumerate(parts) if not _is_finite(group, part)), -1)
    (worst,) = highest(broken)
    if worst >= 0:
        (name, *_) = names[id(parts[worst][1].parameter)]
        raise ModelError(
            f"{source}: the weights of {name} are not all finite (NaN or infinity); the checkpoint is broken, give an "
            f"earlier one"
        )


def _is_finite(group: Group, part: Part) -> bool:
    first, last = group.within(part)
    begins = group.bytes.start
    own = group.share[first - begins : last - begins].view(part.parameter.dtype)
    return not own.is_floating_point() or bool(own.isfinite().all())


def _folder_of(source: str) -> Path:
    """Where the files lie; those of a hub id are downloaded."""
    folder = local_folder(source)
    return folder or Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))


def _generation_config(source: str, model: PreTrainedModel) -> Any:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # it has none
        return model.generation_config
