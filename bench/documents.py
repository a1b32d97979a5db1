"""Documents of LUME's membership attack, read and written."""

import json
from collections.abc import Iterable
from pathlib import Path

from letheon.data.rows import read_documents
from letheon.storage.files import write_text


def unseen_documents(data: Path) -> tuple[list[str], list[str]]:
    """Return the official validation attack's documents that no model saw, and others of the task that none saw."""
    known = data / "semeval" / "mia"
    attack = read_documents(known / "validation" / "nonmember.jsonl")
    return attack, [text for text in read_documents(known / "nonmember.jsonl") if text not in set(attack)]


def write_documents(texts: Iterable[str], path: Path) -> Path:
    """Write documents as a file that the command reads."""
    write_text(path, "".join(json.dumps({"document": text}) + "\n" for text in texts))
    return path
