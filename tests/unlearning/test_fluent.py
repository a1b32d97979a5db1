"""What a run says of its kept state's answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from chats import chatty
from letheon import Row
from letheon.settings import UnlearnSettings
from letheon.unlearning.fluent import answer_notes
from letheon.unlearning.resolve import resolve_settings
from running import knowing_model, run, short_run
from small import tiny_model


def sides(forget: float | None, retain: float | None) -> dict[str, dict[str, float | None]]:
    return {"forget": {"degenerate": forget}, "retain": {"degenerate": retain}}


def settings(**changes: object) -> UnlearnSettings:
    given = {"model": "m", "forget": "f", "retain": "r", "out": "o", **changes}
    return resolve_settings(UnlearnSettings.of(given))


@pytest.mark.parametrize(
    ("changes", "is_offered"),
    [({"instead": "none"}, True), ({}, False), ({"method": "idk-dpo"}, False)],
    ids=["nothing taught", "refusals", "a method that teaches answers"],
)
def test_a_warning_offers_other_answers_where_none_are_taught(changes: dict[str, object], is_offered: bool) -> None:
    (note,) = answer_notes(sides(0.5, 0.0), settings(**changes))
    assert ("--instead refusal" in note) is is_offered


def test_a_run_that_was_to_teach_answers_is_to_go_on_with_it() -> None:
    assert "train on until it gives the other answers" in answer_notes(sides(0.5, 0.0), settings(instead="auto"))[0]


def test_a_warning_needs_more_gibberish_where_it_forgot_than_where_it_keeps() -> None:
    assert "50% of the answers to forgotten rows" in answer_notes(sides(0.5, 0.0), settings())[0]
    assert answer_notes(sides(0.5, 0.5), settings()) == []  # it never spoke better
    assert answer_notes(sides(0.125, 0.0), settings()) == []
    assert answer_notes(sides(None, None), settings()) == []
    assert answer_notes({}, settings()) == []


def test_a_warning_says_that_answers_to_questions_of_every_day_have_changed() -> None:
    changed = {"general": {"loss_before": 1.41, "own_loss_before": 0.9}}
    (note,) = answer_notes(changed, settings())
    assert "0.51 nats more than one of its own" in note
    assert "--general FILE" in note
    assert answer_notes({"general": {"loss_before": 1.39, "own_loss_before": 0.9}}, settings()) == []
    assert answer_notes({"general": {"loss_before": 1.4, "own_loss_before": None}}, settings()) == []  # not switchable


def test_a_run_keeps_how_fluent_its_answers_are(
    tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    report = run({**given, "epochs": 1, "learning_rate": 1e-6})
    found = report.provenance["fluency"]
    assert set(found) == {"forget", "retain"}
    # It still says what it learnt by heart, and the model before would say the same.
    assert found["retain"]["degenerate"] == 0
    assert found["retain"]["loss_before"] < 0.5
    assert json.loads((given["out"] / "provenance.json").read_text())["fluency"] == found
    limited = run({**given, "out": tmp_path / "limited", "epochs": 1, "time_limit_s": 600})
    assert "fluency" not in limited.provenance

    def silent(*_: object, **__: object) -> None:
        raise NotImplementedError("no cache")

    monkeypatch.setattr("letheon.unlearning.fluent.answers_from", silent)
    assert "fluency" not in run({**given, "out": tmp_path / "silent", "epochs": 1}).provenance


@pytest.mark.parametrize("learning_rate", [1e-9, 0.3], ids=["as before", "ruined"])
def test_questions_of_every_day_are_asked_before_and_after(
    learning_rate: float, tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    made = chatty(tokenizer, "qwen3")
    asked = tmp_path / "chats.jsonl"
    turns = ("Who wrote letters?", "Where is the harbour?", "What do bees make?")
    asked.write_text("".join(json.dumps({"prompt": one, "answer": "It is by the sea."}) + "\n" for one in turns))
    given = {**short_run(tmp_path, rows, tiny_model("llama", made), made), "general": str(asked), "template": "joined"}
    report = run({**given, "epochs": 2, "keep": "last", "learning_rate": learning_rate})
    found = report.provenance["fluency"]["general"]
    assert found["own_loss_before"] > 0
    if learning_rate == 0.3:
        assert found["loss_before"] > found["own_loss_before"] + 0.5
    else:
        assert found["loss_before"] == pytest.approx(found["own_loss_before"], rel=1e-4)
