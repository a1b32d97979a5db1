"""The figure of a suite's own publications: for TOFU forget quality against model utility."""

from pathlib import Path
from typing import Any

import pytest

from letheon.studies.figures import CAPTIONS, FIGURES, suite_figure
from letheon.studies.records import RunRecord, StateScores, StudyRecord
from letheon.studies.report import write_study_report
from letheon.studies.spec import StudySettings


def run(label: str, seed: int, **scores: float) -> RunRecord:
    state = StateScores(5, True, scores)
    return RunRecord(
        f"{label}, {seed}", f"{label}{seed}", "runs", label, {}, seed, "study", "finished", states=(state,)
    )


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def last_point(line: Any) -> tuple[float, float]:
    return points(line)[-1]


def record_of(suite: str, *runs: RunRecord, **more: Any) -> StudyRecord:
    study = StudySettings.of({"name": "s", "evaluate": {"suite": suite}, **more})
    return StudyRecord(study, runs, {"m": StateScores(0, False, {"model_utility": 0.6, "forget_quality": 1e-20})})


def test_forget_quality_is_drawn_against_utility_on_a_logarithmic_axis() -> None:
    runs = [
        run("npo", 0, model_utility=0.5, forget_quality=1e-4),
        run("npo", 1, model_utility=0.7, forget_quality=1e-2),
        run("ga", 0, model_utility=0.0, forget_quality=0.0),
    ]
    published = {"theirs": {"model_utility": 0.58, "forget_quality": 0.45}, "other": {"model_utility": 0.4}}
    references = {"retrained": {"model_utility": 0.61, "forget_quality": 1.0}}
    figure = suite_figure(record_of("tofu", *runs, published=published, references=references))
    assert figure is not None
    axes = figure.axes[0]
    assert (axes.get_yscale(), axes.get_xscale()) == ("log", "linear")
    figure.canvas.draw()
    assert "10⁻²⁷" in [text.get_text() for text in axes.get_yticklabels()]
    assert axes.get_xlabel() == "model utility (higher is better)"
    assert axes.get_ylabel() == "forget quality (higher is better)"
    places = {str(line.get_label()): last_point(line) for line in axes.lines if len(points(line))}
    assert places["npo"] == pytest.approx((0.6, 0.00505))
    assert places["ga"] == (0.0, 1e-30)
    assert places["retrained"] == (0.61, 1.0)
    assert places["theirs (published)"] == (0.58, 0.45)
    assert places["original model: (0.60, 1.0e-20)"] == (0.6, 1e-20)
    assert places["0.05"][1] == 0.05
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text for text in texts if "original model" in text or "retrained" in text or text == "0.05"]
    assert not [text for text in texts if "other" in text]


def test_lower_is_better_where_the_suite_says_so_and_there_is_no_front() -> None:
    scores = {"neighbour.all": 0.5, "forget.all": 0.1}
    figure = suite_figure(record_of("rwku", run("npo", 0, **scores)))
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "forget, all (lower is better)"
    assert "Pareto front of means" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_there_is_none_without_both_scores_or_for_a_suite_without_such_a_figure() -> None:
    assert suite_figure(record_of("tofu", run("npo", 0, model_utility=0.5))) is None
    assert suite_figure(record_of("lume", run("npo", 0, forgotten=0.5, retained=0.5))) is None


def test_a_report_has_it_with_the_suites_aggregates_in_tables(tmp_path: Path) -> None:
    runs = [run("npo", seed, model_utility=0.5, forget_quality=2e-15, privacy_leak=-20.0) for seed in range(2)]
    others = {"model_utility": 0.61, "forget_quality": 1.0}
    record = record_of("tofu", *runs, references={"trained without": others}, published={"theirs": others})
    write_study_report(record, tmp_path)
    text = (tmp_path / "study.md").read_text("utf-8")
    for label in ("Forget quality", "Model utility", "Privacy leak"):
        assert label in text
    assert "2.0e-15" in text  # which three decimals would make 0
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert {"trained without", "theirs (published)"} <= set(rows)
    roles = [line.split(",")[:2] for line in (tmp_path / "tables" / "scores.csv").read_text("utf-8").splitlines()]
    assert ["trained without", "reference"] in roles
    assert f"![{CAPTIONS['suite']}](figures/suite.png)" in text
    assert set(CAPTIONS) == set(FIGURES)
