"""The form in which rows are trained on: template, ends, other answers, and what is marked or cut off."""

import math
from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace
from typing import cast

import torch

from letheon.data.alternatives import given_alternatives, other_answers, random_tokens, refusals
from letheon.data.packing import PASS_TOKENS, pack, token_groups
from letheon.data.sequences import Sequence, tokenise_all
from letheon.data.templates import AUTO, TEMPLATES
from letheon.errors import DataError
from letheon.model.alternatives import generate_alternatives, longest_alternatives
from letheon.model.engine import Engine
from letheon.model.loading import LoadedModel
from letheon.objective.methods import Method
from letheon.settings import UnlearnSettings
from letheon.training.inputs import Inputs, tokenise_rows

NUM_TEMPLATE_ROWS = 64
"""How many rows are asked to find out template and ends."""
PROMPT_SHARE = 0.8
"""How much of a row's tokens its prompt may take where prompts are cut (ZJUKLAB's code)."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which the rows are trained on and scored."""

    template: str
    template_log_probs: dict[str, float]
    sequences: list[Sequence]
    """Of all rows, left-out ones included, with their ends where these are kept."""
    trained: list[Sequence]
    notes: tuple[str, ...]


def choose_form(loaded: LoadedModel, engine: Engine, inputs: Inputs, settings: UnlearnSettings, method: Method) -> Form:
    """Settle template and ends with the model where they are to be found out, and put the rows into that form.

    Raises:
        DataError: a row does not fit the model's context under the chosen template.
    """
    notes: list[str] = []
    template, log_probs, sequences = settings.template, dict[str, float](), inputs.sequences
    if template == AUTO:
        template, log_probs = choose_template(engine, inputs)
        found = ", ".join(f"{name} {value:.3f}" for name, value in log_probs.items())
        notes.append(f"template '{template}': the forget answers are likeliest under it (nats a token: {found})")
        sets = (inputs.forget, inputs.retain, *inputs.left_out)
        sequences = tokenise_rows(sets, inputs.tokenizer, template=template, max_length=inputs.max_length)
    ends = settings.end_of_sequence == "retain"
    if settings.end_of_sequence == "auto":
        ends, probability = ends_rows(engine, inputs, sequences)
        kept = "is kept" if ends else "is not trained"
        notes.append(f"the model ends its retain answers with probability {probability:.2g}, which {kept}")
    others = _alternatives(loaded, inputs, sequences, settings, method=method, template=template, ends=ends)
    if ends:
        sequences = _with_ends(inputs, sequences)
    trained = [*_trained(sequences[: len(inputs.rows)], settings, inputs), *others]
    num_empty = sum(sequence.num_answer_tokens == 0 for sequence in trained)
    if num_empty:
        notes.append(
            f"{num_empty} rows have no answer token among their first {settings.max_length}: nothing trains on it"
        )
    return Form(template, log_probs, sequences, trained, tuple(notes))


@torch.no_grad()
def choose_template(engine: Engine, inputs: Inputs) -> tuple[str, dict[str, float]]:
    """Return the template under which the model finds the forget answers likeliest, and all candidates' values.

    Unlearning a text in a form in which the model never memorised it does little. At most 64 rows, spread over the
    set, are asked; "chat" is tried where the tokenizer has a chat template.
    """
    stride = -(-len(inputs.forget) // NUM_TEMPLATE_ROWS)
    sample = list(inputs.forget)[::stride]
    names = [*TEMPLATES, *(["chat"] if getattr(inputs.tokenizer, "chat_template", None) else [])]
    found: dict[str, float] = {}
    for name in names:
        try:
            sequences = tokenise_all(sample, inputs.tokenizer, template=name, max_length=inputs.max_length)
        except DataError:
            continue  # a longer template may not fit where a shorter one does
        found[name] = _mean_log_prob(engine, sequences)
    return max(found, key=lambda name: found[name]), found


@torch.no_grad()
def ends_rows(engine: Engine, inputs: Inputs, sequences: Collection[Sequence]) -> tuple[bool, float]:
    """Return whether the model ends its retain answers, and how likely it does (geometric mean over at most 64 rows).

    Where it does, that is part of what it is to keep: without the end a right answer runs on, and exact match fails.
    """
    retained = list(sequences)[len(inputs.forget) : len(inputs.rows)]
    stride = -(-len(retained) // NUM_TEMPLATE_ROWS)
    ended = [_ended(s, inputs) for s in retained[::stride]]
    ends = [replace(s, answer_start=len(s.input_ids) - 1) for s in ended]
    probability = math.exp(_mean_log_prob(engine, ends))
    return probability > 0.5, probability


def planned_sequences(inputs: Inputs, settings: UnlearnSettings, *, method: Method) -> list[Sequence]:
    """Return what a run trains on, and after it the rows left out, as far as that is known without the model.

    Under template "auto" the sequences are those of "pair", with end_of_sequence "auto" retain rows are taken as
    ended, and answers that the model is to make up are as long as they can get.
    """
    ends = settings.end_of_sequence != "none"
    num_rows, template = len(inputs.rows), "pair" if settings.template == AUTO else settings.template
    others = _alternatives(None, inputs, inputs.sequences, settings, method=method, template=template, ends=ends)
    sequences = _with_ends(inputs, inputs.sequences) if ends else inputs.sequences
    return [*_trained(sequences[:num_rows], settings, inputs), *others, *sequences[num_rows:]]


def _alternatives(
    loaded: LoadedModel | None,
    inputs: Inputs,
    sequences: Collection[Sequence],
    settings: UnlearnSettings,
    *,
    method: Method,
    template: str,
    ends: bool,
) -> list[Sequence]:
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
    else:
        # Another row's answer may be too long for this prompt, for which nobody is to blame.
        make, is_cut = (refusals if chosen.kind == "refusals" else other_answers), True
        rows = make(inputs.forget, per_row=chosen.per_row, seed=seed)
    if rows:
        longest = 10**9 if is_cut else inputs.max_length
        made = tokenise_all(rows, inputs.tokenizer, template=template, max_length=longest)
    return _marked([_ended(sequence, inputs) for sequence in made] if ends else made, settings, inputs)


def _trained(sequences: Collection[Sequence], settings: UnlearnSettings, inputs: Inputs) -> list[Sequence]:
    """Return what is trained on of the rows."""
    num_forget = len(inputs.forget)
    retained = retain_sequences(sequences[num_forget:], settings, inputs)
    return [*_marked(sequences[:num_forget], settings, inputs), *retained]


def retain_sequences(sequences: Collection[Sequence], settings: UnlearnSettings, inputs: Inputs) -> list[Sequence]:
    """Return retain rows as they are trained on: padded where the KL is taken everywhere."""
    marked = _marked(sequences, settings, inputs)
    if settings.positions == "answer":
        return marked
    return [_padded(sequence, _length(settings, inputs), inputs) for sequence in marked]


def _marked(sequences: Collection[Sequence], settings: UnlearnSettings, inputs: Inputs) -> list[Sequence]:
    """Mark what is trained on, answers or whole texts, and cut off what is too long."""
    marked = [replace(s, answer_start=1) for s in sequences] if settings.span == "text" else sequences
    length = _length(settings, inputs)
    longest_prompt = int(length * PROMPT_SHARE) if settings.overlong == "truncate-prompt" else None
    return [_cut(sequence, length, longest_prompt=longest_prompt) for sequence in marked]


def _length(settings: UnlearnSettings, inputs: Inputs) -> int:
    """How many tokens of a row are trained on."""
    return min(settings.max_length, inputs.max_length)


def _cut(sequence: Sequence, length: int, *, longest_prompt: int | None = None) -> Sequence:
    """What is left of a sequence in `length` tokens, after the prompt's last `longest_prompt` where that is given.

    No answer token may be left.
    """
    prompt = sequence.answer_start
    first = 0 if longest_prompt is None else max(0, prompt - longest_prompt)
    ids = sequence.input_ids[first : first + length]
    return Sequence(ids, min(prompt - first, len(ids)))


def _padded(sequence: Sequence, length: int, inputs: Inputs) -> Sequence:
    """As NEKO's code has its retain rows: padded with the pad token, which is masked, and scored at every place."""
    missing, pad = length - len(sequence.input_ids), inputs.tokenizer.pad_token_id
    token = _end_of_sequence(inputs) if pad is None else int(cast("int", pad))
    return Sequence(sequence.input_ids + (token,) * missing, answer_start=1, padding=missing)


def _mean_log_prob(engine: Engine, sequences: Collection[Sequence], *, max_tokens: int = PASS_TOKENS) -> float:
    total, count = 0.0, 0
    with engine.running():
        for group in token_groups([len(s.input_ids) for s in sequences], max_tokens):
            batch = pack([sequences[i] for i in group], is_forget=[True] * len(group), row_index=group)
            log_probs = engine.label_terms(batch.to(engine.model.device)).log_probs
            total, count = total + float(log_probs.sum()), count + log_probs.numel()
    return total / count


def _with_ends(inputs: Inputs, sequences: Collection[Sequence]) -> list[Sequence]:
    first = len(inputs.forget)
    left_out_forget = len(inputs.rows), len(inputs.rows) + len(inputs.left_out[0])
    kept = [index < first or left_out_forget[0] <= index < left_out_forget[1] for index in range(len(sequences))]
    return [s if is_forget else _ended(s, inputs) for s, is_forget in zip(sequences, kept, strict=True)]


def _ended(sequence: Sequence, inputs: Inputs) -> Sequence:
    ids = (*sequence.input_ids, _end_of_sequence(inputs))
    return replace(sequence, input_ids=ids[: inputs.max_length])


def _end_of_sequence(inputs: Inputs) -> int:
    return int(cast("int", inputs.tokenizer.eos_token_id))
