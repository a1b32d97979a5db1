"""Repetition, ends and the loss under the model before, worked by hand."""

import pytest
import torch
from transformers import PreTrainedModel

from letheon.evaluation.fluency import Said, answer_losses, distinct, fluency, is_degenerate, repetition

STUCK = ["K"] * 8
SPOKEN = ["She", "keeps", "bees", "and", "sells", "honey", "in", "Harrow"]


def test_repetition_counts_what_comes_again() -> None:
    # a b, b a, a b: two distinct 2-grams of three.
    assert repetition("abab", 2) == pytest.approx(1 / 3)
    assert repetition("abab", 1) == pytest.approx(1 / 2)
    assert repetition("abab", 4) == 0
    assert repetition("abab", 5) is None
    assert repetition(STUCK, 2) == pytest.approx(6 / 7)
    assert repetition(SPOKEN, 1) == 0


def test_distinct_counts_over_all_answers() -> None:
    # Four 1-grams, a b a c, three of them distinct; two 2-grams, both distinct.
    assert distinct([["a", "b"], ["a", "c"]], 1) == pytest.approx(3 / 4)
    assert distinct([["a", "b"], ["a", "c"]], 2) == 1
    assert distinct([["a"], []], 2) is None


def test_an_answer_is_degenerate_by_half_of_its_pairs() -> None:
    assert is_degenerate(STUCK)
    assert not is_degenerate(STUCK[:7])  # too short to tell
    assert not is_degenerate(SPOKEN)
    # 8 pairs, of which a b, b c, c d and d a are distinct: half.
    assert is_degenerate("abcdabcda")
    assert not is_degenerate("abcdeabcd")


def test_means_leave_out_what_is_not_known() -> None:
    said = [Said(STUCK, has_ended=False), Said(SPOKEN, has_ended=True), Said([], has_ended=None)]
    found = fluency(said, losses_before=[4.0, 2.0, None]).flat()
    assert found["ended"] == 0.5
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["degenerate"] == pytest.approx(1 / 3)
    assert found["repetition_2"] == pytest.approx((6 / 7 + 0) / 2)
    assert found["distinct_1"] == pytest.approx(9 / 16)
    assert found["loss_before"] == 3.0
    assert set(fluency([]).flat().values()) == {None}
    assert set(fluency([]).flat()) == set(found)


def test_token_ids_and_words_give_the_same() -> None:
    ids = [{word: place for place, word in enumerate(set(STUCK + SPOKEN))}[word] for word in STUCK + SPOKEN]
    assert [repetition(ids, n) for n in (1, 2, 3, 4)] == [repetition(STUCK + SPOKEN, n) for n in (1, 2, 3, 4)]


def test_the_loss_before_is_that_of_the_answer_alone(model: PreTrainedModel) -> None:
    found = answer_losses(model, [[5, 9, 7], [3]], [[11, 4], []])
    with torch.no_grad():
        log_probs = model(torch.tensor([[5, 9, 7, 11, 4]])).logits[0].log_softmax(-1)
    assert found == [pytest.approx(-float(log_probs[2, 11] + log_probs[3, 4]) / 2, rel=1e-5), None]
