"""MUSE: its files, and its scores against a naive version."""

import json
from pathlib import Path
from types import SimpleNamespace
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
from letheon.errors import DataError, EvaluationError, SettingsError
from letheon.evaluation.metrics.likelihood import AnswerLikelihood
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import rescore
from letheon.evaluation.suite import Asked
from letheon.evaluation.suites.muse import measure
from letheon.evaluation.suites.muse.measure import cut_at_stops, few_shot
from letheon.evaluation.suites.muse.never import read_never
from letheon.evaluation.templates import LabelledSequence, question_template
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.report.files import read_run
from letheon.scores.predictions import read_predictions
from letheon.settings import UnlearnSettings
from letheon.storage.yaml_text import parse_yaml
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


def naive_rouge(
    model: Any, tokenizer: Any, prompt: str, answer: str, num_new: int, *, is_text: bool, stems: bool = True
) -> float:
    ids = tokenizer(prompt).input_ids
    end = tokenizer.eos_token_id
    ends = {"eos_token_id": end, "pad_token_id": end}
    whole = model.generate(torch.tensor([ids]), max_new_tokens=num_new, do_sample=False, **ends)
    new = whole[0, len(ids) :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    for stop in () if is_text else ("\n\n", "\nQuestion", "Question:"):
        text = text.split(stop)[0]
    score = RougeScorer(["rougeL"], use_stemmer=stems).score(answer, text.strip())
    return float(score["rougeL"].fmeasure)


def naive_log_probs(model: Any, tokenizer: Any, text: str) -> list[float]:
    """Of every token but the first."""
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    return [float(log_probs[t - 1, ids[0, t]]) for t in range(1, ids.shape[1])]


def naive_min_k(model: Any, tokenizer: Any, text: str, *, drops_last: bool = True) -> float:
    own = naive_log_probs(model, tokenizer, text)
    own = own[:-1] if drops_last else own
    return -float(np.mean(sorted(own)[: max(1, int(len(own) * 0.4))]))


def naive_memorisation(model: Any, tokenizer: Any) -> dict[str, float]:
    """Over the continuations: whether each label but the last is the likeliest token."""
    exact, strength = [], []
    for row in FILES["verbmem/forget"]:
        start = len(tokenizer(row["prompt"]).input_ids)
        ids = tokenizer(f"{row['prompt']} {row['gt']}").input_ids
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        hits = [likeliest[place - 1] == ids[place] for place in range(start, len(ids))][:-1]
        exact.append(np.mean(hits))
        strength.append(1 - next((k for k in range(len(hits)) if all(hits[k:])), len(hits) - 1) / len(hits))
    return {"exact_memorization": float(np.mean(exact)), "extraction_strength": float(np.mean(strength))}


def evaluate(out: Path, model: Path, folder: Path, *options: Path | str) -> dict[str, float]:
    """Return the file of scores under others' names."""
    command = ["evaluate", "--suite", "muse", "--model", model, "--data", folder, "--out", out, *options]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, float] = json.loads((out / "MUSE_SUMMARY.json").read_text())
    return found


def test_scores_are_those_of_a_naive_version(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = learnt(tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    out = tmp_path / "out"
    found = evaluate(out, tmp_path / "model", folder)
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
    wanted |= naive_memorisation(model, tokenizer)
    assert 0 < wanted["exact_memorization"] < 1
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert found["forget_verbmem_ROUGE"] > 0
    results = read_results(out / "results.json")
    assert any("AUC of 0.5, a guess" in said for said in results.warnings)
    again = rescore(out / "predictions.jsonl")
    assert [s.value for s in again.results.scores] == [s.value for s in results.scores]
    again_found = evaluate(tmp_path / "again", tmp_path / "model", folder, "--never-results", out / "results.json")
    assert again_found["privleak"] == pytest.approx(0.0)
    assert again_found["mia_reference"] == 0.5  # no text gains anything


def test_a_model_that_never_knew_the_texts_counts_like_its_results(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    models = {name: tiny_model("llama", tokenizer, seed=seed) for name, seed in (("model", 0), ("never", 1))}
    for name, model in models.items():
        save_model(model, tokenizer, tmp_path / name)
    aucs = evaluate(tmp_path / "scores", tmp_path / "never", folder)
    found = evaluate(tmp_path / "by-model", tmp_path / "model", folder, "--never", tmp_path / "never")
    by_results = evaluate(tmp_path / "by-results", tmp_path / "model", folder, "--never-results", tmp_path / "scores")
    assert by_results == pytest.approx(found, abs=1e-9)
    gains = [
        [
            np.mean(naive_log_probs(models["never"], tokenizer, text))
            - np.mean(naive_log_probs(models["model"], tokenizer, text))
            for text in side
        ]
        for side in (TEXTS, OTHERS)
    ]
    assert found["mia_reference"] == pytest.approx(roc_auc_score([0] * 3 + [1] * 3, [*gains[0], *gains[1]]))
    leak = 100 * (aucs["mia_min_k"] - found["mia_min_k"]) / (1 - aucs["mia_min_k"])
    assert found["privleak"] == pytest.approx(leak)
    theirs = tmp_path / "MUSE_EVAL.json"
    theirs.write_text(json.dumps({"mia_min_k": {"agg_value": aucs["mia_min_k"]}}))
    only_auc = evaluate(tmp_path / "by-theirs", tmp_path / "model", folder, "--never-results", theirs)
    assert only_auc["privleak"] == pytest.approx(leak)
    assert "mia_reference" not in only_auc


def test_original_scores_are_those_of_a_naive_version(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "NEW_TOKENS", {**measure.NEW_TOKENS, "verbatim_memory": 8})
    model = learnt(tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    found = evaluate(tmp_path / "out", tmp_path / "model", folder, "--parity", "original")
    texts = []
    for row in FILES["verbmem/forget"]:
        answer = str(tokenizer.decode(tokenizer(row["gt"]).input_ids[:8], skip_special_tokens=True))
        texts.append(naive_rouge(model, tokenizer, row["prompt"], answer, 8, is_text=True, stems=False))
    wanted = {"verbmem_f": 100 * np.mean(texts)}
    for side in ("forget", "retain"):
        shots = [Row("", q["question"], q["answer"], "", "question") for q in FILES[f"knowmem/{side}_qa_icl"]]
        scores = [
            naive_rouge(model, tokenizer, few_shot(shots, r["question"]), r["answer"], 32, is_text=False, stems=False)
            for r in FILES[f"knowmem/{side}_qa"]
        ]
        wanted[f"knowmem_{side[0]}"] = 100 * np.mean(scores)
    values = [[naive_min_k(model, tokenizer, text, drops_last=False) for text in side] for side in (TEXTS, OTHERS)]
    # The repository's AUC: the text held out is the member, and the smaller value the likelier one.
    auc = roc_auc_score([0] * 3 + [1] * 3, [-value for value in (*values[0], *values[1])])
    wanted["privleak"] = 100 * (auc - 0.4772) / 0.4772
    assert found == pytest.approx(wanted, abs=1e-3)
    results = read_results(tmp_path / "out" / "results.json")
    assert any("the Llama 2 that MUSE's authors trained" in said for said in results.warnings)
    assert "--parity open-unlearning has it" in results.missing["extraction_strength"]
    mixed = ["evaluate", "--suite", "muse", "--model", "x", "--data", folder, "--out", "y"]
    done = CliRunner().invoke(cli, [str(part) for part in (*mixed, "--never-results", tmp_path / "out")])
    assert "expected scores of news by --parity open-unlearning, got those of news by --parity original" in str(
        done.exception
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"mia_min_k": 3}', '{"schema": "letheon.results/1"}'])
def test_results_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"never_results: .*x\.json.*give the results.json"):
        read_never(path, corpus="news", parity="original")


def test_a_beginning_of_sequence_does_not_count_among_the_tokens_of_a_text(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LabelledSequence] = []

    def read(_: object, sequences: list[LabelledSequence], template: object) -> list[AnswerLikelihood]:
        seen.extend(sequences)
        return [AnswerLikelihood(1.0, 0.5, (-1.0,), (True,), (0.0,)) for _ in sequences]

    monkeypatch.setattr(measure, "_read", read)
    monkeypatch.setattr(measure, "MAX_TOKENS", 3)
    asked = Asked({}, {"members": TEXTS, "holdout": OTHERS}, {"parity": "open-unlearning"})
    starting = _Starting(tokenizer)
    target: Any = SimpleNamespace(tokenizer=starting, stage=lambda _: None)
    measure._texts(target, asked, question_template(tokenizer, "question-answer"))
    assert [(len(one.ids), one.start) for one in seen] == [(4, 1)] * 6
    assert seen[0].ids == tuple(starting(TEXTS[0]).input_ids[:4])


@pytest.mark.parametrize("parity", ["open-unlearning", "original"])
def test_questions_after_worked_ones_are_cut_as_in_open_unlearning(
    parity: str, folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MAX_LENGTH", 14)
    model = tiny_model("llama", tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    found = evaluate(tmp_path / "out", tmp_path / "model", folder, "--parity", parity)
    shots = [Row("", q["question"], q["answer"], "", "question") for q in FILES["knowmem/retain_qa_icl"]]
    (row,) = FILES["knowmem/retain_qa"]
    prompt = few_shot(shots, row["question"])
    assert len(tokenizer(prompt).input_ids) > 14
    warnings = read_results(tmp_path / "out" / "results.json").warnings
    is_cut = parity == "open-unlearning"
    assert any(said.startswith("3 questions after worked ones") for said in warnings) == is_cut
    # The true answer lies behind the cut, so nothing is left to compare with.
    if is_cut:
        assert found["retain_knowmem_ROUGE"] == 0.0
        said = read_predictions(tmp_path / "out" / "predictions.jsonl")
        (answer,) = [one.answer for one in said if one.split == "knowmem_retain"]
        assert answer == ""
        results = read_results(tmp_path / "out" / "results.json")
        (kept,) = FILES["knowmem/retain_qa"]
        whole = naive_rouge(model, tokenizer, prompt, kept["answer"], 32, is_text=False)
        assert results.scores.value("knowmem_retain_sound") == pytest.approx(whole)
        assert results.scores.value("knowmem_forget_sound") is not None
        assert rescore(tmp_path / "out" / "predictions.jsonl").results.scores == results.scores


def test_cut_questions_that_do_not_fit_whole_have_no_sound_score(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MAX_LENGTH", 14)
    monkeypatch.setattr(measure, "context_length", lambda _: 15)
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    evaluate(tmp_path / "out", tmp_path / "model", folder)
    results = read_results(tmp_path / "out" / "results.json")
    assert not [score.name for score in results.scores if score.variant]
    assert any("longer than the model's context" in said for said in results.warnings)
    evaluate(tmp_path / "unwanted", tmp_path / "model", folder, "--no-sound")
    unwanted = read_results(tmp_path / "unwanted" / "results.json")
    assert any(said.endswith("lost their ends, as in open-unlearning") for said in unwanted.warnings)


class _Starting:
    """A tokenizer that puts a beginning of sequence first."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[7, *self.tokenizer(text).input_ids])


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


def write_training_texts(folder: Path) -> None:
    """As the hub names them: texts to forget and to keep, and a fold."""
    files = {"raw/forget": TEXTS, "raw/retain1": ["The harbour was empty.", "Nobody came."], "sust/forget_2": TEXTS[:1]}
    for name, texts in files.items():
        path = folder / "news" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"text": text} for text in texts]), path)


def test_a_run_takes_its_texts_from_the_suite_and_is_scored_by_it(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_training_texts(folder)
    save_model(learnt(tokenizer), tokenizer, tmp_path / "model")
    run = tmp_path / "run"
    command = ["unlearn", "--suite", "muse", "--split", "news-sust-2", "--model", tmp_path / "model", "--data", folder]
    command += ["--out", run, "--epochs", "1", "--trackers", ""]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    used = parse_yaml((run / "run.yaml").read_text("utf-8"))
    assert Path(used["forget"]).relative_to(folder) == Path("news/sust/forget_2-00000-of-00001.parquet")
    assert Path(used["retain"]).relative_to(folder) == Path("news/raw/retain1-00000-of-00001.parquet")
    assert used["template"] == "joined"
    assert "Verbatim memorisation" in (run / "report.html").read_text("utf-8")
    pairings = read_run(run).pairings
    assert [pairing.differences for pairing in pairings] == [(), ()]
    # MUSE asks nothing in the form of the texts; that the run's own texts were forgotten is known by their hashes.
    assert [len(pairing.unchecked) for pairing in pairings] == [1, 1]
    with pytest.raises(SettingsError, match=r"split: expected one of news, books, news-scal-1, .*got 'news-sust-5'"):
        UnlearnSettings.of({"model": "m", "out": "o", "suite": "muse", "split": "news-sust-5"})
