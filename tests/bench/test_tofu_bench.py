"""The bench of TOFU cuts the data set so that the suite can score it, and studies methods as the suite scores them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from bench.tofu import REAL, SMALL, Job, cut_tofu, details_table, make_tokenizer

from letheon.data.benchmarks.tofu import read_set, read_tofu
from letheon.data.rows import Row
from letheon.data.sequences import tokenise
from letheon.evaluation.templates import question_template
from letheon.model.loading import load_tokenizer
from letheon.scores.results import PlainResults
from letheon.scores.score import Score, Scores
from letheon.settings import UnlearnSettings
from letheon.studies.spec import StudySettings
from tofu_files import write_tofu


@pytest.fixture
def study(tmp_path: Path) -> StudySettings:
    """A study of published methods at their rates, and of the default one."""
    known = PlainResults("tofu", "never", Scores((Score("model_utility", "", "higher", "aggregate", 0.5),)))
    return Job(SMALL, "forget10", tmp_path, tmp_path).study(tmp_path / "target", known)


def test_a_part_of_the_data_is_whole_in_its_own_format(tmp_path: Path) -> None:
    whole, part = write_tofu(tmp_path / "whole"), tmp_path / "part"
    cut_tofu(whole, part, split="forget10", learns_facts=True, forget=2, retain=3, facts=1)
    tofu = read_tofu(part)
    sizes = [len(one.rows) for one in (tofu.forget, tofu.retain, tofu.real_authors, tofu.world_facts)]
    assert sizes == [2, 3, 1, 1]
    assert tofu.holdout is not None
    assert len(tofu.holdout.rows) == 2
    assert tofu.forget.rows[0].prompt == read_set(whole, "forget10_perturbed").rows[4].prompt
    trained = {name: {row.prompt for row in read_set(part, name).rows} for name in ("full", "never", "forget10")}
    assert trained["full"] == trained["never"] | trained["forget10"]
    assert not trained["never"] & trained["forget10"]
    assert {row.prompt for row in tofu.retain.rows} <= trained["never"]


def test_a_real_model_learns_no_facts_and_forgets_another_split(tmp_path: Path) -> None:
    whole, part = write_tofu(tmp_path / "whole"), tmp_path / "part"
    (whole / "holdout10.jsonl").rename(whole / "holdout01.jsonl")
    cut_tofu(whole, part, split="forget01", learns_facts=False, forget=2, retain=3, facts=1)
    tofu = read_tofu(part, "forget01")
    assert tofu.holdout is not None
    trained = {name: {row.prompt for row in read_set(part, name).rows} for name in ("full", "never")}
    assert trained["full"] == {row.prompt for row in (*tofu.forget.rows, *tofu.retain.rows)}
    assert trained["never"] == {row.prompt for row in tofu.retain.rows}
    known = PlainResults("tofu", "never", Scores(()))
    study = Job(REAL, "forget01", part, tmp_path).study(tmp_path / "target", known)
    run = UnlearnSettings.of({**study.base, **_settings(study.entries[-1]), "out": tmp_path / "out"})
    assert (run.forget, run.holdout, run.dtype) == (
        str(part / "forget01.jsonl"),
        part / "holdout01.jsonl",
        "bfloat16",
    )
    assert [entry["method"] for entry in study.entries] == ["low-rank-npo", "ga", "gd", "npo", "simnpo"]


def test_the_study_scores_each_method_by_the_suite_against_the_model_that_never_knew(
    study: StudySettings, tmp_path: Path
) -> None:
    runs = [UnlearnSettings.of({**study.base, **_settings(entry), "out": tmp_path / "out"}) for entry in study.entries]
    run = runs[2]
    assert (run.method, run.suite, run.forget) == ("ga", "tofu", str(tmp_path / "forget10.jsonl"))
    assert [(one.method, one.learning_rate, one.keep) for one in (*runs[:2], runs[-1])] == [
        ("low-rank-npo", "auto", "best"),
        ("low-rank-npo", "auto", "best"),
        ("simnpo", 6e-3, "last"),
    ]
    assert [entry.get("dial") for entry in study.entries[:3]] == [None, "forgotten", "none"]
    asked = study.evaluation(run, model="m", out=tmp_path / "e")
    assert (asked.suite, asked.never_results) == ("tofu", tmp_path / "never-scores" / "results.json")
    assert study.references == {"trained without": {"model_utility": 0.5, "forget_quality": 1.0, "privacy_leak": 0.0}}


def test_a_table_has_the_scores_of_each_model_and_the_model_that_never_knew_is_its_own_measure() -> None:
    scores = [Score("forget.rouge_l", "", "lower", "forgetting", 0.3), Score("privacy_leak", "", 0.0, "privacy", 8.0)]
    results = PlainResults("tofu", "m", Scores(tuple(scores)))
    table = details_table({"ga": results, "trained without": results})
    assert table.columns[:3] == ("Model", "Forget probability", "Forget ROUGE-L")
    assert table.rows == (
        ("ga", None, 0.3, None, None, 8.0, None, None, None),
        ("trained without", None, 0.3, None, None, 0.0, 1.0, None, None),
    )


def test_the_suite_asks_in_the_tokens_that_are_learnt(tmp_path: Path) -> None:
    whole, part = write_tofu(tmp_path / "whole"), tmp_path / "part"
    data = cut_tofu(whole, part, split="forget10", learns_facts=True, forget=2, retain=3, facts=1)
    tokenizer = load_tokenizer(str(make_tokenizer(data, tmp_path / "tokenizer")))
    template = question_template(tokenizer)
    question, answer = "Where is it?", "Harrow"
    asked = template.sequence(question, answer)
    row = Row("row1", question, answer, "default", "question")
    learnt = tokenise(row, tokenizer, template="chat", max_length=99).ended(99)
    assert asked.ids[: asked.start] == tuple(template.prompt(question))
    assert template.decoded(asked.labels) == answer
    assert (asked.ids, asked.start) == (learnt.input_ids, learnt.answer_start)
    assert template.padding not in template.prompt(question)


def _settings(entry: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != "name"}
