"""Repetition, ends and the loss under the model before, worked by hand."""

import pytest
import torch
from transformers import PreTrainedModel

from letheon import Row
from letheon.evaluation.fluency import (
    Said,
    answer_fluency,
    answer_losses,
    distinct,
    fluency,
    is_degenerate,
    repetition,
    uncut_tokens,
    words,
)
from letheon.evaluation.predicting import predict
from letheon.scores.fluency import fluency_scores

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


def test_words_are_counted_in_any_script_and_stuck_letters_one_by_one() -> None:
    assert words("She can't, 24!") == ["She", "can", "'", "t", ",", "24", "!"]
    assert words("K" * 25) == ["K"] * 25
    assert words("!!!") == ["!"] * 3
    assert words(" \n") == []


def test_answers_are_scored_by_set_and_early_ends_count_only_where_they_tell() -> None:
    row = Row(id="1", prompt="Where?", answer="Veldhaven", task="t", kind="question")
    said = [
        predict(row, "forget", "K " * 256, has_ended=False),
        predict(row, "forget", "K " * 24, is_cut=True),
        predict(row, "forget", "Ald", is_cut=True),
        predict(row, "forget", "I do not know.", has_ended=True),
        predict(row, "retain", "Veldhaven", has_ended=True),
        predict(row, "other", "V", is_cut=True),
    ]
    found = answer_fluency(said, losses_before={"forget": 2.5})
    assert found.keys() == {"forget", "retain"}
    assert found["forget"]["degenerate"] == pytest.approx(2 / 3)  # the two that are stuck, of three that tell
    assert found["forget"]["ended"] == pytest.approx(1 / 2)  # of the one left early it is not known
    assert (found["forget"]["loss_before"], found["retain"]["loss_before"]) == (2.5, None)
    scores = {score.name: score for score in fluency_scores(found)}
    assert scores["fluency.forget.degenerate"].value == pytest.approx(2 / 3)
    assert scores["fluency.forget.loss_before"].value == 2.5
    assert "fluency.retain.distinct_2" not in scores  # one word has no pair


def test_some_answers_of_each_set_are_not_left_early() -> None:
    assert uncut_tokens(["forget", "retain"]) == [24, 24]
    found = uncut_tokens(["forget"] * 40 + ["retain"])
    assert [place for place, fewest in enumerate(found) if fewest > 1] == [*range(0, 40, 3), 40]
    assert uncut_tokens([]) == []
