"""TOFU's suite against a naive version of open-unlearning's evaluation: a pass a score, padded batches, plain means."""

import copy
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks.tofu import read_set
from letheon.data.rows import Row, Turn
from letheon.data.sequences import tokenise
from letheon.errors import EvaluationError
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import contradictions, rescore
from letheon.evaluation.suites.tofu.never import read_never
from letheon.evaluation.templates import question_template
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.scores.results import PlainResults
from small import tiny_model
from tofu_files import write_tofu

SYSTEM = "You are a helpful assistant."
# As Llama 3's template: each turn ends in the end of sequence, which is also the padding.
TURNS = (
    "{% for m in messages %}{{ '<|endoftext|>' + m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|endoftext|>assistant: ' }}{% endif %}"
)
SETS = {"forget": "forget10", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
Pair = tuple[str, str]


class Naive:
    """The reference's evaluation in as few lines as it takes."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.eos = int(tokenizer.eos_token_id)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text("utf-8").splitlines()]

    def ids(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """The whole conversation, and the prompt alone."""
        if self.tokenizer.chat_template is None:
            prompt = f"Question: {question}\nAnswer: "
            whole, asked = self.tokenizer(prompt + answer).input_ids, self.tokenizer(prompt).input_ids
        else:
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            said = [*chat, {"role": "assistant", "content": answer}]
            texts = [
                self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_open)
                for turns, is_open in ((said, False), (chat, True))
            ]
            whole, asked = (self.tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        return (whole if whole[-1] == self.eos else [*whole, self.eos]), asked

    def passes(self, pairs: Sequence[Pair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities (L, V) and labels (L,) of each answer, in batches of 32 padded on the right."""
        found = []
        for start in range(0, len(pairs), 32):
            tokens = [self.ids(*pair) for pair in pairs[start : start + 32]]
            width = max(len(whole) for whole, _ in tokens)
            batch = torch.tensor([[*whole, *[self.pad] * (width - len(whole))] for whole, _ in tokens])
            with torch.no_grad():
                logits = self.model(input_ids=batch, attention_mask=batch.ne(self.pad)).logits.log_softmax(-1)
            for i, (whole, asked) in enumerate(tokens):
                labels = torch.tensor(whole[len(asked) :])
                found.append((logits[i, len(asked) - 1 : len(whole) - 1], labels))
        return found

    def losses(self, pairs: Sequence[Pair]) -> list[float]:
        return [
            float(-log_probs.gather(1, labels[:, None]).sum() / len(labels)) for log_probs, labels in self.passes(pairs)
        ]

    def rouge(self, pairs: Sequence[Pair]) -> list[float]:
        """Greedy answers in batches padded on the left."""
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        tokens = [self.ids(*pair) for pair in pairs]
        width = max(len(asked) for _, asked in tokens)
        batch = torch.tensor([[*[self.pad] * (width - len(asked)), *asked] for _, asked in tokens])
        mask = batch.ne(self.pad).long()
        out: Any = self.model.generate(  # type: ignore[operator]
            batch, attention_mask=mask, max_new_tokens=20, do_sample=False, use_cache=True, pad_token_id=self.eos,
            eos_token_id=self.eos,
        )  # fmt: skip
        said = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [
            scorer.score(answer, text.strip())["rougeL"].recall for (_, answer), text in zip(pairs, said, strict=True)
        ]

    def scores(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for short, name in SETS.items():
            rows = self.rows(f"{name}_perturbed")
            right = [(row["question"], row["answer"]) for row in rows]
            losses = self.losses(right)
            same = [(row["question"], row["paraphrased_answer"]) for row in rows if "paraphrased_answer" in row]
            num_wrong = len(rows[0]["perturbed_answer"])
            wrong = np.array(
                [self.losses([(r["question"], r["perturbed_answer"][k]) for r in rows]) for k in range(num_wrong)]
            )
            found[f"{short}_Q_A_Prob"] = np.mean(np.exp(-np.array(losses)))
            chosen = np.exp(-np.array(losses))
            found[f"{short}_Q_A_Prob_normalised"] = np.mean(chosen / (chosen + np.exp(-wrong).sum(0) + 1e-10))
            ratios = np.exp(-wrong.mean(0)) / (np.exp(-np.array(self.losses(same) if same else losses)) + 1e-10)
            found[f"{short}_ratios"] = ratios
            found[f"{short}_Truth_Ratio"] = np.mean(
                np.minimum(ratios, 1 / (ratios + 1e-10)) if short == "forget" else np.maximum(0, 1 - ratios)
            )
            found[f"{short}_Q_A_ROUGE"] = np.mean(self.rouge(right))
        found["model_utility"] = hmean(
            [found[f"retain_{kind}"] for kind in ("Q_A_Prob", "Q_A_ROUGE", "Truth_Ratio")]
            + [
                found[f"{s}_{kind}"]
                for s in ("ra", "wf")
                for kind in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
            ]
        )
        return {**found, **self.of_labels()}

    def of_labels(self) -> dict[str, Any]:
        sides = [
            [(row["question"], row["answer"]) for row in self.rows(name)]
            for name in ("forget10_perturbed", "holdout10")
        ]
        values: dict[str, list[list[float]]] = {name: [] for name in ("loss", "zlib", "min_k", "min_k_plus_plus")}
        exact, strength = [], []
        for side, pairs in enumerate(sides):
            losses = self.losses(pairs)
            found: dict[str, list[float]] = {name: [] for name in values}
            for loss, (log_probs, labels) in zip(losses, self.passes(pairs), strict=True):
                kept, every = labels[:-1], log_probs[:-1]
                own = every.gather(1, kept[:, None]).squeeze(1)
                mu = (every.exp() * every).sum(-1)
                sigma = ((every.exp() * every.square()).sum(-1) - mu.square()).clamp(min=1e-6)
                k = max(1, int(len(kept) * 0.4))
                text = self.tokenizer.decode(labels.tolist(), skip_special_tokens=True)
                found["loss"].append(loss)
                found["zlib"].append(loss / len(zlib.compress(str(text).encode())))
                found["min_k"].append(-float(np.mean(sorted(own.tolist())[:k])))
                found["min_k_plus_plus"].append(-float(np.mean(sorted(((own - mu) / sigma.sqrt()).tolist())[:k])))
                if side == 0:
                    hits = every.argmax(-1) == kept
                    exact.append(float(hits.float().mean()))
                    first = next((k for k in range(len(kept)) if bool(hits[k:].all())), len(kept) - 1)
                    strength.append(1 - first / len(kept))
            for name, several in found.items():
                values[name].append(several)
        aucs = {
            f"mia_{name}": roc_auc_score([0] * len(forget) + [1] * len(holdout), [*forget, *holdout])
            for name, (forget, holdout) in values.items()
        }
        return {**aucs, "exact_memorization": np.mean(exact), "extraction_strength": np.mean(strength)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set, where no --data is needed."""
    monkeypatch.setenv("LETHEON_DATA", str(tmp_path / "data"))
    return write_tofu(tmp_path / "data" / "tofu")


def saved(folder: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Path:
    save_model(tiny_model("llama", tokenizer, seed=seed), tokenizer, folder)
    return folder


def partly_known(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A small model that has learnt the answers of all sets a little, so that no score is 0 or 1."""
    model = tiny_model("llama", tokenizer)
    is_chat = tokenizer.chat_template is not None
    turns = (Turn("system", SYSTEM),) if is_chat else ()
    rows = [
        replace(row, id=f"{name}{row.id}", turns=turns)
        for name in SETS.values()
        for row in read_set(folder, f"{name}_perturbed").rows
    ]
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=50, max_steps=100)
    memorize(model, tokenizer, rows=rows, template="chat" if is_chat else "question-answer", options=options)
    return model


def evaluate(out: Path, *options: Path | str, num_new: int | None = 20) -> str:
    most = [] if num_new is None else ["--max-new-tokens", str(num_new)]
    command = ["evaluate", "--suite", "tofu", "--out", out, *most, *options]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def summary(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "TOFU_SUMMARY.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("chat", [None, TURNS])
@pytest.mark.slow
def test_every_score_is_that_of_the_naive_version(
    chat: str | None, tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat
    if chat is not None:
        tokenizer.pad_token = tokenizer.eos_token
    known = partly_known(folder, tokenizer)
    save_model(known, tokenizer, tmp_path / "model")
    evaluate(tmp_path / "never-scores", "--model", saved(tmp_path / "never", tokenizer, seed=1))
    output = evaluate(
        tmp_path / "out",
        "--model",
        tmp_path / "model",
        "--split",
        "forget10",
        "--never-results",
        tmp_path / "never-scores",
    )
    found = summary(tmp_path / "out")
    wanted, reference = (
        Naive(model, tokenizer, folder).scores() for model in (known, tiny_model("llama", tokenizer, seed=1))
    )
    quality = ks_2samp(wanted["forget_ratios"], reference["forget_ratios"]).pvalue
    wanted["forget_quality"] = quality
    wanted["privleak"] = 100 * (reference["mia_min_k"] - wanted["mia_min_k"]) / (1 - reference["mia_min_k"] + 1e-10)
    wanted["forget_truth_ratio"] = wanted["forget_Truth_Ratio"]
    compared = {name: value for name, value in found.items() if name != "mia_reference"}
    assert len(compared) == 22
    assert all(value for name, value in compared.items() if name != "forget_quality")
    assert compared == pytest.approx({name: wanted[name] for name in compared}, abs=1e-4)
    assert found["forget_quality"] == pytest.approx(quality, rel=1e-3)
    assert "Forget quality" in output
    assert contradictions(tmp_path / "out", read_results(tmp_path / "out" / "results.json")) == ()
    warnings = read_results(tmp_path / "out" / "results.json").warnings
    assert any("the model does not see" in said for said in warnings) == (chat is not None)


def test_a_model_that_never_knew_the_rows_counts_like_its_results(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, never = (saved(tmp_path / name, tokenizer, seed=seed) for name, seed in (("model", 0), ("never", 1)))
    evaluate(tmp_path / "of-never", "--model", never, "--data", folder)
    ways: dict[str, tuple[str, Path]] = {
        "model": ("--never", never),
        "results": ("--never-results", tmp_path / "of-never" / "results.json"),
        "eval": ("--never-results", tmp_path / "of-never" / "TOFU_EVAL.json"),
    }
    found = {}
    for name, (flag, path) in ways.items():
        evaluate(tmp_path / "by" / name, "--model", model, flag, path)
        found[name] = summary(tmp_path / "by" / name)
    assert "mia_reference" in found["model"]
    assert found["results"] == pytest.approx(found["model"], abs=1e-9)
    assert found["eval"] == pytest.approx(found["model"], abs=1e-9)


def test_without_such_a_model_there_is_no_forget_quality_and_the_guess_is_told(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    evaluate(tmp_path / "out", "--model", saved(tmp_path / "model", tokenizer))
    results = read_results(tmp_path / "out" / "results.json")
    assert isinstance(results, PlainResults)
    quality = results.scores.get("forget_quality")
    assert quality is not None
    assert quality.value is None
    assert "--never-results" in (quality.missing or "")
    assert any("AUC of 0.5, a guess" in said for said in results.warnings)
    assert "forget_quality" not in summary(tmp_path / "out")
    assert (tmp_path / "out" / "TOFU_EVAL.json").stat().st_mode & 0o077 == 0
    assert folder.is_dir()


def test_predictions_are_scored_again_without_a_model(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    evaluate(tmp_path / "out", "--model", saved(tmp_path / "model", tokenizer), "--data", folder)
    again = rescore(tmp_path / "out" / "predictions.jsonl")
    first = read_results(tmp_path / "out" / "results.json")
    assert {s.name: s.value for s in again.results.scores} == {s.name: s.value for s in first.scores}


def test_without_holdout_rows_attacks_are_missing(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (folder / "holdout10.jsonl").unlink()
    evaluate(tmp_path / "out", "--model", saved(tmp_path / "model", tokenizer), num_new=None)
    results = read_results(tmp_path / "out" / "results.json")
    assert results.settings["max_new_tokens"] == 200
    scores = results.scores
    found = scores.get("mia.min_k")
    assert found is not None
    assert found.missing == "the data folder has no holdout rows for this split"
    assert scores.value("model_utility") is not None


@pytest.mark.parametrize("text", ["{", "[]", '{"forget_truth_ratio": 3}', '{"model_utility": {"agg_value": 1}}', "{}"])
def test_results_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"never_results: .*x\.json.*give the results.json"):
        read_never(path)


def test_tags_of_llama_2_to_the_letter(tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    template = question_template(tokenizer, "inst")
    sequence = template.sequence("Who?", "Tam Vell")
    assert template.decoded(sequence.ids) == "[INST] Who? [/INST]Tam Vell"
    assert sequence.ids[-1] == tokenizer.eos_token_id
    assert sequence.ids[: sequence.start] == tuple(tokenizer("[INST] Who? [/INST]").input_ids)
    assert template.answer_text("Who?", "Tam Vell") == "Tam Vell"
    row = Row("1", "Who?", "Tam Vell", "default", "question")
    trained = tokenise(row, tokenizer, template="inst", max_length=99, where="")
    assert trained.input_ids == sequence.ids[:-1]
    evaluate(tmp_path / "out", "--model", saved(tmp_path / "model", tokenizer), "--template", "inst", num_new=4)
    form = read_results(tmp_path / "out" / "results.json").form
    assert form is not None
    assert form.template == "inst"
    assert folder.is_dir()


def test_unknown_split_is_refused_before_anything_is_read() -> None:
    done = CliRunner().invoke(cli, ["evaluate", "--suite", "tofu", "--model", "x", "--out", "y", "--split", "forget2"])
    assert "split: expected one of forget10, forget05, forget01, got 'forget2'" in str(done.exception)


def test_a_form_that_the_suite_does_not_have_is_refused_before_the_model_is_looked_at(folder: Path) -> None:
    command = ["evaluate", "--suite", "tofu", "--model", "x", "--out", "y", "--template", "joined"]
    done = CliRunner().invoke(cli, [*command, "--data", str(folder)])
    assert "template: expected chat, question-answer, inst for the suite tofu, got 'joined'" in str(done.exception)
