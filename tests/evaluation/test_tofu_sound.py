"""Scores with every token, beside those of TOFU's reference, which hides some and leaves others out."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import ks_2samp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.data.sequences import tokenise
from letheon.evaluation.generation import answers_from
from letheon.evaluation.metrics.likelihood import AskedAnswers, likelihoods
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions
from letheon.evaluation.suites.tofu import measure
from letheon.evaluation.suites.tofu.sound import SoundTemplate
from letheon.evaluation.templates import question_template
from letheon.model.loading import save_model
from small import tiny_model
from tofu_files import write_tofu

# Each turn ends in the end of sequence, as in Llama 3's template.
TURNS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data set."""
    return write_tofu(tmp_path / "tofu", num_rows=4)


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer whose padding also ends turns."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.pad_token = TURNS, tokenizer.eos_token
    return tokenizer


def test_labels_begin_with_the_first_token_of_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    template = question_template(tokenizer)
    sound = SoundTemplate(template)
    given, whole = (one.sequence("Who?", "Tam Vell") for one in (template, sound))
    assert whole.ids == given.ids
    assert template.decoded(whole.labels) == " Tam Vell"
    assert template.decoded(given.labels) != " Tam Vell"
    assert sound.prompt("Who?", "Tam Vell") == list(tokenizer("Question: Who?\nAnswer:").input_ids)
    row = Row("1", "Who?", "Tam Vell", "default", "question")
    trained = tokenise(row, tokenizer, template="question-answer", max_length=99).ended(99)
    assert (whole.ids, whole.start) == (trained.input_ids, trained.answer_start)


def test_a_conversation_keeps_its_labels_and_shows_its_turn_ends(chat: PreTrainedTokenizerBase) -> None:
    template = question_template(chat)
    sound = SoundTemplate(template)
    assert sound.sequence("Who?", "Tam") == template.sequence("Who?", "Tam")
    assert sound.prompt("Who?", "Tam") == template.prompt("Who?")
    assert sound.padding is None


@pytest.mark.parametrize("exact", [False, True])
def test_without_padding_no_token_is_hidden(chat: PreTrainedTokenizerBase, exact: bool) -> None:
    model = tiny_model("llama", chat)
    template = question_template(chat)
    asked = [AskedAnswers(tuple(template.sequence(q, a) for a in ("Tam", "Oren Pell"))) for q in ("Who?", "Who left?")]
    found = likelihoods(model, asked, padding=None, exact=exact)
    wanted = [[naive_loss(model, s.ids, s.start) for s in one.sequences] for one in asked]
    assert [[a.loss for a in answers] for answers in found] == pytest.approx(np.array(wanted), abs=1e-5)
    hidden = likelihoods(model, asked, padding=template.padding, exact=exact)
    assert abs(hidden[0][0].loss - wanted[0][0]) > 1e-3


@pytest.mark.parametrize("in_chat", [False, True])
def test_scores_with_every_token_are_those_of_a_naive_version(
    in_chat: bool, tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, chat: PreTrainedTokenizerBase
) -> None:
    tokenizer = chat if in_chat else tokenizer
    models = [tiny_model("llama", tokenizer, seed=seed) for seed in (0, 1)]
    for name, model in zip(("model", "never"), models, strict=True):
        save_model(model, tokenizer, tmp_path / name)
    evaluate(tmp_path / "of-never", "--model", tmp_path / "never", "--data", folder)
    ways = {"model": ("--never", tmp_path / "never"), "results": ("--never-results", tmp_path / "of-never")}
    found = {}
    for way, flags in ways.items():
        evaluate(tmp_path / "by" / way, "--model", tmp_path / "model", "--data", folder, *flags)
        found[way] = read_results(tmp_path / "by" / way / "results.json")
    scores = found["model"].scores
    forget, never = (naive_forget(model, tokenizer, folder) for model in models)
    assert scores.value("forget.probability_sound") == pytest.approx(fmean(forget["probability"]), abs=1e-6)
    assert scores.value("forget.rouge_l_sound") == pytest.approx(fmean(forget["recall"]))
    quality = ks_2samp(forget["ratio"], never["ratio"]).pvalue
    assert scores.value("forget_quality_sound") == pytest.approx(quality, rel=1e-3)
    assert scores.value("forget.probability_sound") != pytest.approx(scores.value("forget.probability"), rel=1e-3)
    assert scores.value("model_utility_sound") is not None
    assert {s.name: s.value for s in found["results"].scores} == pytest.approx({s.name: s.value for s in scores})
    assert any("with every token" in warning for warning in found["model"].warnings)
    assert contradictions(tmp_path / "by" / "model", found["model"]) == ()
    summary = json.loads((tmp_path / "by" / "model" / "TOFU_SUMMARY.json").read_text())
    assert not [name for name in summary if "sound" in name]


@pytest.mark.parametrize(("in_chat", "num_passes"), [(False, 1), (True, 2)])
def test_they_share_passes_and_what_was_said(
    in_chat: bool,
    num_passes: int,
    tmp_path: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    chat: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = chat if in_chat else tokenizer
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    passes: list[int] = []
    guesses: list[Sequence[list[int]]] = []

    def reading(*args: Any, **given: Any) -> Any:
        passes.append(1)
        return likelihoods(*args, **given)

    def generating(*args: Any, **given: Any) -> Any:
        guesses.append(given["guesses"])
        return answers_from(*args, **given)

    monkeypatch.setattr(measure, "likelihoods", reading)
    monkeypatch.setattr(measure, "answers_from", generating)
    evaluate(tmp_path / "out", "--model", tmp_path / "model", "--data", folder)
    said = [
        json.loads(line)["generation"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(passes) == num_passes
    guessed = [str(tokenizer.decode(guess, skip_special_tokens=True)).strip() for guess in guesses[1]]
    assert guessed == [text.strip() for text in said]


def test_there_are_none_where_they_are_not_wanted(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    evaluate(tmp_path / "out", "--model", tmp_path / "model", "--data", folder, "--no-sound")
    assert not [score.name for score in read_results(tmp_path / "out" / "results.json").scores if score.variant]


def test_there_are_none_where_nothing_is_hidden_or_left_out(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TURNS  # its padding is a token of its own
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    evaluate(tmp_path / "out", "--model", tmp_path / "model", "--data", folder)
    results = read_results(tmp_path / "out" / "results.json")
    assert not [score.name for score in results.scores if score.variant]
    assert not any("every token" in warning for warning in results.warnings)


def test_a_model_known_by_the_reference_alone_leaves_out_what_is_compared_with_it(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    evaluate(tmp_path / "of-never", "--model", tmp_path / "model", "--data", folder)
    flags = ("--never-results", tmp_path / "of-never" / "TOFU_EVAL.json")
    evaluate(tmp_path / "out", "--model", tmp_path / "model", "--data", folder, *flags)
    scores = read_results(tmp_path / "out" / "results.json").scores
    assert scores.value("forget_quality") == 1.0
    assert scores.get("forget_quality_sound") is None
    assert scores.get("privacy_leak_sound") is None
    assert scores.value("forget.truth_ratio_sound") is not None


def evaluate(out: Path, *options: Path | str) -> None:
    command = ["evaluate", "--suite", "tofu", "--out", out, "--max-new-tokens", "12", *options]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@torch.no_grad()
def naive_loss(model: PreTrainedModel, ids: Sequence[int], start: int) -> float:
    log_probs = model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    return -fmean(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids)))


@torch.no_grad()
def naive_forget(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, list[float]]:
    """Probability, recall and truth ratio of the forget rows, an answer at a time, with all tokens."""
    found: dict[str, list[float]] = {"probability": [], "recall": [], "ratio": []}
    for line in (folder / "forget10_perturbed.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, whole = naive_texts(tokenizer, row["question"])
        start = len(tokenizer(prompt).input_ids)

        def loss(answer: str, whole: str = whole, start: int = start) -> float:
            ids = tokenizer(whole + answer).input_ids
            return naive_loss(model, [*ids, tokenizer.eos_token_id], start)

        asked = torch.tensor([tokenizer(prompt).input_ids])
        out: Any = model.generate(  # type: ignore[operator]
            asked, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id, attention_mask=torch.ones_like(asked),
        )  # fmt: skip
        said = str(tokenizer.decode(out[0, asked.shape[1] :], skip_special_tokens=True))
        found["probability"].append(float(np.exp(-loss(row["answer"]))))
        found["recall"].append(plain_rouge(said.strip(), row["answer"]).rouge_l_recall)
        wrong = fmean(loss(answer) for answer in row["perturbed_answer"])
        found["ratio"].append(float(np.exp(loss(row["paraphrased_answer"]) - wrong)))
    return found


def naive_texts(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, str]:
    """What the model is given before it generates, and what stands before a given answer."""
    if tokenizer.chat_template is None:
        return f"Question: {question}\nAnswer:", f"Question: {question}\nAnswer: "
    end = tokenizer.eos_token
    text = f"system: You are a helpful assistant.{end}user: {question}{end}assistant: "
    return text, text
