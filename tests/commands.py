"""Commands in processes of their own, which are sent signals at a line that they print."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def environment(**more: str) -> dict[str, str]:
    """That of this process, with our source first, one thread and no network."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **fixed, **more}


def start(*arguments: object, setup: str = "") -> "subprocess.Popen[str]":
    """Start a command line as the shell would, after the Python code `setup`, which may slow it down."""
    code = f"{setup}\nfrom letheon.cli.main import main\nmain()\n"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for a command, and return its exit code and what was left of its output and its errors."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def signalled(
    *arguments: object, at: str | Callable[[str], bool], number: signal.Signals = signal.SIGTERM, setup: str = ""
) -> tuple[int, str, str]:
    """Run a command and send it a signal when it has said a line with `at` in it on standard error or output."""
    is_due = at if callable(at) else lambda line: at in line
    process = start(*arguments, setup=f"import sys; sys.stdout = sys.stderr\n{setup}")
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if is_due(line):
            process.send_signal(number)
            break
    else:
        raise AssertionError(f"it never came to {at!r}: {''.join(said)}")
    code, out, err = finish(process)
    return code, out, "".join(said) + err
