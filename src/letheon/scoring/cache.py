"""Scores of models before unlearning, kept for the next run on the same model and rows.

A cached evaluation holds what a model said to the rows to forget, so its folder is private, each run that uses it notes
it in outside.json, and `letheon purge` removes it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from letheon.errors import EvaluationError, OutputError
from letheon.evaluation.in_form import AskedForm
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions, write_evaluation
from letheon.scores.predictions import read_predictions
from letheon.scores.results import SCHEMA, VERSION, Evaluation, Results
from letheon.settings import EvaluateSettings
from letheon.storage.files import replace_folder
from letheon.storage.run_folder import FORM_PREDICTIONS_FILE, PREDICTIONS_FILE, RESULTS_FILE

_ELSEWHERE = "free space or choose another --cache-dir"
_OF_FILES = "model_sha256"
"""The fingerprint that is of a model's files, in which the same weights may lie in other ways."""
_ASKED = (
    *("exact", "whole_generations", "batch_size", "max_new_tokens", "mmlu_limit", "mmlu_harness"),
    *("split", "never", "never_results", "parity", "sound"),
)

_logger = logging.getLogger(__name__)


def key_of(
    settings: EvaluateSettings, form: AskedForm, provenance: Mapping[str, Any], *, computed: Mapping[str, str]
) -> str:
    """Return the name of an evaluation in the cache: 32 hexadecimal digits of a hash of all that its scores depend on.

    These are the fingerprints of what was read, the form, how the model is asked, the versions of Letheon and of the
    libraries, the schema of the results, and what `computed` says of dtype and device.
    """
    read = {name: value for name, value in provenance["read"].items() if name != _OF_FILES}
    asked = {name: None if (value := getattr(settings, name)) is None else str(value) for name in _ASKED}
    schema, versions = [SCHEMA, VERSION, settings.suite], provenance["packages"]
    parts = [schema, read, [form.template, form.date], asked, versions, dict(computed)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_scores(folder: Path, *, model: str, form: AskedForm, provenance: Mapping[str, Any]) -> Evaluation | None:
    """Return the evaluation that is cached in `folder` as one of `model`; None where there is none that is whole.

    It says where model and rows lie now, and when it was really taken.
    """
    try:
        results = read_results(folder / RESULTS_FILE)
        if contradictions(folder, results):
            return None
        predictions, in_form = folder / PREDICTIONS_FILE, folder / FORM_PREDICTIONS_FILE
        return Evaluation(
            _of(results, model, form, provenance),
            read_predictions(predictions),
            read_predictions(in_form) if in_form.exists() else (),
        )
    except EvaluationError:
        return None


def keep_scores(evaluation: Evaluation, folder: Path) -> None:
    """Keep an evaluation in the cache, whole or not at all; a cache that cannot be written to is only warned of."""
    try:
        with replace_folder(folder, advice=_ELSEWHERE, private=True) as temporary:
            write_evaluation(evaluation, temporary)
    except OutputError as error:
        _logger.warning("the scores before unlearning are not cached: %s", error)
        with suppress(OSError):
            folder.rmdir()


def _of(results: Results, model: str, form: AskedForm, provenance: Mapping[str, Any]) -> Results:
    taken = {"created_at": results.provenance.get("created_at", provenance["created_at"])}
    found = None if results.form is None else replace(results.form, source=form.source)
    changed = {"model": model, "form": found, "provenance": {**provenance, **taken}}
    return replace(results, **changed)  # type: ignore[type-var]
