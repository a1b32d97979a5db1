"""The help of `unlearn`, which says what the coefficients of the chosen method mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from annotated_types import Gt

from letheon.cli.flags import SettingsCommand, with_default
from letheon.settings import COEFFICIENT_FLAGS, MethodSettings, UnlearnSettings, read_config

if TYPE_CHECKING:
    from letheon.objective.methods import Coefficient, Method

_ARGUMENTS, _METHOD = "letheon.arguments", "letheon.method"


class MethodCommand(SettingsCommand):
    """A command whose help describes the method that its arguments choose, wherever --help stands among them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments: click shows help before it gives the values of the other flags."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def records_of(self, ctx: click.Context, option: click.Parameter) -> list[tuple[str, str]]:
        """Return the coefficients of the method in place of those of all, and its own defaults of other settings."""
        name, method = option.name or "", self._method(ctx)
        if name == "coefficients":
            return _coefficients(method)
        if name in COEFFICIENT_FLAGS:
            return []
        found = super().records_of(ctx, option)
        if name not in method.settings:
            return found
        description = str(UnlearnSettings.model_fields[name].description)
        value = method.settings[name]
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        return [(flag, with_default(description, f"{shown} with {method.name}")) for flag, _ in found]

    def heading_of(self, ctx: click.Context, option: click.Parameter) -> str:
        """Return the heading that help shows a flag under; that of the coefficients names the method."""
        heading = super().heading_of(ctx, option)
        return f"Method {self._method(ctx).name}" if heading == MethodSettings.heading else heading

    def _method(self, ctx: click.Context) -> "Method":
        if _METHOD not in ctx.meta:
            ctx.meta[_METHOD] = self._chosen(ctx)
        method: Method = ctx.meta[_METHOD]
        return method

    def _chosen(self, ctx: click.Context) -> "Method":
        """Return the method of the flag, else of the settings file, the recipe or the default.

        Raises:
            SettingsError: there is no such method or recipe, or the settings file cannot be read.
        """
        from letheon.objective.catalogue import get_method
        from letheon.recipes import read_recipe

        values: dict[str, Any] = self.make_parser(ctx).parse_args(self.spread(ctx.meta.get(_ARGUMENTS, [])))[0]
        if "method" in values:
            return get_method(values["method"])
        files = [read_config(Path(values["config"]))] if "config" in values else []
        files += [read_recipe(values["recipe"])] if "recipe" in values else []
        default = MethodSettings.model_fields["method"].default
        return get_method(str(next((file["method"] for file in files if "method" in file), default)))


def _coefficients(method: "Method") -> list[tuple[str, str]]:
    found = [(_flag(name, one), _meaning(name, one)) for name, one in method.coefficients.items()]
    return [("Loss", method.formula), *(found or [("Coefficients", "none")])]


def _flag(name: str, coefficient: "Coefficient") -> str:
    value = "|".join(coefficient.choices) or "X"
    return f"--{name} {value}" if name in COEFFICIENT_FLAGS else f"--coefficients {name}={value}"


def _meaning(name: str, coefficient: "Coefficient") -> str:
    meaning = coefficient.meaning[0].upper() + coefficient.meaning[1:]
    bounds = [] if coefficient.choices else [_range(name, coefficient)]
    default = coefficient.default
    return with_default("; ".join([meaning, *bounds]) + ".", f"{default:g}" if isinstance(default, float) else default)


def _range(name: str, coefficient: "Coefficient") -> str:
    if coefficient.is_share:
        return "above 0 and at most 1"
    bounds = MethodSettings.model_fields[name].metadata if name in COEFFICIENT_FLAGS else ()
    is_open = any(isinstance(bound, Gt) for bound in bounds)
    least = "above" if is_open else "at least"
    text = f"{least} {coefficient.minimum:g}"
    return text if isinstance(coefficient.default, float) else f"{text}, or {coefficient.default}"
