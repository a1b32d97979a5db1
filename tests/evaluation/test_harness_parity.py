"""WMDP and MMLU by likelihood equal lm-evaluation-harness on the same files; needs the extra `harness`."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.evaluation.registry import read_results
from letheon.model.loading import save_model
from small import tiny_model

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

WORDS = ("Mira", "Tolland", "keeps", "bees", "in", "Harrow", "where", "the", "river", "bends", "and", "letters", "went")
MMLU_SUBJECTS = ("abstract_algebra", "world_religions")


def questions(num: int, seed: int) -> list[dict[str, Any]]:
    """Made-up questions of many lengths, one with white space around it and one whose option reads as missing."""

    def words(first: int, count: int) -> str:
        return " ".join(WORDS[(first * 7 + seed + step * step) % len(WORDS)] for step in range(count))

    found: list[dict[str, Any]] = [
        {"question": words(n, 3 + n % 9), "choices": [words(n + k, 1 + k) for k in range(4)], "answer": n * 5 % 4}
        for n in range(num)
    ]
    found[0]["question"] = f"  {found[0]['question']} "
    found[1]["choices"][2] = "None"
    return found


def write(folder: Path) -> dict[str, Path]:
    """Write WMDP and MMLU as published, and each set as lines for the harness; return the latter by task."""
    parts = {name: questions(40, seed) for seed, name in enumerate(("bio", "chem", "cyber"))}
    subjects = {name: questions(30, seed + 10) for seed, name in enumerate(MMLU_SUBJECTS)}
    (folder / "wmdp").mkdir(parents=True)
    for part in ("dev", "test"):
        (folder / "mmlu" / part).mkdir(parents=True)
    lines = {}
    for name, several in {**{f"wmdp-{k}": v for k, v in parts.items()}, **subjects}.items():
        lines[name] = folder / "wmdp" / f"{name}.jsonl"
        lines[name].write_text("".join(json.dumps(one) + "\n" for one in several))
    for name, several in subjects.items():
        lines[name] = lines[name].rename(folder / f"{name}.jsonl")
        for part in ("dev", "test"):
            with (folder / "mmlu" / part / f"{name}_{part}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerows([o["question"], *o["choices"], "ABCD"[o["answer"]]] for o in several)
    return lines


def tasks_of(lines: dict[str, Path], folder: Path) -> Path:
    """Write the harness's own tasks with these files in place of what they download."""
    published = Path(lm_eval.__file__).parent / "tasks"
    folder.mkdir()
    for name, path in lines.items():
        own = published / ("wmdp" if name.startswith("wmdp") else "mmlu/default")
        file = own / f"{name.replace('-', '_') if name.startswith('wmdp') else f'mmlu_{name}'}.yaml"
        config = {
            **yaml.safe_load(file.read_text()),
            "include": str(own / "_default_template_yaml"),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "fewshot_split": None,
            "num_fewshot": 0,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def by_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Path, names: list[str]
) -> dict[str, float]:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        tasks=[f"local_{name}" for name in names],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    return {name: float(found["results"][f"local_{name}"]["acc,none"]) for name in names}


def test_accuracies_are_those_of_the_harness(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = tiny_model("llama", tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    lines = write(tmp_path / "data")
    wanted = by_harness(model, tokenizer, tasks_of(lines, tmp_path / "tasks"), list(lines))
    command = ["evaluate", "--suite", "wmdp", "--model", tmp_path / "model", "--data", tmp_path / "data" / "wmdp"]
    command += ["--mmlu", tmp_path / "data" / "mmlu", "--out", tmp_path / "out"]
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "out" / "results.json")
    counts = {**results.measured["wmdp"], **results.measured["mmlu"]}
    found = {name: one["num_right"] / one["num_questions"] for name, one in counts.items()}
    assert found == {name.removeprefix("wmdp-"): value for name, value in wanted.items()}
    assert len(set(found.values())) > 2
    assert results.scores.value("mmlu.accuracy") == sum(found[name] for name in MMLU_SUBJECTS) / 2
