"""Relearning trains a copy, on the half that it does not ask, by the loop's own steps."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.auditing.attack import Attack, Given, Subject
from letheon.auditing.finetuning import row_sequences, scaled_rate, text_sequences, tuning
from letheon.auditing.knowledge import knowledge, value_of
from letheon.auditing.registry import attacks, chosen
from letheon.auditing.relearning import ATTACKS, STEPS, relearn
from letheon.errors import SettingsError
from letheon.evaluation.in_form import AskedForm
from running import knowing_model

FORM = AskedForm("joined", "2024-07-26", "given")


def silent(*_: object) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> Subject:
    return Subject("after", model, tokenizer, FORM, Given(rows=rows[:3], retain=rows[3:]), max_new_tokens=40)


def named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


@pytest.mark.parametrize("what", ["lora", "weights"])
def test_the_attacked_model_is_left_as_it_was(
    what: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("letheon.auditing.relearning.STEPS", (1, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = named(f"relearning-part-{what}").run(subject_of(model, tokenizer, rows), rows, silent)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert [point.strength for point in found.points] == [1, 2]
    assert all(len(point.values) == len(point.texts) == len(found.rows) for point in found.points)


def test_what_is_asked_is_not_trained_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[int]] = []

    def spied(subject: Subject, chosen: list[Row]) -> object:
        found = row_sequences(subject, chosen)
        trained.extend(list(sequence.input_ids) for sequence in found)
        return found

    monkeypatch.setattr("letheon.auditing.relearning.STEPS", ())
    monkeypatch.setattr("letheon.auditing.relearning.row_sequences", spied)
    subject = subject_of(model, tokenizer, rows)
    found = named("relearning-part-lora").run(subject, rows, silent)
    told = set(map(tuple, trained))
    asked = {one.input_ids for one in row_sequences(subject, [rows[place] for place in found.rows])}
    assert told
    assert asked
    assert not told & asked
    assert len(told | asked) == len(rows)


def test_rows_that_a_model_knows_are_learnt_anew_by_training_on_themselves(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.auditing.relearning.STEPS", (60,))
    subject = subject_of(model, tokenizer, rows)
    assert sum(knowledge(subject, rows[:3], silent)) < 0.5
    found = relearn(
        subject, rows[:3], silent, material=lambda s, wanted: ([0, 1, 2], row_sequences(s, wanted)), what="lora"
    )
    assert sum(found.points[0].values) == pytest.approx(3.0)


def test_a_model_that_knows_its_rows_knows_them(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    subject = subject_of(knowing_model(tokenizer, rows), tokenizer, rows)
    assert knowledge(subject, rows, silent) == (1.0,) * 6


def test_a_question_is_known_or_not_and_a_text_by_degrees(rows: list[Row]) -> None:
    text, question = rows[0], rows[1]
    assert value_of(question, " 555-0134 992") == 1.0
    assert value_of(question, " 555-0134 99") == 0.0
    assert value_of(text, " the village of Harrow") == pytest.approx(4 / 9)


def test_the_learning_rate_of_a_small_model_follows_its_width(model: PreTrainedModel) -> None:
    assert scaled_rate(model, "lora") == pytest.approx(16 * 2e-4)  # of width 32: 128 times, at most 16
    model.config.hidden_size = 1024
    assert scaled_rate(model, "weights") == pytest.approx(4 * 1e-5)
    model.config.hidden_size = 8192
    assert scaled_rate(model, "weights") == pytest.approx(1e-5)


def test_a_step_of_full_weights_is_not_lost_in_bfloat16(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    subject = subject_of(model.bfloat16(), tokenizer, rows)
    with tuning(subject, row_sequences(subject, rows), what="weights", learning_rate=1e-5) as trained:
        first = {name: value.clone() for name, value in trained.adapted.trained().items()}
        trained.train_to(1, silent)
        moved = trained.adapted.trained()
        assert all(value.dtype == torch.float32 for value in moved.values())
        assert any(not torch.equal(moved[name], value) for name, value in first.items())


def test_text_is_cut_into_sequences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    found = text_sequences(subject_of(model, tokenizer, rows), ["The river bends twice. " * 200])
    assert len(found) > 1
    assert max(len(one.input_ids) for one in found) == 256  # the model's context


def test_an_attack_says_what_it_lacks(rows: list[Row]) -> None:
    part, unrelated, text = (named(f"relearning-{name}-lora") for name in ("part", "unrelated", "text"))
    assert "--retain" in (unrelated.needs(Given()) or "")
    assert "--text" in (text.needs(Given()) or "")
    assert "two halves" in (part.needs(Given(rows=rows[:1], unseen=rows)) or "")
    assert part.needs(Given(rows=rows, unseen=rows)) is None


def test_attacks_are_chosen_by_name_or_by_how_it_begins() -> None:
    assert [attack.name for attack in chosen(("relearning-part",))] == [
        "relearning-part-lora",
        "relearning-part-weights",
    ]
    assert [attack.name for attack in chosen(("membership",))] == ["membership"]
    assert set(chosen(())) == {attack for attack in attacks().values() if attack.is_default}
    with pytest.raises(
        SettingsError, match=r"attacks: expected some of .*, got 'membershp' \(did you mean 'membership'"
    ):
        chosen(("membershp",))


def test_every_attack_names_its_source_and_a_title_of_its_own() -> None:
    found = attacks().values()
    assert all(attack.source for attack in found)
    assert len({attack.title for attack in found}) == len(found)
    assert list(found) == sorted(found, key=lambda attack: attack.passes)
    assert STEPS == tuple(sorted(STEPS))
