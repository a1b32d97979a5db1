"""The linear probe: by hand, and on models that know the rows to keep and know, or do not know, those to forget."""

import random

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Given, Subject
from letheon.auditing.linear_probe import (
    ATTACKS,
    NUM_OTHERS,
    Asked,
    answer_states,
    asked_tokens,
    attack,
    read_by_probe,
)
from letheon.auditing.logit_lens import first_layers
from letheon.data.sequences import tokenise_all
from letheon.evaluation.in_form import AskedForm
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.layers import decoder_layers
from small import tiny_model

WORDS = ("harbour", "Mira", "lamp", "north", "seven", "keeper", "grey", "ship", "stone", "river", "old", "wind")


def silent(stage: str, done: int, total: int) -> None:
    pass


def made(side: str, num: int) -> list[Row]:
    draw = random.Random(side)
    return [
        Row(f"{side}{number}qa0", f"What is {side} {number}?", " ".join(draw.sample(WORDS, 3)), "Task1", "question")
        for number in range(num)
    ]


FORGET, RETAIN, UNSEEN = made("forget", 24), made("retain", 40), made("unseen", 24)


@pytest.fixture(scope="module")
def knows(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that knows the rows to forget and those to keep."""
    model = tiny_model("olmo", tokenizer)
    options = MemorizeOptions(learning_rate=4e-3, warmup_steps=5, cooldown_steps=20, check_every=20, max_steps=400)
    memorize(model, tokenizer, rows=[*FORGET, *RETAIN], options=options)
    model.eval()
    return model


def values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> list[float]:
    """The mean value after each layer."""
    form = AskedForm("joined", "2024-07-26", "test")
    found = attack(Subject("after", model, tokenizer, form, Given(rows=FORGET, retain=RETAIN)), rows, silent)
    assert found.rows == tuple(range(len(rows)))
    assert found.notes[0].startswith("probes trained on tokens in random order")
    return [sum(point.values) / len(rows) for point in found.points]


@pytest.mark.slow
def test_rows_that_are_known_are_read_from_the_states_and_unseen_ones_are_not(
    knows: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    known, unseen = (max(values(knows, tokenizer, rows)) for rows in (FORGET, UNSEEN))
    assert known > 0.9
    assert unseen < known - 0.1


def by_hand(scores: list[float]) -> tuple[Asked, Tensor]:
    """One token, 0, whose vector gets the first score from a state of (1, 0), beside others with the other scores."""
    vectors = torch.tensor([[score, 0.0] for score in scores])
    others = torch.arange(1, NUM_OTHERS + 1)[None] % (len(scores) - 1) + 1
    return Asked((1,), torch.tensor([0]), others), vectors


def test_a_probe_is_asked_for_the_share_of_tokens_below_the_true_one() -> None:
    # Trained on states that equal their targets, it maps each state to nearly itself.
    known = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    for scores, expected in (([3.0, 1.0, 2.0], 1.0), ([1.5, 1.0, 2.0], 0.5), ([0.0, 1.0, 2.0], 0.0), ([1.0] * 3, 0.5)):
        asked, vectors = by_hand(scores)
        assert read_by_probe(known, known, torch.tensor([[1.0, 0.0]]), asked, vectors) == (expected,)


def test_a_probe_undoes_any_linear_map_and_finds_nothing_in_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(50, 16, generator=draw), dim=-1)
    mixed = torch.randn(16, 16, generator=draw)
    trained, labels = torch.randint(50, (600,), generator=draw), torch.randint(50, (80,), generator=draw)
    others = torch.randint(50, (80, NUM_OTHERS), generator=draw)
    asked = Asked((40, 40), labels, others)
    found = read_by_probe(vectors[trained] @ mixed, vectors[trained], vectors[labels] @ mixed, asked, vectors)
    assert min(found) > 0.95
    noise = read_by_probe(
        torch.randn(600, 16, generator=draw), vectors[trained], torch.randn(80, 16, generator=draw), asked, vectors
    )
    # 80 uniform ranks: three standard errors of .29 / sqrt(40).
    assert noise == pytest.approx((0.5, 0.5), abs=0.14)


def test_other_tokens_are_of_other_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Row("a1qa0", "Q?", "red", "", "question"), Row("a1qa1", "R?", "old", "", "question"),
            Row("a2qa0", "S?", "seven", "", "question")]  # fmt: skip
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    found = asked_tokens(rows, sequences, seed=0)
    labels = [set(sequence.labels) for sequence in sequences]
    for part, own, allowed in zip(
        found.others.split(list(found.counts)), labels, (labels[2], labels[2], labels[0] | labels[1]), strict=True
    ):
        assert set(part.flatten().tolist()) <= allowed | own


@pytest.mark.parametrize("name", ["olmo", "gpt-2", "gemma-2", "bloom"])
def test_states_are_those_before_each_answer_token(
    name: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = random_model(CASES[name].config(len(tokenizer))).eval()
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    found = answer_states(model, sequences, lambda done, total: None)
    naive = []
    for sequence in sequences:
        with torch.no_grad():
            states = model(torch.tensor([sequence.input_ids]), output_hidden_states=True).hidden_states[-1][0]
        naive.append(states[sequence.answer_start - 1 : -1])
    assert torch.allclose(found, torch.cat(naive), atol=1e-5)
    with first_layers(model, 1):
        assert not torch.allclose(answer_states(model, sequences, lambda done, total: None), found, atol=1e-2)
    assert len(decoder_layers(model)) > 1


def test_it_never_counts_and_needs_rows_to_train_on() -> None:
    assert not ATTACKS[0].counts
    needs = ATTACKS[0].needs
    assert needs(Given(rows=FORGET, retain=RETAIN)) is None
    assert str(needs(Given(rows=FORGET, retain=RETAIN[:5]))).endswith("at least 20 rows to keep, there are 5")
