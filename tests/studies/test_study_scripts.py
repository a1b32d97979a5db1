"""Studies of rows in scripts that the official scores cannot read: the Unicode variants stand beside them."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean

import pytest

from letheon.evaluation.suites.lume.results import LumeResults
from letheon.report.tables import to_csv, to_markdown
from letheon.studies.figures import save_study_figures
from letheon.studies.known import known_scores
from letheon.studies.records import (
    RunRecord,
    StateScores,
    StudyRecord,
    read_study_record,
    scores_of_results,
    script_notes_of,
    write_study,
)
from letheon.studies.shown_scores import scores_in, trade_off_in, trade_off_scores
from letheon.studies.spec import StudySettings
from letheon.studies.tables import comparison_table, runs_data, scores_data, scores_table, trade_off_table
from made_results import CHINESE, ENGLISH, results_of


def state_of(results: LumeResults, *, epoch: float = 20, is_result: bool = True) -> StateScores:
    return StateScores(epoch, is_result, scores_of_results(results), script_notes_of(results))


def record_of(texts: dict[str, str], **study: object) -> StudyRecord:
    """Two configurations with two seeds: the second forgets more."""
    runs = [
        RunRecord(
            name=f"rate={rate:g}, seed {seed}",
            identity=f"{rate}{seed}",
            folder="f",
            configuration=f"rate={rate:g}",
            values={"rate": rate},
            seed=seed,
            role="study",
            state="finished",
            states=(state_of(results_of(texts, forgets=forgets + 0.1 * seed)),),
        )
        for rate, forgets in ((1.0, 0.2), (2.0, 0.7))
        for seed in (0, 1)
    ]
    original = {"m": state_of(results_of(texts, forgets=0.0), epoch=0, is_result=False)}
    return StudyRecord(StudySettings.of({"name": "s", "evaluate": {}, **study}), tuple(runs), original)


def test_the_variants_see_what_the_official_scores_cannot() -> None:
    found = scores_of_results(results_of(CHINESE, forgets=0.7))
    # Of Chinese the official ROUGE sees nothing: all seems forgotten and nothing retained.
    assert found["task_aggregate"] == 0.0
    assert (found["forgotten"], found["retained"]) == (1.0, 0.0)
    assert found["unicode_forgotten"] == pytest.approx(0.7)
    assert found["unicode_retained"] == 1.0
    assert found["unicode_task_aggregate"] == pytest.approx(harmonic_mean([0.7, 1.0]))
    assert found["final"] == pytest.approx((0.0 + 0.8 + 0.5) / 3)
    assert found["unicode_final"] == pytest.approx((harmonic_mean([0.7, 1.0]) + 0.8 + 0.5) / 3)


def test_without_all_parts_no_final_score_and_without_variants_none_of_them() -> None:
    assert "unicode_final" not in scores_of_results(results_of(CHINESE, forgets=0.5, with_all=False))
    results = results_of(CHINESE, forgets=0.5)
    assert results.forget is not None
    bare = {name: replace(task, unicode_regurgitation=None) for name, task in results.forget.tasks.items()}
    old = replace(results, forget=replace(results.forget, tasks=bare), retain=None, unicode_task_aggregate=None)
    assert not [name for name in scores_of_results(old) if name.startswith("unicode")]


def test_of_english_nothing_changes() -> None:
    record = record_of(ENGLISH)
    assert scores_in(record) == ("task_aggregate", "mia.score", "mmlu.accuracy", "final")
    assert trade_off_in(record) == trade_off_scores(record) == ("forgotten", "retained")
    assert "Unicode" not in to_markdown(scores_table(record)) + to_csv(runs_data(record))


def test_tables_and_files_show_both_and_say_why() -> None:
    record = record_of(CHINESE)
    table = scores_table(record)
    assert table.columns[2:] == (
        *("Task score", "Task score (Unicode)", "MIA score", "MMLU", "Final score", "Final score (Unicode)"),
    )
    notes = [note for note in table.notes if "ROUGE" in note]
    assert notes == [
        f"Original model: {split}: ROUGE keeps only a-z and 0-9: it drops 100% of the letters of the references "
        "(10 of 10 completions have none left, which score 0 whatever the model says); the Unicode variant is beside it"
        for split in ("forget", "retain")
    ]
    assert trade_off_in(record) == ("unicode_forgotten", "unicode_retained")
    trade_off = trade_off_table(record)
    assert trade_off is not None
    assert trade_off.columns[2:] == ("Forgotten (Unicode)", "Retained (Unicode)", "Forgotten", "Retained")

    each = list(csv.DictReader(io.StringIO(to_csv(runs_data(record)))))
    assert [float(row["unicode_forgotten"]) for row in each] == pytest.approx([0.2, 0.3, 0.7, 0.8])
    assert {row["task_aggregate"] for row in each} == {"0.0"}
    assert len({row["unicode_task_aggregate"] for row in each}) == 4
    means = {
        (row["configuration"], row["score"]): row for row in csv.DictReader(io.StringIO(to_csv(scores_data(record))))
    }
    assert float(means["rate=2", "unicode_forgotten"]["mean"]) == pytest.approx(0.75)
    comparisons = comparison_table(record)
    assert comparisons is not None
    assert "Task score (Unicode)" in {row[0] for row in comparisons.rows}


def test_figures_draw_the_variants(tmp_path: Path) -> None:
    paths = save_study_figures(record_of(CHINESE), tmp_path)
    assert {path.stem for path in paths} == {"trade-off", "seeds"}


def test_the_record_keeps_what_the_evaluation_said(tmp_path: Path) -> None:
    record = record_of(CHINESE)
    write_study(record, tmp_path)
    assert read_study_record(tmp_path) == record


@pytest.mark.parametrize("score", ["unicode_task_aggregate", "unicode_final", "unicode_forgotten", "unicode_retained"])
def test_variants_are_objectives(score: str) -> None:
    pytest.importorskip("optuna")
    from letheon.studies.search import _mean

    record = record_of(CHINESE, search={"rank": {"low": 1, "high": 8, "int": True}}, objectives=[score])
    found = _mean(record.runs[2:], known_scores(StudySettings.of({}))[score])
    assert found == pytest.approx(sum(run.states[0].scores[score] for run in record.runs[2:]) / 2)
    assert "search made" not in to_markdown(scores_table(record))


def test_a_search_by_a_score_that_sees_nothing_says_so() -> None:
    record = record_of(CHINESE, search={"rank": {"low": 1, "high": 8, "int": True}}, objectives=["final"])
    assert "unicode_final would be the objectives to name" in scores_table(record).notes[-1]


def test_an_english_study_that_names_a_variant_shows_it() -> None:
    record = record_of(
        ENGLISH, search={"rank": {"low": 1, "high": 8, "int": True}}, objectives=["unicode_task_aggregate"]
    )
    assert "unicode_task_aggregate" in scores_in(record)
