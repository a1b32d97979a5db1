"""YAML as Letheon reads it: plain values only, each name once, and never anything but a YAML error."""

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode


def parse_yaml(text: str) -> Any:
    """Return the plain values that `text` stands for; empty text gives None.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag that would make an object, a name twice in one mapping, or a value
            that is none (the 31st of April), or is nested too deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise yaml.YAMLError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML lets through whatever int, datetime and the stack say of a value
        raise yaml.YAMLError(str(error) or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of several values of one name win in silence."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping, its names seen to be different."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                continue
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the name '{key.value}' comes twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
