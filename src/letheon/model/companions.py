"""The small files of a checkpoint that neither model nor tokenizer write again: processors, templates, licences.

A vision-language model without preprocessor_config.json, or a tokenizer without its sentencepiece file, is one that
other programs cannot load. Files are known by their names; whatever else lies in a checkpoint stays where it is.
"""

import logging
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

_logger = logging.getLogger(__name__)

OF_MODEL = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What belongs to the model. Its licence goes on with it, which many ask for; its README is of another model."""
OF_TOKENIZER = (
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "tokenizer.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What belongs to the tokenizer, in forms that other programs read."""


def fetch_companions(source: str, names: tuple[str, ...] = OF_MODEL + OF_TOKENIZER) -> None:
    """Bring the files of a hub id into the hub's cache while the hub is asked for its weights; never an error."""
    if not Path(source).exists():
        _folder_of(source, names, local_files_only=False)


def copy_companions(source: str, folder: Path, names: tuple[str, ...]) -> None:
    """Copy the files of the checkpoint `source`, a folder or hub id, that `folder` lacks; those there are left alone.

    A link that leads out of the checkpoint is no file of it. Of a hub id the files in its cache are taken.
    """
    if not source:
        return  # made in memory
    origin = local_folder(source, names)
    if origin is None:
        return
    for path in (path for name in names for path in sorted(origin.glob(name))):
        copy = folder / path.relative_to(origin)
        if not copy.exists() and path.is_file() and _is_inside(path, origin):
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def local_folder(source: str, names: tuple[str, ...] = ("*.safetensors", "*.safetensors.index.json")) -> Path | None:
    """Return where files of a checkpoint lie on this machine, of a hub id in its cache; None where they do not."""
    return Path(source) if Path(source).is_dir() else _folder_of(source, names, local_files_only=True)


def _folder_of(source: str, names: tuple[str, ...], *, local_files_only: bool) -> Path | None:
    try:
        return Path(snapshot_download(source, allow_patterns=list(names), local_files_only=local_files_only))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        _logger.debug("%s: its small files cannot be downloaded (%s)", source, error)
        return None


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in its checkpoint, or in the store that the hub's cache links a checkpoint's files to."""
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / "blobs")
    return any(path.resolve().is_relative_to(home) for home in homes)
