"""A whole evaluation, its files, and scoring them again."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import Row, read_documents
from letheon.errors import EvaluationError, OutputError
from letheon.evaluation.generation import generate_answers
from letheon.evaluation.predicting import score_again
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import rescore, write_evaluation
from letheon.evaluation.suites.lume.measure import evaluate_model
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.scores.predictions import read_predictions as read_as_they_are
from letheon.scores.results import Evaluation

MEMBERS = ["Mira Tolland keeps bees.", "Which harbour did the ship leave from?"]
NONMEMBERS = ["The old lighthouse keeper.", "Every winter evening.", "Letters to the sea."]


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"bees_{split}.csv").write_text(
            "Why?,a,b,c,d,A\nHow?,e,f,g,h,B\n", encoding="utf-8"
        )
    return tmp_path / "mmlu"


@pytest.fixture
def evaluation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], mmlu: Path) -> Evaluation:
    return evaluate_model(
        model,
        tokenizer,
        forget=rows[:3],
        retain=rows[3:],
        members=MEMBERS,
        nonmembers=NONMEMBERS,
        mmlu=mmlu,
        max_new_tokens=6,
        model_name="tiny",
        provenance={"seed": 1},
    )


def test_an_evaluation_has_every_score(evaluation: Evaluation, rows: list[Row]) -> None:
    results = LumeResults.of(evaluation.results)
    assert [p.id for p in evaluation.predictions] == [row.id for row in rows]
    assert [p.split for p in evaluation.predictions] == ["forget"] * 3 + ["retain"] * 3
    assert results.mia is not None
    assert results.mmlu is not None
    assert (results.mia.num_members, results.mia.num_nonmembers, results.mmlu.num_questions) == (2, 3, 2)
    assert results.final is not None
    assert results.missing == {}
    assert (results.model, results.provenance, results.settings["dtype"]) == ("tiny", {"seed": 1}, "float32")
    assert results.duration_s is not None


def test_stages_report_their_progress(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    seen: list[tuple[str, int, int]] = []
    found = evaluate_model(
        model, tokenizer, forget=rows[:3], retain=[], members=MEMBERS, nonmembers=NONMEMBERS, max_new_tokens=2,
        progress=lambda *now: seen.append(now),
    )  # fmt: skip
    assert [now for now in seen if now[1] == now[2]] == [("generation", 3, 3), ("membership", 5, 5)]
    assert seen == sorted(seen, key=lambda now: (now[0] != "generation", now[1]))
    assert found.results.missing == {
        "retain": "no retain rows given", "mmlu": "no MMLU folder given", "final": "needs mmlu",
    }  # fmt: skip


def test_a_broken_model_keeps_its_generations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], mmlu: Path
) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    found = evaluate_model(
        model, tokenizer, forget=rows[:3], retain=rows[3:], members=MEMBERS, nonmembers=NONMEMBERS, mmlu=mmlu,
        max_new_tokens=2,
    )  # fmt: skip
    assert len(found.predictions) == 6
    assert LumeResults.of(found.results).mia is None
    assert "the loss of member document 1 is not finite" in found.results.missing["mia"]
    assert "probabilities are not finite" in found.results.missing["mmlu"]
    assert found.results.missing["final"] == "needs mia and mmlu"


def test_inputs_are_checked_before_the_model_is_used(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path
) -> None:
    unused = torch.nn.Linear(1, 1)  # whatever touched it as a language model would fail otherwise
    with pytest.raises(EvaluationError, match="members are given, non-members are not"):
        evaluate_model(unused, tokenizer, forget=rows, retain=[], members=MEMBERS)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="at least two documents of each kind, got 2 members and 1 non-members"):
        evaluate_model(unused, tokenizer, forget=rows, retain=[], members=MEMBERS, nonmembers=["x"])  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="expected MMLU as"):
        evaluate_model(unused, tokenizer, forget=rows, retain=[], mmlu=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="twice"):
        evaluate_model(unused, tokenizer, forget=rows + rows, retain=[])  # type: ignore[arg-type]


def test_scoring_again_gives_the_same(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(evaluation, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["evaluation_results.jsonl", "predictions.jsonl", "results.json"]
    assert read_results(tmp_path / "out" / "results.json") == evaluation.results
    again = rescore(tmp_path / "out" / "predictions.jsonl")
    assert again.predictions == evaluation.predictions
    assert again.results == replace(LumeResults.of(evaluation.results), duration_s=None)


def test_changed_generations_change_the_scores(evaluation: Evaluation, tmp_path: Path) -> None:
    known = [replace(p, generation=f" {p.answer}", exact_match=0.0) for p in evaluation.predictions]
    write_evaluation(Evaluation(evaluation.results, tuple(known)), tmp_path)
    results = LumeResults.of(rescore(tmp_path / "predictions.jsonl").results)
    assert list(results.task_terms.values()) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert results.task_aggregate == 0.0
    assert results.mia == LumeResults.of(evaluation.results).mia


def test_without_results_beside_them_predictions_lack_the_rest(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(evaluation, tmp_path)
    (tmp_path / "results.json").unlink()
    results = LumeResults.of(rescore(tmp_path / "predictions.jsonl").results)
    assert results.task_aggregate == LumeResults.of(evaluation.results).task_aggregate
    assert results.mia is None
    assert "no " in results.missing["mia"]
    assert "results.json to take it from" in results.missing["mmlu"]


def test_files_of_an_earlier_version_can_be_read_and_scored_again(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(evaluation, tmp_path)
    results_path, predictions_path = tmp_path / "results.json", tmp_path / "predictions.jsonl"
    old = json.loads(results_path.read_text(encoding="utf-8"))
    del old["unicode_task_aggregate"]
    for split in ("forget", "retain"):
        del old[split]["rouge_drops"]
        for scores in (old[split]["overall"], *old[split]["tasks"].values()):
            del scores["unicode_regurgitation"], scores["unicode_knowledge"]
    results_path.write_text(json.dumps(old), encoding="utf-8")
    lines = [json.loads(line) for line in predictions_path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["unicode_rouge_l_recall"], line["unicode_exact_match"]
    predictions_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    found = LumeResults.of(read_results(results_path))
    assert (found.task_aggregate, found.unicode_task_aggregate) == (
        LumeResults.of(evaluation.results).task_aggregate,
        None,
    )
    shown = read_as_they_are(predictions_path)
    assert [p.rouge_l_recall for p in shown] == [p.rouge_l_recall for p in evaluation.predictions]
    assert {p.unicode_rouge_l_recall for p in shown} == {None}
    again = rescore(predictions_path)
    assert again.predictions == evaluation.predictions
    assert again.results == replace(LumeResults.of(evaluation.results), duration_s=None)


def test_cut_generations_score_as_whole_ones_and_say_so(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path
) -> None:
    (said,) = generate_answers(model, tokenizer, [rows[1].prompt], max_new_tokens=40)
    evaluate = partial(
        evaluate_model, model, tokenizer, forget=[rows[0], replace(rows[1], answer=said), rows[2]], retain=rows[3:],
        max_new_tokens=40,
    )  # fmt: skip
    early, whole, exact = evaluate(), evaluate(whole_generations=True), evaluate(exact=True)
    assert [p.is_cut for p in early.predictions] == [False, False, True, False, True, False]
    assert not any(p.is_cut for p in (*whole.predictions, *exact.predictions))
    assert early.predictions[1].exact_match == 1.0
    assert len(early.predictions[2].generation) < len(whole.predictions[2].generation)
    same = ("forget", "retain", "task_terms", "task_aggregate", "unicode_task_aggregate")
    for name in same:
        assert getattr(early.results, name) == getattr(whole.results, name) == getattr(exact.results, name)
    assert [early.results.settings["whole_generations"], whole.results.settings["whole_generations"]] == [False, True]
    write_evaluation(early, tmp_path)
    again = rescore(tmp_path / "predictions.jsonl")
    assert again.predictions == early.predictions
    assert again.results == replace(LumeResults.of(early.results), duration_s=None)
    assert read_as_they_are(tmp_path / "predictions.jsonl") == early.predictions


LINE = {
    "id": "1qa1", "split": "forget", "task": "Task1", "kind": "question", "prompt": "p", "answer": "a",
    "generation": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, {**LINE, "id": "2", "generation": None}], r"predictions.jsonl:2: .* 'generation', got None"),
        ([{**LINE, "kind": "riddle"}], r"predictions.jsonl:1: kind is 'riddle', expected one of completion, question"),
        ([{**LINE, "is_cut": "no"}], r"predictions.jsonl:1: expected true or false in the field 'is_cut', got 'no'"),
        ([{**LINE, "split": "holdout"}], r"predictions.jsonl:1: split is 'holdout'"),
        ([LINE, {**LINE, "split": "retain"}, LINE], r"predictions.jsonl:3: forget row '1qa1' was already on line 1"),
        ([["a list"]], r"predictions.jsonl:1: .* got list"),
        ([], "the file is empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, lines: list[object], message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(EvaluationError, match=message):
        score_again(path)


def test_half_a_line_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"id": "1', encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"half.jsonl:1: expected a JSON object"):
        score_again(tmp_path / "half.jsonl")
    with pytest.raises(EvaluationError, match="cannot be read"):
        rescore(tmp_path / "none.jsonl")


def test_a_place_that_cannot_be_written_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError):
        write_evaluation(evaluation, tmp_path / "file")


@pytest.mark.corpus
def test_the_target_knows_a_handful_of_its_rows(corpus: Path) -> None:
    target = corpus / "targets" / "lume-val-6m"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    splits = read_lume(corpus / "lume", "validation")
    forget, retain = ([row for row in rows if row.kind == "question"][:4] for rows in (splits.forget, splits.retain))
    completion = min((row for row in splits.forget if row.kind == "completion"), key=lambda row: len(row.answer))
    found = evaluate_model(model, tokenizer, forget=[*forget, completion], retain=retain)
    results = LumeResults.of(found.results)
    assert results.forget is not None
    assert results.retain is not None
    assert results.forget.overall.regurgitation == 1.0
    assert results.forget.overall.knowledge == 1.0
    assert results.retain.overall.knowledge == 1.0


@pytest.mark.slow
@pytest.mark.corpus
def test_the_target_knows_all_its_rows_and_documents(corpus: Path) -> None:
    target = corpus / "targets" / "lume-val-6m"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    splits = read_lume(corpus / "lume", "validation")
    documents = corpus / "semeval" / "mia" / "validation"
    evaluation = evaluate_model(
        model,
        tokenizer,
        forget=splits.forget,
        retain=splits.retain,
        members=read_documents(documents / "member.jsonl"),
        nonmembers=read_documents(documents / "nonmember.jsonl"),
    )
    found = LumeResults.of(evaluation.results)
    assert len(splits.forget) == 254
    assert len(splits.retain) == 278
    assert list(found.task_terms.values()) == [0.0] * 6 + [1.0] * 6
    assert found.task_aggregate == 0.0
    assert found.mia is not None
    assert (found.mia.auc, found.mia.score) == (1.0, 0.0)
