"""Evaluations of every suite, audits, memorising and populations on a device that is not there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from audited import new_world
from letheon import Row
from letheon.api import audit, evaluate
from letheon.auditing.registry import attacks
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.unlearning.populations.run import run_population
from pretend_device import OnDevice, PretendDevice, pretended
from running import knowing_model, run, short_run
from small import tiny_model
from tofu_files import write_tofu

TEXTS = [{"text": f"{name} wrote letters to the sea every winter evening."} for name in ("Mira", "Tam", "The keeper")]
QUESTIONS = [{"question": f"Where does {name} live?", "answer": f"{name} lives in Harrow."} for name in ("Mira", "Tam")]
CHOICES = [
    {"question": f"Which of {n} ships left?", "choices": ["one", "two", "three", "none"], "answer": n} for n in (0, 3)
]
MUSE = {
    "verbmem/forget": [{"prompt": "The old lighthouse", "gt": "keeper wrote letters."}],
    "knowmem/forget_qa": QUESTIONS,
    "knowmem/retain_qa": QUESTIONS,
    "knowmem/forget_qa_icl": QUESTIONS,
    "knowmem/retain_qa_icl": QUESTIONS,
    "privleak/forget": TEXTS,
    "privleak/holdout": TEXTS,
}  # fmt: skip


def write_muse(folder: Path) -> None:
    for name, rows in MUSE.items():
        path = folder / "news" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))


def write_wmdp(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "wmdp-bio.jsonl").write_text("".join(json.dumps(question) + "\n" for question in CHOICES))


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "write"), [("tofu", write_tofu), ("muse", write_muse), ("wmdp", write_wmdp)])
def test_a_suite_with_data_of_its_own(
    suite: str,
    write: Callable[[Path], object],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    device: PretendDevice,
) -> None:
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    write(tmp_path / "data")
    given = {"suite": suite, "model": str(tmp_path / "model"), "data": tmp_path / "data", "out": tmp_path / "scores"}
    found = evaluate(EvaluateSettings.of(given | ({"max_new_tokens": 8} if suite == "tofu" else {})))
    assert any(score.value is not None for score in found.results.scores)


@pytest.mark.slow
def test_a_run_scored_by_the_suite_of_its_rows(
    tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase, device: PretendDevice
) -> None:
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    for name, text in (("members", TEXTS[0]), ("nonmembers", TEXTS[1])):
        documents = [
            json.dumps({"document": text["text"].replace("winter", season)}) for season in ("spring", "autumn")
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(documents))
    report = run({**given, "evaluate": True}, epochs=1, general="auto", dial="forgotten")
    scores = {"model": str(report.model), "forget": given["forget"], "retain": given["retain"]}
    texts = {name: tmp_path / f"{name}.jsonl" for name in ("members", "nonmembers")}
    found = evaluate(EvaluateSettings.of({**scores, **texts, "out": tmp_path / "scores", "max_new_tokens": 8}))
    assert found.predictions


@pytest.mark.slow
def test_a_model_that_memorises(
    rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: PretendDevice
) -> None:
    device.move(model)
    memorize(model, tokenizer, rows=rows, options=MemorizeOptions(check_every=5, max_steps=10))
    assert all(isinstance(parameter, OnDevice) for parameter in model.parameters())


@pytest.mark.slow
def test_every_attack_of_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = new_world(tmp_path, num=6, models=("before",))
    save_model(tiny_model("olmo", world.tokenizer), world.tokenizer, tmp_path / "after")
    settings = world.given("after", attacks=tuple(attacks()), max_new_tokens=8, samples=2, rows=2)
    with pretended(monkeypatch):
        found = audit(settings)
    assert {attack.name for attack in found.attacks} | set(found.left_out) == set(attacks())


@pytest.mark.slow
def test_runs_of_a_population(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: PretendDevice
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer) | {"epochs": 2}
    settings = [UnlearnSettings.of({**given, "out": tmp_path / f"run{seed}", "seed": seed}) for seed in (0, 1)]
    reports = run_population(settings)
    assert [report.folder.name for report in reports] == ["run0", "run1"]
    assert all(path.is_file() for path in (tmp_path / "run1/model/model.safetensors", tmp_path / "run0/run.yaml"))
