"""form.json: the form of a run's rows and hashes of what was read, so that a resumed run trains on the same tokens."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from letheon.data.forms import AUTO
from letheon.data.rows import hash_rows
from letheon.errors import OutputError, SettingsError
from letheon.files import write_json
from letheon.settings import UnlearnSettings
from letheon.training.form import FormedRows
from letheon.training.inputs import Inputs

FORM_FILE = "form.json"

_WHAT: Mapping[str, str] = {
    "template": "the form of the rows (--template)",
    "date": "the date in chat templates (--date)",
    "ends": "whether retain rows are ended (--end-of-sequence)",
    "forget_sha256": "the forget rows",
    "retain_sha256": "the retain rows",
    "tokenizer_sha256": "the tokenizer or its chat template",
    "sequences_sha256": "the token sequences",
}
"""What is compared on resuming, in the user's words."""


def describe_form(form: FormedRows, inputs: Inputs) -> dict[str, Any]:
    """Return what is written down of the form, with hashes of the rows and the tokenizer as they were read."""
    return {
        "template": form.template,
        "date": form.date,
        "ends": form.ends,
        "known": {name: asdict(known) for name, known in form.known.items()},
        "forget_sha256": hash_rows([*inputs.forget, *inputs.left_out[0]]),
        "retain_sha256": hash_rows([*inputs.retain, *inputs.left_out[1]]),
        "tokenizer_sha256": hash_tokenizer(inputs.tokenizer),
        "sequences_sha256": form.sha256,
    }


def keep_form(folder: Path, form: FormedRows, inputs: Inputs) -> None:
    """Write form.json, or compare what a resumed run read with the form.json that its first attempt left.

    Raises:
        OutputError: the file cannot be written, or is not readable.
        SettingsError: the run would go on with other tokens than it began with; the message says what changed.
    """
    now = describe_form(form, inputs)
    then = read_form(folder)
    if then is None:
        write_json(folder / FORM_FILE, now)
        return
    changed = [name for name in _WHAT if name in then and then[name] != now[name]]
    if changed:
        named = "; ".join(f"{_WHAT[name]}: {_short(then[name])} there, {_short(now[name])} here" for name in changed)
        raise SettingsError(
            f"resume: the run in {folder} would go on with other tokens than it began with ({named}); resume with the "
            "rows, tokenizer and form of the run, or choose another --out"
        )


def recorded_template(settings: UnlearnSettings) -> UnlearnSettings:
    """Return the settings of a resumed run with the form that was found out when it began."""
    recorded = read_form(settings.out)
    if settings.template != AUTO or recorded is None or not isinstance(recorded.get("template"), str):
        return settings
    return settings.model_copy(update={"template": recorded["template"]})


def read_form(folder: Path) -> dict[str, Any] | None:
    """Return what form.json in a run's folder holds; None if it is not there.

    Raises:
        OutputError: it is not readable.
    """
    path = folder / FORM_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: expected the form of the run's rows, but it cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected the form of the run's rows, got {type(found).__name__}")
    return found


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what turns text into tokens: vocabulary, rules and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return hashlib.sha256(f"{rules}\n{template}\n{tokenizer.special_tokens_map}".encode()).hexdigest()


def _short(value: object) -> str:
    """A hash by its first figures, anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
