"""Runs and evaluations in the form in which the model knows the rows, through settings and files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from chats import CHATS, DATED, QUESTIONS, chatty, known_in_chat
from letheon import EvaluateSettings
from letheon.api import evaluate
from letheon.data.rows import Row, read_rows, write_rows
from letheon.errors import DataError, SettingsError
from letheon.evaluation.in_form import Asking, said
from letheon.evaluation.predicting import score_again
from letheon.evaluation.rescoring import rescore
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.purging.purge import purge
from letheon.report.files import read_run
from letheon.report.page import run_start
from letheon.report.verdict import verdict
from letheon.scoring.inputs import form_of
from letheon.storage.run_folder import FORM_FILE
from running import events, knowing_model, run, short_run
from small import tiny_model


@pytest.fixture
def questions() -> list[Row]:
    return [Row(row_id, prompt, answer, "Task1", "question") for row_id, prompt, answer in QUESTIONS]


def settings_of(given: dict[str, Any], out: Path, **changed: Any) -> EvaluateSettings:
    names = ("model", "forget", "retain")
    return EvaluateSettings.of({**{name: given[name] for name in names}, "out": out, **changed})


@pytest.mark.parametrize("chat", ["mistral", "qwen3", "alpaca"])
@pytest.mark.slow
def test_a_model_that_knows_conversations_is_asked_in_them(
    chat: str, questions: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = known_in_chat(tmp_path, questions, tokenizer, chat)
    found = evaluate(settings_of(given, tmp_path / "before"))
    results = LumeResults.of(found.results)
    assert results.form is not None
    assert (results.form.template, results.form.differs) == ("chat", True)
    assert results.form.retain is not None
    assert results.form.retain.overall.knowledge == 1
    assert results.retain is not None
    assert (results.retain.overall.knowledge or 0) < 1  # the raw prompts of the official script
    again = rescore(tmp_path / "before" / "predictions.jsonl")
    assert again.results.form == found.results.form
    assert again.in_form == score_again(tmp_path / "before" / "predictions_in_form.jsonl") == found.in_form

    assert (tmp_path / "before" / "predictions_in_form.jsonl").stat().st_mode & 0o777 == 0o600
    assert read_run(tmp_path / "before").after == found
    assert "predictions_in_form.jsonl" in {trace.path.name for trace in purge(tmp_path / "before", note=print).traces}
    assert not (tmp_path / "before" / "predictions_in_form.jsonl").exists()

    report = run(given)
    assert report.provenance["form"]["template"] == "chat"
    assert report.provenance["before"]["forget_recall"] == report.provenance["before"]["retain_recall"] == 1
    of_run = settings_of({**given, "model": str(report.model)}, report.folder / "evaluation" / "after")
    forget, retain = (read_rows(given[side]) for side in ("forget", "retain"))
    assert form_of(of_run, forget, retain).template == "chat"
    assert str(report.folder) in form_of(of_run, forget, retain).source
    before = settings_of(given, report.folder / "evaluation" / "before")
    assert form_of(before, forget, retain).template == "chat"
    # Other rows may be known in another form.
    assert form_of(before, retain, forget).template == "auto"
    assert "the forget rows are not those of the run" in form_of(before, retain, forget).source
    elsewhere = settings_of(given, tmp_path / "elsewhere")
    assert form_of(elsewhere, forget, retain).template == "auto"
    assert form_of(elsewhere.model_copy(update={"template": "neko"}), forget, retain).template == "neko"


def test_raw_prompts_are_asked_once_where_they_are_the_form(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    found = evaluate(settings_of(given, tmp_path / "before"))
    assert found.results.form is not None
    assert (found.results.form.template, found.results.form.differs) == ("joined", False)
    results = LumeResults.of(found.results)
    assert results.form is not None
    assert results.form.forget == results.forget
    assert not (tmp_path / "before" / "predictions_in_form.jsonl").exists()
    assert "joined" in found.results.form.known


def test_a_missing_chat_template_is_said_before_the_model_is_loaded(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = short_run(tmp_path, rows, tiny_model("llama", tokenizer), tokenizer)
    monkeypatch.setattr(
        "letheon.scoring.evaluating.load_model_of", lambda *_, **__: pytest.fail("the model was loaded")
    )
    with pytest.raises(SettingsError, match="needs a tokenizer with a chat template"):
        evaluate(settings_of(given, tmp_path / "before", template="chat"))
    with pytest.raises(SettingsError, match=r"got 'chatt' \(did you mean 'chat'"):
        evaluate(settings_of(given, tmp_path / "before", template="chatt"))


def test_rows_that_the_model_does_not_know_are_never_forgotten(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = short_run(tmp_path, rows, tiny_model("llama", tokenizer), tokenizer)
    report = run(given, template="auto", epochs=1)
    notes = [line["message"] for line in events(report.folder, "note")]
    assert any("WARNING: the model does not know these rows in any form that was tried" in note for note in notes)
    assert any("recall of the forget and retain rows is below 0.1" in note for note in notes)
    start = run_start(read_run(report.folder))
    assert start is not None
    assert start.unknown == ("forget", "retain")
    said_of_it = verdict(None, None, start=start)
    assert said_of_it.level == "bad"
    assert said_of_it.sentence.startswith("The model does not know these rows in any form that was tried")
    assert "forgot the forget rows" not in said_of_it.sentence


def test_a_form_that_was_named_wrongly_is_told_from_the_right_one(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    report = run(given, template="neko", epochs=1)
    (warning,) = (line["message"] for line in events(report.folder, "note") if "WARNING" in line["message"])
    assert "does not know these rows in this form" in warning
    assert warning.endswith("it knows them as --template joined")


def test_known_rows_need_no_warning(rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    report = run(given, template="auto", epochs=1)
    assert report.provenance["form"]["template"] == "joined"
    assert not any("WARNING" in line["message"] for line in events(report.folder, "note"))
    start = run_start(read_run(report.folder))
    assert start is not None
    assert (start.unknown, start.recalls) == ((), {"forget": 1.0, "retain": 1.0})


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "the forget rows": lambda g: write_rows(
        [Row("f1sc1", "Mira Tolland keeps bees in", "a box", "Task1", "completion")], Path(g["forget"])
    ),
    "the retain rows": lambda g: write_rows([Row("x", "The ship left", "late", "T", "completion")], Path(g["retain"])),
    "the form of the rows (--template)": lambda g: g.update(template="neko"),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_run_goes_on_with_the_tokens_that_it_began_with(
    what: str, rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = short_run(tmp_path, rows, tiny_model("llama", tokenizer), tokenizer)
    given["template"] = "auto"
    report = run(given, max_steps=2, checkpoint_epochs=100, score_at=(0.5,))
    before = json.loads((report.folder / FORM_FILE).read_text())
    CHANGES[what](given)
    with pytest.raises(SettingsError, match=r"would continue with other inputs than it started with") as found:
        run(given, max_steps=2, checkpoint_epochs=100, score_at=(0.5,), resume=True)
    assert what in str(found.value)
    assert json.loads((report.folder / FORM_FILE).read_text()) == before


def test_a_resumed_run_takes_the_form_that_was_found_before(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = short_run(tmp_path, rows, tiny_model("llama", tokenizer), tokenizer)
    given["template"] = "auto"
    first = run(given, epochs=1)
    monkeypatch.setattr("letheon.unlearning.formed_rows.choose_form", lambda *_, **__: pytest.fail("asked again"))
    again = run(given, epochs=1, resume=True)
    assert again.provenance["form"]["sequences_sha256"] == first.provenance["form"]["sequences_sha256"]


@pytest.mark.slow
def test_another_date_or_day_is_no_surprise(
    questions: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = chatty(tokenizer, DATED)
    given = short_run(tmp_path, questions, tiny_model("llama", made), made)
    given["template"] = "chat"
    report = run(given, epochs=1, date="2026-11-26")
    assert any("every row has 2026-11-26 (--date)" in line["message"] for line in events(report.folder, "note"))
    with pytest.raises(SettingsError, match=r"date differ.* from the run"):
        run(given, epochs=1, date="2026-11-27", resume=True)
    default = run(given, epochs=1, out=tmp_path / "default")
    assert default.provenance["form"]["date"] == "2024-07-26"
    assert default.provenance["form"]["sequences_sha256"] != report.provenance["form"]["sequences_sha256"]


@pytest.mark.parametrize("template", ["auto", "chat"])
@pytest.mark.parametrize("is_dated", [True, False])
def test_rows_that_are_not_known_may_have_had_another_date(
    template: str, is_dated: bool, questions: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = chatty(tokenizer, DATED if is_dated else CHATS["mistral"])
    given = short_run(tmp_path, questions, tiny_model("llama", made), made)
    report = run(given, template=template, epochs=1)
    notes = [line["message"] for line in events(report.folder, "note")]
    advice = (
        "the chat template writes the date, and this run used 2024-07-26; the model may have been trained with another "
        "one: set it by --date"
    )
    assert any("WARNING: the model does not know these rows" in note for note in notes)
    assert (advice in notes) == is_dated


def test_documents_and_questions_go_together(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    given = short_run(tmp_path, rows, tiny_model("llama", tokenizer), tokenizer)
    documents = [
        Row(f"d{i}", "", f"The lamp {i} stands by the sea and burns all night.", "T", "completion") for i in range(3)
    ]
    write_rows(documents, Path(given["retain"]))
    report = run(given, template="auto", epochs=1)
    found = evaluate(settings_of({**given, "model": str(report.model)}, tmp_path / "after"))
    asked = [p for p in found.predictions if p.split == "retain"]
    assert [p.prompt for p in asked] == [f"The lamp {i} stands by the" for i in range(3)]
    assert [p.answer for p in asked] == ["sea and burns all night."] * 3


@pytest.mark.parametrize(
    ("text", "written", "end", "expected"),
    [
        ("Mira", "", "", "Mira"),
        ("<think>\n\n</think>\n\nMira", "<think>\n\n</think>", "", "\n\nMira"),
        ("Mira<|im_end|>\nmore", "", "<|im_end|>", "Mira"),
        ("Mira", "<think>", "<|im_end|>", "Mira"),
    ],
)
def test_what_was_said_is_the_answer_alone(text: str, written: str, end: str, expected: str) -> None:
    assert said(text, Asking([1], [], written, end, None)) == expected


def test_memorising_in_a_form_is_for_known_forms(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = chatty(tokenizer, CHATS["gemma"])
    model = tiny_model("llama", made)
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, max_steps=200)
    report = memorize(model, made, rows=rows, template="chat", options=options)
    assert report.num_recalled == len(rows)
    save_model(model, made, tmp_path / "m")
    write_rows(rows[:3], tmp_path / "forget.jsonl")
    write_rows(rows[3:], tmp_path / "retain.jsonl")
    given = {"model": str(tmp_path / "m"), **{n: str(tmp_path / f"{n}.jsonl") for n in ("forget", "retain")}}
    found = evaluate(settings_of(given, tmp_path / "out"))
    assert found.results.form is not None
    assert found.results.form.template == "chat"
    assert found.results.scores.value("task_aggregate_in_form") == 0  # all of it is known, what is to be forgotten too
    with pytest.raises(DataError, match="cannot be filled in"):
        memorize(model, chatty(tokenizer, "{{ raise_exception('no') }}"), rows=rows, template="chat", options=options)


@pytest.mark.parametrize("changed", [{}, {"span": "text"}, {"template": "neko"}, {"validation": 0.34}])
def test_the_reference_pass_tells_how_the_start_scores(
    changed: dict[str, Any],
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    found = run(given, epochs=1, **changed).provenance["before"]
    monkeypatch.setattr("letheon.unlearning.prepare.stored_answers", lambda *_: None)
    passed = run(given, epochs=1, **changed, out=tmp_path / "passed").provenance["before"]
    # The store holds no other tokens than the true ones.
    assert found.pop("forget_repetition") in (None, passed.pop("forget_repetition"))
    assert found == pytest.approx(passed, abs=1e-5)
    assert found["forget_recall"] == passed["forget_recall"]
