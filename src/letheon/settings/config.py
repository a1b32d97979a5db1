"""Files of settings."""

from pathlib import Path
from typing import Any

import yaml

from letheon.errors import SettingsError, shown
from letheon.storage.yaml_text import parse_yaml


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        SettingsError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the settings file cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected YAML in UTF-8 ({error}); save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: expected YAML ({' '.join(str(error).split())}); correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(
            f"{path}: expected a mapping of setting names to values, such as `epochs: 5`, got {shown(values)}"
        )
    settings = {key.replace("-", "_"): value for key, value in values.items()}
    if len(settings) < len(values):
        twice = next(key for key in values if "-" in key and key.replace("-", "_") in values)
        raise SettingsError(f"{path}: '{twice}' and '{twice.replace('-', '_')}' are one setting; leave one of them")
    return settings
