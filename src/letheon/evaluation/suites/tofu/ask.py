"""What TOFU's suite asks: questions with right, paraphrased and wrong answers; read and checked without a model."""

from pathlib import Path
from typing import Any

from letheon.data.benchmarks.tofu import DEFAULT_SPLIT, Tofu, read_tofu
from letheon.data.forms import AUTO
from letheon.data.rows import read_rows
from letheon.errors import EvaluationError, SettingsError
from letheon.evaluation.suite import Asked, Note
from letheon.evaluation.suites.tofu.listing import ORIGINAL, PARITIES, small_of
from letheon.evaluation.suites.tofu.never import Never, read_never
from letheon.evaluation.suites.tofu.original import NUM_ROWS
from letheon.settings import EvaluateSettings
from letheon.settings.suites import ASKED_FORMS, data_folder

MAX_NEW_TOKENS = 200
SETS = ("forget", "retain", "real_authors", "world_facts")
"""The sets whose questions are asked."""
HOLDOUT = "holdout"
SIDES = ("forget", "retain")


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """Read and check all that the suite asks; `note` hears what was read.

    Raises:
        DataError: the split is none of TOFU's, or a file is missing or not usable.
        EvaluationError: the results of the model that never knew the rows cannot be read, or are of another split or
            parity.
        SettingsError: that model and its results are both given, or the suite has no such form.
    """
    if settings.never is not None and settings.never_results is not None:
        raise SettingsError("never: expected a model or its results, got both; leave out --never or --never-results")
    if settings.parity == ORIGINAL and settings.template not in (None, AUTO):
        raise SettingsError(
            f"template: expected none with --parity {ORIGINAL}, which gives each tokenizer its form, got "
            f"'{settings.template}'; leave it out"
        )
    if settings.template not in (None, AUTO, *ASKED_FORMS):
        raise SettingsError(
            f"template: expected {', '.join(ASKED_FORMS)} for the suite {settings.suite}, got '{settings.template}'; "
            "leave it out for the form that the suite gives this tokenizer"
        )
    split, parity = settings.split or DEFAULT_SPLIT, settings.parity or PARITIES[0]
    tofu = read_tofu(data_folder(settings.suite, settings.data), split)
    never = _never(settings, split, parity)
    if note is not None:
        note(f"TOFU {split}: {len(tofu.forget.rows)} rows to forget, {len(tofu.retain.rows)} to keep")
        if never is not None and len(never.truth_ratios) != len(tofu.forget.rows):
            note(
                f"{never.source} has {len(never.truth_ratios)} truth ratios for {len(tofu.forget.rows)} rows to "
                "forget; is it of another split?"
            )
    trained = {side: read_rows(path) for side in SIDES if Path(path := str(getattr(settings, side))).is_file()}
    return Asked(_rows(tofu, parity), _answers(tofu), _options(settings, split, parity, never), trained)


def _never(settings: EvaluateSettings, split: str, parity: str) -> Never | None:
    if settings.never_results is None:
        return None
    never = read_never(settings.never_results, small=small_of(parity))
    if never.measured not in (None, (split, parity)):
        raise EvaluationError(
            f"never_results: {never.source}: expected scores of the split {split} by --parity {parity}, got "
            f"{' by --parity '.join(never.measured or ())}; score that model again in the same way"
        )
    return never


def _rows(tofu: Tofu, parity: str) -> dict[str, Any]:
    sets = {name: getattr(tofu, name).rows for name in SETS}
    if parity == ORIGINAL:
        return {name: rows.select(range(min(NUM_ROWS, len(rows)))) for name, rows in sets.items()}
    return sets if tofu.holdout is None else {**sets, HOLDOUT: tofu.holdout.rows}


def _answers(tofu: Tofu) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SETS:
        one = getattr(tofu, name)
        found |= {f"{name}_paraphrases": one.paraphrases, f"{name}_wrong": one.wrong}
    return found


def _options(settings: EvaluateSettings, split: str, parity: str, never: Never | None) -> dict[str, Any]:
    is_asked = "max_new_tokens" in settings.model_fields_set
    return {
        "split": split,
        "parity": parity,
        "template": None if settings.template == AUTO else settings.template,
        "max_new_tokens": settings.max_new_tokens if is_asked else MAX_NEW_TOKENS,
        "sound": settings.sound,
        "never": settings.never,
        "never_results": never,
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
    }
