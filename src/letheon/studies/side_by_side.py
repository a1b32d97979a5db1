"""Runs of a study in processes of their own, some at a time, each of which does one with `letheon study --run`."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch

from letheon.endings import DONE, FAILED
from letheon.signals import heed_signals
from letheon.studies.live import View

_POLL_S = 0.2
_THREADS = "OMP_NUM_THREADS"
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process that does one run."""

    name: str
    place: int
    """Which of the places for runs it takes; each has its share of the machine."""
    process: "subprocess.Popen[bytes]"
    said: IO[bytes]
    """What it has said on standard error."""


def run_side_by_side(
    runs: Mapping[str, str], *, num_jobs: int, arguments: Callable[[str], Sequence[str]], view: View
) -> int:
    """Do `runs`, names by identity, `num_jobs` at a time, and return the exit code of all.

    `arguments` are those of the command `letheon` for one identity. A signal is handed on to the processes, which save
    what they are at; nothing more is begun then. A process of this one's that is killed leaves its run to be continued.
    """
    waiting, places = list(runs), list(range(num_jobs))
    environments = [environment_of(place, num_jobs=num_jobs) for place in places]
    workers: list[_Worker] = []
    codes: list[int] = []
    is_told = False
    with heed_signals() as interruption, _ended_with_us(workers):
        while workers or (waiting and interruption.signal_number is None):
            while waiting and places and interruption.signal_number is None:
                identity, place = waiting.pop(0), places.pop(0)
                workers.append(_start(runs[identity], place, arguments(identity), environments[place]))
                view.show(runs[identity], "running", f"process {workers[-1].process.pid}")
            for worker in [worker for worker in workers if worker.process.poll() is not None]:
                codes.append(_show_end(worker, view))
                workers.remove(worker)
                places.append(worker.place)
            if interruption.signal_number is not None and not is_told:
                is_told = True
                for worker in workers:
                    worker.process.send_signal(interruption.signal_number)  # once: a second one would kill
            time.sleep(_POLL_S)
    if interruption.signal_number is not None:
        return interruption.exit_code
    return DONE if all(code == DONE for code in codes) else FAILED


def environment_of(place: int, *, num_jobs: int) -> dict[str, str]:
    """Return the environment of the process at a place, of `num_jobs`: its share of the cores, and one GPU of several.

    What the environment says of either stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {_THREADS: str(max(1, cores // num_jobs))}
    num_gpus = torch.cuda.device_count()
    if num_gpus > 1:
        visible = os.environ.get(_GPUS, ",".join(map(str, range(num_gpus)))).split(",")
        return {**own, **os.environ, _GPUS: visible[place % len(visible)]}
    return {**own, **os.environ}


def _start(name: str, place: int, arguments: Sequence[str], environment: Mapping[str, str]) -> _Worker:
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed where its process has ended
    process = subprocess.Popen(  # noqa: S603 - this program itself, and no shell
        [sys.executable, "-m", "letheon", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env=dict(environment),
        start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on
    )
    return _Worker(name, place, process, said)


def _show_end(worker: _Worker, view: View) -> int:
    code = worker.process.returncode
    with worker.said:
        worker.said.seek(0)
        lines = worker.said.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code == DONE:
        view.show(worker.name, "finished")
    elif code == FAILED:
        view.show(worker.name, "failed", last)
    else:
        view.show(worker.name, "failed", f"its process ended with exit code {code}: {last}")
    return code


@contextmanager
def _ended_with_us(workers: Sequence[_Worker]) -> Iterator[None]:
    """Have no process outlive an error of this one, or a second signal."""
    try:
        yield
    finally:
        for worker in workers:
            worker.process.terminate()
