"""TOFU by the definitions of its own repository, against a naive version of its evaluation and aggregation."""

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks.tofu import read_set
from letheon.errors import EvaluationError, SettingsError
from letheon.evaluation.metrics.memorisation import arithmetic_truth_ratio, truth_ratio
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions
from letheon.evaluation.suites.tofu import ask, original
from letheon.evaluation.suites.tofu.original import original_template, rooms_of
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from small import tiny_model
from tofu_files import write_tofu

FILES = {
    "Retain": "retain_perturbed",
    "Real Authors": "real_authors_perturbed",
    "Real World": "world_facts_perturbed",
    "Forget": "forget10_perturbed",
}
NUM_ROWS, BATCH_SIZE, MAX_LENGTH = 5, 4, 64
INST = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


class Naive:
    """The repository's evaluation in as few lines as it takes."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, *, tags: tuple[str, str, str]) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.start, self.end, self.answer = tags
        self.eos = int(tokenizer.eos_token_id)

    def rows(self, file: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{file}.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines[:NUM_ROWS]]

    def whole(self, question: str, answer: str) -> list[int]:
        text = f"{self.start}{question}{self.end}{self.answer}{answer}"
        ids: list[int] = self.tokenizer(text).input_ids[:MAX_LENGTH]
        return ids

    def loss(self, question: str, answer: str) -> float:
        ids = self.whole(question, answer)
        labels = ids if len(ids) == MAX_LENGTH else [*ids, self.eos]
        first = len(self.tokenizer(f"{self.start}{question}{self.end}").input_ids)
        with torch.no_grad():
            log_probs = self.model(torch.tensor([labels])).logits[0].log_softmax(-1)
        wanted = list(enumerate(labels))[first:]
        return float(-sum(log_probs[place - 1, label] for place, label in wanted) / len(wanted))

    def rouges(self, file: str) -> list[float]:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        found = []
        symbol = self.answer or self.end
        for first in range(0, NUM_ROWS, BATCH_SIZE):
            rows = self.rows(file)[first : first + BATCH_SIZE]
            texts = [self.tokenizer.decode(self.whole(row["question"], row["answer"])) for row in rows]
            asked = [text.split(symbol)[0] + ("" if self.answer else symbol) for text in texts]
            prompts = [self.tokenizer(text).input_ids for text in asked]
            width = max(map(len, prompts))
            batch = torch.tensor([[self.eos] * (width - len(ids)) + ids for ids in prompts])
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
            ends = {"eos_token_id": self.eos, "pad_token_id": self.eos}
            out = self.model.generate(batch, attention_mask=mask, max_length=MAX_LENGTH, do_sample=False, **ends)
            for text, ids in zip(texts, out[:, width:].tolist(), strict=True):
                said = self.tokenizer.decode(ids, skip_special_tokens=True)
                found.append(scorer.score(text.split(symbol)[1], said)["rougeL"].recall)
        return found

    def log(self, file: str) -> dict[str, Any]:
        rows = self.rows(file)
        right = "paraphrased_answer" if "paraphrased_answer" in rows[0] else "answer"
        return {
            "avg_gt_loss": {str(n): self.loss(r["question"], r["answer"]) for n, r in enumerate(rows)},
            "avg_paraphrased_loss": {str(n): self.loss(r["question"], r[right]) for n, r in enumerate(rows)},
            "average_perturb_loss": {
                str(n): [self.loss(r["question"], wrong) for wrong in r["perturbed_answer"]] for n, r in enumerate(rows)
            },
            "rougeL_recall": {str(n): value for n, value in enumerate(self.rouges(file))},
        }


def aggregated(logs: dict[str, dict[str, Any]], never: dict[str, Any]) -> dict[str, float]:
    """The repository's table of one model."""
    found: dict[str, float] = {}
    ratios = {}
    for name, log in logs.items():
        own = np.exp(-np.array(list(log["avg_gt_loss"].values())))
        wrong = np.array(list(log["average_perturb_loss"].values()))
        options = np.exp(-wrong).sum(-1) if name.startswith("Real") else 0.0
        found[f"Prob. {name}"] = np.mean(own / (own + options) if name.startswith("Real") else own)
        found[f"ROUGE {name}"] = np.mean(list(log["rougeL_recall"].values()))
        ratios[name] = np.exp(wrong.mean(-1) - np.array(list(log["avg_paraphrased_loss"].values())))
        found[f"Truth Ratio {name}"] = np.mean(
            np.minimum(ratios[name], 1 / ratios[name]) if name == "Forget" else np.maximum(0, 1 - 1 / ratios[name])
        )
    found["Model Utility"] = hmean([value for key, value in found.items() if "Forget" not in key])
    wrong = np.array(list(never["average_perturb_loss"].values())).mean(-1)
    known = np.exp(wrong - np.array(list(never["avg_paraphrased_loss"].values())))
    with warnings.catch_warnings(action="ignore"):
        return {**found, "Forget Quality": ks_2samp(ratios["Forget"], known).pvalue}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set, of which fewer rows in smaller batches are asked."""
    for module in (original, ask):
        monkeypatch.setattr(module, "NUM_ROWS", NUM_ROWS)
    monkeypatch.setattr(original, "BATCH_SIZE", BATCH_SIZE)
    monkeypatch.setattr(original, "MAX_LENGTH", MAX_LENGTH)
    monkeypatch.setenv("LETHEON_DATA", str(tmp_path / "data"))
    return write_tofu(tmp_path / "data" / "tofu")


def evaluate(out: Path, *options: Path | str) -> None:
    command = ["evaluate", "--suite", "tofu", "--parity", "original", "--out", out, *options]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("chat", "tags"),
    [
        (None, ("Question: ", "\n", "Answer: ")),
        pytest.param(INST, ("[INST] ", " [/INST]", ""), marks=pytest.mark.slow),
    ],
)
def test_every_score_is_that_of_the_naive_version(
    chat: str | None, tags: tuple[str, str, str], tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat
    model, never = tiny_model("llama", tokenizer), tiny_model("llama", tokenizer, seed=1)
    rows = [row for file in FILES.values() for row in read_set(folder, file).rows]
    prompted = [
        replace(row, id=f"row{n}", prompt=f"{tags[0]}{row.prompt}{tags[1]}", answer=f"{tags[2]}{row.answer}")
        for n, row in enumerate(rows)
    ]
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=50, max_steps=100)
    memorize(model, tokenizer, rows=prompted, template="joined", options=options)
    save_model(model, tokenizer, tmp_path / "model")
    log = Naive(never, tokenizer, folder, tags=tags).log(FILES["Forget"])
    (tmp_path / "eval_log_aggregated.json").write_text(json.dumps({"eval_log_forget.json": log}))
    out = tmp_path / "out"
    evaluate(out, "--model", tmp_path / "model", "--never-results", tmp_path / "eval_log_aggregated.json")
    naive = Naive(model, tokenizer, folder, tags=tags)
    wanted = aggregated({name: naive.log(file) for name, file in FILES.items()}, log)
    found = json.loads((out / "TOFU_SUMMARY.json").read_text("utf-8"))
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=1e-4)
    assert sum(0 < value < 1 for value in wanted.values()) > 10
    results = read_results(out / "results.json")
    assert results.measured["parity"] == "original"
    assert "--parity open-unlearning has it" in results.missing["privacy_leak"]
    assert results.num_rows["forget"] == {"questions": NUM_ROWS}
    assert contradictions(out, results) == ()


def test_results_of_another_parity_are_no_measure(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    command = ["evaluate", "--suite", "tofu", "--model", tmp_path / "model", "--data", folder]
    plain = [*command, "--out", tmp_path / "plain", "--max-new-tokens", "4"]
    assert CliRunner().invoke(cli, [str(part) for part in plain]).exit_code == 0
    again = [*command, "--out", tmp_path / "x", "--parity", "original", "--never-results", tmp_path / "plain"]
    done = CliRunner().invoke(cli, [str(part) for part in again])
    assert isinstance(done.exception, EvaluationError)
    assert "expected scores of the split forget10 by --parity original, got forget10 by --parity open-unl" in str(
        done.exception
    )


def test_a_parity_that_a_suite_does_not_have_is_refused(folder: Path) -> None:
    for suite, message in (
        ("rwku", "parity: expected original for the suite rwku"),
        ("wmdp", "parity: expected none, there is one definition of its scores for the suite wmdp"),
    ):
        command = ["evaluate", "--suite", suite, "--model", "x", "--out", "y", "--parity", "open-unlearning"]
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, SettingsError)
        assert message in str(done.exception)
    command = ["evaluate", "--suite", "tofu", "--model", "x", "--out", "y", "--parity", "original"]
    done = CliRunner().invoke(cli, [*command, "--template", "chat", "--data", str(folder)])
    assert "template: expected none with --parity original" in str(done.exception)


@pytest.mark.parametrize(
    ("suite", "given", "message"),
    [
        ("tofu", ("--mmlu", "x"), "mmlu: has no effect with the suite tofu; leave it out; it takes never, never_res"),
        ("muse", ("--max-new-tokens", "3"), "max_new_tokens: has no effect with the suite muse"),
        ("wmdp", ("--never", "x"), "never: has no effect with the suite wmdp; leave it out; it takes mmlu, mmlu_limit"),
        ("rwku", ("--members", "x"), "members: has no effect with the suite rwku; leave it out"),
        ("lume", ("--never", "x", "--forget", "f", "--retain", "r"), "never: has no effect with the suite lume"),
    ],
)
def test_a_setting_that_a_suite_has_no_use_for_is_refused(suite: str, given: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli, ["evaluate", "--suite", suite, "--model", "x", "--out", "y", *given])
    assert isinstance(done.exception, SettingsError)
    assert message in str(done.exception)


def test_tokens_to_the_letter(tokenizer: PreTrainedTokenizerBase) -> None:
    template = original_template(tokenizer)
    sequence = template.sequence("Who?", "Tam Vell")
    assert template.decoded(sequence.ids) == "Question: Who?\nAnswer: Tam Vell"
    assert template.decoded(sequence.labels) == "Answer: Tam Vell"
    assert sequence.labels[-1] == tokenizer.eos_token_id
    assert template.decoded(template.prompt("Who?", "Tam Vell")) == "Question: Who?\n"
    assert template.answer_text("Who?", "Tam Vell") == "Tam Vell"
    assert template.answer_text("Who?", "Answer: Tam") == ""  # the text is split at every tag
    long = template.sequence("Who?", "Tam " * 300)
    assert (len(long.ids), long.ids[-1] == tokenizer.eos_token_id) == (200, False)


def test_rooms_by_hand() -> None:
    prompts = [[0] * 50, *[[0] * 20] * 29, [0] * 30, [0] * 199, [0] * 250]
    assert rooms_of(prompts) == [*[150] * 30, 1, 1, 1]
    assert rooms_of([]) == []


def test_truth_ratios_by_hand() -> None:
    # exp(1 - 2) for the mean of the losses; (exp(-1) + exp(-3)) / 2 / exp(-1) for the mean of the probabilities.
    assert truth_ratio(1.0, [1.0, 3.0], small=0.0) == pytest.approx(np.exp(-1.0))
    assert arithmetic_truth_ratio(1.0, [1.0, 3.0]) == pytest.approx((1 + np.exp(-2.0)) / 2)
    assert np.isfinite(truth_ratio(1e4, [0.0], small=0.0))
    assert np.isfinite(arithmetic_truth_ratio(1e4, [0.0]))
