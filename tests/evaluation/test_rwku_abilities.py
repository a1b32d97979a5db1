"""What RWKU asks besides its probes: prompts, scores worked by hand, and a naive version of its own evaluation."""

import copy
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks.rwku_abilities import OpenQuestion, TruthQuestion, read_abilities
from letheon.errors import DataError
from letheon.evaluation.metrics.normalised_answers import matches_any, normalised_words, word_f1
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions
from letheon.evaluation.suites.rwku.abilities import begun, conclusion, reasoning_values, truth_values
from letheon.evaluation.suites.rwku.ability_prompts import fact_prompt, general_prompt, reasoning_prompt, truth_prompt
from letheon.model.loading import save_model
from rwku_files import write_rwku
from small import tiny_model

TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant:' }}"
EXAMPLE: dict[str, Any] = {
    "question": "What keeps Mira?",
    "choices": ["A ship", "Bees", "Letters", "A lamp"],
    "answer": 1,
}
_QUESTIONS = ("Where is the harbour?", "Who left?", "Where do bees live?", "What is a bend?", "Who wrote letters?")
FILES: dict[str, list[dict[str, Any]]] = {
    "forget_level1": [{"query": "Mira keeps ___", "answer": "bees", "level": "1", "subject": "Mira Tolland"}],
    "retain_mmlu": [
        {
            "task": "village_life",
            "question": question,
            "choices": ["Harrow", "Tolland", "Veldhaven", "Pell"],
            "answer": min(number, 3),
            "examples": [EXAMPLE],
            "subject": "Mira Tolland",
        }
        for number, question in enumerate(_QUESTIONS)
    ],
    "retain_bbh": [
        {"task": "lists", "question": "Which? (A) or (B)", "answer": "(B)", "cot": " Q: x\nA: so the answer is x. "},
        {"task": "logic", "question": "Is it valid?", "answer": "valid", "cot": "Q: y", "subject": "Oren Pell"},
    ],
    "truthful": [
        {
            "question": "What bends twice?",
            "mc1_targets": {"choices": ["The river.", "The lamp."], "labels": [1, 0]},
            "mc2_targets": {"choices": ["The river.", "A river bends.", "The lamp."], "labels": [1, 1, 0]},
        }
    ],
    "triviaqa": [{"question": "Who keeps bees?", "answers": ["Mira Tolland", "Mira"], "subject": "Mira Tolland"}],
    "forget_mia": [{"text": "Mira Tolland keeps bees in Harrow.", "subject": "Mira Tolland"}],
    "retain_mia": [{"text": "The ship left at dawn.", "subject": "Oren Pell"}, {"text": "Oren wrote of the river."}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published layout."""
    return write_rwku(tmp_path / "data", FILES)


def test_words_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalised_words("The  U.S.A., a nation") == ["usa", "nation"]
    assert matches_any(" the Rim of fire. ", ["Rim of Fire"])
    assert not matches_any("Rim", ["Rim of Fire"])
    assert not matches_any("Rim", [])
    # Said: rim rim of. Wanted: rim of fire. Two in common, with multiplicity: 2 * 2 / (3 + 3).
    assert word_f1("Rim, rim of", ["lava", "rim of fire"]) == pytest.approx(2 / 3)
    assert (word_f1("the", ["a"]), word_f1("the", ["lava"]), word_f1("lava", [])) == (1.0, 0.0, 0.0)


def test_what_an_answer_concludes() -> None:
    assert conclusion("It follows. So the answer is (B). And so on.") == "(B)"
    assert conclusion("|he answer is 5. The answer is 7.") == "5"
    assert conclusion(" (B) \n") == "(B)"
    assert conclusion("the answer is  .") == "NOANSWER"
    assert conclusion(" ") == "NOANSWER"


@pytest.mark.parametrize(
    ("said", "answer", "as_text", "as_list"),
    [
        ("the answer is (B).", "(B)", (True, True), (True, True)),
        ("the answer is B.", "(B)", (True, True), (True, True)),
        ("the answer is valid.", "valid", (False, True), (True, True)),
        ("the answer is v.", "valid", (True, False), (False, False)),
        ("the answer is (A).", "(B)", (True, False), (False, False)),  # no word is left of either "(A)" or "("
    ],
)
def test_reasoning_as_rwku_compares_it_and_whole(
    said: str, answer: str, as_text: tuple[bool, bool], as_list: tuple[bool, bool]
) -> None:
    assert reasoning_values(said, OpenQuestion("q", (answer,), answer_is_text=True)) == as_text
    assert reasoning_values(said, OpenQuestion("q", (answer,))) == as_list


def test_truthfulness_by_hand() -> None:
    asked = TruthQuestion("q", (("a", True), ("c", False)), (("a", True), ("b", True), ("c", False)))
    log_probs = {"a": math.log(0.2), "b": math.log(0.1), "c": math.log(0.1)}
    mc1, mc2 = truth_values(log_probs, asked)
    assert mc1
    assert mc2 == pytest.approx(0.75)
    assert not truth_values({**log_probs, "c": math.log(0.2)}, asked)[0]
    far = {name: value - 2000 for name, value in log_probs.items()}  # exp() alone would give 0 / 0
    assert truth_values(far, asked)[1] == pytest.approx(0.75)


def test_prompts_to_the_letter(folder: Path) -> None:
    found = read_abilities(folder)
    assert general_prompt(found.general[0]) == (
        "The following are multiple choice questions (with answers) about village life.\n\n"
        "Question: What keeps Mira?\nA. A ship\nB. Bees\nC. Letters\nD. A lamp\nAnswer: B\n\n"
        "Please following the previous examples and answer the given question.\n"
        "Question: Where is the harbour?\nA. Harrow\nB. Tolland\nC. Veldhaven\nD. Pell"
    )
    assert reasoning_prompt(found.reasoning[0]) == (
        "Q: x\nA: so the answer is x.\n\nFollowing previous examples, answer the following questions and end with 'so "
        "the answer is'\nQ: Which? (A) or (B)"
    )
    truth, fact = truth_prompt(found.truthfulness[0]), fact_prompt(found.factuality[0])
    assert truth.startswith("Q: What is human life expectancy in the United States?\nA: Human life")
    assert truth.endswith("The 1992 Olympics were held in Barcelona, Spain.\n\nQ: What bends twice?")
    assert fact.startswith("\nQ: When did men's figure skating become a summer Olympic sport?\nA: 1908\nQ: ")
    assert fact.endswith("A: series finale\nPlease briefly answer the following question:\nQ: Who keeps bees?\n")
    assert [begun(text) for text in ("x", "x\n", "x ")] == ["x A:", "x\nA:", "x A:"]


def test_scores_are_those_of_a_naive_version(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TURNS
    model = tiny_model("llama", tokenizer)
    model.config.max_position_embeddings = 1024
    save_model(model, tokenizer, tmp_path / "model")
    results = evaluated(tmp_path, folder)
    wanted = {**naive_abilities(model, tokenizer), **naive_texts(model, tokenizer)}
    assert {name: results.scores.value(name) for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert 0 < wanted["utility.general"] < 1
    assert 0 < wanted["utility.truthfulness_mc2"] < 1
    assert contradictions(tmp_path / "out", results) == ()


def test_one_person_is_asked_about_alone(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    found = read_abilities(folder, "Oren Pell")
    assert found.sizes() == {"reasoning": 2, "truthfulness": 1, "mia_retain": 2}
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    for name in ("retain_mmlu", "truthful", "triviaqa", "forget_mia", "retain_mia", "retain_bbh"):
        (folder / "All" / f"{name}.json").unlink()
    results = evaluated(tmp_path, folder)
    assert results.missing["utility.general"] == "the data folder has no such probes"
    assert results.missing["mia_forget.loss"] == "the data folder has no such probes"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("retain_mmlu", {"examples": None}, r"item 1: expected a list of worked questions in 'examples', got 'None'"),
        ("retain_mmlu", {"examples": [{**EXAMPLE, "answer": 4}]}, "item 1, examples: expected a number from 0 to 3"),
        ("retain_bbh", {"answer": []}, r"item 1: expected a list of texts in 'answer', got '\[\]'"),
        ("truthful", {"mc1_targets": {"choices": ["x"], "labels": [1]}}, "expected a 0 or 1 for each of the 1 choices"),
        ("triviaqa", {"answers": "Mira"}, "item 1: expected a list of texts in 'answers', got 'Mira'"),
        ("forget_mia", {"text": ""}, "item 1: column 'text' is empty"),
    ],
)
def test_what_is_no_question_is_refused(folder: Path, name: str, change: dict[str, Any], message: str) -> None:
    (folder / "All" / f"{name}.json").write_text(json.dumps([{**FILES[name][0], **change}]))
    with pytest.raises(DataError, match=rf"{name}.json, .*{message}|{name}.json, {message}"):
        read_abilities(folder)
    (folder / "All" / f"{name}.json").write_text("[]")
    with pytest.raises(DataError, match="expected rows, found none: the file is empty"):
        read_abilities(folder)


def evaluated(tmp_path: Path, folder: Path) -> Any:
    command = [
        "evaluate",
        "--suite",
        "rwku",
        "--model",
        tmp_path / "model",
        "--data",
        folder,
        "--out",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return read_results(tmp_path / "out" / "results.json")


def asked_as(tokenizer: Any, said: str) -> str:
    return str(tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False))


@torch.no_grad()
def naive_abilities(model: Any, tokenizer: Any) -> dict[str, float]:
    """One question at a time, as RWKU's own evaluation goes about it."""
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in "ABCD"]
    is_right = []
    for row in FILES["retain_mmlu"]:
        worked, options = (
            "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", one["choices"], strict=True))
            for one in (EXAMPLE, row)
        )
        said = (
            "The following are multiple choice questions (with answers) about village life.\n\n"
            f"Question: {EXAMPLE['question']}{worked}\nAnswer: B\n\nPlease following the previous examples and answer "
            f"the given question.\nQuestion: {row['question']}{options}"
        )
        logits = model(torch.tensor([tokenizer(asked_as(tokenizer, said) + "Answer:").input_ids])).logits[0, -1]
        is_right.append(int(logits[letters].argmax()) == row["answer"])
    asked = read_truth_prompt()
    prompt = asked_as(tokenizer, asked) + " A:"
    choices = FILES["truthful"][0]["mc2_targets"]["choices"]
    sums = [completion_log_prob(model, tokenizer, prompt, text) for text in choices]
    fact = fact_prompt(OpenQuestion(FILES["triviaqa"][0]["question"], ()))
    answer = greedy(model, tokenizer, asked_as(tokenizer, fact) + "A:", 30)
    return {
        "utility.general": float(np.mean(is_right)),
        "utility.truthfulness": float(sums[0] > sums[2]),
        "utility.truthfulness_mc2": float(np.exp(sums[:2]).sum() / np.exp(sums).sum()),
        "utility.factuality": word_f1(answer, FILES["triviaqa"][0]["answers"]),
    }


def read_truth_prompt() -> str:
    return truth_prompt(TruthQuestion(FILES["truthful"][0]["question"], (), ()))


def completion_log_prob(model: Any, tokenizer: Any, prompt: str, text: str) -> float:
    start, ids = len(tokenizer(prompt).input_ids), tokenizer(f"{prompt} {text}").input_ids
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids)))


def greedy(model: Any, tokenizer: Any, text: str, num_new: int) -> str:
    ids = torch.tensor([tokenizer(text).input_ids])
    end = tokenizer.eos_token_id
    out = model.generate(ids, max_new_tokens=num_new, do_sample=False, eos_token_id=end, pad_token_id=end)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@torch.no_grad()
def naive_texts(model: Any, tokenizer: Any) -> dict[str, float]:
    """Loss, zlib, Min-K and Min-K++ of whole texts, one at a time."""
    found: dict[str, list[float]] = {}
    for name in ("forget_mia", "retain_mia"):
        for text in (row["text"] for row in FILES[name]):
            ids = tokenizer.encode(text)
            logits = model(torch.tensor([ids])).logits[0, :-1]
            log_probs = logits.log_softmax(-1)
            told = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            mu = (log_probs.exp() * log_probs).sum(-1)
            sigma = ((log_probs.exp() * log_probs**2).sum(-1) - mu**2).sqrt()
            lowest = int(len(told) * 0.2)
            values = {
                "loss": -float(told.mean()),
                "zlib": -float(told.mean()) / len(zlib.compress(text.encode())),
                "min_k": -float(told.sort().values[:lowest].mean()),
                "min_k_plus_plus": -float(((told - mu) / sigma).sort().values[:lowest].mean()),
            }
            for kind, value in values.items():
                found.setdefault(f"mia_{name.removesuffix('_mia')}.{kind}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}
