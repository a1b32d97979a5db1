"""WMDP: its files, its prompt, and accuracy by the likeliest letter."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks import wmdp
from letheon.data.benchmarks.wmdp import ChoiceQuestion, check_download, read_wmdp
from letheon.errors import DataError
from letheon.evaluation.metrics.choices import likeliest_letters
from letheon.evaluation.registry import read_results
from letheon.evaluation.suite import Target
from letheon.evaluation.suites.wmdp import prompt_text, wilson_interval
from letheon.model.loading import save_model
from small import tiny_model

QUESTIONS = [
    {"question": f" Which of {n} ships left the harbour? ", "choices": ["one", "two", "three", "none"], "answer": n % 4}
    for n in range(9)
]


def write_mmlu(folder: Path) -> Path:
    """One subject of eight questions."""
    for part in ("dev", "test"):
        (folder / part).mkdir(parents=True)
        lines = "".join(f"Which of {n} ships?,one,two,None,{n},{'ABCD'[n % 4]}\n" for n in range(8))
        (folder / part / f"world_ships_{part}.csv").write_text(lines)
    return folder


def write(folder: Path) -> Path:
    """One part as published, another as a file of lines."""
    (folder / "wmdp-bio").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(QUESTIONS), folder / "wmdp-bio" / "test-00000-of-00001.parquet")
    (folder / "wmdp-cyber.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS[:4]))
    return folder


def test_both_layouts_are_read(tmp_path: Path) -> None:
    found = read_wmdp(write(tmp_path))
    assert {name: len(questions) for name, questions in found.items()} == {"bio": 9, "cyber": 4}
    assert found["bio"][:4] == found["cyber"]
    with pytest.raises(DataError, match=r"expected \{'bio': 1273, .* got \{'bio': 9, 'cyber': 4\}"):
        check_download(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"answer": 4}, "a number from 0 to 3"), ({"choices": ["a"]}, "a list of 4 choices"), ({"question": ""}, "empty")],
)
def test_what_is_no_question_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "wmdp-chem.json").write_text(json.dumps([{**QUESTIONS[0], **change}]))
    with pytest.raises(DataError, match=rf"wmdp-chem.json, item 1: .*{message}"):
        read_wmdp(tmp_path)


def test_a_folder_without_questions_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected wmdp-bio, wmdp-chem or wmdp-cyber"):
        read_wmdp(tmp_path)


def test_prompt_to_the_letter() -> None:
    question = ChoiceQuestion(" Why? ", ("a", "b", "c", "d"), 2)
    assert prompt_text(question, "biology") == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )


def test_interval_by_hand() -> None:
    # Wilson's interval of 5 in 10 is 0.5 +- 1.96 sqrt(0.025 + 0.0096) / 1.384.
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0, 4)[0] == 0.0


def naive_choice(model: Any, tokenizer: Any, prompt: str) -> int:
    """The letter whose tokens, which may be several, are likeliest after the prompt."""
    start = len(tokenizer(prompt).input_ids)
    sums = []
    for letter in "ABCD":
        ids = tokenizer(f"{prompt} {letter}").input_ids
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids))))
    return int(np.argmax(sums))


def test_accuracy_is_that_of_whole_prompts_one_by_one(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    folder = write(tmp_path / "data")
    right = sum(naive_choice(model, tokenizer, prompt_text(q, "biology")) == q.answer for q in read_wmdp(folder)["bio"])
    out = tmp_path / "out"
    command = ["evaluate", "--suite", "wmdp", "--model", tmp_path / "model", "--data", folder, "--out", out]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    scores = read_results(out / "results.json").scores
    assert scores.value("wmdp.bio") == right / 9
    chem = scores.get("wmdp.chem")
    assert chem is not None
    assert (chem.value, chem.missing) == (None, "the data folder has no such questions")


def test_letters_of_one_token_and_of_several_give_the_same_choices(tokenizer: PreTrainedTokenizerBase) -> None:
    one_each = copy.deepcopy(tokenizer)
    one_each.add_tokens([f" {letter}" for letter in "ABCD"])
    words = ["bees", "Harrow", "river", "letters", "sea", "keeper", "dawn"]
    texts = [f"{' '.join(words[(n * 5 + k * k) % 7] for k in range(2 + n % 9))}\nAnswer:" for n in range(24)]
    for own, num_tokens in ((tokenizer, 2), (one_each, 1)):
        assert len(own(" A").input_ids) == num_tokens
        model = tiny_model("llama", own)
        found = likeliest_letters(Target(model, own), texts)
        assert found == [naive_choice(model, own, text) for text in texts]
        assert len(set(found)) > 1
        # Of a prompt that is too long the last tokens stay.
        model.config.max_position_embeddings = 12
        cut = likeliest_letters(Target(model, own), texts)
        model.config.max_position_embeddings = 256
        ends = [str(own.decode(own(text).input_ids[-12:])) for text in texts]
        assert cut == [naive_choice(model, own, end) for end in ends]
    assert likeliest_letters(Target(model, own), []) == []


def test_mmlu_is_asked_in_the_same_way_where_it_is_given(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    folder, mmlu = write(tmp_path / "data"), write_mmlu(tmp_path / "mmlu")
    questions = [ChoiceQuestion(f"Which of {n} ships?", ("one", "two", "None", f"{n}"), n % 4) for n in range(6)]
    right = sum(naive_choice(model, tokenizer, prompt_text(q, "world ships")) == q.answer for q in questions)
    out = tmp_path / "out"
    command = ["evaluate", "--suite", "wmdp", "--model", tmp_path / "model", "--data", folder, "--out", out]
    command += ["--mmlu", mmlu, "--mmlu-limit", "6"]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = read_results(out / "results.json")
    assert results.scores.value("mmlu.accuracy") == right / 6
    assert results.num_rows["mmlu"] == {"questions": 6}


def test_mmlu_is_asked_alone_where_there_is_no_wmdp(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHEON_DATA", str(tmp_path / "nothing"))
    write_mmlu(tmp_path / "mmlu")
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    command = ["evaluate", "--suite", "wmdp", "--model", tmp_path / "model", "--mmlu", tmp_path / "mmlu"]
    command += ["--out", tmp_path / "out"]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    scores = read_results(tmp_path / "out" / "results.json").scores
    assert scores.value("mmlu.accuracy") is not None
    assert scores.value("wmdp.accuracy") is None
    refused = CliRunner().invoke(cli, [*map(str, command), "--data", str(tmp_path / "nothing")])
    assert "expected wmdp-bio" in str(refused.exception)


def test_the_command_downloads_the_parts_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, local_dir: Path, **given: Any) -> None:
        asked.update(given, name=name)
        write(local_dir)

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    command = ["data", "wmdp", "--to", str(tmp_path / "to")]
    assert "expected {'bio': 1273" in str(CliRunner().invoke(cli, command).exception)
    assert not (tmp_path / "to").exists()
    monkeypatch.setattr(wmdp, "NUM_QUESTIONS", {"bio": 9, "cyber": 4})
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert (asked["name"], asked["revision"]) == ("cais/wmdp", "a revision")
    assert asked["allow_patterns"] == ["wmdp-bio/*", "wmdp-chem/*", "wmdp-cyber/*"]
    assert len(read_wmdp(tmp_path / "to")["bio"]) == 9


class _Api:
    """Stands in for the hub's index."""

    def __init__(self, token: str | None) -> None: ...

    def dataset_info(self, _: str) -> SimpleNamespace:
        """Give a revision."""
        return SimpleNamespace(sha="a revision")
