"""Populations and studies that are killed at any moment: the same command again comes to the same bytes."""

import os
import random
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import PreTrainedTokenizerBase

from killing import WRITES, Action, calls_of, cut_power, difference, kill
from letheon import api
from letheon.data.rows import Row
from letheon.settings import UnlearnSettings
from letheon.studies.spec import StudySettings
from letheon.training import checkpoint
from letheon.training.state import Run
from letheon.unlearning.populations import run as population_run
from letheon.unlearning.populations import run_population
from letheon.unlearning.populations.step import accumulate_together
from letheon.unlearning.problem import Problem
from running import knowing_model, short_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

STEPS = ("letheon.unlearning.populations.step.compose", "letheon.unlearning.populations.loop.update")
"""Before and after each run's share of a pass, and its step."""
STUDY = (*STEPS, "letheon.unlearning.problem.compose", "letheon.api.evaluate")

RUNS: dict[str, tuple[dict[str, Any], ...]] = {
    "mixed": (
        {"rank": 2, "seed": 1, "learning_rate_schedule": "linear"},
        {"rank": 3, "seed": 2, "batch_size": 3, "method": "npo", "keep": "best"},
        {"rank": 4, "seed": 3, "method": "pdu", "schedule": "paired", "max_batch_tokens": 24, "epochs": 2},
    ),
    "one ends early, one diverges": (
        {"rank": 2, "seed": 1, "max_steps": 2},
        {"rank": 3, "seed": 2, "learning_rate": 1e30, "checkpoint_epochs": 3},
        {"rank": 2, "seed": 3, "batch_size": 3, "checkpoint_minutes": 1e-9, "keep_checkpoints": 1},
    ),
    "one is given up": (
        {"rank": 2, "seed": 1, "checkpoint_epochs": 2},
        {"rank": 3, "seed": 2},
        {"rank": 2, "seed": 3, "batch_size": 3},
    ),
    "in parts": tuple({"rank": 2, "seed": seed, "epochs": 1} for seed in range(6)),
}


def no_hope_for_the_second(scores: Any, asked: Any) -> dict[Path, str]:
    return {folder: "no hope" for folder in asked if folder.name == "1" and scores[folder][-1].epoch == 2}


Company = tuple[tuple[str, int], ...]


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of a short run of a model that knows its rows."""
    model = knowing_model(tokenizer, rows)
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last", "cache_dir": tmp_path / "cache"}


@pytest.fixture(autouse=True)
def _always_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves by the clock come as often as they are asked for, and no figures are drawn."""
    monkeypatch.setattr(checkpoint, "LARGEST_SHARE", 1e9)
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())


def population(given: dict[str, Any], case: str) -> Action:
    """The same command each time: runs go on where there is something to go on with."""
    folder = Path(given["out"])

    def action() -> None:
        runs = [{**given, **one, "out": folder / str(n)} for n, one in enumerate(RUNS[case])]
        judge = no_hope_for_the_second if case == "one is given up" else None
        run_population([UnlearnSettings.of({**one, "resume": one["out"].exists()}) for one in runs], judge=judge)

    return action


def study(given: dict[str, Any], **changed: Any) -> Action:
    """A population of three, a run that goes alone, and their scores."""
    base = {name: value for name, value in given.items() if name != "out"}
    settings = StudySettings.of(
        {
            "base": {**base, "epochs": 1},
            "list": [{"gamma": 0.5}, {"rank": 3, "batch_size": 3, "epochs": 2}, {"name": "alone", "lora_dropout": 0.1}],
            "seeds": 1,
            "baselines": {"NPO": {"method": "npo", "learning_rate": 1e-2, "epochs": 1}},
            "evaluate": {"max_new_tokens": 2},
            **changed,
        }
    )
    return lambda: api.study(settings, given["out"])


def runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("run.yaml"))


def differences(whole: Path, folder: Path) -> dict[str, str]:
    """Where the runs in two folders differ, by run, and the tables of two studies."""
    names = [[str(path.relative_to(top)) for path in runs_in(top)] for top in (whole, folder)]
    if names[0] != names[1]:
        return {"runs": f"{names}"}
    found = {name: difference(whole / name, folder / name) for name in names[0]}
    table = Path("tables/runs.csv")
    if (whole / table).exists() and (whole / table).read_bytes() != (folder / table).read_bytes():
        found["tables"] = (folder / table).read_text()
    return {name: text for name, text in found.items() if text is not None}


def _noting(passes: list[Company], action: Action) -> None:
    """Do an action and note which runs, after which step each, go through the model together."""

    def noted(population: Any, runs: Mapping[int, Run[Problem]], rows: Any) -> Any:
        passes.append(tuple((run.checkpoints.parent.name, run.step) for run in runs.values() if run.checkpoints))
        return accumulate_together(population, runs, rows)

    with patch("letheon.unlearning.populations.loop.accumulate_together", noted):
        action()


class Killed:
    """An action that has been done once as a whole, and is then killed at one place after another."""

    def __init__(self, given: dict[str, Any], action: Action, places: tuple[str, ...]) -> None:
        self.folder, self.cache, self.places = Path(given["out"]), given["cache_dir"], places
        self.passes: list[Company] = []
        self.action: Action = partial(_noting, self.passes, action)
        self.number = calls_of(self.action, places)
        self.expected = set(self.passes)
        self.whole = Path(shutil.move(self.folder, self.folder.with_name("whole")))

    def outcomes(self, points: Collection[int], *, power_cut: bool = False) -> dict[int, dict[str, str]]:
        """What differs after a kill at each of the calls and doing the action again, where anything does."""
        found = {at: self._outcome(at, power_cut=power_cut) for at in points}
        return {at: outcome for at, outcome in found.items() if outcome}

    def _outcome(self, at: int, *, power_cut: bool) -> dict[str, str]:
        for left in (self.folder, self.cache):
            shutil.rmtree(left, ignore_errors=True)
        assert kill(self.action, self.places, at=at), f"{at}: there is no such call"
        if power_cut:
            for folder in (self.cache, *runs_in(self.folder)):
                cut_power(folder, random.Random(at))
        self.passes.clear()
        self.action()
        found = differences(self.whole, self.folder)
        # Whether the bits show it depends on the processor, so who trained beside whom is compared as well.
        strange = [company for company in self.passes if company not in self.expected]
        return {**found, "company": f"{strange}"} if strange else found

    def spread(self, wanted: int) -> list[int]:
        """Some of the calls, evenly, the first and the last among them."""
        return sorted({1 + round(i * (self.number - 1) / (wanted - 1)) for i in range(wanted)})


@pytest.mark.slow
def test_a_population_killed_in_the_middle(given: dict[str, Any]) -> None:
    killed = Killed(given, population(given, "mixed"), STEPS)
    assert killed.outcomes([killed.number // 3, 2 * killed.number // 3], power_cut=True) == {}


@pytest.mark.slow
def test_a_population_killed_between_the_saves_of_its_runs(given: dict[str, Any]) -> None:
    killed = Killed(given, population(given, "mixed"), ("letheon.training.loop.save_checkpoint",))
    assert killed.outcomes([killed.number // 2, killed.number // 2 + 1]) == {}


@pytest.mark.slow
def test_a_population_killed_where_a_run_is_given_up(given: dict[str, Any]) -> None:
    places = (
        "letheon.unlearning.populations.loop.write_divergence",
        "letheon.unlearning.populations.cohorts.fail_attempt",
    )
    killed = Killed(given, population(given, "one is given up"), places)
    assert killed.outcomes(range(1, killed.number + 1)) == {}
    assert killed.number == 4  # before and after each


@pytest.mark.slow
def test_a_study_killed_in_the_middle(given: dict[str, Any]) -> None:
    killed = Killed(given, study(given), STUDY)
    assert killed.outcomes([2 * killed.number // 3]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_population_killed_at_every_step(case: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "in parts":
        monkeypatch.setattr(population_run, "num_at_once", lambda *_, **__: 4)
    killed = Killed(given, population(given, case), STEPS)
    assert killed.outcomes(range(1, killed.number + 1, 2)) == {}
    assert killed.number >= 20


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("case", RUNS)
def test_a_population_killed_between_any_two_writes(
    case: str, power_cut: bool, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "in parts":
        monkeypatch.setattr(population_run, "num_at_once", lambda *_, **__: 4)
    killed = Killed(given, population(given, case), WRITES)
    assert killed.outcomes(killed.spread(40), power_cut=power_cut) == {}


@pytest.mark.slow
def test_a_study_killed_where_a_run_is_given_up(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def judge_of(configurations: Mapping[Path, str]) -> Any:
        return lambda scores, asked: {f: "no hope" for f in asked if "gamma" in configurations.get(f, "")}

    monkeypatch.setattr("letheon.studies.hopeless.median_judge", judge_of)
    listed = [{"gamma": 0.5, "epochs": 2}, {"rank": 3, "batch_size": 3, "epochs": 2}]
    places = (
        "letheon.unlearning.populations.loop.write_divergence",
        "letheon.studies.runner.write_json",
        "letheon.api.evaluate",
    )
    killed = Killed(given, study(given, list=listed, pruner="median"), places)
    failures = [path.read_text() for path in (killed.whole / "failures").iterdir()]
    assert len(failures) == 1
    assert "no hope" in failures[0]
    assert killed.outcomes(range(1, killed.number + 1)) == {}


@pytest.mark.slow
def test_a_study_killed_at_every_step(given: dict[str, Any]) -> None:
    killed = Killed(given, study(given), STUDY)
    assert killed.outcomes(range(1, killed.number + 1, 2)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"keep_models": True}, {"evaluate": {"max_new_tokens": 2, "epochs": [1]}}])
def test_a_study_killed_between_any_two_writes(changed: dict[str, Any], given: dict[str, Any]) -> None:
    killed = Killed(given, study(given, **changed), (*WRITES, "shutil.rmtree"))
    assert killed.outcomes(killed.spread(16)) == {}
