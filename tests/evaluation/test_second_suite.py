"""A suite is one file and a reader: with these two a made-up one is scored, reported and studied, and nothing else."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from letheon import api
from letheon.cli.main import cli
from letheon.data.rows import Row, hash_rows, read_rows
from letheon.evaluation import suites
from letheon.evaluation.registry import read_results, suite_of
from letheon.evaluation.registry import suites as known_suites
from letheon.scores.predictions import read_predictions
from letheon.settings import EvaluateSettings
from letheon.studies.spec import StudySettings
from running import knowing_model, run, short_run

ITS_FILES = Path(__file__).parent / "second_suite"
OF_LUME = [score.label for score in suite_of("lume").scores if score.role in ("aggregate", "privacy", "general")]


@pytest.fixture(autouse=True)
def _stems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the suite's file where those of the others are, and its reader where it can be imported."""
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(ITS_FILES / "suites")])
    monkeypatch.syspath_prepend(ITS_FILES)
    known_suites.cache_clear()
    yield
    known_suites.cache_clear()
    for name in ("stems", "stems_reader"):
        sys.modules.pop(f"{suites.__name__}.{name}", None)


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The settings of a short run on a model that knows the rows, which lie in tables."""
    known = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    for name, some in (("forget", rows[:3]), ("retain", rows[3:])):
        known[name] = str(tmp_path / f"{name}.csv")
        with Path(known[name]).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["prompt", "answer"])
            table.writeheader()
            table.writerows({"prompt": row.prompt, "answer": row.answer} for row in some)
    return known


def evaluate(given: dict[str, Any], model: Path | str, out: Path) -> str:
    command = ["evaluate", "--suite", "stems", "--model", model, "--out", out]
    rows = [part for name in ("forget", "retain") for part in (f"--{name}", given[name])]
    done = CliRunner().invoke(cli, [str(part) for part in (*command, *rows)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_its_reader_and_ours_name_the_same_rows(given: dict[str, Any]) -> None:
    asked = suite_of("stems").ask(
        EvaluateSettings.of({**{n: given[n] for n in ("model", "forget", "retain", "out")}, "suite": "stems"}), None
    )
    assert hash_rows(asked.rows["forget"]) == hash_rows(read_rows(given["forget"]))


def test_an_evaluation_writes_its_scores_and_reads_them_back(given: dict[str, Any], tmp_path: Path) -> None:
    said = evaluate(given, given["model"], tmp_path / "e")
    assert "Stem sum" in said
    assert not [label for label in OF_LUME if label in said]
    results = read_results(tmp_path / "e" / "results.json")
    assert results.suite == "stems"
    values = {score.name: score.value or 0.0 for score in results.scores}
    found = read_predictions(tmp_path / "e" / "predictions.jsonl")
    stems = {one.split: [p.values["stem"] for p in found if p.split == one.split] for one in found}
    assert values["stems.left"] == sum(stems["retain"]) / len(stems["retain"])
    assert values["stems.sum"] == pytest.approx((1 - values["stems.gone"] + values["stems.left"]) / 2)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["predictions.jsonl", "results.json"]


def test_report_verdict_and_card_speak_of_its_scores_alone(given: dict[str, Any]) -> None:
    run(given, epochs=6)
    out = given["out"]
    evaluate(given, given["model"], out / "evaluation" / "before")
    evaluate(given, out / "model", out / "evaluation" / "after")
    page = api.write_report(out).read_text(encoding="utf-8")
    after = read_results(out / "evaluation" / "after" / "results.json").scores
    for label in ("Stems still there", "Stems of the others", "Stem sum", "how well stems were told apart"):
        assert label in page
    text = re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert not [label for label in OF_LUME if label in text]
    assert "no verdict" not in page
    assert "Cannot be checked" not in page
    assert f"the stem sum is {after.value('stems.sum'):.3f}" in page
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert "Stem sum" in card
    assert not [label for label in OF_LUME if label in card]


@pytest.mark.slow
def test_a_study_judges_by_its_score_and_tables_it(given: dict[str, Any], tmp_path: Path) -> None:
    base = {name: value for name, value in given.items() if name != "out"}
    settings = StudySettings.of(
        {"name": "stems", "base": base, "grid": {"gamma": [0.5, 1.0]}, "seeds": 1, "evaluate": {"suite": "stems"}}
    )
    out = tmp_path / "study"
    record = api.study(settings, out).record
    for one in record.runs:
        assert one.result is not None
        assert {"stems.sum", "forgotten", "retained"} <= one.result.scores.keys()
        assert not [name for name in one.result.scores if name.startswith(("mia", "task", "final", "mmlu"))]
    table = (out / "tables" / "scores.md").read_text(encoding="utf-8")
    assert "Stem sum" in table
    assert not [label for label in OF_LUME if label in table]
    assert "stems.sum" in json.loads((out / "study.json").read_text())["runs"][0]["states"][-1]["scores"]


def test_a_name_that_no_suite_has_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    command = ["evaluate", "--suite", "stem", "--out", tmp_path / "e", "--model", given["model"]]
    rows = [part for name in ("forget", "retain") for part in (f"--{name}", given[name])]
    done = CliRunner().invoke(cli, [str(part) for part in (*command, *rows)])
    assert done.exit_code != 0
    assert (
        "expected one of lume, muse, rwku, tofu, wmdp, stems, got 'stem' (did you mean 'stems'?)"
        in str(done.exception) + done.output
    )
