"""Studies judge forgetting in the form in which the models know the rows; raw prompts stand beside it."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from chats import QUESTIONS, known_in_chat
from letheon import api
from letheon.data.rows import Row
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.official import score_in_form
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.report.tables import Spread, Table, to_csv
from letheon.settings import EvaluateSettings
from letheon.studies.aggregate import rows_of
from letheon.studies.forgetting import OTHER_FORM
from letheon.studies.known import known_scores
from letheon.studies.page import write_study_page
from letheon.studies.records import (
    RunRecord,
    StateScores,
    StudyRecord,
    read_study_record,
    scores_of_results,
    state_scores,
    write_study,
)
from letheon.studies.shown_scores import forgotten_score, scores_in, trade_off_in, trade_off_scores
from letheon.studies.spec import StudySettings
from letheon.studies.tables import runs_data, scores_data, scores_table, trade_off_table
from made_results import CHINESE, ENGLISH, MIA, MMLU, results_of

KNOWN = known_scores(StudySettings.of({}))


def asked(by_prompt: float, in_form: float, *, texts: dict[str, str] = ENGLISH, template: str = "chat") -> LumeResults:
    """An evaluation in which these shares of the forget completions are gone, by raw prompts and in form."""
    found, other = results_of(texts, forgets=by_prompt), results_of(texts, forgets=in_form)
    scores = score_in_form((), template=template, date="2024-07-26", source="a test", differs=True)
    form = replace(
        scores,
        forget=other.forget,
        retain=other.retain,
        task_aggregate=other.task_aggregate,
        unicode_task_aggregate=other.unicode_task_aggregate,
    )
    return replace(found, form=form)


def record_of(*shares: tuple[float, float], original: tuple[float, float] = (1.0, 0.0), **study: Any) -> StudyRecord:
    """A configuration for each pair of shares that are gone, by raw prompts and in form, with two seeds each."""
    runs = [
        RunRecord(
            name=f"rate={rate}, seed {seed}",
            identity=f"{rate}{seed}",
            folder="f",
            configuration=f"rate={rate}",
            values={"rate": rate},
            seed=seed,
            role="study",
            state="finished",
            states=(state_scores(asked(*share), epoch=20, is_result=True),),
        )
        for rate, share in enumerate(shares)
        for seed in (0, 1)
    ]
    before = {"m": state_scores(asked(*original), epoch=0, is_result=False)}
    return StudyRecord(StudySettings.of({"name": "s", "evaluate": {}, **study}), tuple(runs), before)


def bold(table: Table) -> list[object]:
    return [row[0] for row in table.rows if any(isinstance(cell, Spread) and cell.is_best for cell in row)]


def test_scores_in_form_by_hand() -> None:
    found = scores_of_results(asked(1.0, 0.4))
    assert found["forgotten"] == 1.0
    assert found["forgotten_in_form"] == pytest.approx(0.4)
    assert found["retained_in_form"] == 1.0
    aggregate = harmonic_mean([0.4, 1.0])
    assert found["task_aggregate_in_form"] == pytest.approx(aggregate)
    assert found["final_in_form"] == pytest.approx((aggregate + MIA.score + MMLU.accuracy) / 3)
    assert found.keys() <= KNOWN.keys()
    state = state_scores(asked(1.0, 0.4), epoch=2, is_result=True)
    assert (state.form, state.form_differs) == ("chat, 2024-07-26", True)
    assert state_scores(asked(1.0, 0.4, template="pair"), epoch=2, is_result=True).form == "pair"


def test_scores_without_a_form_have_none_in_form_and_no_column() -> None:
    assert not [name for name in scores_of_results(results_of(ENGLISH, forgets=0.5)) if name.endswith("in_form")]
    plain = StateScores(20, True, scores_of_results(results_of(ENGLISH, forgets=0.5)))
    record = record_of((0.5, 0.5))
    runs = tuple(replace(run, states=(plain,)) for run in record.runs)
    assert "in form" not in to_csv(runs_data(replace(record, runs=runs, original={})))


def test_a_form_of_raw_prompts_gives_the_official_scores_and_no_column() -> None:
    same = asked(0.5, 0.5)
    assert same.form is not None
    state = state_scores(replace(same, form=replace(same.form, differs=False)), epoch=20, is_result=True)
    assert state.scores["forgotten_in_form"] == state.scores["forgotten"]
    record = record_of((0.5, 0.5))
    record = replace(record, original={}, runs=tuple(replace(run, states=(state,)) for run in record.runs))
    assert forgotten_score(record) == "forgotten"
    assert scores_in(record) == ("task_aggregate", "mia.score", "mmlu.accuracy", "final")


def test_what_only_raw_prompts_call_forgotten_is_not_best() -> None:
    # By raw prompts nobody ever knew the rows; in form the first still says all of them and the second a tenth.
    record = record_of((1.0, 0.0), (1.0, 0.9))
    assert forgotten_score(record) == "forgotten_in_form"
    rows = rows_of(record, scores_in(record))
    assert [row.forgetting.share for row in rows] == pytest.approx([0.0, 0.9])
    assert [row.forgetting.is_forgotten for row in rows] == [False, True]
    assert bold(scores_table(record)) == ["rate=1"]
    assert bold(scores_table(record_of((1.0, 0.0), (1.0, 0.5)))) == []


def test_tables_show_the_scores_in_form_beside_the_official_ones() -> None:
    record = record_of((1.0, 0.0), (1.0, 0.9))
    table, trade_off = scores_table(record), trade_off_table(record)
    assert trade_off is not None
    assert table.columns[2:] == (
        *("Task score", "Task score (in form)", "MIA score", "MMLU", "Final score", "Final score (in form)"),
    )
    assert trade_off.columns[2:] == ("Forgotten (in form)", "Retained (in form)", "Forgotten", "Retained")
    assert any("chat, 2024-07-26" in note and "judged in form" in note for note in table.notes)
    each = list(csv.DictReader(io.StringIO(to_csv(runs_data(record)))))
    assert [float(row["forgotten_in_form"]) for row in each] == pytest.approx([0.0, 0.0, 0.9, 0.9])
    assert {row["forgotten"] for row in each} == {"1.0"}
    means = {(row["configuration"], row["score"]) for row in csv.DictReader(io.StringIO(to_csv(scores_data(record))))}
    assert ("rate=1", "final_in_form") in means


def test_variants_of_script_and_form_are_shown_together() -> None:
    record = record_of((1.0, 0.5))
    states = [state_scores(asked(1.0, share, texts=CHINESE), epoch=20, is_result=True) for share in (0.5, 0.0)]
    record = replace(
        record, runs=tuple(replace(run, states=(states[0],)) for run in record.runs), original={"m": states[1]}
    )
    assert trade_off_in(record) == ("unicode_forgotten_in_form", "unicode_retained_in_form")
    assert trade_off_scores(record)[2:] == (
        *("forgotten", "retained", "unicode_forgotten", "unicode_retained", "forgotten_in_form", "retained_in_form"),
    )
    (row,) = rows_of(record, ("final",))
    assert row.forgetting.share == pytest.approx(0.5)


def test_an_original_that_was_asked_in_another_form_tells_nothing() -> None:
    record = record_of((1.0, 0.9))
    other = {"m": replace(record.original["m"], form="pair")}
    assert rows_of(record, ())[0].forgetting.is_forgotten
    assert rows_of(replace(record, original=other), ())[0].forgetting.reason == OTHER_FORM
    own = tuple(
        replace(run, recalls={"forget": 0.8}, states=(with_recall(run.states[0], 0.04),)) for run in record.runs
    )
    assert rows_of(replace(record, original=other, runs=own), ())[0].forgetting.share == pytest.approx(0.95)


def with_recall(state: StateScores, recall: float) -> StateScores:
    return replace(state, scores={**state.scores, "interim.forgotten": 1 - recall})


@pytest.mark.parametrize("score", [name for name in KNOWN if name.endswith("_in_form")])
def test_a_search_may_maximise_scores_in_form(score: str) -> None:
    pytest.importorskip("optuna")
    from letheon.studies.search import _mean

    search: dict[str, Any] = {"search": {"rank": {"low": 1, "high": 8, "int": True}}}
    record = record_of((1.0, 0.4), **search, objectives=[score])
    assert _mean(record.runs, KNOWN[score]) == pytest.approx(record.runs[0].states[0].scores[score])
    assert "The search made" not in " ".join(scores_table(record).notes)
    by_prompts = record_of((1.0, 0.4), **search, objectives=["final"])
    assert "final_in_form would be the objectives to name" in scores_table(by_prompts).notes[-1]


def test_the_record_keeps_the_form(tmp_path: Path) -> None:
    record = record_of((1.0, 0.9))
    write_study(record, tmp_path)
    assert read_study_record(tmp_path) == record


@pytest.mark.slow
def test_a_study_asks_in_the_form_of_its_runs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    monkeypatch.setattr("letheon.studies.figures.study_svgs", lambda record: {})
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})
    questions = [Row(row_id, prompt, answer, "Task1", "question") for row_id, prompt, answer in QUESTIONS]
    given = known_in_chat(tmp_path, questions, tokenizer, "alpaca")
    base = {name: value for name, value in given.items() if name != "out"}
    study: dict[str, Any] = {
        "base": base,
        "grid": {"learning_rate": [1e-6, 3e-2]},
        "seeds": 2,
        "evaluate": {"max_new_tokens": 12},
    }
    study["keep_models"] = True
    record = api.study(StudySettings.of(study), tmp_path / "study").record
    (original,) = record.original.values()
    states = [run.result for run in record.runs]
    assert {state.form for state in states if state} == {original.form} == {"chat, 2024-07-26"}
    assert original.scores["forgotten_in_form"] == 0.0
    assert original.scores["forgotten"] > 0.0  # the raw prompts of the official script
    # At a rate that changes nothing nothing is forgotten, whatever raw prompts say.
    rows = rows_of(record, ())
    assert rows[0].forgetting.share == 0.0
    page = write_study_page(tmp_path / "study").read_text()
    assert "Forgotten (in form)" in page
    run = record.runs[-1]
    folder = tmp_path / "study" / run.folder
    files = {"forget": given["forget"], "retain": given["retain"], "model": str(folder / "model")}
    alone = api.evaluate(EvaluateSettings.of({**files, "max_new_tokens": 12, "out": tmp_path / "alone"}))
    assert read_results(folder / "evaluation" / "after" / "results.json").form == alone.results.form
    assert (folder / "evaluation" / "after" / "predictions_in_form.jsonl").is_file()
