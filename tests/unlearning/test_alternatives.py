"""Other answers to forget prompts: which row each belongs to, what they may be, and where they come from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import UnlearnSettings
from letheon.data.alternatives import REFUSALS, given_alternatives, other_answers, random_tokens, refusals
from letheon.data.rows import Row, Rows
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.errors import DataError
from letheon.model.loading import LoadedModel, load_model
from letheon.objective.catalogue import get_method
from letheon.training.tracking import Silent
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.made_up import EXTRA_TOKENS, generate_alternatives
from letheon.unlearning.prepare import Prepared, prepare
from letheon.unlearning.resolve import resolve_settings
from running import model_of, run, same, short_run


def row(row_id: str, answer: str, kind: Any = "question") -> Row:
    return Row(row_id, f"prompt of {row_id}", answer, "Task1", kind)


def rows_of(rows: list[Row], *, source: str = "f.jsonl") -> Rows:
    return Rows(source, tuple(rows), tuple(range(1, len(rows) + 1)))


# Refusals and other answers


def test_refusals_keep_the_prompt_and_do_not_repeat_while_there_are_others() -> None:
    rows = [row("a", "x"), row("b", "y")]
    made = refusals(rows, per_row=5, seed=0)
    assert [r.id for r in made] == ["a"] * 5 + ["b"] * 5
    assert all(r.prompt == f"prompt of {r.id}" and r.answer in REFUSALS for r in made)
    assert len({r.answer for r in made[:5]}) == len({r.answer for r in made[5:]}) == 5
    assert refusals(rows, per_row=5, seed=0) == made
    assert refusals(rows, per_row=5, seed=1) != made
    many = Counter(r.answer for r in refusals(rows[:1], per_row=2 * len(REFUSALS), seed=0))
    assert set(many.values()) == {2}


def test_other_answers_are_of_the_same_kind_and_never_the_rows_own() -> None:
    rows = [row("a", "x"), row("b", "y"), row("c", "x"), row("d", "long", "completion"), row("e", "wide", "completion")]
    made = other_answers(rows, per_row=20, seed=0)
    found = {row_id: {r.answer for r in made if r.id == row_id} for row_id in "abcde"}
    assert found == {"a": {"y"}, "b": {"x"}, "c": {"y"}, "d": {"wide"}, "e": {"long"}}
    assert other_answers(rows, per_row=20, seed=0) == made


def test_other_answers_of_another_kind_serve_where_there_are_no_others() -> None:
    made = other_answers([row("a", "x"), row("b", "long", "completion")], per_row=1, seed=0)
    assert [r.answer for r in made] == ["long", "x"]
    with pytest.raises(DataError, match="row a: expected another forget row with a different answer"):
        other_answers([row("a", "x"), row("b", "x")], per_row=1, seed=0)


def test_random_tokens_have_the_answers_length_and_are_ordinary(tokenizer: PreTrainedTokenizerBase) -> None:
    sequences = [TokenSequence((7, 8, 9, 10, 11), 2), TokenSequence((7, 8), 1)]
    made = random_tokens(sequences, tokenizer, per_row=300, seed=0)
    assert len(made) == 600
    assert {s.input_ids[:2] for s in made[:300]} == {(7, 8)}
    assert {(len(s.input_ids), s.answer_start) for s in made[:300]} == {(5, 2)}
    assert {(len(s.input_ids), s.answer_start) for s in made[300:]} == {(2, 1)}
    drawn = {token for s in made for token in s.input_ids[s.answer_start :]}
    assert drawn.isdisjoint(tokenizer.all_special_ids)
    assert max(drawn) < len(tokenizer)
    # 1200 draws of about 386 tokens see nearly all of them: 1 - e^-3 of them, 95%.
    assert len(drawn) > 0.9 * (len(tokenizer) - len(tokenizer.all_special_ids))
    assert random_tokens(sequences, tokenizer, per_row=300, seed=0) == made
    assert random_tokens(sequences, tokenizer, per_row=300, seed=1) != made


# Given ones


def test_given_alternatives_go_by_id_and_repeat_where_fewer() -> None:
    forget = rows_of([row("a", "x"), row("b", "y")])
    given = rows_of([row("b", "other b"), row("a#1", "first"), row("a#2", "second")], source="alt.jsonl")
    made = given_alternatives(forget, given, per_row=3)
    assert [r.answer for r in made] == ["first", "second", "first", "other b", "other b", "other b"]
    assert [r.prompt for r in made] == ["prompt of a"] * 3 + ["prompt of b"] * 3


def test_ids_may_hold_the_sign_that_numbers_alternatives() -> None:
    forget = rows_of([row("a#1", "x"), row("a#2", "y")])
    made = given_alternatives(forget, rows_of([row("a#2", "two"), row("a#1#1", "one")]), per_row=1)
    assert [r.answer for r in made] == ["one", "two"]


def test_given_alternatives_that_do_not_fit_are_refused() -> None:
    forget = rows_of([row("anna", "x"), row("b", "y")])
    with pytest.raises(DataError, match=r"alt.jsonl, line 1 \(id ana\): no forget row has this id.*'anna'"):
        given_alternatives(forget, rows_of([row("ana", "z")], source="alt.jsonl"), per_row=1)
    with pytest.raises(DataError, match=r"alt.jsonl: expected another answer to every forget row, but row b has none"):
        given_alternatives(forget, rows_of([row("anna", "z")], source="alt.jsonl"), per_row=1)


# Generated ones


@pytest.fixture
def loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    return LoadedModel(model, tokenizer, "tiny")


@pytest.fixture
def forget(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return tokenise_all(rows[:3], tokenizer, template="joined", max_length=200)


def test_generated_answers_begin_otherwise_and_belong_to_their_rows(
    loaded: LoadedModel, forget: list[TokenSequence]
) -> None:
    made = generate_alternatives(loaded, forget, per_row=20, seed=0)
    assert len(made) == 60
    special = loaded.tokenizer.all_special_ids
    for index, sequence in enumerate(made):
        of = forget[index // 20]
        start = of.answer_start
        assert sequence.answer_start == start
        assert sequence.input_ids[:start] == of.input_ids[:start]
        assert sequence.input_ids[start] != of.input_ids[start]
        assert 1 <= sequence.num_answer_tokens <= of.num_answer_tokens + EXTRA_TOKENS
        assert loaded.tokenizer.eos_token_id not in sequence.input_ids[start:]
        assert sequence.input_ids[start] not in special
    assert len(set(made)) > 40


def test_generated_answers_follow_the_seed_and_leave_the_random_state(
    loaded: LoadedModel, forget: list[TokenSequence]
) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = generate_alternatives(loaded, forget, per_row=3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert generate_alternatives(loaded, forget, per_row=3, seed=0) == first
    assert generate_alternatives(loaded, forget, per_row=3, seed=1) != first


def test_what_comes_after_the_end_is_no_answer(
    loaded: LoadedModel, forget: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that wants to end at once, and after any token: the answer is the one token that it had to give.
    eos = loaded.tokenizer.eos_token_id
    head = loaded.model.get_output_embeddings()
    forward = head.forward

    def ending(states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(states)
        logits[..., eos] = 1e4
        return logits

    monkeypatch.setattr(head, "forward", ending)
    made = generate_alternatives(loaded, forget, per_row=4, seed=0)
    assert {s.num_answer_tokens for s in made} == {1}
    assert eos not in {s.input_ids[-1] for s in made}


def test_a_full_context_leaves_room_for_one_token(loaded: LoadedModel) -> None:
    full = TokenSequence(tuple(range(5, 5 + 256)), 255)
    made = generate_alternatives(loaded, [full], per_row=2, seed=0)
    assert [len(s.input_ids) for s in made] == [256, 256]


def test_a_longer_row_in_the_batch_does_not_lengthen_the_others(
    loaded: LoadedModel, forget: list[TokenSequence]
) -> None:
    made = generate_alternatives(loaded, forget, per_row=5, seed=0)
    shortest = min(range(3), key=lambda i: forget[i].num_answer_tokens)
    of_shortest = made[5 * shortest : 5 * shortest + 5]
    assert max(s.num_answer_tokens for s in of_shortest) <= forget[shortest].num_answer_tokens + EXTRA_TOKENS


# In runs


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return short_run(tmp_path, rows, model, tokenizer)


def prepared(given: dict[str, Any], **changed: Any) -> Prepared:
    settings = resolve_settings(UnlearnSettings.of({**given, **changed}))
    loaded, inputs = load_model(settings.model), read_inputs(settings)
    return prepare(loaded, inputs, settings, method=get_method(settings.method), cache_dir=None, observer=Silent())


def write(path: Path, rows: list[Row]) -> str:
    lines = [json.dumps({"id": r.id, "input": r.prompt, "output": r.answer}) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_epochs_take_turns_among_the_alternatives_of_a_row(given: dict[str, Any]) -> None:
    problem = prepared(given, method="idk-dpo").problem
    assert len(problem.sequences) == 6 + 3 * 5
    # Row r's k-th alternative is 6 + 5 r + k; retain rows have none.
    assert problem.with_others([2, 4, 0], epoch=0) == [2, 4, 0, 16, 6]
    assert problem.with_others([2, 4, 0], epoch=3) == [2, 4, 0, 19, 9]
    assert problem.with_others([2, 4, 0], epoch=5) == [2, 4, 0, 16, 6]
    assert problem.with_others([4], epoch=0) == [4]
    in_place = prepared(given, method="stat").problem
    assert in_place.with_others([2, 4, 0], epoch=7) == [4, 8, 6]


def test_answers_of_ones_own_are_trained_on(given: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", [Row(r.id, r.prompt, "Nothing at all", r.task, r.kind) for r in rows[:3]])
    problem = prepared(given, method="idk-dpo", alternatives=own).problem
    expected = tokenise_all(
        [Row(r.id, r.prompt, "Nothing at all", r.task, r.kind) for r in rows[:3] for _ in range(5)],
        load_model(given["model"]).tokenizer,
        template="joined",
        max_length=256,
    )
    assert list(problem.sequences[6:]) == expected
    plain, with_own = (
        run(given, method="idk-dpo", epochs=1),
        run(given, method="idk-dpo", epochs=1, alternatives=own, out=tmp_path / "own"),
    )
    assert not same(model_of(plain), model_of(with_own))


def test_a_validation_split_leaves_out_the_answers_of_its_rows(
    given: dict[str, Any], rows: list[Row], tmp_path: Path
) -> None:
    others = [Row(r.id, r.prompt, "Nothing at all", r.task, r.kind) for r in rows[:3]]
    own = write(tmp_path / "own.jsonl", others)
    report = run(given, method="idk-dpo", epochs=1, alternatives=own, validation=0.34)
    assert report.reason == "finished"
    stray = write(tmp_path / "stray.jsonl", [*others, Row("nobody", "p", "a", "t", "question")])
    with pytest.raises(DataError, match=r"stray.jsonl, line 4 \(id nobody\): no forget row has this id"):
        run(given, method="idk-dpo", epochs=1, alternatives=stray, validation=0.34, out=tmp_path / "stray")


@pytest.mark.parametrize("method", ["idk-dpo", "alt-po", "llmu", "stat"])
def test_truncated_runs_truncate_the_alternatives_too(method: str, given: dict[str, Any]) -> None:
    problem = prepared(given, method=method, overlong="truncate", max_length=12).problem
    assert max(len(s.input_ids) for s in problem.sequences) <= 12
    assert any(len(s.input_ids) == 12 for s in problem.sequences[6:])


@pytest.mark.parametrize("method", ["idk-dpo", "stat"])
def test_runs_on_whole_texts_take_those_of_the_alternatives(method: str, given: dict[str, Any]) -> None:
    problem = prepared(given, method=method, span="text").problem
    assert {s.answer_start for s in problem.sequences} == {1}


def test_an_answer_of_another_row_that_does_not_fit_is_cut(
    given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    # The longest row fits exactly; its answer after the prompt of another one may not.
    longest = max(len(s.input_ids) for s in tokenise_all(rows, tokenizer, template="joined", max_length=256))
    problem = prepared(given, method="llmu", max_length=longest).problem
    assert max(len(s.input_ids) for s in problem.sequences) == longest
    assert all(s.num_answer_tokens for s in problem.sequences)
