"""The exceptions that Letheon raises on purpose.

    LetheonError                  whatever the user can cause, exit code 2
    ├── SettingsError             a setting is unknown, out of range or contradicts another
    ├── DataError                 a row, a file of rows or a benchmark folder is not usable
    ├── ModelError                a checkpoint, tokenizer or adapter is not usable
    ├── EvaluationError           scores cannot be computed from what was given
    ├── OutputError               the result cannot be written where it was asked for
    ├── MissingExtraError         an optional dependency is not installed
    ├── ProcessError              processes that work together cannot reach one another, or one ended
    └── DivergenceError           training met a loss or gradient that is not finite, exit code 3

Each message is one paragraph that says what was expected, what came, where, and what to do next.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable


class LetheonError(ValueError):
    """Base of all errors that a user can cause; the command line prints the message and exits with `exit_code`."""

    exit_code = 2


class SettingsError(LetheonError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another setting."""


class DataError(LetheonError):
    """A file of rows or a row in it is not usable; the message names the file and the line."""


class ModelError(LetheonError):
    """A checkpoint, its tokenizer or an adapter cannot be used as asked."""


class EvaluationError(LetheonError):
    """Scores cannot be computed from the given data."""


class OutputError(LetheonError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(LetheonError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs packages that are not installed; run: pip install 'letheon[{extra}]'")


class DivergenceError(LetheonError):
    """Training met a loss or a gradient that is not finite; the last good checkpoint is left in place."""

    exit_code = 3


class GivenUpError(LetheonError):
    """A run was ended because other runs do better; its last state is left in place."""


class ProcessError(LetheonError):
    """Processes that work together cannot reach one another, or one of them ended before the others."""

    exit_code = 1


class EndedElsewhereError(ProcessError):
    """Another process met an error, which that process reports."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name closest to `name` in any case, "" if none is close."""
    spelt = {other.lower(): other for other in known}
    matches = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return f" (did you mean '{spelt[matches[0]]}'?)" if matches else ""


def shown(value: object) -> str:
    """Return a value as an error quotes it: its repr, of which only the beginning where it is long or nested deep."""
    return _short.repr(value)


def without_secrets(text: str) -> str:
    """Return `text` with Hugging Face tokens and the passwords in addresses (scheme://user:password@host) masked."""
    return _PASSWORD.sub(r"\1***@", _TOKEN.sub("hf_***", text))


_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bapi_org_[A-Za-z0-9]{8,}")
_PASSWORD = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@]*:)[^\s/]+@")

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 120
