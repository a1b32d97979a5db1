"""form.json: the form of a run's rows and fingerprints of its inputs, so that it is resumed with the same ones."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from letheon.data.forms import AUTO
from letheon.data.probing import Known
from letheon.data.rows import hash_rows
from letheon.data.sequences import hash_sequences
from letheon.errors import OutputError, SettingsError
from letheon.settings import UnlearnSettings
from letheon.storage.fingerprints import CALLED, differences
from letheon.storage.run_folder import CHECKPOINTS_FOLDER, FORM_FILE, STATE_FILE, STEP_PREFIX, write_json_entry
from letheon.unlearning.formed_rows import FormedRows
from letheon.unlearning.inputs import Inputs

_COMPARED = tuple(name for name in CALLED if name != "model_sha256")
"""What has to be equal on resuming: the same weights may lie in other files."""


def inputs_read(inputs: Inputs) -> dict[str, Any]:
    """Return the fingerprints of what a run reads beside its model: rows, documents and tokenizer."""
    read = {
        "tokenizer_sha256": hash_tokenizer(inputs.tokenizer),
        "forget_sha256": hash_rows([*inputs.forget, *inputs.left_out[0]]),
        "retain_sha256": hash_rows([*inputs.retain, *inputs.left_out[1]]),
    }
    if inputs.halves.all:
        read["holdout_sha256"] = hash_sequences(inputs.halves.all)
    if inputs.alternatives is not None:
        read["alternatives_sha256"] = hash_rows(inputs.alternatives)
    return read


def what_was_read(
    form: FormedRows, inputs: Inputs, *, weights_sha256: str, model_sha256: str | None, general_sha256: str | None
) -> dict[str, Any]:
    """Return the fingerprints of a run: of its model, rows, tokenizer and documents as read, and of the rows' form."""
    return {
        "template": form.template,
        "date": form.date,
        "ends": form.ends,
        **({} if model_sha256 is None else {"model_sha256": model_sha256}),
        "weights_sha256": weights_sha256,
        **inputs_read(inputs),
        "sequences_sha256": form.sha256,
        **({} if general_sha256 is None else {"general_sha256": general_sha256}),
    }


def describe_form(form: FormedRows, read: Mapping[str, Any]) -> dict[str, Any]:
    """Return what form.json holds: the fingerprints, and how well the rows are known in each form tried."""
    return {**read, "known": {name: asdict(known) for name, known in form.known.items()}}


def keep_form(folder: Path, form: FormedRows, read: Mapping[str, Any]) -> None:
    """Write form.json if it does not exist; the inputs of a resumed run are compared with those of its first attempt.

    Raises:
        OutputError: the file cannot be written, or is not readable.
        SettingsError: as `check_same_inputs`.
    """
    check_same_inputs(folder, read)
    then = read_form(folder)
    if then is None or not set(read) <= set(then):
        write_json_entry(folder, FORM_FILE, {**describe_form(form, read), **(then or {})})


def check_same_inputs(folder: Path, now: Mapping[str, Any]) -> None:
    """Check by form.json and each checkpoint that a run in `folder` continues with the inputs that it began with.

    Raises:
        OutputError: form.json is not readable.
        SettingsError: it would not; the message says what changed, with both fingerprints.
    """
    for place, then in _records(folder):
        changed = differences(then, now, _COMPARED)
        if changed:
            raise SettingsError(
                f"resume: the run in {folder} would continue with other inputs than it started with "
                f"({'; '.join(changed)}; from {place}); resume with the model, rows, tokenizer and form of the run, or "
                "choose another --out"
            )


def recorded_form(settings: UnlearnSettings) -> tuple[UnlearnSettings, dict[str, Known]]:
    """Return the settings of a resumed run with the form that was found out when it began, and what was known in each.

    The latter is empty where the form was given, or where only a checkpoint tells of it.

    Raises:
        OutputError: form.json is not readable.
    """
    if settings.template != AUTO:
        return settings, {}
    then = next((then for _, then in _records(settings.out) if isinstance(then.get("template"), str)), None)
    if then is None:
        return settings, {}
    known = {name: Known(**values) for name, values in then.get("known", {}).items()}
    return settings.model_copy(update={"template": then["template"]}), known


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


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a run's fingerprints stand, and what they are; a checkpoint that cannot be read has none."""
    then = read_form(folder)
    if then is not None:
        yield FORM_FILE.name, then
    for path in sorted((folder / CHECKPOINTS_FOLDER).glob(f"**/{STEP_PREFIX}*/{STATE_FILE}")):
        try:
            read = json.loads(path.read_text(encoding="utf-8")).get("read")
        except (OSError, ValueError, RecursionError, AttributeError):
            continue
        if isinstance(read, dict):
            yield path.relative_to(folder).as_posix(), read
