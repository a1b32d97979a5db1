"""A dial that is killed leaves the old result or the new one; a run that is killed in its dial goes on in the same."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import letheon
from killing import WRITES, calls_of, count_calls, difference, kill, outcome_of_kill, set_aside
from letheon import RedialSettings, Row, UnlearnSettings
from letheon.errors import OutputError
from letheon.report.files import read_run
from letheon.storage.locks import folder_lock
from letheon.storage.staged import finish_staged
from letheon.training.tracking import Silent
from letheon.unlearning.dial.search import Choice
from running import knowing_model, run, short_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

MEASUREMENTS = ("letheon.unlearning.dial.turn.measure", "letheon.unlearning.dial.turn.measure_reported")

BUDGETS = {"dial_forget_budget": 1.0, "dial_retain_budget": 1.0}
"""That bind nowhere: a small model in a short run may lose much."""


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of a short run on a model that knows the rows, and documents that it never saw."""
    holdout = tmp_path / "unseen.jsonl"
    texts = [f"A heron stood in {n} shallow waters until noon." for n in range(6)]
    holdout.write_text("".join(json.dumps({"document": text}) + "\n" for text in texts))
    made = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    return {**made, "keep": "last", "checkpoint_epochs": 3, "holdout": holdout, **BUDGETS}


def dial_it(folder: Path) -> None:
    letheon.dial(folder, RedialSettings.of({"dial": "forgotten"}))


def state_of(folder: Path) -> dict[str, Any]:
    """All that a dial changes, but for times; the cards, which are made from it, are left out."""
    files = [path for part in ("model", "adapter") for path in sorted((folder / part).glob("*"))]
    found: dict[str, Any] = {str(p.relative_to(folder)): p.read_bytes() for p in files if "README.md" not in p.name}
    result = json.loads((folder / "provenance.json").read_text())["result"]
    result.get("dial", {}).pop("duration_s", None)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in ("time", "duration_s")} for line in lines]
    return {**found, "result": result, "settings": (folder / "run.yaml").read_text(), "log": log}


def killed_anywhere(given: dict[str, Any], *, every: int) -> list[bool]:
    """Kill `letheon dial` before and after writes, and return at each whether the new result holds, else the old."""
    folder = run(given).folder
    old, kept = state_of(folder), folder.with_name("kept")
    shutil.copytree(folder, kept)
    number = calls_of(lambda: dial_it(folder), WRITES)
    new = state_of(folder)
    assert all(old[name] != new[name] for name in ("result", "settings", "log", "model/model.safetensors"))
    found = []
    for at in range(1, number + 1, every):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert kill(lambda: dial_it(folder), WRITES, at=at)
        finish_staged(folder, note=lambda _: None)
        state = state_of(folder)
        differs = [[name for name in {*state, *one} if state.get(name) != one.get(name)] for one in (old, new)]
        assert [] in differs, (at, differs)
        assert not (folder / "staged").exists()
        found.append(state == new)
        dial_it(folder)
        after = state_of(folder)
        assert {**after, "log": []} == {**new, "log": []}, at
        left = [path.name for path in folder.rglob(".letheon.*")]
        assert left == [], at
    return found


@pytest.mark.slow
def test_a_dial_that_is_killed_leaves_the_old_result_or_the_new_one(given: dict[str, Any]) -> None:
    found = killed_anywhere(given, every=41)
    assert {True, False} == set(found)
    assert found == sorted(found)  # once the new result holds, it stays


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"adapt": "weights", "learning_rate": 1e-3}], ids=["lora", "weights"])
def test_a_dial_that_is_killed_between_any_two_writes(
    more: dict[str, Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose_half(measure: Any, **_: Any) -> Choice:
        points = [measure(scale) for scale in (1.0, 0.0, 0.5)]
        return Choice.among(points, points[-1], "")

    monkeypatch.setattr("letheon.unlearning.dial.turn.choose_by_recall", choose_half)
    found = killed_anywhere({**given, **more}, every=3)
    assert found == sorted(found)


@pytest.mark.slow
def test_a_result_that_a_killed_dial_staged_is_put_in_place_by_whoever_opens_the_run(given: dict[str, Any]) -> None:
    folder = run(given).folder
    old = state_of(folder)

    # Killed as soon as the staged folder has its name: nothing of the run's own has changed yet.
    assert kill(lambda: dial_it(folder), ("letheon.storage.staged._put_in_place",), at=1)
    assert (folder / "staged" / "provenance.json").is_file()
    assert state_of(folder) == old
    letheon.write_report(folder)
    assert not (folder / "staged").exists()
    assert read_run(folder).settings["dial"] == "forgotten"
    assert state_of(folder)["result"]["dial"]["dial"] == "forgotten"


def test_a_run_in_use_is_not_dialled(given: dict[str, Any]) -> None:
    folder = run(given).folder
    with folder_lock(folder, note=Silent().note), pytest.raises(OutputError, match="is in use by process"):
        dial_it(folder)


@pytest.mark.parametrize("more", [{}, {"method": "npo-ties"}], ids=["one adapter", "several adapters"])
@pytest.mark.slow
def test_a_run_that_is_killed_in_its_dial_ends_in_the_same_bytes(more: dict[str, Any], given: dict[str, Any]) -> None:
    given = {**given, **more}
    number = count_calls(given, MEASUREMENTS)
    whole = set_aside(given)
    assert number >= 8
    for at in (1, number // 2):
        assert outcome_of_kill(given, whole, MEASUREMENTS, at=at) is None, at


@pytest.mark.slow
def test_weights_that_are_killed_in_their_dial_end_in_the_same_bytes(given: dict[str, Any]) -> None:
    given = {**given, "adapt": "weights", "learning_rate": 1e-3}
    number = count_calls(given, MEASUREMENTS)
    whole = set_aside(given)
    for at in range(1, number + 1):
        assert outcome_of_kill(given, whole, MEASUREMENTS, at=at) is None, at


@pytest.mark.slow
def test_a_run_with_a_dial_that_is_killed_between_writes_ends_in_the_same_bytes(
    given: dict[str, Any], tmp_path: Path
) -> None:
    given = {**given, "cache_dir": tmp_path / "cache"}
    number = count_calls(given, WRITES)
    whole = set_aside(given)
    found = {at: outcome_of_kill(given, whole, WRITES, at=at) for at in range(1, number + 1, 7)}
    assert {at: difference for at, difference in found.items() if difference} == {}


@pytest.mark.slow
def test_a_population_that_is_killed_in_a_dial_ends_in_the_same_bytes(given: dict[str, Any], tmp_path: Path) -> None:
    def train(*, resume: bool = False) -> None:
        runs = [{**given, "out": tmp_path / name, "seed": seed, "resume": resume} for seed, name in enumerate("ab")]
        letheon.unlearn_population([UnlearnSettings.of(one) for one in runs])

    number = calls_of(train, MEASUREMENTS)
    for name in "ab":
        shutil.move(tmp_path / name, tmp_path / f"whole-{name}")
    for at in (3, 2 * number // 3):
        assert kill(train, MEASUREMENTS, at=at)
        train(resume=True)
        for name in "ab":
            assert difference(tmp_path / f"whole-{name}", tmp_path / name) is None, (at, name)
            shutil.rmtree(tmp_path / name)
