"""The attacks that there are."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import letheon.auditing as package
from letheon.auditing.attack import AnyAttack
from letheon.errors import SettingsError, nearest


@cache
def attacks() -> Mapping[str, AnyAttack]:
    """Return the attacks by name, the cheapest first: `ATTACKS` of each module of audit/."""
    modules = (import_module(f"{package.__name__}.{found.name}") for found in iter_modules(package.__path__))
    found: list[AnyAttack] = [attack for module in modules for attack in getattr(module, "ATTACKS", ())]
    return {attack.name: attack for attack in sorted(found, key=lambda attack: attack.passes)}


def chosen(names: Sequence[str]) -> tuple[AnyAttack, ...]:
    """Return the attacks of these names, or those that begin with one and a hyphen; all defaults where none is given.

    Raises:
        SettingsError: a name is no attack's.
    """
    known = attacks()
    if not names:
        return tuple(attack for attack in known.values() if attack.is_default)
    for name in names:
        if not any(_is_named(attack, name) for attack in known):
            raise SettingsError(f"attacks: expected some of {', '.join(known)}, got '{name}'{nearest(name, known)}")
    return tuple(attack for attack in known.values() if any(_is_named(attack.name, name) for name in names))


def _is_named(attack: str, name: str) -> bool:
    return attack == name or attack.startswith(f"{name}-")
