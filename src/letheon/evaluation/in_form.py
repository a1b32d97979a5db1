"""The rows asked in the form in which the model knows them, beside the official raw prompts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.forms import AUTO, render
from letheon.data.probing import AnswerValues, Known, probe_forms
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, text_ids, tokenise, tokenise_asked
from letheon.evaluation.batches import StepProgress, length_batches, padded, reading
from letheon.evaluation.fluency import uncut_tokens
from letheon.evaluation.generation import generate_from
from letheon.evaluation.predicting import predict
from letheon.model.loading import context_length
from letheon.processes import shared
from letheon.scores.predictions import Prediction

_UNLIMITED = 2**31
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class AskedForm:
    """The form in which rows are asked."""

    template: str
    """A form, or "auto" where it is to be found out with the model."""
    date: str
    source: str
    """Who says so: a run, a setting, or the model."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One way of asking a row."""

    ids: list[int]
    guess: list[int]
    """What the model would say if it knew the row."""
    written: str
    """What the chat template writes between its generation prompt and the answer, where the model may say that too."""
    end: str
    """The text that ends the answer, where no special token does."""
    stop: int | None
    """The token that ends it; None for a tokenizer without any."""


def resolve_form(
    form: AskedForm, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> tuple[AskedForm, dict[str, Known]]:
    """Return the form with its name found out where it is "auto", and how well each form tried is known.

    Raises:
        DataError: no form fits the model's context.
    """
    if form.template != AUTO:
        return form, {}
    known = probe_forms(
        rows,
        tokenizer,
        lambda sequences: answer_values(model, sequences),
        max_length=context_length(model.config) or _UNLIMITED,
        date=form.date,
    )
    return AskedForm(next(iter(known)), form.date, form.source), known


def askings(row: Row, tokenizer: PreTrainedTokenizerBase, form: AskedForm) -> list[Asking]:
    """Return the ways in which `row` is asked in a form: with the text that was trained on before its answer, and with
    the bare generation prompt of the chat template where that is shorter.
    """
    rendered = render(row, form.template, tokenizer, date=form.date)
    sequence = tokenise(row, tokenizer, template=form.template, max_length=_UNLIMITED, date=form.date)
    end = str(tokenizer.decode(list(sequence.end), skip_special_tokens=True)).strip() if rendered.end else ""
    found = [_asking(sequence, "", end)]
    bare = tokenise_asked(row, tokenizer, template=form.template, date=form.date)
    if bare is not None and rendered.asked is not None:
        found.append(_asking(bare.at_once, rendered.before.removeprefix(rendered.asked).strip(), end))
    return found


def form_predictions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labelled: Sequence[tuple[str, Row]],
    official: Sequence[Prediction],
    form: AskedForm,
    *,
    max_new_tokens: int,
    batch_size: int,
    exact: bool,
    progress: StepProgress | None,
) -> tuple[Prediction, ...] | None:
    """Return the model's answer to each row in its form; None if the prompts are the official ones anyway.

    Of a row that is asked in two ways the answer counts that speaks against the model: the better one of a forget row,
    the worse one of a retain row. `official` are the predictions to the raw prompts, in the order of `labelled`.
    """
    ways = [askings(row, tokenizer, form) for _, row in labelled]
    raw = text_ids(tokenizer, [prediction.prompt for prediction in official])
    if all(len(asked) == 1 and asked[0].ids == ids for asked, ids in zip(ways, raw, strict=True)):
        return None
    flat = [(index, way) for index, asked in enumerate(ways) for way in asked]
    wanted = [official[index] for index, _ in flat]
    generations = generate_from(
        model,
        tokenizer,
        [way.ids for _, way in flat],
        to_match=[
            p.answer if p.kind == "question" and not way.end and not way.written else None
            for p, (_, way) in zip(wanted, flat, strict=True)
        ],
        uncut_tokens=uncut_tokens([p.split for p in wanted]),
        guesses=[way.guess for _, way in flat],
        more_ends={way.stop for _, way in flat if way.stop is not None},
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        exact=exact,
        names=[f"{p.split} row {p.id}" for p in wanted],
        progress=progress,
    )
    found: dict[int, list[Prediction]] = {}
    for (index, way), generation in zip(flat, generations, strict=True):
        split, row = labelled[index]
        found.setdefault(index, []).append(
            predict(
                _as_predicted(row, official[index]),
                split,
                said(generation.text, way),
                is_cut=generation.is_cut,
                has_ended=generation.has_ended,
            )
        )
    return tuple(_worse(found[index]) for index in range(len(labelled)))


def said(text: str, way: Asking) -> str:
    """Return the answer in a generation: without what the template writes before it, up to the text that ends it."""
    if way.written and text.lstrip().startswith(way.written):
        text = text.lstrip().removeprefix(way.written)
    return text.partition(way.end)[0] if way.end else text


@torch.no_grad()
def answer_values(model: PreTrainedModel, sequences: Collection[TokenSequence]) -> AnswerValues:
    """Return the model's values for the answer of each sequence, from plain forward passes."""
    rows = list(sequences)
    recalls, losses = [0.0] * len(rows), [0.0] * len(rows)
    with reading(model) as plain_model:
        lengths = [len(row.input_ids) for row in rows]

        def values_of(batch: list[int]) -> list[tuple[float, float]]:
            """Return recall and loss of the rows of these numbers."""
            found_of = []
            input_ids, _ = padded([rows[i].input_ids for i in batch], side="right", device=plain_model.device)
            logits: Any = plain_model(input_ids=input_ids, use_cache=False).logits
            for place, index in enumerate(batch):
                start, length = rows[index].answer_start, lengths[index]
                labels, found = input_ids[place, start:length], logits[place, start - 1 : length - 1].float()
                hits = (found.argmax(-1) == labels).long().cumprod(0)
                loss = float(cross_entropy(found, labels, reduction="none").double().sum())
                found_of.append((float(hits.double().mean()), loss))
            return found_of

        batches = length_batches(lengths, max_rows=len(rows), max_tokens=_BATCH_TOKENS)
        for batch, values in zip(batches, shared(batches, values_of), strict=True):
            for index, (recall, loss) in zip(batch, values, strict=True):
                recalls[index], losses[index] = recall, loss
    return AnswerValues(tuple(recalls), tuple(losses), tuple(row.num_answer_tokens for row in rows))


def _asking(sequence: TokenSequence, written: str, end: str) -> Asking:
    start = sequence.answer_start
    ids, stop = sequence.input_ids, sequence.end[-1] if sequence.end else None
    return Asking(list(ids[:start]), list(ids[start:]), written, end, stop)


def _as_predicted(row: Row, official: Prediction) -> Row:
    return Row(row.id, official.prompt, official.answer, row.task, row.kind)


def _worse(predictions: Sequence[Prediction]) -> Prediction:
    def value(prediction: Prediction) -> tuple[float, float]:
        if prediction.kind == "question":
            return prediction.exact_match, prediction.unicode_exact_match or 0.0
        return prediction.rouge_l_recall, prediction.unicode_rouge_l_recall or 0.0

    return (max if predictions[0].split == "forget" else min)(predictions, key=value)
