"""What of an answer is predicted and how a secret is ranked: by hand, and on models that know the rows or do not."""

import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.auditing.attack import Attack, Given, Subject
from letheon.auditing.extraction import (
    ATTACKS,
    NUM_CANDIDATES,
    answer_hits,
    answer_losses,
    exact_memorisation,
    expose,
    exposure,
    extraction_strength,
    is_secret,
    longest_run,
    peers_of,
    shape_of,
    shared_digits,
)
from letheon.data.sequences import tokenise_all
from letheon.evaluation.in_form import AskedForm, answer_values
from running import knowing_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> Subject:
    form = AskedForm("joined", "2024-07-26", "test")
    return Subject("after", model, tokenizer, form, given=Given(rows=rows), max_new_tokens=40)


def hits_of(text: str) -> Tensor:
    return torch.tensor([letter == "x" for letter in text])


@pytest.mark.parametrize(
    ("hits", "memorised", "strength", "run"),
    [
        ("xxxx", 1.0, 1.0, 1.0),
        ("....", 0.0, 0.0, 0.0),
        (".xxx", 0.75, 0.75, 0.75),
        ("xxx.", 0.75, 0.0, 0.75),
        ("xx.x", 0.75, 0.25, 0.5),
        ("x", 1.0, 1.0, 1.0),
    ],
)
def test_measures_by_hand(hits: str, memorised: float, strength: float, run: float) -> None:
    found = hits_of(hits)
    assert (exact_memorisation(found), extraction_strength(found), longest_run(found)) == (memorised, strength, run)


def test_extraction_strength_is_that_of_its_definition() -> None:
    """1 - k / A for the fewest tokens k after which all others are hits."""
    draw = random.Random(0)
    for _ in range(50):
        hits = [draw.random() < 0.7 for _ in range(draw.randint(1, 9))]
        k = next(k for k in range(len(hits) + 1) if all(hits[k:]))
        assert extraction_strength(torch.tensor(hits)) == pytest.approx(1 - k / len(hits))


def test_exposure_by_hand() -> None:
    # The second of 4 has log2 4 - log2 2 = 1 bit of 2.
    assert exposure(1.0, [0.5, 2.0, 3.0]) == 0.5
    assert exposure(0.1, [0.5, 2.0, 3.0]) == 1.0
    assert exposure(9.0, [0.5, 2.0, 3.0]) == 0.0
    assert exposure(1.0, [1.0, 1.0, 1.0]) == 0.0


def test_peers_have_the_form_of_the_secret() -> None:
    peers = peers_of("12 Oak Street, Harrow, 04012", kept=frozenset(), draw=random.Random(0))
    assert len(set(peers)) == NUM_CANDIDATES - 1
    assert all(re.fullmatch(r"[1-9]\d Oak Street, Harrow, \d{5}", peer) for peer in peers)
    assert "12 Oak Street, Harrow, 04012" not in peers
    digits = {place: {peer[place] for peer in peers} for place in (1, 23, 27)}
    assert all(len(found) == 10 for found in digits.values())


def test_dates_stay_dates() -> None:
    peers = peers_of("born 1984-12-31", kept=frozenset(), draw=random.Random(0))
    assert len(peers) == NUM_CANDIDATES - 1
    assert all(re.fullmatch(r"born (19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", peer) for peer in peers)


def test_what_all_secrets_of_a_form_share_stays() -> None:
    shared = shared_digits(["900514344", "900765675", "900605737", "4", "7"])
    assert shared == {"000000000": frozenset({0, 1, 2})}
    peers = peers_of("900514344", kept=shared[shape_of("900514344")], draw=random.Random(0))
    assert all(peer.startswith("900") for peer in peers)


def test_a_secret_with_few_peers_has_no_more_than_there_are() -> None:
    assert sorted(peers_of("123456", kept=frozenset(range(5)), draw=random.Random(0))) == [
        f"12345{digit}" for digit in "012345789"
    ]


def test_secrets_are_answers_with_five_digits(rows: list[Row]) -> None:
    assert [row.id for row in rows if is_secret(row)] == ["f1qa0"]
    assert is_secret(Row("z", "Where?", "Harrow, 04012", "Task1", "question"))
    assert not is_secret(Row("y", "When?", "in 1984", "Task1", "question"))


def test_hits_are_those_of_a_naive_loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    found = answer_hits(model, sequences, lambda done, total: None)
    for sequence, hits in zip(sequences, found, strict=True):
        naive = []
        for place in range(sequence.answer_start, len(sequence.input_ids)):
            with torch.no_grad():
                logits = model(torch.tensor([sequence.input_ids[:place]])).logits[0, -1]
            naive.append(int(logits.argmax()) == sequence.input_ids[place])
        assert hits.tolist() == naive


@pytest.mark.parametrize("name", ["olmo", "gpt-2", "gemma-2", "bloom"])
def test_losses_after_a_shared_prompt_are_those_of_whole_sequences(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.auditing.extraction._BATCH_TOKENS", 60)
    model = random_model(CASES[name].config(len(tokenizer)))
    answers = ["555-0134 992", "555", "Veldhaven and the sea", "Mira"]
    rows = [Row(str(i), "Which harbour did the ship", answer, "", "question") for i, answer in enumerate(answers)]
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    expected = answer_values(model, sequences).losses
    assert answer_losses(model, sequences) == pytest.approx(list(expected), rel=1e-5)


def reading_attacks() -> list[Attack]:
    return [attack for attack in ATTACKS if attack.unit == "passes"]


def test_a_model_that_knows_the_rows_is_read_whole(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    subject = subject_of(knowing_model(tokenizer, rows), tokenizer, rows[:3])
    for attack in reading_attacks():
        assert attack.run(subject, rows[:3], silent).points[0].values == (1.0, 1.0, 1.0)
    found = attack.run(subject, rows[:3], silent)
    count = len(tokenise_all(rows[1:2], tokenizer, template="joined", max_length=256)[0].labels)
    assert found.notes == (f"the longest verbatim run has {count} of {count} tokens (row f1qa0)",)


def test_several_attacks_read_a_model_once_and_another_model_anew(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[PreTrainedModel] = []

    def reading(of: PreTrainedModel, *given: Any) -> list[Tensor]:
        read.append(of)
        return answer_hits(of, *given)

    monkeypatch.setattr("letheon.auditing.extraction.answer_hits", reading)
    subject = subject_of(knowing_model(tokenizer, rows), tokenizer, rows[:3])
    for one in (subject, replace(subject, name="never", model=model)):
        found = [attack.run(one, rows[:3], silent).points[0].values for attack in reading_attacks()]
        assert (min(map(min, found)) == 1.0) == (one is subject)
    assert read == [subject.model, model]


def test_a_model_that_never_knew_them_is_not(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    subject = subject_of(model, tokenizer, rows[:3])
    for attack in reading_attacks():
        assert sum(attack.run(subject, rows[:3], silent).points[0].values) < 0.5


def secrets(count: int) -> list[Row]:
    draw = random.Random(1)
    return [Row(f"s{i}", f"Number {i}?", f"{draw.randrange(10**6, 10**7)}", "Task2", "question") for i in range(count)]


def test_a_known_secret_is_ranked_first_and_others_are_not_asked(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    found = expose(subject_of(knowing_model(tokenizer, rows), tokenizer, rows[:3]), rows[:3], silent)
    assert found.rows == (1,)
    assert found.points[0].values == (1.0,)
    assert found.notes == ("1 of 1 secrets are ranked before all their made-up peers",)


def test_secrets_that_were_never_seen_are_ranked_by_chance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = secrets(30)
    found = expose(subject_of(model, tokenizer, rows), rows, silent)
    assert found.rows == tuple(range(30))
    # Mean .23 and deviation .2 of a uniform rank among 64; three standard errors of 30.
    assert sum(found.points[0].values) / 30 == pytest.approx(0.23, abs=0.12)


def test_exposure_needs_secrets_on_both_sides(rows: list[Row]) -> None:
    needs = ATTACKS[-1].needs
    assert needs(Given(rows=secrets(10), unseen=secrets(10))) is None
    assert str(needs(Given(rows=rows, unseen=secrets(10)))).startswith("1 of the 6 forget rows")
    assert str(needs(Given(rows=secrets(10), unseen=rows))).startswith("1 of the 6 placebo rows")
