"""Reference stores on disk: built once for a model, its rows and the needs of a method, and found by later runs.

A store is derived from the rows to forget, so its file is private, and `letheon purge` removes it.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from letheon.data.packing import PASS_TOKENS
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.reference import answer_starts, build_reference, token_starts, with_head
from letheon.engine.values import ReferenceStore
from letheon.errors import OutputError
from letheon.model.widening import product_dtype
from letheon.objective.values import Needs
from letheon.processes import from_first, here, on_first
from letheon.progress import Progressed
from letheon.storage.cache import store_path
from letheon.storage.files import check_room, replace_file
from letheon.storage.locks import file_lock
from letheon.storage.run_folder import STORE_FILES, STORES_FOLDER

FORMAT = "letheon.reference/6"
_ELSEWHERE = "free space or choose another --cache-dir"

_logger = logging.getLogger(__name__)


def load_or_build_reference(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    *,
    num_forget_rows: int,
    num_retain_rows: int | None = None,
    num_general_rows: int = 0,
    needs: Needs,
    model_fingerprint: str,
    cache_dir: Path | None,
    max_tokens: int = PASS_TOKENS,
    note: Callable[[str], None] = _logger.warning,
    progress: Progressed | None = None,
    on_path: Callable[[Path], None] | None = None,
    on_short: Callable[[str], None] = _logger.warning,
) -> ReferenceStore:
    """Return the store from `cache_dir` where one of the same model, rows and needs lies there, else build and keep it.

    The key covers weights, token ids, answer spans, needs, path, dtype, device kind and torch version: if anything
    differs the store is built anew. Of several processes that want the same one, one builds it and the others wait,
    which `note` is told; `progress` hears of the rows that are done. `on_path` learns where the store lies before it
    is made, and `on_short` that a GPU's memory ran out. None for `cache_dir` keeps it in memory only.

    Raises:
        OutputError: it cannot be written to `cache_dir`.
    """
    build = partial(
        build_reference,
        engine,
        sequences,
        num_forget_rows=num_forget_rows,
        num_retain_rows=num_retain_rows,
        num_general_rows=num_general_rows,
        needs=needs,
        max_tokens=max_tokens,
        progress=progress,
        note=on_short,
    )
    if cache_dir is None:
        return build()
    rows = (num_forget_rows, num_retain_rows, num_general_rows)
    path = store_path(cache_dir, _key(engine, sequences, rows, needs, model_fingerprint))
    if on_path is not None:
        on_path(path)
    found = from_first(lambda: _load(path, sequences, num_forget_rows, num_general_rows))
    if found is not None:
        return replace(with_head(found, engine), path=path)
    on_first(lambda: _make_folder(path.parent))
    with file_lock(path, note=note, what="the reference store") if here().is_first else nullcontext():
        # Another run may have built it while this one waited.
        found = from_first(lambda: _load(path, sequences, num_forget_rows, num_general_rows))
        if found is not None:
            return replace(with_head(found, engine), path=path)
        store = build()
        on_first(lambda: save_tensors(store.tensors(), path))
    return replace(store, path=path)


def _key(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    num_rows: tuple[int, int | None, int],
    needs: Needs,
    model_fingerprint: str,
) -> str:
    digest = hashlib.sha256()
    described: list[object] = [FORMAT, model_fingerprint, num_rows, asdict(needs), engine.path, engine.trains_head]
    described += [engine.begins_at]
    dtypes = [str(engine.model.dtype), str(product_dtype(engine.model))]
    described += [*dtypes, engine.model.device.type, torch.__version__]
    digest.update(json.dumps(described).encode())
    for sequence in sequences:
        digest.update(repr((sequence.answer_start, sequence.padding, sequence.input_ids)).encode())
    return digest.hexdigest()[:32]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=STORES_FOLDER.mode)
    except OSError as error:
        raise OutputError(
            f"{folder}: the folder of reference stores cannot be made ({error.strerror}); choose another --cache-dir"
        ) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write what belongs to the model as it was, among the reference stores, with a checksum.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    _make_folder(path.parent)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    check_room(path.parent, num_bytes, what="the reference store", advice=_ELSEWHERE)
    try:
        with replace_file(path, private=STORE_FILES.is_private) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _sha256(tensors)})
    except SafetensorError as error:
        raise OutputError(f"{path}: the reference store cannot be written ({error}); {_ELSEWHERE}") from error


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """Return what `save_tensors` wrote; None, with a warning, of a file that is damaged, and where there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            written = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        _logger.warning("%s: the stored reference cannot be read (%s); it is rebuilt", path, error)
        return None
    if _sha256(values) != written:
        _logger.warning("%s: the stored reference differs from its checksum; it is rebuilt", path)
        return None
    return values


def _load(
    path: Path, sequences: Sequence[TokenSequence], num_forget_rows: int, num_general_rows: int
) -> ReferenceStore | None:
    values, starts = load_tensors(path), answer_starts(sequences)
    if values is None:
        return None
    try:
        store = ReferenceStore(
            starts=starts,
            num_forget_rows=num_forget_rows,
            token_starts=token_starts(sequences),
            first_general_row=len(sequences) - num_general_rows if num_general_rows else None,
            **values,  # type: ignore[arg-type]  # tensors by the names of the fields that hold them
        )
    except TypeError as error:
        _logger.warning("%s: the stored reference cannot be read (%s); it is rebuilt", path, error)
        return None
    return store if store.log_probs.shape[0] == starts[-1] else None
