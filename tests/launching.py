"""Processes of torchrun for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).parent / "processes" / "worker.py"
TIMEOUT_S = 300


def command(num: int, *what: str) -> list[str]:
    """Return the command that starts `num` processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num), *what]


def environment() -> dict[str, str]:
    """Return the environment of launched processes: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def together(num: int, commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Have `num` processes do what the command lines say, in one launch."""
    file = folder / f"commands-{num}.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    done = subprocess.run(
        command(num, str(WORKER), str(file)),
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
