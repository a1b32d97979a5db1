"""Fingerprints of the inputs and results of a run or an evaluation; they show which files belong together.

They are a flat mapping, called `read` wherever it stands: in form.json (and as comments in run.yaml), in each
checkpoint, in provenance.json and in each results.json. Names that end in _sha256 hold hashes of what was read, not of
the file as it is later; `model_sha256` is of the checkpoint's files, `weights_sha256` of the weights in memory.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CALLED: Mapping[str, str] = {
    "template": "the form of the rows (--template)",
    "date": "the date in chat templates (--date)",
    "ends": "whether retain rows are ended (--end-of-sequence)",
    "model_sha256": "the model's files",
    "weights_sha256": "the model's weights or configuration",
    "tokenizer_sha256": "the tokenizer or its chat template",
    "forget_sha256": "the forget rows",
    "retain_sha256": "the retain rows",
    "sequences_sha256": "the token sequences",
    "holdout_sha256": "the holdout documents",
    "alternatives_sha256": "the alternative answers",
    "general_sha256": "the general text",
    "members_sha256": "the member documents",
    "nonmembers_sha256": "the non-member documents",
    "mmlu_sha256": "the MMLU questions",
}
"""What each fingerprint is of, in the user's words."""

_CHECKPOINT_FILES = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")


def hash_checkpoint(folder: Path | None) -> str | None:
    """Return the sha256 of a checkpoint's or an adapter's configuration and weights, as their files are now.

    It is of lines "name sha256", sorted. None where there is no such folder, or no weights in it.
    """
    if folder is None:
        return None
    files = {path.name: path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern)}
    if not any(name.endswith(".safetensors") for name in files):
        return None
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def hash_values(values: Iterable[object]) -> str:
    """Return the sha256 of documents or other plain values as they were read, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{json.dumps(value)}\n".encode())
    return digest.hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Say which fingerprints that both know differ, with both values."""
    return [
        f"{CALLED[name]}: {short(then[name])} there, {short(now[name])} here"
        for name in names
        if name in then and name in now and then[name] != now[name]
    ]


def short(value: object) -> str:
    """Return a hash by its first figures, anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
