"""Result files of every version are read as if they had been written today."""

import json
import shutil
from pathlib import Path

import pytest

from letheon.api import write_report
from letheon.errors import EvaluationError
from letheon.evaluation.registry import read_results
from letheon.scores.results import SCHEMA, VERSION, PlainResults, read_fields
from letheon.scores.score import Score, Scores

OLD = Path(__file__).parent / "results_version_1.json"
"""Of the tiny demo after its run, as it was written before results had a version; shortened in its provenance."""


def test_the_first_version_is_read_with_names_values_and_directions() -> None:
    assert read_fields(OLD)[1] == 1
    scores = {score.name: score for score in read_results(OLD).scores}
    data = json.loads(OLD.read_text(encoding="utf-8"))
    assert scores["final"].value == data["final"]
    assert scores["task_aggregate"].value == data["task_aggregate"]
    assert (scores["mia.auc"].value, scores["mia.auc"].better) == (data["mia"]["auc"], 0.5)
    assert scores["mia.score"].interval == tuple(data["mia"]["score_interval"])
    assert scores["mmlu.accuracy"].value == data["mmlu"]["accuracy"] == 0.875
    forget = [score for score in scores.values() if score.role == "forgetting"]
    assert forget
    assert all(score.better == "lower" for score in forget)


def test_what_is_written_of_it_is_of_this_version_and_says_the_same(tmp_path: Path) -> None:
    old, again = read_results(OLD), tmp_path / "results.json"
    again.write_text(old.to_json(), encoding="utf-8")
    assert read_fields(again)[1] == VERSION == 2
    assert read_results(again) == old


def test_a_report_is_made_of_the_first_version(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path / "results.json")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Final score" in page
    assert "0.616" in page


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    later = tmp_path / "results.json"
    later.write_text(json.dumps({"schema": SCHEMA, "version": VERSION + 1}), encoding="utf-8")
    with pytest.raises(EvaluationError, match=rf"expected version 1 to {VERSION} of the results, got {VERSION + 1}"):
        read_results(later)


def test_results_of_a_suite_that_is_not_known_are_read_by_their_scores(tmp_path: Path) -> None:
    found = PlainResults("elsewhere", "m", Scores((Score("a.b", "A of b", "lower", "forgetting", 0.25),)))
    path = tmp_path / "results.json"
    path.write_text(found.to_json(), encoding="utf-8")
    assert read_results(path) == found
