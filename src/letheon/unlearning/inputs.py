"""What a run reads before it loads weights: rows, documents and tokenizer, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from letheon.data.alternatives import given_alternatives
from letheon.data.ends import bare_rows
from letheon.data.forms import AUTO
from letheon.data.general import HOLDOUT, read_general
from letheon.data.repeats import check_unseen, whole_text
from letheon.data.rows import Row, Rows, check_disjoint, read_documents, read_rows
from letheon.data.schedules import shuffled
from letheon.data.sequences import TokenSequence, text_sequence, tokenise_all
from letheon.data.system_message import under_system
from letheon.errors import SettingsError
from letheon.model.loading import context_length, load_config, load_tokenizer
from letheon.settings import DEFAULT_DATE, FormedRowSettings, UnlearnSettings
from letheon.settings.suites import brings_rows, is_holdout_of_suite
from letheon.unlearning.dial.measure import Halves, split_in_halves
from letheon.unlearning.resolve import REFUSAL

NUM_HOLDOUT_DOCUMENTS = 64
UNLIMITED = 10**9
"""More tokens than a row can have."""
PLANNED_FORM = "joined"
"""The form in which tokens are counted while the form of the rows is still to be found out."""
PROMPT_SHARE = 0.8
"""How much of a row's tokens its prompt may take where prompts are cut (ZJUKLAB's code)."""

Overlong = Literal["refuse", "truncate", "truncate-prompt"]
"""What becomes of rows that are too long."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The rows of a run as sequences under a template: all that can be checked without weights."""

    forget: Rows
    retain: Rows
    left_out: tuple[Rows, Rows]
    """Forget and retain rows that are only scored on; empty without a validation split."""
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """How many tokens of a row the model is shown at most; how many are trained on may be fewer."""
    template: str
    """The form of `sequences`: the one asked for, or `PLANNED_FORM` where it is still to be found out."""
    sequences: list[TokenSequence]
    """Of forget, retain and left-out rows, in this order."""
    halves: Halves
    """Documents that the model never saw."""
    alternatives: Rows | None
    """Other answers that the user gave."""
    general: tuple[TokenSequence, ...] = ()
    """General text and chat that the user gave."""
    warnings: tuple[str, ...] = ()
    """What the settings ask of the model in vain, in words."""

    @property
    def holdout(self) -> Sequence[TokenSequence]:
        """Those of the documents that states are scored by while the run lasts: the first 64 to choose by."""
        return self.halves.chosen_by[:NUM_HOLDOUT_DOCUMENTS]

    @property
    def rows(self) -> list[Row]:
        """The rows that are trained on, forget rows first."""
        return [*self.forget, *self.retain]

    @property
    def sets(self) -> tuple[Rows, Rows, Rows, Rows]:
        """Forget and retain rows, then forget and retain rows that are left out of training."""
        return (self.forget, self.retain, *self.left_out)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the settings ask in vain, and what was understood of the files of rows, in words."""
        read = (self.forget, self.retain, *([self.alternatives] if self.alternatives else []))
        return (*self.warnings, *(rows.summary() for rows in read if rows.understood))


def read_inputs(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> Inputs:
    """Read, check and tokenise the rows; `note` hears what was understood, and how far that is where there are many.

    Raises:
        DataError: a file or row is not usable, a row is in both sets, or does not fit the model's context.
        ModelError: tokenizer or configuration of the checkpoint cannot be read.
        SettingsError: template "chat" with a tokenizer that has none; a validation split of too few rows.
    """
    tokenizer = load_tokenizer(settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code)
    forget = _read(settings.forget, settings, tokenizer, note)
    retain = _read(settings.retain, settings, tokenizer, note)
    check_disjoint(forget, retain)
    forget, left_out_forget = _split(forget, settings, "forget")
    retain, left_out_retain = _split(retain, settings, "retain")
    others = settings.alternatives or (None if settings.instead in (AUTO, REFUSAL) else settings.instead)
    alternatives = _read(others, settings, tokenizer, note) if others else None
    if alternatives is not None:
        # Each forget row's are looked up when it is known how many the method takes; that there are any is seen now.
        given_alternatives(forget, alternatives, per_row=1, left_out={row.id for row in left_out_forget})
    context = context_length(load_config(settings.model, trust_remote_code=settings.trust_remote_code))
    longest = settings.max_length if settings.overlong == "refuse" else context or UNLIMITED
    max_length = min(longest, context or longest)
    template = PLANNED_FORM if settings.template == AUTO else settings.template
    sets = (forget, retain, left_out_forget, left_out_retain)
    sequences = tokenise_rows(
        sets, tokenizer, template=template, max_length=max_length, overlong=settings.overlong, date=settings.date,
        note=note,
    )  # fmt: skip
    halves = _unseen(settings, tokenizer, sets, template=template, max_length=max_length)
    tasks = {row.task for row in (forget if settings.validation is None else left_out_forget)}
    if settings.holdout_task is not None and settings.holdout_task not in tasks:
        raise SettingsError(
            f"holdout_task: expected a task of the forget rows that are scored ({', '.join(sorted(tasks))}), "
            f"got '{settings.holdout_task}'"
        )
    return Inputs(
        forget=forget,
        retain=retain,
        left_out=(left_out_forget, left_out_retain),
        tokenizer=tokenizer,
        max_length=max_length,
        template=template,
        sequences=sequences,
        halves=halves,
        alternatives=alternatives,
        general=_general(settings, tokenizer, halves, template=template, max_length=max_length),
    )


def _unseen(
    settings: UnlearnSettings,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[Rows],
    *,
    template: str,
    max_length: int,
) -> Halves:
    """Return the documents, or the suite's rows in their form, that the model never saw, in halves."""
    if settings.holdout is None:
        return Halves()
    source = f"holdout: {settings.holdout}"
    if not is_holdout_of_suite(settings.suite, settings.holdout):
        documents = read_documents(settings.holdout)
        check_unseen(documents, sets, source=source)
        return Halves(
            *([text_sequence(d, tokenizer, max_length=max_length) for d in half] for half in split_in_halves(documents))
        )
    rows = _read(settings.holdout, settings, tokenizer, None)
    check_unseen([whole_text(row) for row in rows], sets, source=source)
    found = tokenise_rows([rows], tokenizer, template=template, max_length=max_length, date=settings.date)
    return Halves(*split_in_halves([replace(sequence, answer_start=1) for sequence in found]))


def _general(
    settings: UnlearnSettings, tokenizer: PreTrainedTokenizerBase, halves: Halves, *, template: str, max_length: int
) -> tuple[TokenSequence, ...]:
    if settings.general is None:
        return ()
    if settings.general in (AUTO, HOLDOUT):  # beside what the model itself writes, or alone
        return tuple(halves.chosen_by)
    found = read_general(settings.general, tokenizer, template=template, date=settings.date, max_length=max_length)
    return tuple(found)


def _read(
    source: str | Path,
    settings: FormedRowSettings,
    tokenizer: PreTrainedTokenizerBase,
    note: Callable[[str], None] | None,
) -> Rows:
    rows = bare_rows(read_rows(source, fields=settings.fields, turns=settings.turns, note=note), tokenizer, note=note)
    return under_system(rows, tokenizer, settings.template) if brings_rows(settings.suite) else rows


def _split(rows: Rows, settings: UnlearnSettings, name: str) -> tuple[Rows, Rows]:
    """Leave a random share of the rows out of training."""
    if settings.validation is None:
        return rows, rows.select([])
    num_left_out = round(settings.validation * len(rows))
    if not 0 < num_left_out < len(rows):
        raise SettingsError(
            f"validation: a share of {settings.validation:g} of {len(rows)} {name} rows leaves {num_left_out} rows to "
            f"score on; at least one row must be left for scoring and one for training"
        )
    order = shuffled(len(rows), settings.seed, 0)
    return rows.select(sorted(order[num_left_out:])), rows.select(sorted(order[:num_left_out]))


def tokenise_rows(
    sets: Sequence[Rows],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    max_length: int,
    overlong: Overlong = "refuse",
    date: str = DEFAULT_DATE,
    note: Callable[[str], None] | None = None,
) -> list[TokenSequence]:
    """Return the rows of several sets as sequences, one set after the other, those that are too long cut as asked.

    Raises:
        DataError: a row is longer than `max_length` tokens and `overlong` is "refuse".
    """
    rows = [row for rows in sets for row in rows]
    places = (rows.describe(i) for rows in sets for i in range(len(rows)))
    longest = max_length if overlong == "refuse" else UNLIMITED
    found = tokenise_all(rows, tokenizer, template=template, max_length=longest, date=date, places=places, note=note)
    return [s if len(s.input_ids) <= max_length else cut_overlong(s, max_length, overlong) for s in found]


def cut_overlong(sequence: TokenSequence, length: int, overlong: Overlong) -> TokenSequence:
    """Return a sequence cut to `length` tokens; "truncate-prompt" cuts its prompt first."""
    longest_prompt = int(length * PROMPT_SHARE) if overlong == "truncate-prompt" else None
    return sequence.cut(length, longest_prompt=longest_prompt)
