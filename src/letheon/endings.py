"""How a command ends: its exit code and its last line, for reports, errors and signals alike.

0     all was done
1     some or all runs of a study failed, diverged or could not be scored
2     a mistake that the user can mend, or a full disk; nothing was begun, or it can go on
3     training met a loss or gradient that is not finite
130   SIGINT (Ctrl-C): what was under way is saved or was never begun
143   SIGTERM, likewise
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from letheon.errors import EndedElsewhereError, LetheonError, without_secrets
from letheon.signals import HEEDED, Interrupted, signals_raised
from letheon.storage.visible import visible_line

DONE, FAILED, MISTAKE = 0, 1, 2

_GO_ON = ("unlearn", "study")
"""Commands that go on where they were ended; others begin again."""


@dataclass(slots=True)
class Ending:
    """What a command tells of itself while it runs, for the last line of one that is ended by a signal."""

    resumes_in: Path | None = None
    """A folder that, once it is there, needs --resume to be gone on in."""
    removed_first: Path | None = None
    """A folder that must be empty for the command to begin again."""

    def command(self, arguments: Sequence[str]) -> str:
        """Return the command line that goes on with what `arguments` began, or does it again."""
        resumes = self.resumes_in is not None and self.resumes_in.is_dir() and "--resume" not in arguments
        line = shlex.join(["letheon", *arguments, *(["--resume"] if resumes else [])])
        folder = self.removed_first
        is_in_the_way = folder is not None and folder.is_dir() and any(folder.iterdir())
        return f"rm -r {shlex.quote(str(folder))} && {line}" if is_in_the_way else line


def run_to_end(command: Callable[[Ending], Any], arguments: Sequence[str]) -> int:
    """Run a command, say on standard error why it ended where that needs saying, and return its exit code.

    `command` returns the exit code, or nothing for 0; `arguments` are those of the command line.
    """
    ending = Ending()
    try:
        with signals_raised():
            code = int(command(ending) or DONE)
    except Interrupted as interrupted:
        code = 128 + interrupted.signal_number
    except EndedElsewhereError as error:
        code = error.exit_code  # the process that met it says so
    except click.Abort:
        code = 128 + signal.SIGINT
    except (click.ClickException, LetheonError, OSError) as error:
        code = _say_what_went_wrong(error)
    if code - 128 in HEEDED:
        _say_how_to_go_on(ending, arguments, signal.Signals(code - 128))
    return code


def _say_what_went_wrong(error: click.ClickException | LetheonError | OSError) -> int:
    """Say it in one paragraph, and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; nothing is left to say, and Python's own farewell must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    message, code = _words_of(error)
    # What the message quotes of files and settings cannot steer the terminal.
    click.echo(f"letheon: error: {visible_line(without_secrets(message))}", err=True)
    return code


def _words_of(error: click.ClickException | LetheonError | OSError) -> tuple[str, int]:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "letheon"
        return f"{error.format_message().rstrip('.')} (`{path} --help` lists what there is)", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, LetheonError):
        return str(error), error.exit_code
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}; check that path, its permissions and the disk", MISTAKE


def _say_how_to_go_on(ending: Ending, arguments: Sequence[str], number: signal.Signals) -> None:
    what = "go on with" if arguments and arguments[0] in _GO_ON else "begin again with"
    line = f"letheon: ended by {number.name}; {what}: {ending.command(arguments)}"
    click.echo(visible_line(without_secrets(line)), err=True)
