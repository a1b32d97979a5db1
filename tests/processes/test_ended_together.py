"""Processes that work together end together: after a signal, a kill, and a mistake that one of them reports."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from courses import arguments_of, make_inputs
from launching import TIMEOUT_S, command, environment

pytestmark = pytest.mark.slow

WITHIN_S = 60


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), tokenizer)


def started(arguments: list[str], out: Path) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """Start two processes that take steps, and return the launcher and their numbers by rank."""
    launched = subprocess.Popen(
        command(2, "-m", "letheon", *arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )
    log = out / "log.jsonl"
    until = time.monotonic() + TIMEOUT_S
    while not (log.exists() and '"step"' in log.read_text(encoding="utf-8")):
        assert launched.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    return launched, ranks_of(launched.pid)


def ranks_of(launcher: int) -> dict[int, int]:
    found = dict[int, int]()
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for pid in map(int, (task / "children").read_text(encoding="ascii").split()):
            given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks = [int(one.removeprefix(b"RANK=")) for one in given if one.startswith(b"RANK=")]
            found |= dict.fromkeys(ranks, pid)
    return found


def long_run(inputs: Path, out: Path) -> list[str]:
    return [*arguments_of(inputs, out, epochs=5000, checkpoint_epochs=5000), "--no-evaluate"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_ends_all_cleanly(rank: int, inputs: Path, tmp_path: Path) -> None:
    launched, ranks = started(long_run(inputs, tmp_path / "run"), tmp_path / "run")
    os.kill(ranks[rank], signal.SIGTERM)
    _, said = launched.communicate(timeout=WITHIN_S)
    assert said.count("exitcode  : 143") == 2
    assert said.count("letheon: ended by SIGTERM; go on with: letheon unlearn") >= 1
    attempts = json.loads((tmp_path / "run" / "attempts.json").read_text(encoding="utf-8"))
    assert attempts[0]["reason"] == "signal 15"
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_none_waits_for_one_that_was_killed(rank: int, inputs: Path, tmp_path: Path) -> None:
    launched, ranks = started(long_run(inputs, tmp_path / "run"), tmp_path / "run")
    os.kill(ranks[rank], signal.SIGKILL)
    launched.communicate(timeout=WITHIN_S)
    assert launched.returncode != 0
    assert not Path(f"/proc/{ranks[1 - rank]}").exists()


def test_a_process_without_a_launcher_that_watches_says_who_ended(inputs: Path, tmp_path: Path) -> None:
    """As srun starts processes: nobody ends the others when one is gone."""
    with_address = {**environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    arguments = [*command(1)[:1], "-m", "letheon", *long_run(inputs, tmp_path / "run")]
    both = [
        subprocess.Popen(arguments, env={**with_address, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + TIMEOUT_S
    while not (log.exists() and '"step"' in log.read_text(encoding="utf-8")):
        assert all(one.poll() is None for one in both)
        assert time.monotonic() < until
        time.sleep(0.1)
    both[0].kill()
    _, said = both[1].communicate(timeout=WITHIN_S)
    both[0].communicate()
    assert both[1].returncode == 1
    assert "letheon: error: process 1 of 2 waited for the others, but one of them ended" in said


def test_a_mistake_is_said_once(inputs: Path, tmp_path: Path) -> None:
    arguments = arguments_of(inputs, tmp_path / "run", forget=tmp_path / "none.jsonl")
    done = subprocess.run(
        command(2, "-m", "letheon", *arguments),
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stderr.count("letheon: error: ") == 1
    assert "none.jsonl" in done.stderr
    assert done.stderr.count("exitcode  : 2") == 2
    assert not (tmp_path / "run").exists()
