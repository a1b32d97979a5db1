"""Models that are known to hide rows, made of one that knows them."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.auditing import controls
from letheon.auditing.attack import Subject
from letheon.auditing.controls import hiding, hiding_until_rounded
from letheon.auditing.knowledge import knowledge
from letheon.auditing.quantisation import matrices_of, quantised
from letheon.evaluation.in_form import AskedForm
from running import knowing_model


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def before(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> Subject:
    """A model that knows all rows."""
    form = AskedForm("joined", "2024-07-26", "test")
    return Subject("before", knowing_model(tokenizer, rows), tokenizer, form, max_new_tokens=40)


def known(subject: Subject, rows: list[Row]) -> float:
    return sum(knowledge(subject, rows, silent)) / len(rows)


def values_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_model_that_refuses_gives_a_fifth_at_most_and_leaves_the_other_alone(
    before: Subject, rows: list[Row]
) -> None:
    own = values_of(before.model)
    found = hiding(before, rows[:3], silent)
    assert found.subject is not None, found.how
    assert (found.subject.name, found.subject.original) == ("hiding", before.model)
    assert known(found.subject, rows[:3]) <= 0.2 * known(before, rows[:3])
    assert all(torch.equal(value, own[name]) for name, value in before.model.state_dict().items())


def test_rows_that_are_hidden_until_weights_are_rounded_come_back_then(before: Subject, rows: list[Row]) -> None:
    own = values_of(before.model)
    found = hiding_until_rounded(before, rows[:3], silent)
    assert found.subject is not None, found.how
    hides = found.subject.model
    assert known(found.subject, rows[:3]) <= 0.2 * known(before, rows[:3])
    # What rounding leaves alone has not moved, so the two models are one in four bits.
    matrices = {id(matrix.parameter) for matrix in matrices_of(hides)}
    assert all(torch.equal(value, own[name]) for name, value in hides.named_parameters() if id(value) not in matrices)
    with quantised(hides, "nf4"), quantised(before.model, "nf4"):
        theirs = before.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in hides.state_dict().items())
        assert known(found.subject, rows[:3]) > 0.9
    assert all(torch.equal(value, own[name]) for name, value in before.model.state_dict().items())


def test_a_model_too_large_to_train_whole_is_said_to_be(
    before: Subject, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_LARGEST_TRAINED", 1000)
    found = hiding_until_rounded(before, rows[:3], silent)
    assert found.subject is None
    assert "up to 1,000 parameters, not of" in found.how
