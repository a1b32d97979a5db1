"""The form in which rows are trained on: template, ends, other answers, and what is marked or cut off."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from letheon.data.alternatives import REFUSALS, given_alternatives, one_refusal, other_answers, random_tokens, refusals
from letheon.data.forms import AUTO, CHAT, writes_date
from letheon.data.probing import Known, describe_known, probe_forms
from letheon.data.rows import Row
from letheon.data.sequences import Asked, TokenSequence, hash_sequences, tokenise_all, tokenise_asked
from letheon.engine.engine import Engine
from letheon.model.loading import LoadedModel
from letheon.objective.methods import Method
from letheon.settings import FormedRowSettings, FormSettings, UnlearnSettings
from letheon.unlearning.answerless import Answerless, check_answerless, find_answerless
from letheon.unlearning.inputs import PLANNED_FORM, PROMPT_SHARE, UNLIMITED, Inputs, cut_overlong, tokenise_rows
from letheon.unlearning.interim import answer_values
from letheon.unlearning.made_up import generate_alternatives, longest_alternatives

NUM_END_ROWS = 8
"""How many retain rows are asked whether the model ends them."""


@dataclass(frozen=True, slots=True)
class FormedRows:
    """The rows in the form in which they are trained on and scored."""

    template: str
    date: str
    is_dated: bool
    """Whether the tokenizer has a chat template that writes `date` into a row in form "chat"."""
    known: Mapping[str, Known]
    """How well a sample of the rows is known in each form tried, best first; empty if none was to be chosen."""
    ends: bool
    """Whether retain rows end as the model ends them."""
    sequences: list[TokenSequence]
    """Of all rows, left-out ones included, with their ends where these are kept."""
    asked: Mapping[int, Asked]
    """How rows are asked with the bare generation prompt, by their number in `sequences`, where that is another way."""
    trained: list[TokenSequence]
    notes: tuple[str, ...]
    answerless: Answerless
    """The rows that nothing trains on."""

    @property
    def sha256(self) -> str:
        """The hash of all token sequences that are trained on or scored."""
        return hash_sequences([*self.trained, *self.sequences])

    def openings(self, num_rows: int, *, longest: int) -> list[TokenSequence]:
        """Return what the template writes before the answers of the first `num_rows`, in at most `longest` tokens."""
        found = [asked.opening for index, asked in self.asked.items() if index < num_rows]
        return [one for one in found if one.num_answer_tokens and len(one.input_ids) <= longest]


def form_rows(
    loaded: LoadedModel,
    engine: Engine,
    inputs: Inputs,
    settings: UnlearnSettings,
    method: Method,
    *,
    found: Mapping[str, Known],
) -> FormedRows:
    """Find out form and ends with the model where they are to be found out, and put the rows into that form.

    `found` says how well each form was known when a resumed run found out its own; empty for others.

    Raises:
        DataError: a row does not fit the model's context in the chosen form, or a forget row is cut off before its
            answer.
    """
    notes: list[str] = []
    template, known, sequences = settings.template, found, inputs.sequences
    if template == AUTO:
        known = choose_form(engine, inputs, date=settings.date, cuts=settings.overlong != "refuse")
        template = next(iter(known))
    if known:
        notes.append(f"template '{template}': the model knows the rows best in it ({describe_known(known)})")
    if template != inputs.template:
        sequences = tokenise_rows(
            inputs.sets, inputs.tokenizer, template=template, max_length=inputs.max_length,
            overlong=settings.overlong, date=settings.date,
        )  # fmt: skip
    is_dated = writes_date(inputs.tokenizer)
    if template == CHAT and is_dated:
        notes.append(f"the chat template writes the date: every row has {settings.date} (--date)")
    ends = settings.end_of_sequence == "retain"
    if settings.end_of_sequence == "auto":
        ends, probability = ends_rows(engine, inputs, sequences)
        kept = "is kept" if ends else "is not trained"
        notes.append(f"the model ends its retain answers with probability {probability:.2g}, which {kept}")
    asked = _asked(inputs, settings, template, ends=ends) if template == CHAT else {}
    if asked:
        notes.append(
            "the chat template writes more before an answer than its generation prompt: rows are scored with and "
            "without it, and the worse score counts"
        )
    if method.alternatives is not None and method.alternatives.kind == "refusal":
        notes.append(f'the forget rows are to be answered by "{REFUSALS[0]}" (--instead none leaves that out)')
    others = _alternatives(loaded, inputs, sequences, settings, method=method, template=template, ends=ends)
    if ends:
        sequences = _with_ends(inputs, sequences)
    trained = [*_trained(sequences[: len(inputs.rows)], settings, inputs), *others]
    answerless = find_answerless(trained, inputs.forget, inputs.retain, num_tokens=_length(settings, inputs))
    check_answerless(answerless, settings)
    if answerless:
        notes.append(answerless.note)
    return FormedRows(
        template, settings.date, is_dated, known, ends, sequences, asked, trained, tuple(notes), answerless
    )


@torch.no_grad()
def choose_form(engine: Engine, inputs: Inputs, *, date: str, cuts: bool) -> dict[str, Known]:
    """Return how well the model knows forget and retain rows in each form, best first (see `probe_forms`)."""
    return probe_forms(
        _alternating(list(inputs.forget), list(inputs.retain)),
        inputs.tokenizer,
        lambda sequences: answer_values(engine, sequences),
        max_length=inputs.max_length,
        date=date,
        longest_prompt=int(inputs.max_length * PROMPT_SHARE) if cuts else None,
    )


def _alternating(forget: Sequence[Row], retain: Sequence[Row]) -> list[Row]:
    """Forget and retain rows in turn, as many of either, so that a sample has both."""
    num = min(len(forget), len(retain))
    return [row for i in range(num) for row in (forget[i * len(forget) // num], retain[i * len(retain) // num])]


@torch.no_grad()
def ends_rows(engine: Engine, inputs: Inputs, sequences: Sequence[TokenSequence]) -> tuple[bool, float]:
    """Return whether the model ends its retain answers, and how likely it does (geometric mean over at most 8 rows).

    Where it does, that is part of what it is to keep: without the end a right answer runs on, and exact match fails.
    """
    retained = list(sequences)[len(inputs.forget) : len(inputs.rows)]
    stride = -(-len(retained) // NUM_END_ROWS)
    ends = [
        replace(ended, answer_start=len(sequence.input_ids))
        for sequence in retained[::stride]
        if len((ended := sequence.ended(inputs.max_length)).input_ids) > len(sequence.input_ids)
    ]
    if not ends:
        return False, 0.0
    values = answer_values(engine, ends)
    probability = math.exp(-sum(values.losses) / sum(values.num_tokens))
    return probability > 0.5, probability


def _asked(inputs: Inputs, settings: FormedRowSettings, template: str, *, ends: bool) -> dict[int, Asked]:
    found: dict[int, Asked] = {}
    is_forget = _is_forget(inputs)
    rows = [row for rows in inputs.sets for row in rows]
    for index, row in enumerate(rows):
        asked = tokenise_asked(row, inputs.tokenizer, template=template, date=settings.date)
        if asked is None:
            continue
        if settings.overlong != "refuse":
            asked = asked.each(lambda s: _within_context(s, inputs, settings))
        if ends and not is_forget[index]:
            asked = asked.each(lambda s: s.ended(inputs.max_length))
        found[index] = asked
    return found


def check_answers(inputs: Inputs, settings: FormedRowSettings) -> None:
    """Refuse forget rows that are cut off before their answers, as far as that is known without the model.

    Raises:
        DataError: there are some, in the form that was asked for.
    """
    if settings.template != AUTO:
        marked = _trained(inputs.sequences[: len(inputs.rows)], settings, inputs)
        found = find_answerless(marked, inputs.forget, inputs.retain, num_tokens=_length(settings, inputs))
        check_answerless(found, settings)


def planned_sequences(inputs: Inputs, settings: UnlearnSettings, *, method: Method) -> list[TokenSequence]:
    """Return the sequences that a run trains on, then the rows left out, as far as known without the model.

    Under template "auto" the sequences are those of "joined", with end_of_sequence "auto" retain rows are taken as
    ended, and answers that the model is to make up are as long as they can get.
    """
    ends = settings.end_of_sequence != "none"
    num_rows, template = len(inputs.rows), PLANNED_FORM if settings.template == AUTO else settings.template
    others = _alternatives(None, inputs, inputs.sequences, settings, method=method, template=template, ends=ends)
    sequences = planned_rows(inputs, settings)
    return [*_trained(sequences[:num_rows], settings, inputs), *others, *sequences[num_rows:]]


def planned_rows(inputs: Inputs, settings: FormSettings) -> list[TokenSequence]:
    """Return all rows, left-out ones included, in the form that `planned_sequences` takes."""
    return _with_ends(inputs, inputs.sequences) if settings.end_of_sequence != "none" else inputs.sequences


def _alternatives(
    loaded: LoadedModel | None,
    inputs: Inputs,
    sequences: Sequence[TokenSequence],
    settings: UnlearnSettings,
    *,
    method: Method,
    template: str,
    ends: bool,
) -> list[TokenSequence]:
    """Return the sequences with other answers that the method trains on, row after row."""
    chosen, seed = method.alternatives, settings.seed
    if chosen is None:
        return []
    of_forget, is_cut = sequences[: len(inputs.forget)], settings.overlong != "refuse"
    if inputs.alternatives is not None:
        left_out = {row.id for row in inputs.left_out[0]}
        rows = given_alternatives(inputs.forget, inputs.alternatives, per_row=chosen.per_row, left_out=left_out)
    elif chosen.kind == "random-tokens":
        made = random_tokens(of_forget, inputs.tokenizer, per_row=chosen.per_row, seed=seed)
        return _marked(made, settings, inputs)
    elif chosen.kind == "generated":
        rows = []
        if loaded is None:
            made = longest_alternatives(of_forget, per_row=chosen.per_row)
        else:
            made = generate_alternatives(loaded, of_forget, per_row=chosen.per_row, seed=seed)
    elif chosen.kind == "refusal":
        return _refusals(inputs, settings, template=template, ends=ends)
    else:
        # Another row's answer may be too long for this prompt, which is no mistake of the user.
        make, is_cut = (refusals if chosen.kind == "refusals" else other_answers), True
        rows = make(inputs.forget, per_row=chosen.per_row, seed=seed)
    if rows:
        longest = UNLIMITED if is_cut else inputs.max_length
        made = tokenise_all(rows, inputs.tokenizer, template=template, max_length=longest, date=settings.date)
    elif made:
        end = next((sequence.end for sequence in of_forget), ())
        made = [replace(sequence, end=end) for sequence in made]
    return _marked([s.ended(inputs.max_length) for s in made] if ends else made, settings, inputs)


def _refusals(inputs: Inputs, settings: UnlearnSettings, *, template: str, ends: bool) -> list[TokenSequence]:
    """Return the forget rows with a refusal each; of a document, which has no prompt to refuse, no token counts."""
    rows = one_refusal(inputs.forget)
    made = tokenise_all(rows, inputs.tokenizer, template=template, max_length=UNLIMITED, date=settings.date)
    marked = _marked([s.ended(inputs.max_length) for s in made] if ends else made, settings, inputs)
    return [
        replace(s, input_ids=s.input_ids[:1], answer_start=1) if row.is_document else s
        for s, row in zip(marked, rows, strict=True)
    ]


def _trained(sequences: Sequence[TokenSequence], settings: FormSettings, inputs: Inputs) -> list[TokenSequence]:
    """Return the trained part of the rows: all of a document, the answer of any other row."""
    whole = [
        replace(s, answer_start=1) if row.is_document else s for s, row in zip(sequences, inputs.rows, strict=True)
    ]
    num_forget = len(inputs.forget)
    retained = retain_sequences(whole[num_forget:], settings, inputs)
    return [*_marked(whole[:num_forget], settings, inputs), *retained]


def retain_sequences(sequences: Sequence[TokenSequence], settings: FormSettings, inputs: Inputs) -> list[TokenSequence]:
    """Return retain rows as they are trained on: padded where the KL is taken everywhere."""
    marked = _marked(sequences, settings, inputs)
    if settings.positions == "answer":
        return marked
    return [_padded(sequence, _length(settings, inputs), inputs) for sequence in marked]


def _marked(sequences: Sequence[TokenSequence], settings: FormSettings, inputs: Inputs) -> list[TokenSequence]:
    """Mark the tokens to train on, answers or whole texts, and cut off tokens beyond the maximum length."""
    marked = [replace(s, answer_start=1) for s in sequences] if settings.span == "text" else sequences
    length = _length(settings, inputs)
    return [cut_overlong(sequence, length, settings.overlong) for sequence in marked]


def _within_context(sequence: TokenSequence, inputs: Inputs, settings: FormSettings) -> TokenSequence:
    is_over = len(sequence.input_ids) > inputs.max_length
    return cut_overlong(sequence, inputs.max_length, settings.overlong) if is_over else sequence


def _length(settings: FormSettings, inputs: Inputs) -> int:
    """How many tokens of a row are trained on."""
    return min(settings.max_length, inputs.max_length)


def _padded(sequence: TokenSequence, length: int, inputs: Inputs) -> TokenSequence:
    """As NEKO's code has its retain rows: padded with the pad token, which is masked, and scored at every place."""
    missing, pad = length - len(sequence.input_ids), inputs.tokenizer.pad_token_id
    token = _end_of_sequence(inputs) if pad is None else int(cast("int", pad))
    return TokenSequence(sequence.input_ids + (token,) * missing, answer_start=1, padding=missing)


def _with_ends(inputs: Inputs, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    return [
        s if is_forget else s.ended(inputs.max_length)
        for s, is_forget in zip(sequences, _is_forget(inputs), strict=True)
    ]


def _is_forget(inputs: Inputs) -> list[bool]:
    """Which of all rows, left-out ones included, are to be forgotten."""
    return [is_forget for rows, is_forget in zip(inputs.sets, (True, False, True, False), strict=True) for _ in rows]


def _end_of_sequence(inputs: Inputs) -> int:
    return int(cast("int", inputs.tokenizer.eos_token_id))
