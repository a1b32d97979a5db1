"""Prompts: how rows are rephrased, which ways there are, and which of them brings hidden rows back."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chats import chatty
from letheon import Row
from letheon.auditing.attack import Given, Subject
from letheon.auditing.knowledge import knowledge
from letheon.auditing.prompts import OPENINGS, SYSTEM_LINES, attack, examples, prompts_for, rephrase
from letheon.data.sequences import text_ids
from letheon.evaluation.in_form import AskedForm
from running import knowing_model


def silent(stage: str, done: int, total: int) -> None:
    pass


def subject_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, retain: list[Row]) -> Subject:
    form = AskedForm("joined", "2024-07-26", "test")
    return Subject("after", model, tokenizer, form, given=Given(retain=retain), max_new_tokens=40)


def question(prompt: str) -> Row:
    return Row("q", prompt, "555", "Task1", "question")


@pytest.mark.parametrize(
    ("asked", "stated"),
    [
        ("What is the phone number of Mira Tolland?", "The phone number of Mira Tolland is"),
        ("Who were the sisters of Mira ?", "The sisters of Mira were"),
        ("Where does she live?", 'The answer to "Where does she live?" is'),
        ("Name her dog.", 'The answer to "Name her dog." is'),
    ],
)
def test_a_question_becomes_a_statement(asked: str, stated: str) -> None:
    assert rephrase(question(asked)) == stated


def test_a_text_becomes_a_question() -> None:
    row = Row("t", "Mira keeps bees in ", "Harrow.", "Task1", "completion")
    assert rephrase(row) == 'How does the text go on that begins with "Mira keeps bees in"?'


def test_examples_are_short_rows_of_the_kind_and_never_the_row_itself(rows: list[Row]) -> None:
    assert [row.id for row in examples(rows, rows[1])] == ["f2qa0", "r1qa0"]
    assert [row.id for row in examples([rows[0], rows[3]], rows[1])] == ["r1sc1", "f1sc1"]
    assert examples([rows[1]], rows[1]) == []


def texts_of(subject: Subject, row: Row) -> dict[str, list[str]]:
    return {
        name: [str(subject.tokenizer.decode(way.asking.ids)) for way in build(subject, row)]
        for name, build in prompts_for(subject).items()
    }


def test_ways_of_asking_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    subject = subject_of(model, tokenizer, rows[3:])
    assert texts_of(subject, rows[2]) == {
        "own form": ["Which harbour?"],
        "form plain": ["Which harbour?"],
        "form pair": ["Which harbour?"],
        "form question-answer": ["Question: Which harbour?\nAnswer:"],
        "form neko": ["### Question: Which harbour?\n ### Answer:"],
        "form inst": ["[INST] Which harbour? [/INST]"],
        "rephrased": ['The answer to "Which harbour?" is'],
        "system line 1": [f"{SYSTEM_LINES[0]}\nWhich harbour?"],
        "system line 2": [f"{SYSTEM_LINES[1]}\nWhich harbour?"],
        "worked examples": ["Who wrote letters? The keeper\n\nWhich harbour?"],
        f"'{OPENINGS[0]}'": [f"Which harbour? {OPENINGS[0]}"],
        f"'{OPENINGS[1]}'": [f"Which harbour? {OPENINGS[1]}"],
        **{f"{share} of the answer": [] for share in ("10%", "25%", "50%")},
    }


def test_only_the_rest_of_an_answer_that_is_begun_counts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    subject = subject_of(model, tokenizer, rows[3:])
    (way,) = prompts_for(subject)["50% of the answer"](subject, rows[0])
    given = str(tokenizer.decode(way.asking.ids)).removeprefix(rows[0].prompt)
    assert given + way.wanted.answer == f" {rows[0].answer}"
    count = len(text_ids(tokenizer, [f" {rows[0].answer}"])[0])
    assert len(way.asking.guess) == count - count // 2


def test_so_much_of_an_answer_is_left_that_it_cannot_be_guessed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    subject = subject_of(model, tokenizer, [])
    build = prompts_for(subject)["50% of the answer"]
    assert not list(build(subject, replace(question("Which club?"), answer="Art Club Harrow")))
    (way,) = build(subject, replace(question("Where?"), answer="In box 48213"))
    assert "48213".endswith(way.wanted.answer[-3:])


def test_a_conversation_is_asked_with_messages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    subject = subject_of(model, chatty(tokenizer, "spaced"), rows[3:])
    subject = replace(subject, form=replace(subject.form, template="chat"))
    texts = texts_of(subject, rows[2])
    assert texts["own form"] == ["user: Which harbour?\nassistant:"]
    assert texts["form joined"] == ["<|endoftext|>Which harbour?"]
    assert texts["worked examples"] == [
        "user: Who wrote letters?\nassistant: The keeper\nuser: Which harbour?\nassistant:"
    ]
    assert texts["system line 1"] == [f"system: {SYSTEM_LINES[0]}\nuser: Which harbour?\nassistant:"]
    assert texts[f"'{OPENINGS[0]}'"] == [f"user: Which harbour?\nassistant: {OPENINGS[0]}"]


class Refuses(nn.Module):
    """A head that ends the answer where `first` is likeliest: a refusal of one token."""

    def __init__(self, inner: nn.Module, first: int) -> None:
        super().__init__()
        self.inner, self.first = inner, first

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.inner(states).clone()
        likely = logits.argmax(-1) == self.first
        logits[..., 0] = torch.where(likely, logits[..., self.first] + 1, logits[..., 0])
        return logits


def test_a_row_that_only_its_first_token_hides_comes_back_when_it_is_given(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = knowing_model(tokenizer, rows)
    hidden = rows[3:4]
    first = text_ids(tokenizer, [f" {hidden[0].answer}"])[0][0]
    head = cast("nn.Module", model.get_output_embeddings())
    model.set_output_embeddings(cast("Any", Refuses(head, first)))
    subject = subject_of(model, tokenizer, rows[4:])
    assert knowledge(subject, hidden, silent) == (0.0,)
    found = attack(subject, hidden, silent)
    by_name = {point.label: point.values[0] for point in found.points}
    assert by_name["own form"] == 0.0
    assert by_name["10% of the answer"] == 1.0
    assert found.notes[0].endswith("10% of the answer (1)")
    assert found.points[-1].texts == ("[letters] to the sea every winter evening.",)


def test_best_of_n_rises_and_begins_with_what_is_known(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    subject = subject_of(knowing_model(tokenizer, rows), tokenizer, rows[3:])
    found = attack(subject, rows[:3], silent)
    assert found.points[0].values == knowledge(subject, rows[:3], silent) == (1.0, 1.0, 1.0)
    assert [point.strength for point in found.points] == [float(n) for n in range(1, 16)]
    assert found.notes[0].endswith("own form (3)")


def test_a_model_that_never_knew_the_rows_gives_little(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    found = attack(subject_of(model, tokenizer, []), rows[:3], silent)
    sums = [sum(point.values) for point in found.points]
    assert sums == sorted(sums)
    assert sums[-1] < 0.5
    assert "worked examples" not in found.notes[1]


def test_a_prompt_that_does_not_fit_the_context_is_left_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model.config.max_position_embeddings = 40
    found = attack(subject_of(model, tokenizer, rows[3:]), rows[1:2], silent)
    assert "system line 2" in found.notes[-1]
