"""What the settings of every command have in common."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from letheon.errors import SettingsError
from letheon.settings.validation import check_plain, explain, without_removed


class Settings(BaseModel):
    """Base of the settings of every command: frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    command: ClassVar[str] = ""
    heading: ClassVar[str] = ""
    """Under which help shows the settings that the class itself declares."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return settings from plain values.

        Raises:
            SettingsError: a name is unknown, a value is missing, has the wrong type or is out of range.
        """
        given = cls.without_removed(values)
        check_plain(given, cls.model_fields)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError(explain(error, command=cls.command, fields=cls.model_fields)) from error

    @classmethod
    def without_removed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values without the settings of earlier versions, so that the files of these can still be read.

        Raises:
            SettingsError: one of them asks for what is no longer there.
        """
        return without_removed(values, command=cls.command)

    def plain(self) -> dict[str, Any]:
        """Return the values as YAML and JSON can hold them."""
        return self.model_dump(mode="json")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default values by name, of settings that have one."""
        fields = cls.model_fields.items()
        return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
