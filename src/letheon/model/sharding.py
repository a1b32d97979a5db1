"""Frozen weights in shares, one in each process, that are put together where they are used.

Each decoder layer is a group, as are the embeddings and the head. A process keeps an equal share of each group's bytes
and gathers a group before its layer computes, in the forward and again in the backward pass. It then lets go of the
group before, so that it holds its share of the model and one whole group. What lies outside (the last norm) is in all.

Gathering takes all processes at the same time, but each computes its own rows: one generates longer answers, another
has a piece less in its step. So they agree on every gathering: each says which group it needs, those that wait for the
others none, and what anyone needs is gathered by all. That is why PyTorch's FSDP, whose processes must run the same
passes, is not used; the bytes that travel are the same.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from letheon.launcher import Place
from letheon.model.layers import decoder_layers
from letheon.processes import among_all, exchange, said_by_all, serve_while_waiting

_MARK = "_letheon_group"
_ALIGNMENT = 64
"""Bytes: where a tensor begins in its group, and of what a share is a multiple. It is that of tensors of their own:
products round otherwise at other addresses."""
_NO_GROUP = -1


@dataclass(frozen=True, slots=True)
class Part:
    """Where a parameter lies in its group."""

    parameter: nn.Parameter
    first_byte: int

    @property
    def num_bytes(self) -> int:
        """Of the whole parameter."""
        return self.parameter.numel() * self.parameter.element_size()


class Group:
    """Parameters that are gathered together."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, device: torch.device, at: Place) -> None:
        """Begin with empty shares of `parameters`, which `_without_values` made."""
        global _num_groups
        self.number, _num_groups = _num_groups, _num_groups + 1
        _groups[self.number] = self
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += math.ceil(parameter.numel() * parameter.element_size() / _ALIGNMENT) * _ALIGNMENT
        share_bytes = math.ceil(end / (at.size * _ALIGNMENT)) * _ALIGNMENT
        self.bytes = range(at.rank * share_bytes, (at.rank + 1) * share_bytes)
        """Those of the group that this process keeps."""
        self.share = torch.zeros(share_bytes, dtype=torch.uint8, device=device)
        self._whole = torch.zeros(share_bytes * at.size, dtype=torch.uint8, device=device)
        self.parts = tuple(Part(*one) for one in zip(parameters, starts, strict=True))
        self._values, self._absent = [], []
        for part in self.parts:
            own = self._whole[part.first_byte : part.first_byte + part.num_bytes].view(part.parameter.dtype)
            self._values.append(own.view(part.parameter.shape))
            self._absent.append(part.parameter.data)
            setattr(part.parameter, _MARK, self)
        self._whole.untyped_storage().resize_(0)

    @property
    def is_whole(self) -> bool:
        """Whether its parameters have their values."""
        return self is _current

    @torch.no_grad()
    def gather(self) -> None:
        """Give its parameters their values; what was gathered before is let go."""
        if self.is_whole:
            return
        if _current is not None:
            _current.let_go()
        _gather_wanted(self)

    def take_part(self) -> None:
        """Send this process's share to those that need it."""
        exchange(self.share, torch.empty(len(self._whole), dtype=torch.uint8, device=self.share.device))

    def fill(self) -> None:
        """Receive all shares."""
        global _current  # noqa: PLW0603
        # The same storage each time: autograd has views of it from the forward pass.
        self._whole.untyped_storage().resize_(len(self._whole))
        exchange(self.share, self._whole.detach())
        for part, value in zip(self.parts, self._values, strict=True):
            part.parameter.data = value
        _current = self

    def let_go(self) -> None:
        """Keep this process's share alone."""
        global _current  # noqa: PLW0603
        for part, absent in zip(self.parts, self._absent, strict=True):
            part.parameter.data = absent
        self._whole.untyped_storage().resize_(0)
        _current = None

    @torch.no_grad()
    def put(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give one of its parameters another value (its shape), in the whole group and in this process's share."""
        assert self.is_whole
        (part,) = (part for part in self.parts if part.parameter is parameter)
        parameter.copy_(value)
        flat = parameter.detach().contiguous().view(-1).view(torch.uint8)
        first, last = self.within(part)
        self.share[first - self.bytes.start : last - self.bytes.start] = flat[
            first - part.first_byte : last - part.first_byte
        ]

    def within(self, part: Part) -> tuple[int, int]:
        """Return the first byte of a parameter in the group that this process keeps, and the one after the last."""
        first = max(part.first_byte, self.bytes.start)
        return first, max(min(part.first_byte + part.num_bytes, self.bytes.stop), first)


_groups: weakref.WeakValueDictionary[int, Group] = weakref.WeakValueDictionary()
_num_groups = 0
_current: Group | None = None
"""The group that is whole in this process."""


def _gather_wanted(wanted: Group | None) -> bool:
    """Gather, together with all processes, what each of them needs; return whether any needed something."""
    numbers = set(said_by_all(_NO_GROUP if wanted is None else wanted.number)) - {_NO_GROUP}
    for number in sorted(numbers):
        group = _groups[number]
        if group is wanted:
            group.fill()
        else:
            group.take_part()
    return bool(numbers)


def _serve() -> None:
    while _gather_wanted(None):
        pass


def shard(model: PreTrainedModel, *, device: torch.device) -> tuple[list[Group], list[nn.Parameter]]:
    """Cut the parameters of a model without values (on "meta") into groups, which its modules gather when they run.

    Return the groups, with empty shares, and the parameters that are in none.

    Raises:
        ModelError: the decoder layers cannot be told.
    """
    serve_while_waiting(_serve)
    at, taken, groups = among_all(), set[int](), list[Group]()
    _without_values(model, device)
    for module in _grouped(model):
        parameters = [p for p in _distinct(module.parameters()) if id(p) not in taken]
        if parameters:
            taken.update(map(id, parameters))
            groups.append(Group(parameters, device=device, at=at))
        group = next((found for p in module.parameters() if (found := group_of(p)) is not None), None)
        if group is not None:
            _gather_in(module, group)
    return groups, [p for p in _distinct(model.parameters()) if id(p) not in taken]


def held_bytes(model: PreTrainedModel, num_processes: int) -> int:
    """Return the most bytes of a model's weights that each of so many processes holds: its shares, the largest group
    whole, and what lies in no group.

    Raises:
        ModelError: the decoder layers cannot be told.
    """
    taken, sizes = set[int](), list[int]()
    for module in _grouped(model):
        parameters = [p for p in _distinct(module.parameters()) if id(p) not in taken]
        taken.update(map(id, parameters))
        sizes.append(sum(p.nbytes for p in parameters))
    others = sum(p.nbytes for p in _distinct(model.parameters()) if id(p) not in taken)
    return sum(math.ceil(size / num_processes) for size in sizes) + max(sizes) + others


def _without_values(model: nn.Module, device: torch.device) -> None:
    """Bring a model's parameters from "meta" to a device, frozen and each of one number.

    It is NaN, so that whoever reads them without gathering gets no stale value, of the right shape and device.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            absent = torch.full((), torch.nan, dtype=parameter.dtype, device=device).expand(parameter.shape)
            new = made.setdefault(id(parameter), nn.Parameter(absent, requires_grad=False))
            setattr(module, name, new)


def _grouped(model: PreTrainedModel) -> Iterator[nn.Module]:
    yield from decoder_layers(model)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield module


def _distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())


def _gather_in(module: nn.Module, group: Group) -> None:
    """Have the modules in `module` gather its group before they run, and before what it gave is differentiated."""

    def before(_module: nn.Module, _given: object) -> None:
        group.gather()

    def again(_gradient: Tensor) -> None:
        group.gather()

    def after(_module: nn.Module, _given: object, output: object) -> None:
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(again)

    # A layer whose forward is replaced by one that passes its input on runs none of these, and needs no weights.
    inner = [one for one in module.modules() if one is not module]
    for one in inner or [module]:
        if next(one.parameters(), None) is not None:
            one.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def group_of(parameter: Tensor) -> Group | None:
    """Return the group that a parameter is in, None of one that is in memory as a whole."""
    return cast("Group | None", getattr(parameter, _MARK, None))


def is_sharded(model: nn.Module) -> bool:
    """Return whether some of a model's weights lie in shares."""
    return any(group_of(parameter) is not None for parameter in model.parameters())


def gather(module: nn.Module) -> None:
    """Give the first sharded parameters in a module their values, until other ones are gathered."""
    group = next((found for p in module.parameters() if (found := group_of(p)) is not None), None)
    if group is not None:
        group.gather()


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter itself, with its values, which it has until another group is gathered."""
    group = group_of(parameter)
    if group is not None:
        group.gather()
    return parameter


def put(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter another value (its shape), in all processes."""
    group = group_of(parameter)
    if group is None:
        parameter.data.copy_(value)
    else:
        group.gather()
        group.put(parameter, value)


class WholeState(Mapping[str, Tensor]):
    """Names and tensors of a model, gathered and copied, or made, one by one when they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], made: Mapping[int, Any] | None = None) -> None:
        """Hold `tensors` by name; `made` has what is computed in place of some, by the identity of the tensor."""
        self._tensors, self._made = dict(tensors), made or {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of this name."""
        tensor = self._tensors[name]
        value = whole(tensor)
        make = self._made.get(id(tensor))
        return value.detach().clone() if make is None else make()

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._tensors)

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes by name, without gathering anything."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def without_repeats(self) -> dict[str, Tensor]:
        """Return name and parameter, values absent, of each tensor once: of tied ones the first name."""
        first: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            first.setdefault(id(tensor), name)
        return {name: self._tensors[name] for name in first.values()}


def state_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the state of a model by name, its sharded weights gathered one group at a time as they are asked for."""
    return WholeState(model.state_dict(keep_vars=True)) if is_sharded(model) else model.state_dict()
