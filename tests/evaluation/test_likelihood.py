"""Likelihoods of answers: packed with a shared question they are those of padded batches."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.evaluation.metrics.likelihood import AnswerLikelihood, AskedAnswers, likelihoods
from letheon.evaluation.metrics.likelihood import _Reader as Reader
from letheon.evaluation.templates import LabelledSequence, QuestionTemplate, question_template
from small import tiny_model

QUESTIONS = [
    ("Who keeps bees?", ["Mira Tolland keeps bees.", "Mira Tolland keeps cats in Harrow.", "Oren"]),
    ("Where does the river bend twice, as the old lighthouse keeper wrote?", ["In Harrow, twice."]),
    ("Sea?", ["The sea every winter evening, the sea", "The", "No ship left from Veldhaven."]),
]
LEARNED, ROTARY = "gpt2", "llama"


def naive(model: PreTrainedModel, ids: list[list[int]], starts: list[int], pad: int) -> list[tuple[float, list[float]]]:
    """Losses and log-probabilities of the labels from one batch padded on the right."""
    width = max(map(len, ids))
    batch = torch.tensor([[*row, *[pad] * (width - len(row))] for row in ids])
    with torch.no_grad():
        logits = model(input_ids=batch, attention_mask=batch.ne(pad).long()).logits.log_softmax(-1)
    found = []
    for i, (row, start) in enumerate(zip(ids, starts, strict=True)):
        values = [float(logits[i, t - 1, row[t]]) for t in range(start, len(row))]
        found.append((-sum(values) / len(values), values[:-1]))
    return found


def asked(template: QuestionTemplate) -> list[AskedAnswers]:
    return [AskedAnswers(tuple(template.sequence(q, a) for a in answers), in_detail=1) for q, answers in QUESTIONS]


def flat(found: list[tuple[AnswerLikelihood, ...]]) -> list[AnswerLikelihood]:
    return [one for several in found for one in several]


@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt-neox", "qwen", "gemma", "gpt2"])
@pytest.mark.parametrize("exact", [False, True])
def test_packed_and_padded_likelihoods_are_those_of_a_naive_batch(
    architecture: str, exact: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(architecture, tokenizer)
    template = question_template(tokenizer)
    questions = asked(template)
    found = flat(likelihoods(model, questions, padding=template.padding, exact=exact))
    sequences = [sequence for one in questions for sequence in one.sequences]
    wanted = naive(model, [list(s.ids) for s in sequences], [s.start for s in sequences], template.padding)
    assert [one.loss for one in found] == pytest.approx([loss for loss, _ in wanted], abs=1e-5)
    assert [one.probability for one in found] == pytest.approx([math.exp(-loss) for loss, _ in wanted], abs=1e-6)
    assert found[0].log_probs == pytest.approx(wanted[0][1], abs=1e-5)
    assert found[1].log_probs == ()  # only the first answer of each question is wanted in detail


@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt-neox", "qwen", "gemma", "gpt2"])
def test_usual_models_are_packed(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    template = question_template(tokenizer)
    reader = Reader(tiny_model(architecture, tokenizer), template.padding)
    with torch.no_grad():
        assert reader.may_pack(asked(template))
        assert reader.agrees(asked(template))


def test_min_k_plus_plus_values_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    ids = tokenizer("Who keeps bees?").input_ids
    [[found]] = likelihoods(
        model, [AskedAnswers((LabelledSequence(tuple(ids), 2),), in_detail=1)], padding=tokenizer.eos_token_id or 0
    )
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).double()
    for place, normed, hit in zip(range(2, len(ids) - 1), found.normed, found.hits, strict=True):
        row = log_probs[place - 1]
        mean = float((row.exp() * row).sum())
        deviation = math.sqrt(float((row.exp() * (row - mean) ** 2).sum()))
        assert normed == pytest.approx((float(row[ids[place]]) - mean) / deviation, abs=1e-3)
        assert hit == (int(row.argmax()) == ids[place])


def test_hidden_tokens_are_not_seen_but_keep_their_places(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    pad = int(tokenizer.eos_token_id or 0)
    ids = [*tokenizer("Who keeps").input_ids, pad, *tokenizer(" bees in Harrow").input_ids]
    sequence = LabelledSequence((*ids, pad), len(ids) - 2)
    other = LabelledSequence((*ids[:-1], ids[0], pad), len(ids) - 2)
    questions = [AskedAnswers((sequence, other), in_detail=2)]
    packed = flat(likelihoods(model, questions, padding=pad))
    wanted = naive(model, [list(s.ids) for s in (sequence, other)], [s.start for s in (sequence, other)], pad)
    assert [one.loss for one in packed] == pytest.approx([loss for loss, _ in wanted], abs=1e-5)
    seen = flat(likelihoods(model, questions, padding=-1, exact=True))
    assert abs(seen[0].loss - packed[0].loss) > 1e-4


def test_an_answer_without_labels_has_no_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tuple(tokenizer("Who keeps bees?").input_ids)
    [[found]] = likelihoods(model, [AskedAnswers((LabelledSequence(ids, len(ids)),), in_detail=1)], padding=0)
    assert math.isnan(found.loss)
    assert found.hits == ()


def test_a_model_whose_packed_rows_differ_is_read_in_padded_batches(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", tokenizer)
    template = question_template(tokenizer)
    wanted = flat(likelihoods(model, asked(template), padding=template.padding, exact=True))
    whole = type(model).forward

    def deaf_to_masks(self: Any, *args: Any, attention_mask: Any = None, **given: Any) -> Any:
        """Attend to everything before, whatever a mask of who sees whom says."""
        mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
        return whole(self, *args, attention_mask=mask, **given)

    monkeypatch.setattr(type(model), "forward", deaf_to_masks)
    found = flat(likelihoods(model, asked(template), padding=template.padding))
    assert [one.loss for one in found] == pytest.approx([one.loss for one in wanted], abs=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_answers_of_the_same_tokens_are_read_once(
    exact: bool, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", tokenizer)
    template = question_template(tokenizer)
    once = asked(template)
    earlier = [
        AskedAnswers(tuple(replace(s, start=start) for s in one.sequences for start in (s.start, 3)), in_detail=2)
        for one in once
    ]
    alone = [AskedAnswers(tuple(replace(s, start=3) for s in one.sequences), in_detail=one.in_detail) for one in once]

    def read(questions: list[AskedAnswers]) -> tuple[list[tuple[AnswerLikelihood, ...]], int]:
        found = likelihoods(model, questions, padding=template.padding, exact=exact)
        return found, num_read.pop()

    num_read = [0]
    whole = type(model).forward

    def counting(self: Any, *args: Any, input_ids: Any = None, **given: Any) -> Any:
        num_read[-1] += input_ids.numel()
        return whole(self, *args, input_ids=input_ids, **given)

    monkeypatch.setattr(type(model), "forward", counting)
    found, tokens = read(earlier)
    num_read.append(0)
    wanted, wanted_tokens = read(once)
    num_read.append(0)
    wanted_earlier, _ = read(alone)
    assert [several[::2] for several in found] == wanted
    assert [several[1::2] for several in found] == wanted_earlier
    assert tokens <= wanted_tokens  # padding may be less


def test_nothing_to_read_gives_nothing(model: PreTrainedModel) -> None:
    assert likelihoods(model, [], padding=0) == []
