"""The files of a checkpoint folder, checked without loading weights: safetensors, whole, and inside the folder."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from letheon.errors import ModelError, nearest, shown
from letheon.storage.hub import is_hub_id

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

WHOLE_NOT_ADAPTER = (
    "holds an adapter (adapter_config.json), not a whole checkpoint; merge it into its base model with PEFT's "
    "merge_and_unload(), save the result, and give that folder"
)

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
_CODES = ("U8", "I8")
_SCALES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB")
"""How the names end that bitsandbytes gives to what belongs to a quantised matrix."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    "convert it with transformers on a machine you trust: "
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
)


def check_checkpoint(source: str) -> None:
    """Check a checkpoint as far as possible without loading its weights; a hub id is not checked.

    Raises:
        ModelError: the local folder has no config.json or no safetensors weights, only pickled ones, or ones that are
            cut off or lie outside it; or it holds an adapter, or GGUF files alone.
    """
    check_source(source)
    folder = Path(source)
    if not folder.exists():
        return
    if not folder.is_dir() and folder.suffix == ".gguf":
        raise ModelError(f"{source}: {_gguf_advice(folder)}")
    if not folder.is_dir():
        raise ModelError(f"{source}: expected a checkpoint folder (config.json, model.safetensors), got a file")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{source}: {WHOLE_NOT_ADAPTER}")
    files = sorted(folder.glob("*.gguf"))
    if files and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{files[0]}: {_gguf_advice(files[0])}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{source}: expected a checkpoint folder, but it has no config.json")
    _parse(folder / "config.json")
    for path in weight_files(folder):
        _check_whole(path)


def stored_dtype_of(folder: Path) -> torch.dtype:
    """Return the dtype of most of the numbers in a checkpoint's weights, as their files say it.

    Codes of quantised weights and their scales are not counted.

    Raises:
        ModelError: there are no weights, or they cannot be read.
    """
    counts: Counter[torch.dtype] = Counter()
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                if tensor.get_dtype() in _CODES or name.endswith(_SCALES):
                    continue
                counts[_DTYPES.get(tensor.get_dtype(), torch.float32)] += math.prod(tensor.get_shape())
    return counts.most_common(1)[0][0] if counts else torch.float32


def float32_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a checkpoint that are stored in float32.

    Raises:
        ModelError: its weights cannot be read.
    """
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if file.get_slice(name).get_dtype() == "F32":
                    yield name, file.get_tensor(name)


def conversion(source: str, load: str, *, tokenizer: str = "(d)") -> str:
    """Return the command that makes an ordinary checkpoint of `source`, and where, for an error to quote.

    `load` and `tokenizer` are what follows `from_pretrained`, the source being d in it.
    """
    # Beside a local folder; of a hub id, in the current one.
    out = (source.rstrip("/") if Path(source).is_dir() else source.rsplit("/", 1)[-1]) + "-dequantised"
    # By way of a fresh model, since transformers cannot write one that it read from quantised weights.
    code = (
        f"import transformers as t; d = {source!r}; o = {out!r}; A = t.AutoModelForCausalLM; "
        f"m = A.from_pretrained{load}; vars(m.config).pop('quantization_config', 0); "
        f"n = A.from_config(m.config, dtype=m.dtype); n.load_state_dict(m.state_dict()); "
        f"n.save_pretrained(o); t.AutoTokenizer.from_pretrained{tokenizer}.save_pretrained(o)"
    )
    quoted = shlex.quote(code) if any(mark in code for mark in '"$`\\!') else f'"{code}"'
    return f"run python -c {quoted} and give {out}"


def _gguf_advice(path: Path) -> str:
    call = f"(d, gguf_file={path.name!r})"
    made = conversion(str(path.parent), call, tokenizer=call)
    return f"expected safetensors, got a GGUF file; make a checkpoint of it, for which transformers needs gguf: {made}"


def check_source(source: str) -> None:
    """Refuse a source that does not exist and cannot be a hub id.

    Raises:
        ModelError: it can only be meant as a folder, which is not there.
    """
    folder = Path(source)
    if folder.exists():
        return
    if folder.is_symlink():
        raise ModelError(f"{source}: is a link to {folder.readlink()}, which is not there; give the folder itself")
    what = f"{source}: no such folder{_neighbour(folder)}; expected a checkpoint folder or a hub id (owner/name)"
    if not is_hub_id(source):
        raise ModelError(what)
    if "/" in source and folder.parent.is_dir():
        raise ModelError(
            f"{what}, and {folder.parent} is a folder here; to use the hub id of that name, run from another folder"
        )


def not_had(source: str, error: Exception) -> ModelError | None:
    """Return the error for a source that is neither a folder nor a loadable hub id; None for any other failure."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) for cause in causes):
        why = "the hub cannot be reached, and this machine has no copy"
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        why = "the hub has no such repository, or your token (HF_TOKEN) has no access to it"
    else:
        return None
    hint = _neighbour(Path(source))
    return ModelError(
        f"{source}: no such folder{hint}, and it could not be loaded as a hub id: {why}; check the path, or the name "
        f"and the network"
    )


def _neighbour(folder: Path) -> str:
    if str(folder).startswith("~") and folder.expanduser().exists():
        return f" (~ is not expanded here: write {folder.expanduser()})"
    return nearest(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else ""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        ModelError: there are none.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise ModelError(f"{folder}: expected weights in {WEIGHTS} or a list of shards in {INDEX}, found {others[0]}")
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = f"only {pickled[0]}, a pickle, which Letheon never reads; {_CONVERT}" if pickled else "none"
    raise ModelError(f"{folder}: expected weights in *.safetensors, found {found}")


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    names = _parse(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: expected `weight_map` to map tensors to files, got {shown(names)}")
    shards = sorted(set(names.values()))
    for name in shards:
        if len(PurePosixPath(name).parts) != 1 or name == ".." or "\\" in name:
            raise ModelError(f"{index}: expected names of files in the same folder, got '{name}'")
        if not (folder / name).is_file():
            raise ModelError(f"{index}: lists the file {name}, which does not exist; download the checkpoint again")
    return [folder / name for name in shards]


def _parse(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON ({error}); download the checkpoint again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {shown(value)}; download the checkpoint again")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: expected a whole safetensors file, but it is damaged or cut off ({error}); download it again"
        ) from error


def _check_whole(path: Path) -> None:
    """Read the header alone, which says how long the file must be."""
    with _opened(path) as file:
        names = list(file.keys())
    if not names:
        raise ModelError(f"{path}: expected weights, but the file holds no tensor; download it again")
