"""Errors in given settings, in words; and checks of values that the types of the fields would accept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from letheon.errors import SettingsError, nearest, shown

_BOUNDS = {
    "greater_than_equal": ("a number of at least {}", "ge"),
    "less_than_equal": ("a number of at most {}", "le"),
    "greater_than": ("a number above {}", "gt"),
    "less_than": ("a number below {}", "lt"),
}
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most some thousand digits",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list of values",
    "dict_type": "a mapping of names to values",
    "finite_number": "a finite number",
    "too_short": "at least one value",
}
_TYPES = ("float", "constrained-float", "str", "literal['auto']")
"""What pydantic calls the types of a value that may have several."""
FLAGS_ONLY = ("recipe", "plan", "config")
"""Flags that are no settings, so that no file can hold them."""
REMOVED: Mapping[str, Mapping[str, object]] = {"unlearn": {"compile": False}}
"""Settings that earlier versions had, by command, each with the value that asked for what is always done now."""


def check_plain(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> None:
    """Refuse what no setting can mean: an empty text, true for a number, characters that no file name can have.

    Raises:
        SettingsError: naming the setting.
    """
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            continue
        annotation = str(field.annotation)
        if isinstance(value, bool) and "bool" not in annotation:
            raise SettingsError(
                f"{name}: expected a value other than true or false, got {str(value).lower()}; write the value itself"
            )
        if isinstance(value, str) and not value.strip() and "tuple" not in annotation:
            raise SettingsError(f"{name}: expected a value, got nothing; leave the setting out or give it one")
        for text in _texts(value):
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise SettingsError(f"{name}: expected text in UTF-8 without NUL characters, got {shown(text)}")


def without_removed(values: Mapping[str, Any], *, command: str) -> dict[str, Any]:
    """Return values without the settings that the command once had.

    Raises:
        SettingsError: one of them is not set to what is always done now.
    """
    removed = REMOVED.get(command, {})
    for name, value in values.items():
        if name in removed and value != removed[name]:
            raise SettingsError(explain_unknown(name, command=command, known=()))
    return {name: value for name, value in values.items() if name not in removed}


def explain(error: ValidationError, *, command: str, fields: Mapping[str, FieldInfo]) -> str:
    """Describe the errors, setting by setting, in one paragraph."""
    found: dict[str, list[dict[str, Any]]] = {}
    for detail in error.errors():
        found.setdefault(_name_of(dict(detail), command), []).append(dict(detail))
    return "; ".join(_explain_one(name, details, command, fields) for name, details in found.items())


def explain_unknown(name: str, *, command: str, known: Iterable[str]) -> str:
    """Return that a command has no setting of this name, and what to write in its place if that can be told."""
    if name in FLAGS_ONLY:
        return (
            f"{name}: is a flag and not a setting, so a settings file cannot hold it; give --{name} on the command line"
        )
    if name in REMOVED.get(command, {}):
        return f"{name}: this setting of earlier versions has been removed; leave it out"
    return f"{name}: no such setting of {command}{nearest(name, known)}"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for text in pair if isinstance(text, str))
    elif isinstance(value, list | tuple):
        yield from (str(text) for text in value if isinstance(text, str | Path))


def _name_of(detail: dict[str, Any], command: str) -> str:
    """Name the value that is wrong, without the type that pydantic adds for each of several that it may have."""
    parts = [part for part in detail["loc"] if part not in _TYPES or detail["type"] == "extra_forbidden"]
    return ".".join(str(part) for part in parts)[:200] or command


def _explain_one(name: str, details: Sequence[dict[str, Any]], command: str, fields: Mapping[str, FieldInfo]) -> str:
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        return explain_unknown(name, command=command, known=fields)
    if isinstance(error := detail.get("ctx", {}).get("error"), SettingsError):
        return str(error)
    if detail["type"] == "missing":
        return f"{name}: {command} needs this setting (--{name.replace('_', '-')})"
    given = detail["input"]
    expected = " or ".join(dict.fromkeys(_expected(each) for each in details))
    got = "nothing" if given is None else shown(given)
    return f"{name}: expected {expected}, got {got}{_hint(given, fields.get(name))}"


def _expected(detail: dict[str, Any]) -> str:
    form, bound = _BOUNDS.get(detail["type"], ("", ""))
    if form:
        return form.format(detail["ctx"][bound])
    kind = _KINDS.get(detail["type"])
    return kind or str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _hint(given: object, field: FieldInfo | None) -> str:
    choices = [str(choice) for choice in literal_values(field.annotation)] if field else []
    return nearest(given, choices) if isinstance(given, str) and choices else ""


def literal_values(annotation: Any) -> tuple[Any, ...]:
    """Return the values that an annotation lists, those of its parts included; () if it lists none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in literal_values(part))
