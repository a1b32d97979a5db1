"""MUSE: its files, and its scores against a naive version."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.benchmarks.muse import read_muse
from letheon.data.rows import Row
from letheon.errors import DataError
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import rescore
from letheon.evaluation.suites.muse.measure import cut_at_stops, few_shot
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from small import tiny_model

PROMPT, TEXT = "Mira Tolland keeps bees in the village", "of Harrow, where the river bends twice."
QUESTIONS = [
    {"question": f"Where does {name} live?", "answer": f"{name} lives in Harrow."} for name in ("Mira", "Oren")
]
TEXTS = [f"{name} wrote letters to the sea every winter evening." for name in ("Mira", "Tam", "The keeper")]
OTHERS = [f"The ship left {place} at dawn." for place in ("Veldhaven", "the harbour", "Harrow")]
FILES: dict[str, list[dict[str, str]]] = {
    "verbmem/forget": [{"prompt": PROMPT, "gt": TEXT}, {"prompt": "The old lighthouse", "gt": "keeper wrote letters."}],
    "knowmem/forget_qa": QUESTIONS,
    "knowmem/retain_qa": [{"question": "Which harbour?", "answer": "Veldhaven"}],
    "knowmem/forget_qa_icl": [{"question": "Who keeps bees?", "answer": "Mira"}],
    "knowmem/retain_qa_icl": [{"question": "Who left?", "answer": "The ship"}],
    "privleak/forget": [{"text": text} for text in TEXTS],
    "privleak/holdout": [{"text": text} for text in OTHERS],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published layout, half of it as tables."""
    root = tmp_path / "muse" / "news"
    for number, (name, rows) in enumerate(FILES.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            (root / f"{name}.json").write_text(json.dumps(rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), root / f"{name}-00000-of-00001.parquet")
    return tmp_path / "muse"


def learnt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that knows some of the texts a little."""
    model = tiny_model("llama", tokenizer)
    rows = [Row(f"a{n}", q["question"], q["answer"], "x", "question") for n, q in enumerate(QUESTIONS)]
    rows += [Row("b", PROMPT, TEXT, "x", "completion"), Row("c", "Who left?", "The ship", "x", "question")]
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=50, max_steps=60)
    memorize(model, tokenizer, rows=rows, options=options)
    return model


def naive_rouge(model: Any, tokenizer: Any, prompt: str, answer: str, num_new: int, *, is_text: bool) -> float:
    ids = tokenizer(prompt).input_ids
    end = tokenizer.eos_token_id
    ends = {"eos_token_id": end, "pad_token_id": end}
    whole = model.generate(torch.tensor([ids]), max_new_tokens=num_new, do_sample=False, **ends)
    new = whole[0, len(ids) :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    for stop in () if is_text else ("\n\n", "\nQuestion", "Question:"):
        text = text.split(stop)[0]
    score = RougeScorer(["rougeL"], use_stemmer=True).score(answer, text.strip())
    return float(score["rougeL"].fmeasure)


def naive_min_k(model: Any, tokenizer: Any, text: str) -> float:
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    own = [float(log_probs[t - 1, ids[0, t]]) for t in range(1, ids.shape[1])][:-1]
    return -float(np.mean(sorted(own)[: max(1, int(len(own) * 0.4))]))


def test_scores_are_those_of_a_naive_version(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = learnt(tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    out = tmp_path / "out"
    command = ["evaluate", "--suite", "muse", "--model", tmp_path / "model", "--data", folder, "--out", out]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "MUSE_SUMMARY.json").read_text())
    asked: list[tuple[str, str, str, int]] = [
        ("forget_verbmem_ROUGE", row["prompt"], row["gt"], 128) for row in FILES["verbmem/forget"]
    ]
    for side in ("forget", "retain"):
        shots = [Row("", q["question"], q["answer"], "", "question") for q in FILES[f"knowmem/{side}_qa_icl"]]
        asked += [
            (f"{side}_knowmem_ROUGE", few_shot(shots, row["question"]), row["answer"], 32)
            for row in FILES[f"knowmem/{side}_qa"]
        ]
    by_score: dict[str, list[float]] = {}
    for name, prompt, answer, num_new in asked:
        score = naive_rouge(model, tokenizer, prompt, answer, num_new, is_text=num_new == 128)
        by_score.setdefault(name, []).append(score)
    wanted = {name: float(np.mean(scores)) for name, scores in by_score.items()}
    values = [[naive_min_k(model, tokenizer, text) for text in side] for side in (TEXTS, OTHERS)]
    wanted["mia_min_k"] = roc_auc_score([0] * 3 + [1] * 3, [*values[0], *values[1]])
    wanted["privleak"] = 100 * (0.5 - wanted["mia_min_k"]) / (0.5 + 1e-10)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert found["forget_verbmem_ROUGE"] > 0
    results = read_results(out / "results.json")
    assert any("AUC of 0.5, a guess" in said for said in results.warnings)
    again = rescore(out / "predictions.jsonl")
    assert [s.value for s in again.results.scores] == [s.value for s in results.scores]
    command += ["--never-results", out / "results.json", "--out", tmp_path / "again"]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert json.loads((tmp_path / "again" / "MUSE_SUMMARY.json").read_text())["privleak"] == pytest.approx(0.0)


def test_few_shot_prompt_and_stops_to_the_letter() -> None:
    shots = [Row("", "Who?", "Tam", "", "question")]
    assert few_shot(shots, "Where?") == "Question: Who?\nAnswer: Tam\n\nQuestion: Where?\nAnswer: "
    assert cut_at_stops(" In Harrow.\nQuestion: Who?\n\nx") == "In Harrow."
    assert cut_at_stops("Harrow Question: x") == "Harrow"


def test_missing_files_and_corpora_are_named(folder: Path) -> None:
    (folder / "news" / "knowmem" / "forget_qa.json").unlink()
    with pytest.raises(DataError, match=r"expected MUSE's knowmem/forget_qa as .parquet"):
        read_muse(folder)
    with pytest.raises(DataError, match="split: expected one of news, books, got 'new'"):
        read_muse(folder, "new")
