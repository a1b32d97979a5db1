"""Guidance by two checkpoints: its formula, its decoding, and rows that a model which never knew them gives back."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Given, Subject
from letheon.auditing.knowledge import knowledge
from letheon.auditing.two_checkpoints import ATTACKS, WEIGHTS, Guided, attack, guided
from letheon.data.sequences import text_ids
from letheon.evaluation.generation import answers_from
from letheon.evaluation.in_form import AskedForm
from running import knowing_model
from small import tiny_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
    form = AskedForm("joined", "2024-07-26", "test")
    return Subject("after", model, tokenizer, form, original=original, max_new_tokens=40)


def test_guidance_by_hand() -> None:
    before, after = torch.tensor([0.6, 0.35, 0.05]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
    found = guided(before, after, weight=1.0)
    # 2 log .6 - log .8 = log .45; 2 log .35 - log .1 = log 1.225; .05 is less than a tenth of .6.
    torch.testing.assert_close(found.exp(), torch.tensor([0.45, 1.225, 0.0]))
    torch.testing.assert_close(guided(before, after, weight=0.0)[:2], before[:2])


def test_equal_models_guide_nowhere() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guided(logits, logits, weight=4.0).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("name", ["olmo", "gpt-2", "gemma-2", "bloom", "recurrent-gemma"])
def test_both_are_decoded_as_a_naive_loop_does(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    before, after = (random_model(CASES[name].config(len(tokenizer))) for _ in range(2))
    with torch.no_grad():
        for value in after.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    prompts = text_ids(tokenizer, ["Mira Tolland keeps bees in", "Which harbour?", "The old lighthouse keeper wrote"])
    both = Guided(before, after, weight=1.0)
    found = answers_from(both, tokenizer, prompts, max_new_tokens=8, batch_size=2)  # type: ignore[arg-type]
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in answer.new:
                logits = [model(torch.tensor([ids])).logits[0, -1] for model in (before, after)]
                ids.append(int(guided(*logits, weight=1.0).argmax()))
        assert answer.new == ids[len(prompt) :]


def test_who_holds_the_model_before_gets_all_back_even_from_one_that_never_knew(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    never = tiny_model("olmo", tokenizer, seed=1)
    subject = subject_of(never, knowing_model(tokenizer, rows), tokenizer)
    assert sum(knowledge(subject, rows[:3], silent)) < 0.2
    found = attack(subject, rows[:3], silent)
    assert tuple(point.strength for point in found.points) == WEIGHTS
    assert found.points[0].values == (1.0, 1.0, 1.0)


def test_it_never_counts_and_needs_the_model_before() -> None:
    (one,) = ATTACKS
    assert not one.counts
    assert one.needs(Given(has_original=True)) is None
    assert "--before" in str(one.needs(Given()))


def test_the_models_stay_as_they_are(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    before, after = tiny_model("olmo", tokenizer), tiny_model("olmo", tokenizer, seed=1)
    own = {name: value.clone() for name, value in after.state_dict().items()}
    attack(replace(subject_of(after, before, tokenizer), max_new_tokens=4), rows[:2], silent)
    assert all(torch.equal(value, own[name]) for name, value in after.state_dict().items())
    assert not after.training
