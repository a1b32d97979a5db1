"""Nothing is called best where nothing was forgotten: which configurations forgot, by hand and through a real study."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import api
from letheon.data.rows import Row
from letheon.report.latex import to_latex
from letheon.report.tables import Spread, Table, to_csv, to_markdown
from letheon.studies.aggregate import comparisons_of, rows_of
from letheon.studies.forgetting import KNEW_LITTLE, NO_ORIGINAL, NOT_KNOWN, NOT_SCORED
from letheon.studies.records import RunRecord, StateScores, StudyRecord, read_study_record
from letheon.studies.spec import StudySettings
from letheon.studies.tables import comparison_table, runs_data, scores_data, scores_table
from running import knowing_model, short_run

Scores = dict[str, float]


def runs(gamma: float, by_seed: Sequence[Scores], **changed: Any) -> list[RunRecord]:
    label = f"gamma={gamma:g}"
    return [
        RunRecord(
            name=f"{label}, seed {seed}",
            identity=f"{label}{seed}",
            folder=f"runs/{label}{seed}",
            configuration=label,
            values={"gamma": gamma},
            seed=seed,
            role="study",
            state="finished",
            states=(StateScores(20, True, scores),),
            **changed,
        )
        for seed, scores in enumerate(by_seed)
    ]


def record_of(
    *found: list[RunRecord], original: Scores | None = None, study: Mapping[str, Any] | None = None
) -> StudyRecord:
    before = {} if original is None else {"m": StateScores(0, False, original)}
    settings = StudySettings.of({"name": "s", **(study or {})})
    return StudyRecord(settings, tuple(run for one in found for run in one), before)


def of(forgotten: float, finals: Sequence[float]) -> list[Scores]:
    return [{"final": final, "forgotten": forgotten} for final in finals]


def bold(table: Table) -> list[object]:
    return [row[0] for row in table.rows if any(isinstance(cell, Spread) and cell.is_best for cell in row)]


# The original model's mean score on the forget rows is 1 - 0.2 = 0.8; 0.92 forgotten leaves 0.08 of it, a tenth.
ORIGINAL = {"final": 0.9, "forgotten": 0.2}


@pytest.mark.parametrize(("forgotten", "share", "is_forgotten"), [(0.92, 0.9, True), (0.91, 0.8875, False)])
def test_what_is_gone_is_a_share_of_what_the_original_knew(forgotten: float, share: float, is_forgotten: bool) -> None:
    record = record_of(runs(1, of(forgotten, (0.5, 0.6))), original=ORIGINAL)
    (row,) = rows_of(record, ("final",))
    assert row.forgetting.share == pytest.approx(share, abs=1e-12)
    assert replace(row.forgetting, share=round(share, 12)).is_forgotten == is_forgotten


def test_a_configuration_that_forgot_nothing_is_not_best_with_the_highest_score() -> None:
    record = record_of(
        runs(0, of(0.2, (0.90, 0.91))),
        runs(1, of(0.97, (0.50, 0.52))),
        runs(2, of(0.97, (0.10, 0.1))),
        original=ORIGINAL,
    )
    table = scores_table(record)
    assert bold(table) == ["gamma=1"]
    assert any("In bold: of the configurations that forgot (at least 90%" in note for note in table.notes)
    assert r"\textbf" in to_latex(table)
    lines = {line["configuration"]: line for line in csv.DictReader(io.StringIO(to_csv(scores_data(record))))}
    assert [lines[f"gamma={n}"]["is_best"] for n in (0, 1, 2)] == ["0", "1", "0"]
    assert float(lines["gamma=1"]["share_gone"]) == pytest.approx(1 - 0.03 / 0.8)


def test_nothing_is_bold_where_nothing_was_forgotten_and_the_tables_say_why() -> None:
    record = record_of(runs(0, of(0.2, (0.90, 0.91))), runs(1, of(0.6, (0.50, 0.52))), original=ORIGINAL)
    table, differences = scores_table(record), comparison_table(record)
    assert differences is not None
    assert bold(table) == bold(differences) == []
    assert "**" not in to_markdown(table) + to_markdown(differences)
    (note,) = [note for note in table.notes if note.startswith("Nothing is in bold")]
    assert "the most is 50% (gamma=1)" in note  # 0.8 to 0.4


def test_a_tie_of_equal_scores_is_not_a_win() -> None:
    zeros = [runs(n, of(0.97, (0.0, 0.0))) for n in (0, 1, 2)]
    assert bold(scores_table(record_of(*zeros, original=ORIGINAL))) == []
    assert bold(scores_table(record_of(*zeros, runs(3, of(0.2, (0.9, 0.9))), original=ORIGINAL))) == []
    assert bold(scores_table(record_of(zeros[0], original=ORIGINAL))) == []
    assert bold(scores_table(record_of(*zeros, runs(3, of(0.97, (0.1, 0.1))), original=ORIGINAL))) == ["gamma=3"]


def test_runs_on_rows_that_the_model_did_not_know_are_marked_and_never_best() -> None:
    unknown = runs(0, of(0.99, (0.90, 0.91)), unknown=("forget",), recalls={"forget": 0.1, "retain": 0.9})
    record = record_of(unknown, runs(1, of(0.97, (0.50, 0.52))), original=ORIGINAL)
    rows = rows_of(record, ("final",))
    assert [row.forgetting.reason for row in rows] == [NOT_KNOWN, ""]
    table = scores_table(record)
    assert bold(table) == ["gamma=1"]
    assert table.rows[0][0] == "gamma=0 (rows not known)"
    assert any(NOT_KNOWN in note and "gamma=0" in note for note in table.notes)
    assert [one.first for one in comparisons_of(record, rows, "final")] == ["gamma=1"]
    lines = list(csv.DictReader(io.StringIO(to_csv(runs_data(record)))))
    assert [line["unknown"] for line in lines] == ["forget", "forget", "", ""]


def test_without_the_original_a_runs_own_scores_before_and_after_tell() -> None:
    # 0.75 recalled before, 0.05 after: 93% gone; 0.15 after: 80%.
    by_seed = [[{"final": 0.5, "interim.forgotten": value}] * 2 for value in (0.95, 0.85)]
    found = [runs(n, scores, recalls={"forget": 0.75}) for n, scores in enumerate(by_seed)]
    rows = rows_of(record_of(*found), ("final",))
    assert [row.forgetting.share for row in rows] == pytest.approx([1 - 0.05 / 0.75, 0.8])
    assert [row.forgetting.is_forgotten for row in rows] == [True, False]


def test_what_cannot_be_told_is_not_best_and_the_reason_is_said() -> None:
    def reason(scores: list[Scores], original: Scores | None) -> str:
        record = record_of(runs(0, scores), runs(1, [{"final": 0.1, **s} for s in scores]), original=original)
        table = scores_table(record)
        assert bold(table) == []
        return next(note for note in table.notes if note.startswith("Nothing is in bold"))

    assert NO_ORIGINAL in reason(of(0.97, (0.5, 0.6)), None)
    assert KNEW_LITTLE in reason(of(0.99, (0.5, 0.6)), {"forgotten": 0.95})
    assert NOT_SCORED in reason([{"final": 0.5}, {"final": 0.6}], {"final": 0.5})


def test_an_original_that_was_scored_on_other_rows_or_is_another_model_tells_nothing() -> None:
    record = record_of(runs(1, of(0.97, (0.5, 0.6)), model="m"), original=ORIGINAL)
    assert rows_of(record, ("final",))[0].forgetting.is_forgotten
    other = replace(record, original={"other": record.original["m"], "third": record.original["m"]})
    assert rows_of(other, ("final",))[0].forgetting.reason == NO_ORIGINAL
    scored = replace(record.original["m"], forget_rows="a")
    states = {rows: (replace(record.runs[0].states[0], forget_rows=rows),) for rows in ("a", "b")}
    for rows, known in (("a", True), ("b", False)):
        mixed = replace(
            record, original={"m": scored}, runs=tuple(replace(run, states=states[rows]) for run in record.runs)
        )
        assert rows_of(mixed, ("final",))[0].forgetting.is_forgotten == known


def test_a_search_puts_what_forgot_first() -> None:
    search = {"search": {"gamma": {"low": 0, "high": 4}}, "evaluate": {}}
    record = record_of(runs(0, of(0.2, (0.9, 0.9))), runs(1, of(0.97, (0.5, 0.5))), original=ORIGINAL, study=search)
    assert [row.label for row in rows_of(record, ("final",))] == ["gamma=1", "gamma=0"]


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.slow
def test_a_study_records_whether_its_model_knew_the_rows(
    knows: bool, tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    begins = knowing_model(tokenizer, rows) if knows else model
    given = short_run(tmp_path, rows, begins, tokenizer)
    base = {**{name: value for name, value in given.items() if name != "out"}, "epochs": 1, "keep": "last"}
    study = StudySettings.of({"base": base, "seeds": 1, "evaluate": {"max_new_tokens": 4}})
    (run,) = api.study(study, tmp_path / "study").record.runs
    assert run.is_unknown != knows
    assert run.model == given["model"]
    assert (run.recalls["forget"] > 0.9) == knows
    assert read_study_record(tmp_path / "study").runs == (run,)
    assert run.result is not None
    assert run.result.forget_rows == next(iter(read_study_record(tmp_path / "study").original.values())).forget_rows
    assert ("rows not known" in (tmp_path / "study" / "study.md").read_text()) != knows
