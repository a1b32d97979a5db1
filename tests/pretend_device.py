"""A device that is not there: tensors that say they lie on it, hold real values, and refuse to mix with others.

PyTorch's "meta" device refuses to mix with the CPU as a GPU does, but its tensors have no values, so code that reads
one fails there for no fault of its own. The tensors here say "lazy", a kind of device that nothing else asks for and
whose gradients PyTorch computes without a driver, and carry a tensor of the CPU inside. An operation that takes some of
them and a tensor of the CPU raises, as on a GPU; each copy between the two is recorded, and so is each operation that
makes a GPU's host wait (reading a number, an output whose size depends on values).
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

import letheon

DEVICE = torch.device("lazy")
_PACKAGE = Path(letheon.__file__).parent
"""A folder above it, which may hold other packages, can have the same name."""
_aten = torch.ops.aten
_CROSSING = (_aten._to_copy.default, _aten.copy_.default)
_SIZED_BY_VALUES = (
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
)
_READING = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default)


class DeviceMixError(Exception):
    """An operation took tensors of the device and of the CPU; no RuntimeError, after which slower paths are tried."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Something that went from one side to the other."""

    what: str
    """The operation."""
    shape: tuple[int, ...]
    where: str
    """The file and line of the package, or of the test, that asked for it."""

    def __str__(self) -> str:
        return f"{self.what} {self.shape} at {self.where}"


@dataclass(slots=True)
class Traffic:
    """What crossed while it was watched."""

    to_device: list[Crossing] = field(default_factory=list)
    to_host: list[Crossing] = field(default_factory=list)
    """Copies, numbers read and sizes that depend on values: each makes the host wait."""


class OnDevice(Tensor):
    """A tensor on the device; its values are those of `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        """Return the tensor on the device with the values of `held`."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Compute on the CPU, and say that it was on the device."""
        return _run(func, args, kwargs or {}, None)

    def tolist(self) -> Any:
        """Return the values, which come over in one copy."""
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the values' own, by which those who save tensors know shared ones."""
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a copy on the device, a parameter of a parameter."""
        made: Tensor = self.detach().clone()
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, requires_grad=self.requires_grad)
        memo[id(self)] = made
        return made


class PretendDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device and brought there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, whatever the tensors say."""
        return _run(func, args, kwargs or {}, self.traffic)

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        """Record afresh what crosses while the block runs."""
        kept, self.traffic = self.traffic, Traffic()
        try:
            yield self.traffic
        finally:
            self.traffic = kept

    def move(self, model: nn.Module, _asked: str | None = None) -> None:
        """Bring parameters and buffers to the device, shared ones once."""
        moved: dict[int, Tensor] = {}
        for module in model.modules():
            for name, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is None or isinstance(value, OnDevice):
                    continue
                if id(value) not in moved:
                    there: Tensor = OnDevice(value.detach())
                    is_parameter = isinstance(value, nn.Parameter)
                    moved[id(value)] = nn.Parameter(there, value.requires_grad) if is_parameter else there
                setattr(module, name, moved[id(value)])


class _Constructors(TorchFunctionMode):
    """What PyTorch would ask the device's own driver for: `torch.tensor` there, and indices that are lists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make tensors on the CPU and bring them over."""
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_device(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], _brought(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    """Have the device while the block runs; models that Letheon loads or makes come to it."""
    device = PretendDevice()
    save, is_autocast_enabled = PreTrainedModel.save_pretrained, torch.is_autocast_enabled

    def save_from_host(self: Any, folder: Any, *, state_dict: Any = None, **given: Any) -> None:
        state = {name: value.cpu() for name, value in (state_dict or self.state_dict()).items()}
        save(self, folder, state_dict=state, **given)

    def is_autocast(kind: str | None = None) -> bool:
        return kind != DEVICE.type and is_autocast_enabled(*([kind] if kind else []))

    monkeypatch.setattr(torch, "is_autocast_enabled", is_autocast)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_from_host)
    for module in ("model.loading", "memorizing.target", "auditing.controls"):
        monkeypatch.setattr(f"letheon.{module}.move_model", device.move)
    monkeypatch.setattr(torch, DEVICE.type, SimpleNamespace(), raising=False)  # where checkpoints look for its driver
    # PyTorch has a fused optimiser for GPUs and the CPU.
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type]
    )
    with device, _Constructors():
        yield device


def _run(func: Any, args: Any, kwargs: dict[str, Any], traffic: Traffic | None) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if there and func not in _CROSSING:
        _check_alike(func, tensors)
    asked = kwargs.get("device")
    goes_there = there if asked is None else _is_device(asked)
    if func is _aten.copy_.default:
        goes_there = isinstance(args[0], OnDevice)
    if traffic is not None:
        _record(traffic, func, args, there=there, goes_there=goes_there)
    inner_kwargs = {**kwargs, "device": torch.device("cpu")} if _is_device(asked) else kwargs
    found = func(*tree_map(_inner, args), **tree_map(_inner, inner_kwargs))
    if func is _aten._to_copy.default and not there and goes_there:
        found = found.clone()
    if not goes_there:
        return args[0] if func is _aten.copy_.default else found
    wrapped = tree_map(lambda value: OnDevice(value) if isinstance(value, Tensor) else value, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _record(traffic: Traffic, func: Any, args: Any, *, there: bool, goes_there: bool) -> None:
    if func in _CROSSING:
        from_there = isinstance(args[1 if func is _aten.copy_.default else 0], OnDevice)
        if from_there != goes_there:
            (traffic.to_device if goes_there else traffic.to_host).append(_crossing(func, args))
    elif there and (func in _SIZED_BY_VALUES or func in _READING or _takes_mask(func, args)):
        traffic.to_host.append(_crossing(func, args))


def _takes_mask(func: Any, args: Any) -> bool:
    """Whether values are picked by a mask, whose number of places the host has to know."""
    return func is _aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])


def _check_alike(func: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of the CPU beside those of the device, but for the scalars that a GPU's kernels take too."""
    takes_scalars = torch.Tag.pointwise in func.tags
    strays = [t for t in tensors if not isinstance(t, OnDevice) and not (takes_scalars and t.ndim == 0)]
    if strays:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strays)
        raise DeviceMixError(f"{func} takes tensors of the device and of the CPU, {shapes}, at {_where()}")


def _crossing(func: Any, args: Any) -> Crossing:
    tensor = args[1] if func is _aten.copy_.default else args[0]
    return Crossing(str(func), tuple(tensor.shape), _where())


def _where() -> str:
    """The innermost line of the package, or of a test, that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.name != Path(__file__).name and (_PACKAGE in path.parents or path.name.startswith("test_")):
            return f"{path.name}:{frame.lineno}"
    return "?"


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _brought(index: Any) -> Any:
    """The index with its lists as tensors on the device."""
    if isinstance(index, tuple):
        return tuple(_brought(one) for one in index)
    return torch.tensor(index).to(DEVICE) if isinstance(index, list | range) else index


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value
