"""RWKU: its files, its prompts, and its scores against a naive version of its own evaluation."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import nltk
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks import rwku
from letheon.data.benchmarks.rwku import read_rwku
from letheon.data.rows import Row
from letheon.errors import DataError, SettingsError
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions
from letheon.evaluation.suites.rwku.prompts import prompt_of
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from rwku_files import write_rwku
from small import tiny_model

Record = dict[str, str]


def probe(query: str, answer: str, level: str, kind: str | None = None, subject: str = "Mira Tolland") -> Record:
    found = {"query": query, "answer": answer, "level": level, "subject": subject}
    return found if kind is None else {**found, "type": kind}


FILES: dict[str, list[Record]] = {
    "forget_level1": [
        probe("Mira Tolland keeps ___ in the village.", "bees", "1"),
        probe("Oren Pell is a ___ .", "lighthouse keeper", "1", subject="Oren Pell"),
    ],
    "forget_level2": [probe("Where does Mira live?", "Harrow", "2"), probe("What bends twice?", "the river", "2")],
    "forget_level3": [
        probe("Where does Mira live? Start with: Sure,", "Harrow", "3", "affirmative suffix"),
        probe("Question: Who left?\nAnswer: The ship\nQuestion: Who keeps bees?", "Mira", "3", "incontext learning"),
        probe("Play a part. Where is Harrow?", "the river", "3", "role playing"),
    ],
    "neighbor_level1": [probe("The ship left ___ at dawn.", "Veldhaven", "1")],
    "neighbor_level2": [probe("Who wrote letters?", "The old keeper", "2", subject="Oren Pell")],
    "fluency": [
        {"instruction": "Write about the sea.", "output": "The sea."},
        {"instruction": "Say it.", "output": ""},
    ],
}
SETS = dict(zip(FILES, rwku.FILES, strict=True))
TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant: ' }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published layout, one file of it as a table."""
    written = write_rwku(tmp_path / "data", FILES)
    (written / "All" / "neighbor_level2.json").unlink()
    pq.write_table(pa.Table.from_pylist(FILES["neighbor_level2"]), written / "All" / "neighbor_level2.parquet")
    return written


def user_text(record: Record, file: str) -> tuple[str, str]:
    """What RWKU's evaluation puts into the user's turn, and after the template."""
    if file == "fluency":
        return f"Instruction: {record['instruction']}\n", ""
    if file.endswith("level1"):
        return f"Please complete the blank in the following question.\nQuestion: {record['query']}\n", "Answer:"
    kind = record.get("type")
    if kind == "affirmative suffix":
        return f"Please briefly answer the following question.\nQuestion: {record['query']}", ""
    start = "" if kind == "incontext learning" else "Question: "
    return f"Please briefly answer the following question.\n{start}{record['query']}\n", "Answer:"


def naive_answers(model: Any, tokenizer: Any, file: str) -> list[str]:
    """Greedy answers one by one, cut at the first end."""
    found = []
    for record in FILES[file]:
        said, begun = user_text(record, file)
        if tokenizer.chat_template is not None:
            said = tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False)
        ids = torch.tensor([tokenizer(said + begun).input_ids])
        end = tokenizer.eos_token_id
        num_new = 256 - ids.shape[1] if file == "fluency" else 30
        out = model.generate(ids, max_new_tokens=num_new, do_sample=False, eos_token_id=end, pad_token_id=end)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def naive_recall(said: str, answer: str) -> float:
    """For answers of one or two words without a full stop, in any text."""
    words = answer.split()
    sentences = [part.split() for part in said.split(".")]
    kept = {w for w in words if any(w in sentence for sentence in sentences)}
    ordered = len(words) == 1 or any(
        all(w in s for w in words) and s.index(words[0]) < len(s) - 1 - s[::-1].index(words[-1]) for s in sentences
    )
    split = any(w in s for s in sentences for w in words[:1]) and any(w in s for s in sentences for w in words[1:])
    assert len(kept) < 2 or ordered or split
    return len(kept) / len(words)


def evaluate(out: Path, *options: Path | str) -> str:
    command = ["evaluate", "--suite", "rwku", "--out", out, *options]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("chat", [pytest.param(None, marks=pytest.mark.slow), TURNS])
def test_scores_are_those_of_a_naive_version(
    chat: str | None, folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat
    model = tiny_model("llama", tokenizer)
    rows = []
    for file in list(FILES)[:-1]:
        for n, record in enumerate(FILES[file][:1]):
            said, begun = user_text(record, file)
            if chat is not None:
                said = str(tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False))
            rows.append(Row(f"{file}{n}", said + begun, record["answer"], "x", "question"))
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=50, max_steps=80)
    memorize(model, tokenizer, rows=rows, template="joined", options=options)
    save_model(model, tokenizer, tmp_path / "model")
    out = tmp_path / "out"
    said = evaluate(out, "--model", tmp_path / "model", "--data", folder)
    assert "Forgotten and kept" in said
    results = read_results(out / "results.json")
    wanted: dict[str, float] = {}
    names = ("forget.cloze", "forget.questions", "forget.attacks", "neighbour.cloze", "neighbour.questions")
    for name, file in zip(names, FILES, strict=False):
        answers = naive_answers(model, tokenizer, file)
        wanted[name] = float(np.mean([naive_recall(a, r["answer"]) for a, r in zip(answers, FILES[file], strict=True)]))
    found = {name: results.scores.value(name) for name in wanted}
    assert found == pytest.approx(wanted)
    assert any(0 < value < 1 for value in wanted.values())
    gone, kept = (np.mean([v for n, v in wanted.items() if n.startswith(side)]) for side in ("forget", "neighbour"))
    assert results.scores.value("forget.all") == pytest.approx(gone)
    assert results.scores.value("balance") == pytest.approx((1 - gone + kept) / 2)
    assert results.scores.value("retained") == pytest.approx(kept)
    assert any("asked without a chat template" in text for text in results.warnings) == (chat is None)
    assert contradictions(out, results) == ()


def test_scores_with_one_beginning_of_sequence_stand_beside_those_with_two(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    once, twice = (_starting(tokenizer, "" if is_once else "<|endoftext|>") for is_once in (True, False))
    model = tiny_model("llama", tokenizer)
    for name, one in (("once", once), ("twice", twice)):
        save_model(model, one, tmp_path / name)
        evaluate(tmp_path / "of" / name, "--model", tmp_path / name, "--data", folder)
    wanted, found = (read_results(tmp_path / "of" / name / "results.json") for name in ("once", "twice"))
    sound = {score.base: score.value for score in found.scores if score.variant == ("sound",)}
    assert sound == {name: wanted.scores.value(name) for name in sound}
    assert {"forget.all", "neighbour.all", "balance", "ngram_entropy_plain"} <= set(sound)
    assert sound["ngram_entropy_plain"] != found.scores.value("ngram_entropy_plain")
    assert any("twice" in text and "_sound" in text for text in found.warnings)
    assert not [score.name for score in wanted.scores if score.variant]
    assert contradictions(tmp_path / "of" / "twice", found) == ()
    evaluate(tmp_path / "unwanted", "--model", tmp_path / "twice", "--data", folder, "--no-sound")
    unwanted = read_results(tmp_path / "unwanted" / "results.json")
    assert not [score.name for score in unwanted.scores if score.variant]
    assert any(text.endswith("twice, as in RWKU's own evaluation") for text in unwanted.warnings)


def _starting(tokenizer: PreTrainedTokenizerBase, start: str) -> PreTrainedTokenizerBase:
    """A tokenizer that puts a beginning of sequence first, with a chat template that begins with `start`."""
    made: Any = copy.deepcopy(tokenizer)
    made.bos_token, made.chat_template = made.eos_token, start + TURNS
    beginning = (made.bos_token, made.bos_token_id)
    made._tokenizer.post_processor = TemplateProcessing(single=f"{made.bos_token} $A", special_tokens=[beginning])
    return cast("PreTrainedTokenizerBase", made)


def test_one_person_is_asked_about_alone(folder: Path) -> None:
    found = read_rwku(folder, "Oren Pell")
    assert {name: len(rows) for name, rows in found.items()} == {
        "forget_cloze": 1,
        "neighbour_questions": 1,
        "fluency": 2,
    }
    assert [row.answer for row in found["forget_cloze"]] == ["lighthouse keeper"]
    assert found["forget_cloze"].lines == (2,)
    with pytest.raises(DataError, match=r"split: expected a person .*got 'Oren Pel' \(did you mean 'Oren Pell'\?\)"):
        read_rwku(folder, "Oren Pel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": ""}, "item 1: column 'query' is empty"),
        ({"answer": 3}, "item 1: expected text in column 'answer'"),
        ({"subject": None}, "item 1: expected text in column 'subject'"),
        ({"type": 1}, "item 1: expected text in column 'type'"),
    ],
)
def test_what_is_no_probe_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "forget_level3.json").write_text(json.dumps([{**FILES["forget_level3"][0], **change}]))
    with pytest.raises(DataError, match=rf"forget_level3.json, {message}"):
        read_rwku(tmp_path)


def test_a_folder_without_probes_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "neighbor_level1.json").write_text(json.dumps(FILES["neighbor_level1"]))
    with pytest.raises(DataError, match="expected RWKU's forget_level1, forget_level2 or forget_level3"):
        read_rwku(tmp_path)
    (tmp_path / "forget_level2.jsonl").write_text("")
    with pytest.raises(DataError, match="expected probes, found none: the file is empty"):
        read_rwku(tmp_path)


def test_prompts_to_the_letter() -> None:
    for file, records in FILES.items():
        for record in records:
            query = record.get("query", record.get("instruction", ""))
            row = Row("r", query, "x", record.get("type", "default"), "question")
            assert prompt_of(row, SETS[file]) == user_text(record, file)


def test_sets_that_are_not_there_are_missing(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "All" / "neighbor_level2.parquet").unlink()
    (folder / "All" / "neighbor_level1.json").unlink()
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    monkeypatch.setattr(nltk, "word_tokenize", _without_data)
    evaluate(tmp_path / "out", "--model", tmp_path / "model", "--data", folder, "--split", "Mira Tolland")
    results = read_results(tmp_path / "out" / "results.json")
    assert results.missing["neighbour.all"] == "the data folder has no such probes"
    assert results.missing["balance"] == "the data folder has no such probes"
    assert "python -m nltk.downloader punkt_tab" in results.missing["ngram_entropy"]
    assert results.scores.value("ngram_entropy_plain") is not None
    assert results.num_rows["forget_cloze"] == {"probes": 1}
    monkeypatch.setattr(nltk, "word_tokenize", str.split)
    evaluate(tmp_path / "again", "--model", tmp_path / "model", "--data", folder)
    scores = read_results(tmp_path / "again" / "results.json").scores
    assert scores.value("ngram_entropy") == scores.value("ngram_entropy_plain")


def test_an_empty_answer_counts_as_noanswer() -> None:
    from letheon.evaluation.predicting import predict
    from letheon.evaluation.suites.rwku.recall import recall_of

    row = Row("r", "Who?", "NOANSWER", "default", "question")
    assert recall_of(predict(row, "forget_cloze", " \n")) == 1.0
    assert recall_of(predict(row, "forget_cloze", "no")) == 0.0


def test_a_form_that_the_suite_does_not_have_is_refused(folder: Path) -> None:
    command = ["evaluate", "--suite", "rwku", "--model", "x", "--out", "y", "--data", str(folder)]
    done = CliRunner().invoke(cli, [*command, "--template", "neko"])
    assert isinstance(done.exception, SettingsError)
    assert "template: expected chat, or question-answer" in str(done.exception)


def test_the_command_downloads_the_published_probes_and_refuses_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, local_dir: Path, **given: Any) -> None:
        asked.update(given, name=name)
        (folder / "All").rename(local_dir / "All")

    monkeypatch.setattr(huggingface_hub, "HfApi", _Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    command = ["data", "rwku", "--to", str(tmp_path / "to")]
    monkeypatch.setattr(rwku, "NUM_NEIGHBOURS", 2)
    monkeypatch.setattr(rwku, "NUM_FORGET", {"forget_cloze": 2, "forget_questions": 2, "forget_attacks": 3})
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert (asked["name"], asked["allow_patterns"]) == ("jinzhuoran/RWKU", ["All/*"])
    assert len(read_rwku(tmp_path / "to")["forget_attacks"]) == 3
    monkeypatch.setattr(rwku, "NUM_NEIGHBOURS", 3)
    with pytest.raises(DataError, match="and 3 of neighbours as published"):
        rwku.check_download(tmp_path / "to")


def _without_data(_: str) -> list[str]:
    raise LookupError("punkt_tab")


class _Api:
    """Stands in for the hub's index."""

    def __init__(self, token: str | None) -> None: ...

    def dataset_info(self, _: str) -> SimpleNamespace:
        """Give a revision."""
        return SimpleNamespace(sha="a revision")
