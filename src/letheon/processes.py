"""Several processes, started by torchrun or `accelerate launch`, that do one job together.

All of them run the same program over the same rows. Where there is much to compute each computes its share, and all
get all results (`shared`, `added`); where something is read once, written or decided, the first does it and tells the
others (`from_first`, `on_first`, `highest`). So every process takes the same decisions, and without a launcher each of
these functions is the plain computation.

A process that ends closes its connections, which ends the others' wait: they end too, with an error that says so.

What processes need of one another while each computes its own share, such as weights that lie in several of them, goes
by `said_by_all` and `exchange`. A process that waits for the others takes part in it meanwhile (`serve_while_waiting`).
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from letheon.errors import EndedElsewhereError, LetheonError, ProcessError
from letheon.launcher import Place, place
from letheon.signals import Interrupted

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Value = TypeVar("Value")
Given = ParamSpec("Given")

WAIT = timedelta(days=7)
"""How long a process waits for another that is alive: the first may write a large model meanwhile."""
_SIGNAL = "letheon/signal"
"""Where a process that a signal ends leaves its number for the others."""


_alone = Place()
_here: Place = _alone
"""The place while processes are joined and work together; alone before, after, and where one works for all."""
_joined: Place = _alone
"""The place while processes are joined, also where one works for all."""
_serve: "Callable[[], None] | None" = None
"""What a process does for the others before it waits for them."""


def here() -> Place:
    """Return this process's place among those that work together at present."""
    return _here


def among_all() -> Place:
    """Return this process's place among those that are joined, also while it computes its own share."""
    return _joined


def in_processes(job: Callable[Given, Value]) -> Callable[Given, Value]:
    """Have a job done by all processes that a launcher started, together."""

    @wraps(job)
    def do(*args: Given.args, **given: Given.kwargs) -> Value:
        with joined():
            return job(*args, **given)

    return do


@contextmanager
def joined() -> Iterator[None]:
    """Have the processes of a launcher work together while the block lasts; at its end they wait for one another.

    They stay connected until the process ends.

    Raises:
        ProcessError: they cannot be connected, or another one ended.
    """
    global _here, _joined  # noqa: PLW0603 - as torch's own process group, there is one for the process
    at = place()
    if at.size == 1 or _here.size > 1:
        yield
        return
    import torch

    _connect(at)
    _here = _joined = at
    try:
        yield
        _waited(torch.distributed.barrier)
    except Interrupted as interrupted:
        with suppress(Exception):  # a store that is gone tells nobody
            _store().set(_SIGNAL, str(interrupted.signal_number))
        raise
    finally:
        _here = _joined = _alone


@contextmanager
def alone() -> Iterator[None]:
    """Work without the others while the block lasts, in a process for whose results they wait."""
    global _here  # noqa: PLW0603
    before, _here = _here, _alone
    try:
        yield
    finally:
        _here = before


@contextmanager
def silent_unless_first() -> Iterator[None]:
    """Let only the first process write to the terminal while the block lasts."""
    if place().is_first:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def shared(
    items: Sequence[Item],
    compute: Callable[[Item], Value],
    *,
    counts: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Value]:
    """Return `compute` of each item, in their order; each process computes every size-th, and all get all.

    An error in one is raised in all. `progress` hears after each item how much is done and how much there is, by
    `counts` of the items; of several processes it is told as if they were equally far.
    """
    at, sizes = _here, list(counts) if counts is not None else [1] * len(items)
    total, done = sum(sizes), 0

    def computed(number: int) -> Value:
        nonlocal done
        value = compute(items[number])
        done += sizes[number]
        if progress is not None:
            progress(min(done * at.size, total), total)
        return value

    if at.size == 1:
        return [computed(number) for number in range(len(items))]
    mine: list[Value] | Exception
    try:
        with alone():
            mine = [computed(number) for number in range(at.rank, len(items), at.size)]
    except Exception as error:
        mine = error
    found = _gathered(mine)
    for one in found:
        if isinstance(one, Exception):
            raise one
    shares = cast("list[list[Value]]", found)
    return [shares[number % at.size][number // at.size] for number in range(len(items))]


def from_first(compute: Callable[[], Value]) -> Value:
    """Return what the first process computes, in all of them.

    Raises:
        EndedElsewhereError: in the others, where it raised a LetheonError.
    """
    at = _here
    if at.size == 1:
        return compute()
    if not at.is_first:
        value, message, code = _broadcast(None)
        if message is not None:
            raise EndedElsewhereError(message, code)
        return cast("Value", value)
    try:
        with alone():
            value = compute()
    except LetheonError as error:
        _broadcast((None, str(error), error.exit_code))
        raise
    _broadcast((value, None, 0))
    return value


def on_first(do: Callable[[], object]) -> None:
    """Have the first process do something while the others wait for its end.

    Raises:
        EndedElsewhereError: as `from_first`.
    """

    def done() -> None:
        do()

    from_first(done)


def in_turn(compute: Callable[[], Value]) -> Value:
    """Return what each process computes for itself, the first before the others, so that an error is reported once.

    Raises:
        EndedElsewhereError: as `from_first`.
    """
    found: list[Value] = []
    on_first(lambda: found.append(compute()))
    return found[0] if found else compute()


def highest(*values: int) -> tuple[int, ...]:
    """Return, place by place, the highest of the values that the processes give."""
    if _here.size == 1:
        return values
    import torch

    found = torch.tensor(values)
    _waited(lambda: torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX))
    return tuple(found.tolist())


def added(values: "torch.Tensor") -> "torch.Tensor":
    """Return the sum of the tensors (any shape, float32) that the processes give: one all-reduce, the same in each."""
    if _here.size == 1:
        return values
    import torch

    total = values.contiguous()
    _waited(lambda: torch.distributed.all_reduce(total))
    return total


def serve_while_waiting(serve: Callable[[], None]) -> None:
    """Have `serve` called, in each process, before it waits for the others; it returns when all of them wait."""
    global _serve  # noqa: PLW0603
    _serve = serve


def said_by_all(value: int) -> list[int]:
    """Return what each of the joined processes says, by rank: to be called by all of them, whatever they compute."""
    if _joined.size == 1:
        return [value]
    import torch

    found = torch.empty(_joined.size, dtype=torch.int64)
    _together(lambda: _all_gather(found, torch.tensor([value])))
    return found.tolist()


def exchange(share: "torch.Tensor", whole: "torch.Tensor") -> None:
    """Put the shares (N,) of the joined processes, in their order, into `whole` (N times as many as they are,)."""
    if _joined.size == 1:
        whole.copy_(share)
        return
    _together(lambda: _all_gather(whole, share))


def share_by_size(sizes: Sequence[int]) -> list[int]:
    """Return which of some things, by number and in order, are this process's (see `shares_by_size`)."""
    return shares_by_size(sizes)[_here.rank]


def shares_by_size(sizes: Sequence[int], num_processes: int | None = None) -> list[list[int]]:
    """Return which of some things, by number and in order, are each process's: the largest first, each to the process
    that has least. They are as many as work together at present unless `num_processes` says otherwise."""
    size = num_processes or _here.size
    if size == 1:
        return [list(range(len(sizes)))]
    loads, shares = [0] * size, [list[int]() for _ in range(size)]
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        owner = loads.index(min(loads))
        loads[owner] += sizes[number]
        shares[owner].append(number)
    return [sorted(share) for share in shares]


def _connect(at: Place) -> None:
    import torch

    if torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(at.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend, rank=at.rank, world_size=at.size, timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessError(
            f"process {at.rank} of {at.size} cannot reach the others at {where} ({_first_line(error)}); check that "
            f"all were started and that the address is that of the first"
        ) from error
    atexit.register(_disconnect)


def _disconnect() -> None:
    import torch

    with suppress(Exception):  # of connections that are closed already
        torch.distributed.destroy_process_group()


def _gathered(value: Value) -> list[Value]:
    import torch

    found: list[Any] = [None] * _here.size
    _waited(lambda: torch.distributed.all_gather_object(found, value))
    return found


def _all_gather(whole: "torch.Tensor", share: "torch.Tensor") -> None:
    import torch

    # Newer versions warn of the name that older ones have alone.
    newer = getattr(torch.distributed, "all_gather_single", None)
    (newer or torch.distributed.all_gather_into_tensor)(whole, share)


def _broadcast(value: Any) -> Any:
    import torch

    held = [value]
    _waited(lambda: torch.distributed.broadcast_object_list(held, src=0))
    return held[0]


def _waited(collective: Callable[[], object]) -> None:
    """Do something that all processes do, which wait for one another here.

    Raises:
        Interrupted, ProcessError: as `_together`.
    """
    if _serve is not None and _joined.size > 1:
        _serve()
    _together(collective)


def _together(collective: Callable[[], object]) -> None:
    """Do something that all processes do.

    Raises:
        Interrupted: a signal ended another one.
        ProcessError: another one ended in another way.
    """
    try:
        collective()
    except RuntimeError as error:
        number = _signal_elsewhere()
        if number is not None:
            raise Interrupted(number) from error
        raise ProcessError(
            f"process {_joined.rank} of {_joined.size} waited for the others, but one of them ended "
            f"({_first_line(error)}); what it said last tells why: after a kill or a crash, run again with --resume"
        ) from error


def _signal_elsewhere() -> int | None:
    """The signal that ended another process, None if none did."""
    try:
        store = _store()
        return int(store.get(_SIGNAL)) if store.check([_SIGNAL]) else None
    except Exception:
        return None


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
