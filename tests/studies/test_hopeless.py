"""Runs that are given up beside others: which ones, by hand; what they leave; a study through the real command."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.errors import SettingsError
from letheon.model.loading import save_model
from letheon.settings import UnlearnSettings
from letheon.studies.hopeless import median_judge
from letheon.studies.records import read_study_record
from letheon.studies.spec import read_study
from letheon.training.judge import StateScore
from letheon.unlearning.interim import interim_score
from letheon.unlearning.populations import GivenUpRun, run_population
from letheon.unlearning.record import RunReport
from running import events, knowing_model, short_run


def history(*scores: float) -> tuple[StateScore, ...]:
    """Scores after epoch 1, 2 and so on."""
    return tuple(StateScore(3 * n, n, {"score": score}) for n, score in enumerate(scores, 1))


def judged(scores: Mapping[str, tuple[StateScore, ...]], *asked: str) -> dict[str, str]:
    """Which are given up of runs that are called by configuration and seed, such as "a0"."""
    judge = median_judge({Path(name): name[0] for name in scores})
    found = judge({Path(name): of_one for name, of_one in scores.items()}, {Path(name) for name in asked})
    return {folder.name: reason for folder, reason in found.items()}


def test_below_the_median_of_the_others_is_hopeless() -> None:
    # The others' median: of a and b 0.6, of c and d 0.5.
    scores = {"a0": history(0.2), "b0": history(0.5), "c0": history(0.6), "d0": history(0.7)}
    reason = "given up after epoch 1: its best interim score is {}, the median of 3 other configurations there 0.600"
    assert judged(scores, *scores) == {"a0": reason.format("0.200"), "b0": reason.format("0.500")}
    assert list(judged(scores, "a0")) == ["a0"]


def test_what_was_better_before_is_kept_and_only_the_same_epoch_is_compared() -> None:
    others = {"b0": history(0.5, 0.6), "c0": history(0.6, 0.6), "d0": history(0.7, 0.6)}
    assert judged({"a0": history(0.65, 0.1), **others}, "a0") == {}
    assert list(judged({"a0": history(0.55, 0.1), **others}, "a0")) == ["a0"]
    # Of the others only two have come to epoch 2.
    assert judged({"a0": history(0.1, 0.1), **others, "d0": history(0.7)}, "a0") == {}


def test_a_configuration_is_given_up_with_all_its_seeds() -> None:
    # Means 0.4, 0.5, 0.5, 0.5: though one seed of a is the best of all runs.
    scores = {f"{name}{seed}": history(0.5) for name in "bcd" for seed in range(2)}
    scores |= {"a0": history(0.8), "a1": history(0.0)}
    assert list(judged(scores, *scores)) == ["a0", "a1"]


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Settings of a run of 9 steps, scored after 3, 6 and 9."""
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last"}


def test_a_run_that_is_given_up_leaves_the_others_and_is_no_result(given: dict[str, Any]) -> None:
    folders = [given["out"] / str(number) for number in range(3)]
    heard: list[tuple[set[str], set[str]]] = []

    def judge(scores: Any, asked: Any) -> dict[Path, str]:
        heard.append(({folder.name for folder in scores}, {folder.name for folder in asked}))
        return {folder: "no hope" for folder in asked if folder.name == "1"}

    runs = [UnlearnSettings.of({**given, "out": folder, "seed": seed}) for seed, folder in enumerate(folders)]
    reports = run_population(runs, judge=judge)
    assert reports[1] == GivenUpRun(folders[1], "no hope")
    assert [report.num_steps for report in reports if isinstance(report, RunReport)] == [9, 9]
    # After epochs 1 and 2; after the last there is nothing to be spared.
    assert heard == [({"0", "1", "2"}, {"0", "1", "2"}), ({"0", "1", "2"}, {"0", "2"})]
    assert [len(events(folder, "step")) for folder in folders] == [9, 3, 9]
    assert events(folders[1], "note")[-1]["message"] == "no hope"
    assert not (folders[1] / "model").exists()


def study_file(given: dict[str, Any], tmp_path: Path, **changed: Any) -> Path:
    base = {name: value for name, value in given.items() if name not in ("out", "evaluate")}
    rates = [{"name": f"rate {rate:g}", "learning_rate": rate} for rate in (1e-2, 1.1e-2, 1.2e-2, 1e-9)]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"base": base, "list": rates, "seeds": 2, **changed}))
    return path


@pytest.mark.slow
def test_a_study_gives_up_none_unless_asked_and_then_says_so(
    given: dict[str, Any],
    tmp_path: Path,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(knowing_model(tokenizer, rows), tokenizer, tmp_path / "knowing")
    given["model"] = str(tmp_path / "knowing")
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())

    def moved(*args: Any, **named: Any) -> StateScore:
        """How far the model has gone from what it knew, which a small one shows sooner than in its recall."""
        found = interim_score(*args, **named)
        loss = found.values["retain_loss"]
        assert loss is not None
        return replace(found, values={**found.values, "score": loss / (1 + loss)})

    monkeypatch.setattr("letheon.unlearning.judging.interim_score", moved)

    def states(out: Path) -> dict[str, str]:
        return {run.name: run.state for run in read_study_record(out).runs}

    def run_file(out: Path, **changed: Any) -> str:
        done = CliRunner().invoke(cli, ["study", str(study_file(given, tmp_path, **changed)), "--out", str(out)])
        assert done.exit_code == 0, done.output
        return done.output

    run_file(tmp_path / "all")
    assert set(states(tmp_path / "all").values()) == {"finished"}
    run_file(tmp_path / "some", pruner="median")
    found = states(tmp_path / "some")
    ended = {name for name, state in found.items() if state == "pruned"}
    assert {"rate 1e-09, seed 0", "rate 1e-09, seed 1"} <= ended
    assert set(found.values()) == {"pruned", "finished"}
    assert "given up after epoch 1: its best interim score is" in (tmp_path / "some" / "study.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "some" / "runs").rglob("log.jsonl")}
    run_file(tmp_path / "some", pruner="median")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_pruners_of_searches_are_refused_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("grid: {gamma: [0.5, 1.0]}\npruner: hyperband\n")
    with pytest.raises(SettingsError, match="hyperband ends runs of a search only; in a grid or list write median"):
        read_study(tmp_path / "study.yaml")
