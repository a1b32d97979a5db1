"""MMLU: reading, prompts, and the shared beginning against whole prompts."""

import copy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.errors import EvaluationError, MissingExtraError
from letheon.evaluation.metrics.harness import mmlu_with_harness
from letheon.evaluation.metrics.mmlu import (
    Prompt,
    Question,
    Subject,
    letter_probabilities,
    letter_tokens,
    prompt_text,
    read_mmlu,
    sample_mmlu,
    score_mmlu,
    subject_prompts,
)
from small import tiny_model

SHOTS = "Is it {i}?,yes,no,maybe,never,{letter}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, num_questions in (("deep_sea", 3), ("bees", 5)):
        for split, count in (("dev", 5), ("test", num_questions)):
            path = tmp_path / split / f"{name}_{split}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(SHOTS.format(i=i, letter="ABCD"[i % 4]) for i in range(count)), encoding="utf-8")
    return tmp_path


def make_subject(num_shots: int = 5) -> Subject:
    def question(i: int) -> Question:
        return Question(
            f"Where is {'the old ' * i}harbour {i}?", ("sea", "village", f"{i}", "river bends"), "ABCD"[i % 4]
        )

    return Subject("deep_sea", tuple(question(i) for i in range(num_shots)), tuple(question(i) for i in range(5, 12)))


def test_questions_are_read_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "dev" / "x_dev.csv").write_text("q,a,b,c,d,A\n" * 7, encoding="utf-8")
    (tmp_path / "test" / "x_test.csv").write_text('"Two\nlines, ""so""?",1,2,None,4,D\n', encoding="utf-8")
    (subject,) = read_mmlu(tmp_path)
    assert len(subject.shots) == 5
    assert subject.questions == (Question('Two\nlines, "so"?', ("1", "2", "nan", "4"), "D"),)


def test_subjects_are_sorted_and_limited(folder: Path) -> None:
    subjects = read_mmlu(folder, limit_per_subject=4)
    assert [(s.name, len(s.questions)) for s in subjects] == [("bees", 4), ("deep_sea", 3)]


def test_a_sample_is_drawn_evenly_from_all_subjects(folder: Path) -> None:
    bees, deep_sea = read_mmlu(folder)
    first, second = sample_mmlu([bees, deep_sea], 4, num_shots=2)
    # Of eight questions, five about bees and three about the sea, every second one.
    assert first.questions == (bees.questions[0], bees.questions[2], bees.questions[4])
    assert second.questions == (deep_sea.questions[1],)
    assert (first.shots, second.shots) == (bees.shots[:2], deep_sea.shots[:2])
    assert sample_mmlu([bees, deep_sea], 100) == [bees, deep_sea]
    (only,) = sample_mmlu([bees, deep_sea], 1)
    assert only.questions == bees.questions[:1]
    with pytest.raises(EvaluationError, match=r"expected at least one question .* got 0 questions after 5"):
        sample_mmlu([bees], 0)


def test_zero_shot_chooses_by_likelihood_after_the_question_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    subjects = sample_mmlu(read_mmlu(folder), 8, num_shots=0)
    letters, num_right = letter_tokens(tokenizer), 0
    for subject in subjects:
        for question in subject.questions:
            ids = tokenizer(prompt_text(subject, question, num_shots=0), return_tensors="pt").input_ids
            num_right += "ABCD"[int(model(ids).logits[0, -1, letters].argmax())] == question.answer
    found = score_mmlu(model, tokenizer, subjects)
    assert (found.accuracy, found.num_questions, found.num_shots) == (num_right / 8, 8, 0)


def test_prompt_is_the_official_one() -> None:
    shot, question = Question("One?", ("a", "b", "c", "d"), "B"), Question("Two?", ("e", "f", "g", "h"), "C")
    subject = Subject("deep_sea", (shot,), (question,))
    header = "The following are multiple choice questions (with answers) about  deep sea.\n\n"  # two spaces
    alone = "Two?\nA. e\nB. f\nC. g\nD. h\nAnswer:"
    assert prompt_text(subject, question) == f"{header}One?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n{alone}"
    assert prompt_text(subject, question, num_shots=0) == header + alone


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "gemma2", "gpt-neox"])
def test_a_shared_beginning_changes_nothing(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(architecture, tokenizer)
    subject = make_subject(num_shots=2)
    lengths = [len(prompt.tokens) for prompt in subject_prompts(tokenizer, subject, max_tokens=256)]
    prompts = subject_prompts(tokenizer, subject, max_tokens=sorted(lengths)[3])
    assert {prompt.num_shots for prompt in prompts} == {1, 2}
    letters = letter_tokens(tokenizer)
    found = letter_probabilities(model, prompts, letters, batch_size=3)
    exact = letter_probabilities(model, prompts, letters, exact=True)
    naive = torch.stack(
        [model(torch.tensor([prompt.tokens])).logits[0, -1].softmax(-1)[letters] for prompt in prompts]
    ).detach()
    assert len({tuple(row) for row in naive.tolist()}) == len(prompts)
    torch.testing.assert_close(exact, naive, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-4)
    assert found.argmax(1).tolist() == exact.argmax(1).tolist()


def test_one_prompt_shares_all_but_its_last_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = Prompt(tuple(tokenizer("Which harbour?").input_ids), 0)
    letters = letter_tokens(tokenizer)
    found = letter_probabilities(model, [prompt], letters)
    torch.testing.assert_close(found, letter_probabilities(model, [prompt], letters, exact=True), atol=1e-6, rtol=1e-4)


def test_worked_questions_are_dropped_until_the_prompt_fits(tokenizer: PreTrainedTokenizerBase) -> None:
    subject = make_subject()
    whole = [len(tokenizer(prompt_text(subject, q)).input_ids) for q in subject.questions]
    prompts = subject_prompts(tokenizer, subject, max_tokens=min(whole))
    assert prompts[0].num_shots == 5
    for prompt, question in zip(prompts, subject.questions, strict=True):
        assert list(prompt.tokens) == tokenizer(prompt_text(subject, question, num_shots=prompt.num_shots)).input_ids
        assert len(prompt.tokens) <= min(whole)
        one_more = tokenizer(prompt_text(subject, question, num_shots=prompt.num_shots + 1)).input_ids
        assert prompt.num_shots == 5 or len(one_more) > min(whole)


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    made, bos = copy.deepcopy(tokenizer), tokenizer.pad_token
    backend: Any = made.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.pad_token_id)])
    return made


def official_tokens(tokenizer: PreTrainedTokenizerBase, subject: Subject, question: Question, most: int) -> list[int]:
    """The official script in short: each word of the subject has a space before it, shots go until the plain text is
    of `most` tokens, and what is read then has the tokenizer's special tokens."""

    def asked(of: Question, answer: str = "") -> str:
        return of.text + "".join(f"\n{x}. {o}" for x, o in zip("ABCD", of.options, strict=True)) + f"\nAnswer:{answer}"

    num_shots = len(subject.shots)
    while True:
        about = "".join(f" {word}" for word in subject.name.split("_"))
        text = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        text += "".join(asked(s, f" {s.answer}\n\n") for s in subject.shots[:num_shots]) + asked(question)
        if len(tokenizer(text, add_special_tokens=False).input_ids) <= most:
            return list(tokenizer(text).input_ids)
        num_shots -= 1


@pytest.mark.parametrize("has_bos", [False, True])
def test_prompts_are_counted_without_special_tokens_and_read_with_them(
    has_bos: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer, subject = with_bos(tokenizer) if has_bos else tokenizer, make_subject()
    plain = [len(tokenizer(prompt_text(subject, q), add_special_tokens=False).input_ids) for q in subject.questions]
    most = sorted(plain)[3]  # one prompt is exactly as long as fits, and one token longer with a BOS
    prompts = subject_prompts(tokenizer, subject, max_tokens=most)
    assert [list(p.tokens) for p in prompts] == [
        official_tokens(tokenizer, subject, q, most) for q in subject.questions
    ]
    assert max(len(p.tokens) for p in prompts) == most + has_bos
    assert {p.tokens[0] == tokenizer.pad_token_id for p in prompts} == {has_bos}
    assert {p.num_shots for p in prompts} > {5}
    # A model without positions for the BOS too gives up one more worked question.
    assert max(len(p.tokens) for p in subject_prompts(tokenizer, subject, max_tokens=most, limit=most)) <= most


def test_a_question_too_long_even_alone_is_asked_where_it_can_be(tokenizer: PreTrainedTokenizerBase) -> None:
    long = Subject("deep_sea", make_subject().shots, (Question("bees " * 300, ("a", "b", "c", "d"), "A"),))
    assert score_mmlu(tiny_model("olmo", tokenizer), tokenizer, [long]).num_questions == 1
    with pytest.raises(EvaluationError, match=r"deep_sea: question 1 has .* position table ends at 256"):
        score_mmlu(tiny_model("gpt2", tokenizer), tokenizer, [long])


def test_accuracy_is_weighted_by_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    subjects = read_mmlu(folder)
    seen: list[tuple[int, int]] = []
    found = score_mmlu(model, tokenizer, subjects, progress=lambda *counts: seen.append(counts))
    letters = letter_tokens(tokenizer)
    num_right = {}
    for subject in subjects:
        choices = letter_probabilities(
            model, subject_prompts(tokenizer, subject, max_tokens=256), letters, exact=True
        ).argmax(1)
        num_right[subject.name] = sum("ABCD"[c] == q.answer for c, q in zip(choices, subject.questions, strict=True))
    assert found.accuracy == pytest.approx(sum(num_right.values()) / 8)
    assert found.subjects == {"bees": num_right["bees"] / 5, "deep_sea": num_right["deep_sea"] / 3}
    assert (found.num_questions, found.num_shots, found.limit_per_subject) == (8, 5, None)
    assert seen == [(5, 8), (8, 8)]


def test_a_broken_model_has_no_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(EvaluationError, match="bees: the model's probabilities are not finite"):
        score_mmlu(model, tokenizer, read_mmlu(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,A,B,C,D,answer\n", r"x_test.csv:1: expected six fields without a header .* ending in 'answer'"),
        ("q,a,b,c,d,A\nq,a,b,c,A\n", r"x_test.csv:2: expected six fields .* got 5"),
        ("q,a,b,c,d,AB\n", r"x_test.csv:1: .* ending in 'AB'"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_not_mmlu_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    for split, content in (("dev", "q,a,b,c,d,A\n"), ("test", text)):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"x_{split}.csv").write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=message):
        read_mmlu(tmp_path)


def test_a_folder_that_is_not_mmlu_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"expected MMLU as test/SUBJECT_test.csv"):
        read_mmlu(tmp_path / "test")
    (folder / "dev" / "bees_dev.csv").unlink()
    with pytest.raises(EvaluationError, match=r"bees_dev.csv: .* cannot be read"):
        read_mmlu(folder)


def test_letters_must_be_different_tokens(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(letter_tokens(tokenizer))) == 4
    same = SimpleNamespace(input_ids=[[5], [5], [6], [7]])
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: same)
    with pytest.raises(EvaluationError, match="four different tokens"):
        letter_tokens(tokenizer)


def test_the_harness_is_an_optional_extra(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"letheon\[harness\]"):
        mmlu_with_harness(model, tokenizer)


def test_harness_results_are_weighted_by_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def simple_evaluate(**arguments: object) -> dict[str, object]:
        asked.update(arguments)
        return {
            "results": {"mmlu": {"acc,none": 0.9}, "mmlu_bees": {"acc,none": 0.5}, "mmlu_deep_sea": {"acc,none": 0.2}},
            "n-samples": {
                "mmlu_bees": {"original": 9, "effective": 1},
                "mmlu_deep_sea": {"original": 9, "effective": 3},
            },
        }

    harness, loader = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    loader.HFLM = lambda **arguments: arguments  # type: ignore[attr-defined]
    for name, module in (
        ("lm_eval", harness),
        ("lm_eval.models", ModuleType("m")),
        ("lm_eval.models.huggingface", loader),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    found = mmlu_with_harness(model, tokenizer, limit_per_subject=3)
    assert found.accuracy == pytest.approx((0.5 * 1 + 0.2 * 3) / 4)
    assert found.subjects == {"bees": 0.5, "deep_sea": 0.2}
    assert (asked["tasks"], asked["num_fewshot"], asked["limit"]) == (["mmlu"], 5, 3)
