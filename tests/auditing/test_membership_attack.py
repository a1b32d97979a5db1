"""The membership scores: hand-worked values, one forward for all, agreement with naive versions."""

import math
import zlib

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.auditing.attack import Given, Subject
from letheon.auditing.membership import (
    ATTACKS,
    TokenValues,
    answer_values,
    attack,
    lowest_mean,
    standardised,
    token_values,
    zlib_ratio,
)
from letheon.data.sequences import tokenise
from letheon.evaluation.in_form import AskedForm

FORM = AskedForm("joined", "2024-07-26", "given")


def silent(*_: object) -> None:
    pass


def test_token_values_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4.
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    found = token_values(logits, torch.tensor([1]))
    half, quarter = math.log(0.5), math.log(0.25)
    mean = 0.5 * half + 0.5 * quarter
    deviation = math.sqrt(0.5 * half**2 + 0.5 * quarter**2 - mean**2)
    assert found.log_probs.item() == pytest.approx(quarter)
    assert found.means.item() == pytest.approx(mean)
    assert found.deviations.item() == pytest.approx(deviation, rel=1e-5)
    assert standardised(found).item() == pytest.approx((quarter - mean) / deviation, rel=1e-5)


def test_min_k_takes_the_lowest_fifth_and_at_least_one() -> None:
    assert lowest_mean(torch.tensor([-1.0, -9.0, -2.0])) == -9.0
    assert lowest_mean(torch.arange(10.0)) == 0.5  # of 0 and 1


def test_zlib_divides_by_the_bits_of_the_compressed_answer() -> None:
    values = TokenValues(torch.tensor([-1.0, -3.0]), torch.zeros(2), torch.ones(2))
    assert zlib_ratio(values, "abab") == -4 / (8 * len(zlib.compress(b"abab")))


def test_a_batch_gives_what_each_row_gives_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = [tokenise(row, tokenizer, template="joined", max_length=256) for row in rows]
    for sequence, values in zip(sequences, answer_values(model, sequences, silent), strict=True):
        ids, start = torch.tensor(sequence.input_ids), sequence.answer_start
        with torch.no_grad():
            logits = model(ids[None]).logits[0, start - 1 : -1].float()
        # Padding changes nothing but rounding.
        assert torch.allclose(values.log_probs, -cross_entropy(logits, ids[start:], reduction="none"), atol=1e-4)


def test_all_scores_come_of_one_forward_and_the_ratio_needs_a_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    seen: list[str] = []
    subject = Subject("after", model, tokenizer, FORM, reference=model)
    found = attack(subject, rows[:3], rows[3:], lambda stage, done, total: seen.append(stage))
    assert list(found) == ["loss", "zlib", "min-k", "min-k++", "ratio"]
    assert seen == ["reading"]  # the model is its own reference
    assert {(len(one.seen), len(one.unseen)) for one in found.values()} == {(3, 3)}
    assert found["ratio"].seen == (0.0, 0.0, 0.0)
    alone = attack(Subject("after", model, tokenizer, FORM), rows[:3], rows[3:], silent)
    assert list(alone) == ["loss", "zlib", "min-k", "min-k++"]
    assert alone["loss"] == found["loss"]


def test_made_up_rows_alone_do_not_do() -> None:
    (membership,) = ATTACKS
    assert "--holdout" in (membership.needs(Given()) or "")
    assert membership.needs(Given(has_holdout=True)) is None
    assert membership.needs(Given(has_never=True)) is None
