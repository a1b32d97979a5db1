"""Flags made from the typed settings, and the values that the user gave by flags and --config."""

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from letheon.errors import SettingsError
from letheon.settings import Settings, read_config
from letheon.settings.facts import FIRST, RARE, facts_of
from letheon.settings.validation import FLAGS_ONLY, REMOVED, explain_unknown, literal_values

Command = Callable[..., None]


MOST_USED, OTHER = "Most used", "Other"
"""The first and the last heading of help."""
_SHOWS_ALL = "letheon.shows_all"


class HeadedOption(click.Option):
    """A flag that help shows under a heading."""

    def __init__(self, *args: Any, heading: str = OTHER, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class SettingsCommand(click.Command):
    """A command whose help has headings, and whose list flags take several values after one flag.

    --rows A B is --rows A --rows B.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat a list flag before each of its values, then parse as usual."""
        spread = self.spread(args)
        try:
            return super().parse_args(ctx, spread)
        except click.NoSuchOption as error:
            command, name = ctx.info_name or "", error.option_name.lstrip("-").replace("-", "_")
            if name in REMOVED.get(command, {}):
                raise SettingsError(explain_unknown(name, command=command, known=())) from error
            raise

    def spread(self, args: list[str]) -> list[str]:
        """Return the arguments with a list flag before each of its values."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current: str | None = None
        for argument in args:
            if argument.startswith("-"):
                current = argument if argument in lists else None
            elif current is not None and spread[-1] != current:
                spread.append(current)
            spread.append(argument)
        return spread

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under their headings: those used most, then part by part."""
        records = self.help_records(ctx)
        ends = {MOST_USED: 0, OTHER: 2}
        for heading in sorted(records, key=lambda heading: ends.get(heading, 1)):
            with formatter.section(heading):
                formatter.write_dl(records[heading])

    def help_records(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Return flag and help of each flag that is shown, by heading."""
        records: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            found = self.records_of(ctx, option)
            if found:
                records.setdefault(self.heading_of(ctx, option), []).extend(found)
        return records

    def records_of(self, ctx: click.Context, option: click.Parameter) -> list[tuple[str, str]]:
        """Return the lines that help has for a flag: none if it is hidden."""
        if ctx.meta.get(_SHOWS_ALL) and isinstance(option, click.Option):
            option = copy(option)
            option.hidden = False
        record = option.get_help_record(ctx)
        return [] if record is None else [record]

    def heading_of(self, ctx: click.Context, option: click.Parameter) -> str:  # noqa: ARG002 - others need it
        """Return the heading that help shows a flag under."""
        return getattr(option, "heading", OTHER)


def settings_options(*settings: type[Settings]) -> Callable[[Command], Command]:
    """Give a command one flag for each field of its settings, and --config."""

    def decorate(command: Command) -> Command:
        """Give `command` its flags."""
        # The first of several settings that have a field says what it is.
        kinds = {name: kind for kind in reversed(settings) for name in kind.model_fields}
        names = list(dict.fromkeys(name for kind in settings for name in kind.model_fields))
        for name in reversed(names):
            command = _option(kinds[name], name)(command)
        if any(facts.shown is RARE for kind in settings for facts in facts_of(kind).values()):
            command = click.option(
                "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help=_HELP_ALL
            )(command)
        return click.option(
            "--config", type=click.Path(path_type=Path), help="YAML file of settings; flags override it."
        )(command)

    return decorate


_HELP_ALL = "Show all settings and exit."


def _option(settings: type[Settings], name: str) -> Callable[[Command], Command]:
    field, facts = settings.model_fields[name], facts_of(settings)[name]
    flag = name.replace("_", "-")
    return click.option(
        f"--{flag}/--no-{flag}" if field.default is True else f"--{flag}",
        *([facts.alias.flag] if facts.alias else []),
        name,
        cls=HeadedOption,
        heading=MOST_USED if facts.shown is FIRST else facts.heading,
        help=help_of(field),
        hidden=facts.shown is RARE,
        **_form(field.annotation),
    )


def _show_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    context.meta[_SHOWS_ALL] = True
    click.echo(context.get_help())
    context.exit()


def _form(annotation: Any) -> dict[str, Any]:
    # Types and ranges are checked in one place, by the settings, so flags and YAML give the same errors.
    if annotation is bool:
        return {"is_flag": True}
    return {"type": str, "metavar": _metavar(annotation), "multiple": "tuple" in str(annotation)}


def given_values(context: click.Context, config: Path | None) -> dict[str, Any]:
    """Return the settings that the user gave: the --config file, overridden by flags.

    Raises:
        SettingsError: the file cannot be read or names what is no setting of the command, or a flag holds no pairs.
    """
    values = read_config(config) if config else {}
    _check_known(context, values, config)
    for name, value in context.params.items():
        is_given = context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
        if is_given and name not in FLAGS_ONLY:
            values[name] = _pairs(name, value) if name in ("fields", "coefficients") else value
    return values


def _check_known(context: click.Context, values: Mapping[str, Any], config: Path | None) -> None:
    """Refuse names in a settings file that the command does not know, while it is known which file that is."""
    command, flags = context.info_name or "", set(context.params) - set(FLAGS_ONLY)
    unknown = [name for name in values if name not in flags and name not in REMOVED.get(command, {})]
    if command == "unlearn" and {"base", "grid", "search"} & set(unknown):
        raise SettingsError(f"{config}: expected settings of unlearn, got a study; run it by `letheon study {config}`")
    if unknown:
        said = "; ".join(explain_unknown(name, command=command, known=flags) for name in unknown)
        raise SettingsError(f"{config}: {said}")


def _metavar(annotation: Any) -> str:
    choices, text = [str(value) for value in literal_values(annotation)], str(annotation)
    if choices:
        return "|".join(["X"] * (float in _parts(annotation)) + choices)
    for kind, shown in (("Path", "PATH"), ("tuple", "A [B ..]"), ("dict", "A=B,.."), ("int", "N"), ("float", "X")):
        if kind in text:
            return shown
    return "TEXT"


def _parts(annotation: Any) -> set[Any]:
    """Return an annotation and all that it is made of."""
    return {annotation}.union(*(_parts(part) for part in get_args(annotation)))


def help_of(field: FieldInfo) -> str:
    """Return the help of a setting, with its default unless a function gives it."""
    default = None if field.default_factory else field.get_default()
    shown = default is not None and not field.is_required() and not isinstance(default, bool) and default != ()
    return with_default(str(field.description), default) if shown else str(field.description)


def with_default(description: str, default: object) -> str:
    """Return the help of a setting, with this default."""
    return f"{description} [{','.join(map(str, default)) if isinstance(default, tuple) else default}]"


def _pairs(name: str, value: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(middle and key.strip() and end.strip() for key, middle, end in pairs):
        raise SettingsError(f"{name}: expected NAME=VALUE pairs separated by commas, got '{value}'")
    keys = [key.strip() for key, _, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise SettingsError(f"{name}: expected each name once, got '{twice}' more than once in '{value}'")
    return {key.strip(): end.strip() for key, _, end in pairs}
