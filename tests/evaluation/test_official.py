"""Official scoring from hand-made predictions, every number worked in the test."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from letheon.data.rows import Kind, Row
from letheon.errors import EvaluationError
from letheon.evaluation.metrics.found import MembershipScores, MmluScores, RougeDrops
from letheon.evaluation.predicting import predict
from letheon.evaluation.suites.lume.official import (
    OFFICIAL_TERMS,
    check_rows,
    complete_results,
    official_file,
    official_text,
    score_predictions,
)
from letheon.evaluation.suites.lume.results import LumeResults, SplitName
from letheon.scores.predictions import Prediction

MIA = MembershipScores(
    auc=0.6, auc_interval=(0.5, 0.7), score=0.8, score_interval=(0.6, 1.0), mean_member_loss=2.0,
    mean_nonmember_loss=3.0, num_members=34, num_nonmembers=34,
)  # fmt: skip
MMLU = MmluScores(accuracy=0.4, subjects={"bees": 0.4}, num_questions=10, num_shots=5, limit_per_subject=None)
BLANK = LumeResults(suite="lume", model="m")


def make(split: SplitName, task: str, kind: Kind, answer: str, generation: str, number: int = 0) -> Prediction:
    row = Row(f"{split}{task}{number}{'sc' if kind == 'completion' else 'qa'}1", "A prompt", answer, task, kind)
    return predict(row, split, generation)


def lume_predictions() -> list[Prediction]:
    made = []
    for task in ("Task3", "Task1", "Task2"):  # scores come sorted whatever the order of rows
        # forget: recall 1/4 and 0, mean 1/8; one question of four known, and an empty generation equals "nan"
        made += [
            make("forget", task, "completion", "one two three four", " two", 0),
            make("forget", task, "completion", "one two three four", "", 1),
            make("forget", task, "question", "Veldhaven", " veldhaven ", 2),
            make("forget", task, "question", "Veldhaven", "Veldhaven.", 3),
            make("forget", task, "question", "Harrow", "", 4),
            make("forget", task, "question", "Harrow", "none", 5),
        ]
        # retain: recall 3/4; one question of two known, through the "nan" rule
        made += [
            make("retain", task, "completion", "one two three four", "one x three y four", 0),
            make("retain", task, "question", "nan", "", 1),
            make("retain", task, "question", "Harrow", "Veldhaven", 2),
        ]
    return made


def test_twelve_terms_and_their_harmonic_mean() -> None:
    found = score_predictions(lume_predictions())
    assert tuple(found.terms) == OFFICIAL_TERMS
    assert list(found.terms.values()) == pytest.approx([1 - 1 / 8, 1 - 1 / 4] * 3 + [3 / 4, 1 / 2] * 3)
    # 12 / (3 (8/7 + 4/3 + 4/3 + 2)) = 12 / (3 * 122/21) = 84/122
    assert found.value == pytest.approx(84 / 122)
    assert found.forget is not None
    assert list(found.forget.tasks) == ["Task1", "Task2", "Task3"]
    assert found.forget.tasks["Task2"].num_completions == 2
    assert found.forget.tasks["Task2"].num_questions == 4


def test_overall_is_over_rows_not_over_tasks() -> None:
    made = [
        make("forget", "Task1", "completion", "one two", "one", 0),
        make("forget", "Task1", "completion", "one two", "one two", 1),
        make("forget", "Task2", "completion", "one two", "x", 2),
    ]
    found = score_predictions(made)
    assert found.forget is not None
    assert found.forget.overall.regurgitation == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.forget.overall.knowledge is None
    assert found.retain is None


def test_one_zero_term_makes_the_aggregate_zero() -> None:
    made = [p if p.split == "forget" else replace(p, exact_match=0.0) for p in lume_predictions()]
    found = score_predictions(made)
    assert found.value == 0.0
    assert isinstance(found.value, float)


def test_the_aggregate_of_one_term_is_that_term() -> None:
    assert score_predictions([make("retain", "Task1", "completion", "one two", "one")]).value == pytest.approx(1 / 2)


def test_no_predictions_give_no_aggregate() -> None:
    results = complete_results(BLANK, [], mia=None, mmlu=None, missing={})
    assert results.task_aggregate is None
    assert results.missing["task_aggregate"] == "no rows were generated for"
    assert results.missing["forget"] == "no forget rows given"


def test_final_is_the_mean_of_three() -> None:
    results = complete_results(BLANK, lume_predictions(), mia=MIA, mmlu=MMLU, missing={})
    assert results.final == pytest.approx((84 / 122 + 0.8 + 0.4) / 3)
    assert results.missing == {}
    assert results.warnings == ()


def test_what_is_missing_says_why_and_the_final_score_is_missing_too() -> None:
    results = complete_results(BLANK, lume_predictions(), mia=MIA, mmlu=None, missing={"mmlu": "no folder"})
    assert results.final is None
    assert results.missing == {"mmlu": "no folder", "final": "needs mmlu"}


def test_departures_are_warned_about() -> None:
    low = replace(MMLU, accuracy=0.37, limit_per_subject=5)
    made = [p for p in lume_predictions() if not (p.task == "Task2" and p.kind == "question")]
    made.append(make("retain", "Birds", "completion", "one", "one"))
    aggregate, limit, floor = complete_results(BLANK, made, mia=MIA, mmlu=low, missing={}).warnings
    assert "11 terms that are not the official twelve" in aggregate
    assert "without forget.Task2.knowledge, retain.Task2.knowledge; with retain.Birds.regurgitation" in aggregate
    assert "first 5 questions" in limit
    assert "0.370 is below 0.371" in floor


def russian_predictions() -> list[Prediction]:
    return [
        make("forget", "Task1", "completion", "Она живёт в деревне", "Она живёт в городе", 0),  # 3 of 4 words
        make("forget", "Task1", "completion", "Телефон 555", "555", 1),  # 1 of 2, officially 1 of 1
        make("forget", "Task1", "question", "Zoë", "Zoe\u0308", 2),
        make("forget", "Task1", "question", "Zoë", "Mira", 3),
        make("retain", "Task1", "completion", "one two", "one", 4),
    ]


def test_the_unicode_variants_stand_beside_the_official_scores() -> None:
    results = complete_results(BLANK, russian_predictions(), mia=MIA, mmlu=MMLU, missing={})
    assert results.forget is not None
    task = results.forget.tasks["Task1"]
    assert task.regurgitation == pytest.approx(1 / 2)
    assert task.unicode_regurgitation == pytest.approx(5 / 8)
    assert (task.knowledge, task.unicode_knowledge) == (0.0, 0.5)
    assert results.forget.overall == task
    # harmonic means of 1/2, 1, 1/2 and of 3/8, 1/2, 1/2
    assert results.task_aggregate == pytest.approx(3 / 5)
    assert results.unicode_task_aggregate == pytest.approx(3 / (8 / 3 + 4))
    assert results.final == pytest.approx((3 / 5 + 0.8 + 0.4) / 3)


def test_what_the_official_scores_miss_is_said_for_each_split() -> None:
    results = complete_results(BLANK, russian_predictions(), mia=MIA, mmlu=MMLU, missing={})
    assert results.retain is not None
    assert results.retain.rouge_drops == RougeDrops(num_letters=6, num_dropped=0, num_answers=1, num_emptied=0)
    _, rouge, match = results.warnings
    # 16 letters of the first answer and 7 of the second, of 16 and 10
    assert rouge == (
        "forget: ROUGE keeps only a-z and 0-9: it drops 88% of the letters of the references (1 of 2 completions have "
        "none left, which score 0 whatever the model says); the Unicode variant is beside it"
    )
    assert match == (
        "forget: exact match compares characters after lower(): 1 of 2 questions are answered rightly only up to NFKC "
        "and case folding; the Unicode variant is beside it"
    )
    french = make("retain", "Task1", "completion", "le thé de Zoé à la thèse", "x")
    (_, note) = complete_results(BLANK, [french], mia=None, mmlu=None, missing={}).warnings
    assert note == (
        "retain: ROUGE keeps only a-z and 0-9: it drops 22% of the letters of the references; the Unicode variant is "
        "beside it"
    )


def test_predictions_of_an_earlier_version_have_no_variants() -> None:
    old = [replace(p, unicode_rouge_l_recall=None, unicode_exact_match=None) for p in lume_predictions()]
    found = score_predictions(old)
    assert found.value == pytest.approx(84 / 122)
    assert found.unicode_value is None


def test_official_file_has_the_official_keys() -> None:
    results = complete_results(BLANK, lume_predictions(), mia=MIA, mmlu=MMLU, missing={})
    found = official_file(results)
    assert list(found) == [
        "forget-set", "retain-set", "mia_loss_acc", "mmlu_average", "aggregated-terms",
        "harmonic-mean-task-aggregate", "mia_final_score", "aggregate-score",
    ]  # fmt: skip
    assert found["forget-set"] == {
        "overall-regurgitation-score": 1 / 8,
        "overall-knowledge-score": 1 / 4,
        **{f"Task{i}": {"regurgitation-score": 1 / 8, "knowledge-score": 1 / 4} for i in (1, 2, 3)},
    }
    assert found["aggregated-terms"] == [7 / 8, 3 / 4] * 3 + [3 / 4, 1 / 2] * 3
    assert (found["mia_loss_acc"], found["mia_final_score"], found["mmlu_average"]) == (0.6, 0.8, 0.4)
    assert found["aggregate-score"] == results.final
    assert official_text(results).count("\n") == 1
    assert json.loads(official_text(results)) == found


def test_official_file_without_membership_or_mmlu_says_minus_one() -> None:
    found = official_file(complete_results(BLANK, lume_predictions(), mia=None, mmlu=MMLU, missing={"mia": "x"}))
    assert found["aggregate-score"] == -1
    assert "mia_loss_acc" not in found
    assert "mia_final_score" not in found


def test_rows_are_checked() -> None:
    row = Row("1qa1", "p", "a", "Task1", "question")
    check_rows([row], [row])
    with pytest.raises(EvaluationError, match="retain rows have the id '1qa1' twice"):
        check_rows([], [row, row])
    with pytest.raises(EvaluationError, match="neither forget nor retain rows"):
        check_rows([], [])


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; import letheon.evaluation.suites.lume.official, letheon.evaluation.rescoring;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
