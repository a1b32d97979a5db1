"""Locks: the second run in a folder is refused, a lock whose owner is gone is taken over, a store is built once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from letheon.errors import OutputError
from letheon.storage import locks
from letheon.storage.locks import clear_locks, file_lock, folder_lock
from letheon.storage.run_folder import LOCK_FILE, OWNER_FILE

HOLDER = """
import sys, time
from pathlib import Path
from letheon.storage.locks import folder_lock
with folder_lock(Path(sys.argv[1]), note=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds `folder` until its standard input is closed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        expected = rf"is in use by process {process.pid} of \S+ on {socket.gethostname()}, since 20\d\d-\d\d-\d\dT"
        with pytest.raises(OutputError, match=expected), folder_lock(tmp_path, note=print):
            pass
        assert (tmp_path / OWNER_FILE).exists()
    with folder_lock(tmp_path, note=print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_killed_process_is_taken_over_and_said(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / OWNER_FILE).exists()
    notes: list[str] = []
    with folder_lock(tmp_path, note=notes.append):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    assert len(notes) == 1
    assert f"process {process.pid} of " in notes[0]
    assert "ended without releasing it; this process takes it over" in notes[0]


def test_locks_of_the_killed_are_cleared_below_a_folder_and_no_others(tmp_path: Path) -> None:
    killed, alive, far, half = (tmp_path / "runs" / name for name in ("killed", "alive", "far", "half"))
    for folder in (killed, alive, far, half):
        folder.mkdir(parents=True)
    with held_elsewhere(killed) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    other_machine(far)
    (half / LOCK_FILE).touch()
    with held_elsewhere(alive):
        clear_locks(tmp_path)
        left = {str(path.relative_to(tmp_path / "runs")) for path in tmp_path.rglob(".*")}
    assert left == {f"alive/{LOCK_FILE}", f"alive/{OWNER_FILE}", f"far/{OWNER_FILE}"}


def test_a_thread_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            with folder_lock(tmp_path, note=print):
                pass
        except OutputError as error:
            refused.append(str(error))

    with folder_lock(tmp_path, note=print):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


def other_machine(folder: Path) -> None:
    owner = {"pid": 1, "host": "elsewhere", "user": "mira", "since": "2026-01-01T00:00:00+00:00"}
    (folder / OWNER_FILE).write_text(json.dumps(owner))


def test_silence_of_another_machine_is_waited_for(tmp_path: Path) -> None:
    other_machine(tmp_path)
    notes: list[str] = []
    with folder_lock(tmp_path, note=notes.append, silence_s=0.05):
        pass
    assert "waiting up to 0.05 s to see whether process 1 of mira on elsewhere" in notes[0]
    assert "takes it over" in notes[1]


def test_a_sign_of_another_machine_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_machine(tmp_path)
    # The heartbeat of the other machine comes while this one sleeps between two looks.
    monkeypatch.setattr(locks, "sleep", lambda _: os.utime(tmp_path / OWNER_FILE, ns=(1, 1)))
    with (
        pytest.raises(OutputError, match="in use by process 1 of mira on elsewhere"),
        folder_lock(tmp_path, note=lambda _: None, silence_s=10),
    ):
        pass
    assert (tmp_path / OWNER_FILE).exists()


def test_an_owner_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with folder_lock(tmp_path, note=print):
        os.utime(tmp_path / OWNER_FILE, ns=(1, 1))
        until = time.monotonic() + 10
        while (tmp_path / OWNER_FILE).stat().st_mtime_ns == 1:
            assert time.monotonic() < until, "no heartbeat"


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', "\0\0"])
def test_a_torn_name_is_no_obstacle(content: str, tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text(content)
    with folder_lock(tmp_path, note=print):
        pass


def test_a_folder_that_cannot_be_locked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be locked"), folder_lock(tmp_path / "file", note=print):
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_lock(tmp_path, note=print):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_of_many_builders_one_builds_at_a_time_and_the_others_are_told(tmp_path: Path) -> None:
    path, inside, most, notes = tmp_path / "store", list[int](), list[int](), list[str]()

    def build(number: int) -> None:
        with file_lock(path, note=notes.append, what="the store"):
            inside.append(number)
            most.append(len(inside))
            if not path.exists():
                path.write_text(str(number))
            inside.remove(number)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(6)]
    with file_lock(path, note=notes.append, what="the store"):
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(notes) < 6:
            assert time.monotonic() < until, "not all of them wait"
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert notes[0] == f"waiting for the store, which another process is making ({path})"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_place_where_no_lock_can_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong: Any = tmp_path / "file" / "store"
    with pytest.raises(OutputError, match="cannot be locked"), file_lock(wrong, note=print, what="it"):
        pass
