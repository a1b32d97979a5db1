"""Stages of a long job, each a process of its own whose result is kept under a fingerprint of what went in."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from letheon.storage.files import write_json

_COST_FILE = "cost.json"
_KEY_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took; of one that was killed and went on, the last attempt."""

    wall_s: float
    process_s: float
    """Of all threads together."""
    peak_bytes: int
    """Resident memory at its highest, imports included."""


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a stage."""

    path: Path
    """A file or folder."""
    key: str
    """The fingerprint of all that it was made from, and of what that was made from."""
    cost: Cost


class StageError(RuntimeError):
    """A stage failed; the results of those before it are kept."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Runs stages that are not done, and finds the results of those that are.

    The code is no part of a fingerprint: choose another folder for another version of it.
    """

    folder: Path

    def make(
        self, name: str, made_from: object, command: Callable[[Path], Sequence[object]], *, resumes: bool = False
    ) -> Made:
        """Return the result of a stage, running it where there is none.

        `made_from` is plain data that decides what comes out: another value is another stage. `command` is given the
        path for the result and returns a module and its arguments. What a killed process left is removed before it is
        run again, unless it `resumes`, in which case the command finds it at the path.

        Raises:
            StageError: the process failed; what it said went to the terminal and to log.txt.
        """
        key = fingerprint_of([name, made_from])
        place = self.folder / f"{name}-{key}"
        path, cost_file = place / "made", place / _COST_FILE
        if cost_file.exists():
            return Made(path, key, Cost(**json.loads(cost_file.read_text(encoding="utf-8"))))
        if place.exists() and not resumes:
            shutil.rmtree(place)
        place.mkdir(parents=True, exist_ok=True)
        print(f"{name}: running in {place}", file=sys.stderr, flush=True)
        cost = run_process(command(path), log=place / "log.txt")
        write_json(cost_file, asdict(cost))
        return Made(path, key, cost)


def fingerprint_of(values: object) -> str:
    """Return a short hash of plain data."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LETTERS]


def run_process(command: Sequence[object], *, log: Path) -> Cost:
    """Run a module with arguments and return what it took; its output goes to the end of `log`.

    Raises:
        StageError: its exit code is not 0.
    """
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=file, stderr=subprocess.STDOUT)
        # Unlike Popen.wait, wait4 tells what this one child used.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["it said nothing"]
        raise StageError(f"{' '.join(map(str, command))}: exit code {process.returncode}: {last[0]}; see {log}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)
