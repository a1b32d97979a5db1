"""Profiles by hand, folds by subject, and what a classifier recognises where the right answer is known."""

import random

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.auditing.attack import Given, Separated, Subject
from letheon.auditing.membership import TokenValues
from letheon.auditing.recognisability import ATTACKS, NUM_FOLDS, Profiles, attack, deal, profile, recognise
from letheon.auditing.recovery import auc
from letheon.evaluation.in_form import AskedForm
from running import knowing_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def auc_of(found: Separated) -> float:
    return auc(np.array(found.seen), np.array(found.unseen))


def singles(count: int) -> list[list[int]]:
    return [[place] for place in range(count)]


def recognised(seen: Profiles, unseen: Profiles, *, seed: int = 0) -> float:
    groups = {"seen_groups": singles(len(seen)), "unseen_groups": singles(len(unseen))}
    return auc_of(recognise(seen, unseen, **groups, seed=seed))


def test_a_profile_by_hand() -> None:
    log_probs = -torch.tensor([8.0, 6.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    found = profile(TokenValues(log_probs, means=torch.full((8,), -3.0), deviations=torch.full((8,), 2.0)))
    assert found[:2] == [2.5, pytest.approx(8.75**0.5)]
    assert found[2:7] == [0.0, 0.0, 1.0, 4.5, 8.0]
    assert found[7:11] == [7.0, 3.0, 0.0, 0.0]
    # The mean of (log p + 3) / 2 is (-2.5 + 3) / 2.
    assert found[11:] == [3.0, 0.25]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_profile_of_a_short_answer_has_all_numbers(count: int) -> None:
    values = torch.arange(count, dtype=torch.float32)
    found = profile(TokenValues(-values, means=-values, deviations=torch.ones(count)))
    assert len(found) == 13
    assert np.isfinite(found).all()
    assert (found[7], found[10]) == (0.0, count - 1.0)


def test_rows_of_one_subject_share_a_fold_and_folds_are_even() -> None:
    groups = [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9], [10], [11, 12], [13], [14]]
    folds = deal(groups, 15, seed=1)
    assert all(len({folds[place] for place in group}) == 1 for group in groups)
    assert sorted(folds.count(fold) for fold in range(NUM_FOLDS)) == [3, 3, 3, 3, 3]


def test_one_subject_is_cut_into_rows_and_few_rows_into_fewer_folds() -> None:
    assert sorted(deal([list(range(10))], 10, seed=0)) == sorted([*range(5), *range(5)])
    assert sorted(deal(singles(3), 3, seed=0)) == [0, 1, 2]


def test_rows_that_differ_are_told_and_rows_alike_are_not() -> None:
    draw = np.random.default_rng(0)
    seen, unseen = draw.normal(size=(60, 13)), draw.normal(size=(60, 13))
    assert recognised(seen + 3, unseen) > 0.99
    # Two standard errors of an AUC of 60 and 60 rows, .053 each.
    assert recognised(seen, unseen) == pytest.approx(0.5, abs=0.106)


def test_rows_alike_are_told_by_chance_on_average() -> None:
    """Cross-validation that let a fold's own share of both kinds in would lie below a half."""
    draw = np.random.default_rng(1)
    found = [recognised(draw.normal(size=(23, 3)), draw.normal(size=(31, 3)), seed=seed) for seed in range(40)]
    # Standard deviation .08 of each; three standard errors of the mean of 40.
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)


def test_rows_outside_on_both_sides_are_told() -> None:
    draw = np.random.default_rng(2)
    seen, unseen = draw.normal(size=(80, 2)) * 5, draw.normal(size=(80, 2))
    assert recognised(seen, unseen) > 0.85


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
    return Subject("after", model, tokenizer, AskedForm("joined", "2024-07-26", "test"), max_new_tokens=40)


def made_up(prefix: str, count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    words = ["bees", "village", "river", "harbour", "letters", "ship", "keeper", "winter", "sea", "evening"]
    return [
        Row(f"{prefix}{i}", " ".join(draw.choices(words, k=4)), " ".join(draw.choices(words, k=6)), "", "completion")
        for i in range(count)
    ]


def test_rows_that_a_model_knows_are_recognised(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    subject = subject_of(knowing_model(tokenizer, rows), tokenizer)
    found = attack(subject, rows, made_up("u", 12, 1), silent)
    assert auc_of(found["profile"]) > 0.9


def test_rows_that_it_never_knew_are_not(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    found = attack(subject_of(model, tokenizer), made_up("s", 60, 2), made_up("u", 60, 3), silent)
    assert auc_of(found["profile"]) == pytest.approx(0.5, abs=0.12)


def test_it_needs_rows_and_a_fair_control() -> None:
    (one,) = ATTACKS
    rows = tuple(made_up("s", 10, 0))
    assert one.needs(Given(rows=rows, unseen=rows, has_never=True)) is None
    assert "--holdout" in str(one.needs(Given(rows=rows, unseen=rows)))
    assert "9 forget rows" in str(one.needs(Given(rows=rows[:9], unseen=rows, has_never=True)))
