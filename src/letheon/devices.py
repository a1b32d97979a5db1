"""The devices that torch finds, which of them a run uses, and how tensors get there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from letheon.errors import SettingsError
from letheon.launcher import place

_SHARES_MEMORY = ("cpu", "mps")
"""Kinds of devices whose memory is the machine's own."""


def choose_device(asked: str | None) -> torch.device:
    """Return the device that is asked for; by default the first CUDA GPU, the CPU where there is none."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def kind_of(asked: str | None) -> str:
    """Return the kind of the device that is asked for, such as "cuda" for "cuda:1"."""
    return choose_device(asked).type


def has_own_memory(kind: str) -> bool:
    """Return whether devices of this kind have a memory beside the machine's."""
    return kind not in _SHARES_MEMORY


def available_devices() -> list[str]:
    """Return the names of the devices that torch finds here, the CPU first."""
    found = ["cpu"]
    for kind, count in (("cuda", torch.cuda.device_count()), ("xpu", torch.xpu.device_count())):
        found += [f"{kind}:{number}" for number in range(count)]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def check_device(asked: str | None) -> None:
    """Refuse a device that is not there.

    Raises:
        SettingsError: torch does not find it, or it is one device for several processes.
    """
    if asked is not None and ":" in asked and place().size > 1:
        raise SettingsError(
            f"device: each of the {place().size} processes takes the device of its own number, got '{asked}' for all; "
            f"give '{asked.partition(':')[0]}' or leave out --device"
        )
    there = available_devices()
    is_there = asked is None or any(re.fullmatch(rf"{re.escape(asked)}(:\d+)?", name) for name in there)
    if not is_there:
        raise SettingsError(
            f"device: expected one that torch finds here ({', '.join(there)}), got '{asked}'; leave out --device or "
            f"give one of these"
        )


def use_device(device: torch.device) -> None:
    """Make a device the one that its libraries use where none is named."""
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; of a CUDA GPU the host does not wait for the copy."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor in main memory; one without values as it is."""
    return tensor if tensor.is_meta else tensor.cpu()


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a device that has a memory of its own; None for others."""
    library: Any = getattr(torch, device.type, None)
    if not has_own_memory(device.type) or not library.is_available():
        return None
    return int(library.mem_get_info(device)[0])


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def widest(tensor: Tensor) -> Tensor:
    """Return a tensor where it can be summed in float64: on its device, or on the host for Apple's GPUs."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the random states of the host and of the device in use back when the block ends."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or device.type == "mps":
        kept = None if device is None else torch.mps.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            yield
        if kept is not None:
            torch.mps.set_rng_state(kept)
        return
    with torch.random.fork_rng(devices=[torch.accelerator.current_device_index()], device_type=device.type):
        yield


def is_cpu(device: torch.device) -> bool:
    """Return whether a tensor lies on a CPU; on "meta", as in a plan, whether this machine trains on one."""
    return device.type == "cpu" or (device.type == "meta" and kind_of(None) == "cpu")
