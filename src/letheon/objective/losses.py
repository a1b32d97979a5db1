"""The losses. The first call imports them and torch, so methods can be described without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letheon.objective import activation, forget, preference, quantile, retain
else:

    class _Losses:
        """The functions of a module of this folder."""

        def __init__(self, name: str) -> None:
            self._module = f"letheon.objective.{name}"

        def __getattr__(self, name: str) -> Any:
            def loss(*args: Any, **kwargs: Any) -> Any:
                return getattr(import_module(self._module), name)(*args, **kwargs)

            return loss

    activation, forget, preference, quantile, retain = map(
        _Losses, ("activation", "forget", "preference", "quantile", "retain")
    )

__all__ = ["activation", "forget", "preference", "quantile", "retain"]
