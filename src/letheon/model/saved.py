"""What a saved model must be: the tensors of the one it came from, each by its name and shape."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from letheon.errors import ModelError


def check_saved(folder: Path, model: PreTrainedModel) -> None:
    """Check that the checkpoint just written to `folder` holds the tensors of the one that `model` was loaded from.

    Headers alone are compared. Where they differ, as they may when a checkpoint of other names or with parts that
    are not read was loaded, or where there is none to compare with, the model is put together anew without values, and
    every weight must be found.

    Raises:
        ModelError: a tensor is missing, there is one too many, or it has another shape.
    """
    source = Path(model.name_or_path or "")
    if model.name_or_path and _shapes(source) == _shapes(folder):
        return
    loaded: Any = type(model).from_pretrained(
        folder, device_map="meta", ignore_mismatched_sizes=True, output_loading_info=True, local_files_only=True
    )
    loading: dict[str, Any] = loaded[1]
    for what, names in (
        ("lack", loading["missing_keys"]),
        ("have no place for", loading["unexpected_keys"]),
        ("have another shape of", [name for name, *_ in loading["mismatched_keys"]]),
    ):
        if names:
            raise ModelError(
                f"the saved weights would {what} {_first(names)}, so {type(model).__name__} could not be loaded from "
                f"them. Nothing was written, and the run's adapter and checkpoints are intact; please report this"
            )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    return found


def _first(names: Collection[str]) -> str:
    chosen = sorted(names)
    return ", ".join(chosen[:3]) + (f" and {len(chosen) - 3} more" if len(chosen) > 3 else "")
