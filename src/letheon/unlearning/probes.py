"""The rows that are scored while a run lasts, and what the KL of scorings is taken over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from letheon.data.rows import Rows
from letheon.data.sequences import Asked, TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.reference import build_reference
from letheon.engine.values import ReferenceStore
from letheon.errors import DataError
from letheon.objective.values import Needs
from letheon.settings import FormSettings, ScoringSettings, UnlearnSettings
from letheon.unlearning.answerless import Answerless, find_answerless
from letheon.unlearning.formed_rows import retain_sequences
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.interim import KeptRows, Probes


def probes_of(
    inputs: Inputs,
    sequences: Sequence[TokenSequence],
    settings: UnlearnSettings,
    *,
    asked: Mapping[int, Asked] | None = None,
    others: Sequence[TokenSequence] = (),
) -> Probes:
    """Return the rows to score during a run: its own, or those that are left out of training.

    Rows whose answers lie beyond the model's context are not among them. `others` are the forget rows with other
    answers as they are trained on, row after row.

    Raises:
        DataError: no forget row or no retain row can be scored.
    """
    first, forget, retain = _scored_rows(inputs, settings)
    rows = [*forget, *retain]
    chosen = [i for i in range(len(rows)) if sequences[first + i].num_answer_tokens]
    num_forget = sum(i < len(forget) for i in chosen)
    if not 0 < num_forget < len(chosen):
        side = "retain" if num_forget else "forget"
        raise DataError(
            f"{getattr(settings, side)}: the answers of all {side} rows are beyond the model's context of "
            f"{inputs.max_length} tokens, so none can be scored; shorten the prompts, or use --overlong truncate-prompt"
        )
    return Probes(
        rows=[rows[i] for i in chosen],
        answers=[sequences[first + i] for i in chosen],
        num_forget_rows=num_forget,
        holdout=inputs.holdout,
        asked={place: one for place, i in enumerate(chosen) if (one := (asked or {}).get(first + i)) and one.is_whole},
        holdout_task=settings.holdout_task,
        others=_taught_answers(others, sequences, len(inputs.forget), settings),
    )


def _taught_answers(
    others: Sequence[TokenSequence], sequences: Sequence[TokenSequence], num_forget: int, settings: UnlearnSettings
) -> Sequence[TokenSequence]:
    """Return forget rows with the other answer that --instead teaches each; nothing where any has none or several.

    Rows that are left out of training to be scored are taught nothing.
    """
    if not others or settings.instead is None or settings.validation is not None:
        return ()
    per_row = len(others) // num_forget
    if any(others[i] != others[i - i % per_row] for i in range(len(others))):
        return ()
    taught = others[::per_row]
    if settings.span == "text":  # their prompts are trained on too, and are no part of the answer
        taught = [replace(s, answer_start=row.answer_start) for s, row in zip(taught, sequences, strict=False)]
    return [s for s in taught if len(s.input_ids) > s.answer_start]


def _scored_rows(inputs: Inputs, settings: ScoringSettings) -> tuple[int, Rows, Rows]:
    """The number of the first row that is scored, and the forget and retain rows that are."""
    if settings.validation is None:
        return 0, inputs.forget, inputs.retain
    return len(inputs.rows), *inputs.left_out


def unscored_rows(inputs: Inputs, sequences: Sequence[TokenSequence], settings: ScoringSettings) -> Answerless:
    """Return the rows that were to be scored and cannot be: their answers lie beyond the model's context."""
    first, forget, retain = _scored_rows(inputs, settings)
    return find_answerless(sequences[first:], forget, retain, num_tokens=inputs.max_length)


def waits_on_kl(settings: ScoringSettings) -> bool:
    """Whether a run stops by the retain KL, so that the reference's values on the scored retain rows are held."""
    return settings.patience is not None and settings.patience_on == "retain_kl"


def kept_sequences(probes: Probes, inputs: Inputs, settings: FormSettings) -> list[TokenSequence]:
    """Return the retain rows of the probes as they are trained on, which the retain KL of scorings is taken over."""
    return retain_sequences(probes.answers[probes.num_forget_rows :], settings, inputs)


def with_kept_rows(
    probes: Probes,
    engine: Engine,
    reference: ReferenceStore,
    *,
    retain: Sequence[TokenSequence] = (),
    general: Sequence[TokenSequence] = (),
) -> Probes:
    """Return `probes` with the rows that the KL is scored on, retain rows and general text, where there are any."""
    if retain:
        probes = replace(probes, kept=_kept_rows(engine, retain, reference))
    if general:
        probes = replace(probes, general=_kept_rows(engine, general, reference))
    return probes


def _kept_rows(engine: Engine, sequences: Sequence[TokenSequence], reference: ReferenceStore) -> KeptRows:
    """Return rows that the KL is scored on with the reference's values, which are held in memory."""
    store = build_reference(engine, sequences, num_forget_rows=0, needs=Needs(kl="forward"))
    # One copy of a trained head is enough for both stores.
    return KeptRows(sequences, replace(store, head=reference.head or store.head))
