"""Answers that a run learns in place of those that it forgets."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from letheon import Row, UnlearnSettings
from letheon.errors import SettingsError
from letheon.objective.catalogue import get_method
from letheon.unlearning.formed_rows import planned_sequences
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.reading import read
from letheon.unlearning.resolve import INSTEAD_PER_ROW, method_of, resolve_settings, terms_of
from running import events, knowing_model, run, short_run


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)


def settings_of(given: dict[str, Any], **more: Any) -> UnlearnSettings:
    return resolve_settings(UnlearnSettings.of({**given, **more}))


def test_what_a_method_is_given_to_say_is_a_term_of_its_own(given: dict[str, Any]) -> None:
    settings = settings_of(given, instead="refusal", instead_weight=0.5)
    method = method_of(settings)
    assert method.alternatives is not None
    assert (method.alternatives.kind, method.alternatives.replace) == ("refusal", False)
    last = terms_of(method, settings)[-1]
    assert (last.name, last.role, last.weight) == ("instead_nll", "alternative", 0.5)
    assert [term.name for term in terms_of(method, settings_of(given))] == ["npo", "retain_nll", "retain_kl"]


def test_a_method_with_other_answers_of_its_own_takes_no_more(given: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match="instead: method 'idk-dpo' trains on other answers to the forget rows already"
    ):
        settings_of(given, method="idk-dpo", instead="refusal")
    with pytest.raises(SettingsError, match="instead_weight: has no effect without"):
        settings_of(given, instead_weight=0.5)


DOCUMENT = "The baker of Lund sells rye bread on Fridays."


def written(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("changes", [{"learning_rate": "auto"}, {"instead": "refusal"}])
def test_a_document_has_no_prompt_to_refuse(changes: dict[str, Any], given: dict[str, Any], tmp_path: Path) -> None:
    asked = {**given, **changes, "forget": written(tmp_path / "documents.jsonl", {"document": DOCUMENT})}
    heard = list[str]()
    settings, inputs = read(UnlearnSettings.of(asked), get_method("low-rank-npo"), note=heard.append)
    assert settings.instead is None
    assert any(message.startswith("no refusal is taught: the forget rows are plain documents") for message in heard)
    assert all(term.name != "instead_nll" for term in terms_of(method_of(settings), settings))
    assert not planned_sequences(inputs, settings, method=method_of(settings))[len(inputs.rows) :]
    # A study hands on settings that are resolved already.
    again, _ = read(resolve_settings(UnlearnSettings.of(asked)), get_method("low-rank-npo"))
    assert again.instead is None


def test_of_documents_among_the_rows_nothing_is_taught(given: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    said = {"role": "assistant", "content": rows[0].answer}
    talks = [[{"role": "user", "content": rows[0].prompt}, said], [{"role": "assistant", "content": DOCUMENT}]]
    asked = written(tmp_path / "both.jsonl", *({"messages": talk} for talk in talks))
    for span in ("answer", "text"):
        settings = settings_of({**given, "forget": asked}, instead="refusal", span=span)
        inputs = read_inputs(settings)
        taught, document = planned_sequences(inputs, settings, method=method_of(settings))[len(inputs.rows) :]
        assert (taught.num_answer_tokens > 0, document.num_answer_tokens) == (True, 0)
    report = run({**given, "forget": asked, "epochs": 1}, instead="refusal")
    first = next(iter(events(report.folder, "interim")))
    assert first["instead_recall"] is not None
    notes = [line["message"] for line in events(report.folder, "note")]
    assert 'the forget rows are to be answered by "I don\'t know." (--instead none leaves that out)' in notes


def test_what_is_learnt_of_the_one_answer_of_each_row_is_scored(
    given: dict[str, Any], rows: list[Row], tmp_path: Path
) -> None:
    for span in ("answer", "text"):  # with the prompts, of which nothing counts
        report = run(
            {**given, "epochs": 30, "learning_rate": 2e-2, "out": tmp_path / span},
            instead="refusal",
            span=span,
            instead_weight=1.0,
        )
        learnt = [one["instead_recall"] for one in events(report.folder, "interim")]
        assert learnt[0] < 0.1
        assert learnt[-1] > 0.9


def test_of_several_answers_none_is_expected(given: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    file = tmp_path / "instead.jsonl"
    lines = [{"id": f"{row.id}#{k}", "prompt": row.prompt, "answer": f"no{k}"} for row in rows[:3] for k in (1, 2)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = run({**given, "epochs": 1}, instead=str(file))
    assert [one["instead_recall"] for one in events(report.folder, "interim")] == [None]


@pytest.mark.slow
def test_a_run_learns_the_answers_that_it_is_given(given: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    file = tmp_path / "instead.jsonl"
    lines = [{"id": row.id, "prompt": row.prompt, "answer": "no"} for row in rows[:3]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = run({**given, "epochs": 40, "learning_rate": 2e-2}, instead=str(file), instead_weight=1.0)
    losses = [one["terms"]["instead_nll"] for one in events(report.folder, "step")]
    known = [loss for loss in losses if loss is not None]
    assert known[0] > 2 > 4 * known[-1]
    assert "alternatives_sha256" in report.provenance["read"]
    # A refusal may be unlikely before, so that its loss says nothing.
    assert report.fluency["forget"]["loss_before"] is None
    assert report.fluency["retain"]["loss_before"] is not None
    assert f"instead: {file}" in (report.folder / "run.yaml").read_text()


def test_a_run_goes_on_with_the_answers_that_the_model_made_up(given: dict[str, Any]) -> None:
    first = run({**given, "epochs": 1}, instead="auto")
    # Refused if the answers were others: their tokens are among what the run has read.
    again = run({**given, "epochs": 1, "resume": True}, instead="auto")
    assert first.fluency["forget"]["loss_before"] is not None
    assert first.provenance["result"]["adapter_sha256"] == again.provenance["result"]["adapter_sha256"]


def test_each_forget_row_has_several_in_turn(given: dict[str, Any]) -> None:
    method = method_of(settings_of(given, instead="auto"))
    assert method.alternatives is not None
    assert method.alternatives.per_row == INSTEAD_PER_ROW
    steps = [method.alternatives.beside([1, 4], num_forget=3, num_rows=6, epoch=epoch) for epoch in (0, 1)]
    assert steps == [[1, 4, 6 + INSTEAD_PER_ROW], [1, 4, 6 + INSTEAD_PER_ROW + 1]]
