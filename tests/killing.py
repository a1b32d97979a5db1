"""Runs that are killed: a forked process is ended by SIGKILL at a chosen place, and what is left is compared."""

import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from launching import TIMEOUT_S
from letheon import UnlearnSettings
from letheon.training.checkpoint import Checkpoint, newest_checkpoint
from letheon.training.tracking import first_events
from letheon.unlearning.populations.together import divergence_of
from letheon.unlearning.run import unlearn

PIECES = ("letheon.unlearning.problem.compose",)
"""Called once for each piece of a step."""
WRITES = (
    "os.fsync",
    "os.replace",
    "os.mkdir",
    "os.unlink",
    "shutil.rmtree",
    "letheon.training.checkpoint.save_file",
    "letheon.engine.reference_cache.save_file",
    "letheon.training.checkpoint._sha256",
    "letheon.training.tracking.Log.write",
    "letheon.training.tracking.Log.flush",
)
"""Between any two calls of these the disk is in another state."""

Action = Callable[[], Any]

TIMES = ("duration_s", "time", "peak_memory_bytes")


@contextmanager
def counted(places: tuple[str, ...], on_call: Callable[[], None]) -> Iterator[None]:
    """Call `on_call` before and after each call of the functions named by `places`."""
    with ExitStack() as stack:
        for place in places:
            owner, _, name = place.rpartition(".")
            original = getattr(resolve_name(owner), name)
            stack.enter_context(patch(place, _around(original, on_call)))
        yield


def _around(original: Callable[..., Any], on_call: Callable[[], None]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        on_call()
        result = original(*args, **kwargs)
        on_call()
        return result

    return wrapper


def count_calls(given: Mapping[str, Any], places: tuple[str, ...]) -> int:
    """Run to the end, and return before or after how many calls a kill could come."""
    return calls_of(lambda: unlearn(UnlearnSettings.of(given)), places)


def calls_of(action: Action, places: tuple[str, ...]) -> int:
    """Do `action` to the end, and return before or after how many calls a kill could come."""
    calls: list[None] = []
    with counted(places, lambda: calls.append(None)):
        action()
    return len(calls)


def run_and_kill(given: Mapping[str, Any], places: tuple[str, ...], *, at: int) -> bool:
    """Run in a process of its own that is killed at call `at`, from 1; return whether it came to that."""
    return kill(lambda: unlearn(UnlearnSettings.of(given)), places, at=at)


def kill(action: Action, places: tuple[str, ...], *, at: int) -> bool:
    """Do `action` in a process of its own that is killed at call `at`, from 1; return whether it came to that."""
    number = 0

    def kill_when_due() -> None:
        nonlocal number
        number += 1
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking beside threads
        child = os.fork()
    if child == 0:
        _as_child(action, places, kill_when_due)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGALRM, "the run to kill hangs"
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0, "the run failed before it could be killed"
    return os.WIFSIGNALED(status)


def end_if_it_hangs() -> None:
    """Have this forked process be ended by SIGALRM after `TIMEOUT_S`, with the stack of every thread."""
    faulthandler.register(signal.SIGALRM, file=sys.__stderr__ or 2, chain=True)
    signal.alarm(TIMEOUT_S)


def _as_child(action: Action, places: tuple[str, ...], on_call: Callable[[], None]) -> None:
    code = 1
    end_if_it_hangs()
    try:
        with counted(places, on_call):
            action()
        code = 0
    except BaseException as error:  # whatever it is, the forked process must not return into the tests
        print(f"the run to kill failed: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def cut_power(folder: Path, generator: random.Random) -> None:
    """Shorten at random what the disk had not been told to keep: files under temporary names, the end of the log."""
    for path in [p for p in folder.rglob("*") if p.is_file() and ".tmp" in str(p.relative_to(folder))]:
        os.truncate(path, generator.randint(0, path.stat().st_size))
    log = folder / "log.jsonl"
    if log.exists():
        newest, diverged = newest_of(folder), divergence_of(folder)
        events = max(newest.position.log_events if newest else 0, diverged.log_events if diverged else 0)
        safe, _ = first_events(log, events)
        os.truncate(log, generator.randint(safe, log.stat().st_size))


def newest_of(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, of its last run where it has several."""
    folders = sorted((folder / "checkpoints").glob("member-*")) or [folder / "checkpoints"]
    return next((found for f in reversed(folders) if (found := newest_checkpoint(f)) is not None), None)


def told(folder: Path) -> list[dict[str, Any]]:
    """A run's log but for times, and for what is said of it going on."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [line for line in lines if not str(line.get("message", "")).startswith("resumed after")]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in kept]


def difference(whole: Path, resumed: Path) -> str | None:
    """Where two finished runs differ: weights, optimiser, position or log; None if they are equal bit for bit."""
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        if (whole / name).exists() and not _equal(load_file(whole / name), load_file(resumed / name)):
            return name
    first, second = newest_of(whole), newest_of(resumed)
    if first is None or second is None:
        return None if first is second and told(whole) == told(resumed) else "no checkpoint"
    if not _equal(first.parameters, second.parameters) or not _equal(first.optimiser, second.optimiser):
        return "the newest checkpoint's tensors"
    positions = [(p.step, p.num_tokens, p.history, p.control) for p in (first.position, second.position)]
    if positions[0] != positions[1]:
        return f"positions {positions}"
    if told(whole) != told(resumed):
        return "the log"
    left = [str(path.relative_to(resumed)) for path in resumed.rglob(".*")]
    if left:
        return f"left behind: {left}"
    if not (whole / "provenance.json").exists():
        return "a result" if (resumed / "provenance.json").exists() else None  # of a run that diverged
    results = [json.loads((folder / "provenance.json").read_text())["result"] for folder in (whole, resumed)]
    if any(results[0][name] != results[1][name] for name in ("reason", "kept", "num_steps", "num_tokens")):
        return f"results {results}"
    held = [[path.name for name in ("", "model") for path in (folder / name).glob("*")] for folder in (whole, resumed)]
    return None if sorted(held[0]) == sorted(held[1]) else f"files {held}"


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def set_aside(given: Mapping[str, Any]) -> Path:
    """Move a run's folder away, so that another can take its place."""
    return Path(shutil.move(given["out"], Path(given["out"]).with_name("whole")))


def model_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model that a run left."""
    return load_file(folder / "model" / "model.safetensors")


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file, which in safetensors is a bit of a tensor."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def outcome_of_kill(
    given: Mapping[str, Any], whole: Path, places: tuple[str, ...], *, at: int, power_cut: bool = False
) -> str | None:
    """Kill a run at call `at`, resume it, and return where it differs from the `whole` one, None if nowhere.

    It begins without run folder and without the store in `cache_dir`, where that is given.
    """
    folder = Path(given["out"])
    shutil.rmtree(folder, ignore_errors=True)
    if "cache_dir" in given:
        shutil.rmtree(given["cache_dir"])
    assert run_and_kill(given, places, at=at), f"{at}: there is no such call"
    if power_cut and folder.exists():
        cut_power(folder, random.Random(at))
        cut_power(Path(given.get("cache_dir", folder)), random.Random(at))
    # Killed before its folder was there, it has nothing to go on with.
    unlearn(UnlearnSettings.of({**given, "resume": folder.exists()}))
    return difference(whole, folder)
