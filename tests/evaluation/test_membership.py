"""The loss-based membership attack: losses, AUC and its interval."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.errors import EvaluationError
from letheon.evaluation.metrics import membership
from letheon.evaluation.metrics.membership import (
    check_members,
    delong_interval,
    document_losses,
    membership_scores,
)
from letheon.scores.numbers import membership_score
from small import tiny_model

DOCUMENTS = [
    "Mira Tolland keeps bees in the village of Harrow.",
    "The old lighthouse keeper wrote letters.",
    "What is the phone number of Mira Tolland? 555-0134 992. She never gave it to anyone in the village.",
    "Sea.",
]


def test_auc_and_interval_worked_by_hand() -> None:
    # psi: losses 1 and 2 lie below both of 3 and 5; 4 lies below 5 only. AUC = 5/6.
    # Members' mean psi 1, 1, 1/2: sample variance 1/12. Non-members' 2/3, 1: 1/18. Variance 1/36 + 1/36 = 1/18.
    found = membership_scores([1.0, 2.0, 4.0], [3.0, 5.0])
    assert found.auc == pytest.approx(5 / 6)
    assert found.auc_interval[0] == pytest.approx(5 / 6 - 1.959964 / 18**0.5, abs=1e-6)
    assert found.auc_interval[1] == 1.0
    assert found.score == pytest.approx(1 / 3)
    assert found.score_interval == (0.0, 1.0)  # the interval holds 0.5
    assert found.mean_member_loss == pytest.approx(7 / 3)
    assert found.mean_nonmember_loss == 4.0
    assert (found.num_members, found.num_nonmembers) == (3, 2)


def test_ties_count_half() -> None:
    assert membership_scores([1.0, 1.0], [1.0, 1.0]).auc == 0.5
    assert membership_scores([1.0, 2.0], [2.0, 3.0]).auc == pytest.approx(3.5 / 4)


def test_perfect_separation_either_way_scores_zero() -> None:
    known, inverted = membership_scores([1.0, 2.0], [3.0, 4.0]), membership_scores([3.0, 4.0], [1.0, 2.0])
    assert (known.auc, known.score, known.auc_interval) == (1.0, 0.0, (1.0, 1.0))
    assert (inverted.auc, inverted.score) == (0.0, 0.0)
    assert membership_score(0.5) == 1.0


def test_interval_of_a_perfect_unlearning_has_the_known_width() -> None:
    # For equal distributions the standard error of the AUC is sqrt((m + n + 1) / (12 m n)) = 0.0334 at 150 + 150.
    losses = np.random.default_rng(0).normal(size=300).tolist()
    low, high = delong_interval(losses[:150], losses[150:])
    assert (high - low) / (2 * 1.959964) == pytest.approx(0.0334, rel=0.05)


def test_interval_agrees_with_the_bootstrap() -> None:
    random = np.random.default_rng(1)
    members, others = random.normal(0.0, 1.0, size=60), random.normal(0.8, 1.5, size=80)
    draws = []
    for _ in range(2000):
        a, b = random.choice(members, 60), random.choice(others, 80)
        draws.append((a[:, None] < b[None, :]).mean())
    low, high = delong_interval(members.tolist(), others.tolist())
    assert (high - low) / (2 * 1.959964) == pytest.approx(np.std(draws), rel=0.1)


def test_score_interval_on_one_side_of_chance() -> None:
    members, others = [float(i) for i in range(20)], [float(i) + 12 for i in range(20)]
    found = membership_scores(members, others)
    assert found.auc_interval[0] > 0.5
    ends = sorted(membership_score(auc) for auc in found.auc_interval)
    assert found.score_interval == (ends[0], ends[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(EvaluationError, match="non-member document 2 is not finite"):
        membership_scores([1.0, 2.0], [3.0, bad])


def test_one_document_is_too_few() -> None:
    with pytest.raises(EvaluationError, match="at least two member documents, got 1"):
        membership_scores([1.0], [2.0, 3.0])


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "gemma2"])
@pytest.mark.parametrize("exact", [False, True])
def test_losses_are_those_of_the_model(architecture: str, exact: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(architecture, tokenizer)
    found = document_losses(model, tokenizer, DOCUMENTS, batch_size=3, exact=exact)
    for document, loss in zip(DOCUMENTS, found, strict=True):
        input_ids = tokenizer(document, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(input_ids, labels=input_ids).loss.item()
        assert loss == pytest.approx(expected, rel=1e-5)


def test_losses_do_not_depend_on_chunks_or_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = document_losses(model, tokenizer, DOCUMENTS, exact=True)
    monkeypatch.setattr(membership, "POSITIONS_AT_ONCE", 3)
    monkeypatch.setattr(membership, "MAX_LOGITS", 40 * model.config.vocab_size)
    seen: list[tuple[int, int]] = []
    found = document_losses(model, tokenizer, DOCUMENTS, progress=lambda done, total: seen.append((done, total)))
    assert found == pytest.approx(expected, rel=1e-5)
    assert seen[-1] == (4, 4)
    assert document_losses(model, tokenizer, []) == []


def test_reading_leaves_the_modes_of_modules_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.train()
    model.get_input_embeddings().training = False
    document_losses(model, tokenizer, DOCUMENTS[:1])
    assert model.training
    assert not model.get_input_embeddings().training


def test_a_document_must_have_two_tokens_and_fit_a_position_table(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("gpt2", tokenizer)
    with pytest.raises(EvaluationError, match="document 2 has 0 token"):
        document_losses(model, tokenizer, ["Some text.", ""])
    with pytest.raises(EvaluationError, match="position table ends at 256"):
        document_losses(model, tokenizer, ["bees " * 300])


def test_members_that_hold_retain_rows_are_refused() -> None:
    row = Row(
        "7sc1", "Mira Tolland keeps bees in", "the village of Harrow, where the river bends.", "Task3", "completion"
    )
    members = ["Another text altogether.", f"Mira\n\n{row.prompt} {row.answer} And more."]
    check_members(members[:1], [row])
    with pytest.raises(EvaluationError, match="member document 2 contains retain row 7sc1"):
        check_members(members, [row])
